"""The machine's matrix-multiply rate: float32, squares of several sizes, the best of all runs on one thread.

A program of its own, since NumPy's threads are fixed when it is loaded. Several of it at once, one a CPU, give the
rate of the whole machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

SIZES = (256, 384, 512, 768, 1024, 1536)
NUM_RUNS = 8
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
TIMEOUT_S = 300.0


def matmul_peak(num_lanes: int) -> float:
    """GFLOP/s of NumPy's matrix multiplication, in so many processes of one thread at once."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
    command = [sys.executable, "-m", "captory_bench.kernels.matmul_peak"]
    lanes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)  # noqa: S603
        for _ in range(num_lanes)
    ]
    rates: list[dict[str, float]] = [json.loads(lane.communicate(timeout=TIMEOUT_S)[0]) for lane in lanes]
    return sum(max(by_size.values()) for by_size in rates)


def measure() -> dict[int, float]:
    """GFLOP/s by size, by CPU time of this thread, in which other work on the machine does not count."""
    import numpy as np

    rng = np.random.default_rng(0)
    rates = {}
    for size in SIZES:
        left, right, product = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(3))
        best_s = float("inf")
        for _ in range(NUM_RUNS):
            started = time.thread_time()
            np.matmul(left, right, out=product)
            best_s = min(best_s, time.thread_time() - started)
        rates[size] = 2 * size**3 / best_s / 1e9
    return rates


if __name__ == "__main__":
    print(json.dumps(measure()))
