"""MLCommons LoadGen's runs: started as child processes, read from the summaries that it writes."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from captory_bench.load.loadgen_child import FAILURES, MODULE, OFFLINE, SERVER, LoadRun, library
from captory_bench.measuring.outcome import Outcome
from captory_bench.measuring.served import ArmFailed
from captory_bench.measuring.workload import Painting

PACKAGE = "mlcommons-loadgen"
CHILD = "captory_bench.load.loadgen_child"
SPARE_S = 120.0  # of a child, to start and to drain, over the seconds of its run
SUMMARY = "mlperf_log_summary.txt"
SAMPLES_PER_S = {OFFLINE: "Samples per second", SERVER: "Completed samples per second"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one run gave. `result` is LoadGen's own word, VALID or INVALID, where LoadGen ran."""

    rate_per_s: float
    samples_per_s: float
    p99_s: float
    num_failed: int
    result: str
    jobs: tuple[Painting, ...] = ()
    kept: Outcome | None = None


def installed() -> bool:
    """Whether LoadGen can be imported."""
    return find_spec(MODULE) is not None


async def run_loadgen(
    scenario: str, address: str, *, steps: int, rate_per_s: float, seconds: float, bound_s: float
) -> Verdict:
    """One run in a child process. Raises `ArmFailed` when it breaks, or when a query of Offline fails."""
    with TemporaryDirectory(prefix="captory-loadgen-") as folder:
        run = LoadRun(scenario, address, folder, steps, rate_per_s, seconds, bound_s)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", CHILD, run.to_json(), stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(2 * seconds + SPARE_S):
                _, words = await process.communicate()
        except TimeoutError:
            process.kill()
            raise ArmFailed(f"LoadGen's {scenario} run did not end") from None
        if process.returncode != 0:
            raise ArmFailed(f"LoadGen's {scenario} run ended with {process.returncode}: {words.decode()[-1000:]}")
        return read_run(run, Path(folder))


def read_run(run: LoadRun, folder: Path) -> Verdict:
    """What a run has left in its folder. Raises `ArmFailed` when a query of Offline has failed."""
    summary = read_summary((folder / SUMMARY).read_text())
    failures = json.loads((folder / FAILURES).read_text())
    if failures and run.scenario == OFFLINE:  # LoadGen counts a failed query as a sample
        raise ArmFailed(f"{len(failures)} queries of LoadGen's {OFFLINE} run failed: {failures[0]}")
    kept, jobs = Outcome(), []
    for path in sorted(folder.glob("*.png")):
        index, seed = map(int, path.stem.split("-"))
        job = library(run.steps)[index]
        jobs.append(Painting(path.stem, job.prompt, job.steps, seed))
        with Image.open(path) as image:
            kept.images[path.stem], kept.prompts[path.stem] = np.asarray(image.convert("RGB")), job.prompt
    return Verdict(
        rate_per_s=run.rate_per_s,
        samples_per_s=float(summary[SAMPLES_PER_S[run.scenario]]),
        p99_s=float(summary["99.00 percentile latency (ns)"]) / 1e9,
        num_failed=len(failures),
        result=summary["Result is"],
        jobs=tuple(jobs),
        kept=kept,
    )


def read_summary(text: str) -> dict[str, str]:
    """The lines `name : value` of LoadGen's summary."""
    return {name.strip(): value.strip() for name, value in re.findall(r"^ *([^:\n]+?) *: *(\S.*)$", text, re.MULTILINE)}
