"""`python -m captory_bench.gpu`: needs torch, NumPy, diffusers and this repository, and no network."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from pathlib import Path

import torch

from captory_bench.gpu.clock import stop_after
from captory_bench.gpu.report import to_text
from captory_bench.gpu.run import WEIGHTS, Order, Run

RESULTS = Path(__file__).parents[2] / "results"
BUDGET_S = 450.0
GRACE_S = 15.0  # for what was begun within the budget


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0 when all checks hold, 1 when not, 2 without a GPU, 3 when the budget ended the run."""
    order = _order(_parser().parse_args(arguments))
    if order is None:
        print("There is no GPU here. `--tiny` runs the same code on the CPU, at tiny sizes.", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", module="diffusers")
    run = Run(order)
    timer = stop_after(order.budget_s + GRACE_S, run.stop)
    record = run.run()
    timer.cancel()
    print(to_text(record), end="")
    return 0 if record["checks"]["ok"] else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="captory_bench.gpu", description=main.__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU, to see that everything runs")
    parser.add_argument("--out", type=Path, help="the JSON file; the table is written beside it")
    parser.add_argument("--name", help="of the result, instead of the GPU's")
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), help="of the weights; bf16 on a GPU")
    parser.add_argument("--budget-s", type=float, default=BUDGET_S, help="seconds that the run may take")
    parser.add_argument(
        "--only", action="append", choices=tuple(WEIGHTS), default=[], help="a section; may be repeated"
    )
    return parser


def _order(options: argparse.Namespace) -> Order | None:
    if not options.tiny and not torch.cuda.is_available():
        return None
    device, dtype = ("cpu", "fp32") if options.tiny else ("cuda:0", "bf16")
    return Order(
        tiny=options.tiny,
        device=device,
        dtype=options.dtype or dtype,
        budget_s=options.budget_s,
        out=options.out or (None if options.tiny else RESULTS / f"gpu-{options.name or _gpu_name()}.json"),
        only=frozenset(options.only),
        say=lambda words: print(words, file=sys.stderr, flush=True),
    )


def _gpu_name() -> str:
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
