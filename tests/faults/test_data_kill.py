"""SIGKILL at every flush and rename, in SQLite's own writes, and between items; then the next run and the oracle."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from data_fakes import Maker, job_spec, photo_folder, requested, run, run_durably
from oracle import judge

from captory_data.batching import BatchLimits
from captory_data.dataset import Batch, Dataset
from captory_data.spec import JobSpec
from captory_data.verify import verify

SPEC = job_spec(per_image=2)
LIMITS = BatchLimits(max_images=4, max_age_s=1e9)
TRACED = "pwrite64,fdatasync,fsync,rename,renameat2,unlink"


CLEAN = multiprocessing.get_context("forkserver")
"""Children of a process that has only imported things: forking pytest itself, with the threads of gRPC and Arrow
in it, hangs now and then."""


def in_a_child(work: Callable[..., None], *arguments: Any) -> int:
    """Run it in a process of its own; how that process ended."""
    CLEAN.set_forkserver_preload([__name__, "webdataset", "pyarrow.parquet", "pandas"])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)):
        child = CLEAN.Process(target=work, args=arguments)
        child.start()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def log_acknowledged(log: Path) -> None:
    """From now on, write down in `log` each image that was said to be published."""
    publish = Dataset.publish

    def logged(self: Dataset, batch: Batch) -> None:
        publish(self, batch)
        with open(log, "a") as file:
            file.writelines(f"{sample.record.id}\n" for sample in batch.samples)

    Dataset.publish = logged  # type: ignore[method-assign]


def acknowledged(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


class KillAt:
    """Counts the calls of `os.fsync` and `os.replace`, and kills the process before or after one of them."""

    def __init__(self, when: int, after: bool) -> None:
        self.count = 0
        self.when = when
        self.after = after
        os.fsync = self.wrapped(lambda descriptor: None)
        os.replace = self.wrapped(os.replace)
        os.unlink = self.wrapped(os.unlink)

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            if self.count == self.when and not self.after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*arguments, **options)
            if self.count == self.when:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def run_until_killed(root: Path, out: Path, log: Path, spec: JobSpec, when: int, after: bool) -> None:
    """One run that dies at the `when`-th flush or rename."""
    log_acknowledged(log)
    KillAt(when, after)
    with patch("captory_data.database.SYNCHRONOUS", "OFF"):  # a kill loses nothing that was written
        run_durably(root, out, spec=spec, batch_limits=LIMITS)


def run_until_item(root: Path, out: Path, log: Path, items: int, window: int) -> None:
    """One run that dies when it is given item number `items`."""
    log_acknowledged(log)
    kill = Maker(at_item=lambda count: os.kill(os.getpid(), signal.SIGKILL) if count == items else None)
    run(root, out, kill, SPEC, batch_limits=LIMITS, window=window)


@pytest.mark.parametrize(
    ("output_format", "after", "step"),
    [("webdataset", False, 1), ("webdataset", True, 3), ("imagefolder", False, 3), ("parquet", False, 3)],
)
def test_killed_at_each_flush_and_rename(tmp_path: Path, output_format: str, after: bool, step: int) -> None:
    root = photo_folder(tmp_path / "in", per_class=2)
    spec = job_spec(per_image=2, output_format=output_format)
    wanted = requested(root, spec)
    for when in range(1, 200, step):
        out, log = tmp_path / f"{when}", tmp_path / f"{when}.log"
        status = in_a_child(run_until_killed, root, out, log, spec, when, after)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        last = run(root, out, spec=spec, batch_limits=LIMITS)
        verdict = judge(out, wanted, acknowledged(log))
        assert verdict.clean, (when, verdict)
        assert verdict.published == wanted
        assert last.images <= len(wanted) - len(acknowledged(log))
        shutil.rmtree(out)
    assert when > 10


def test_killed_between_items(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice, root, out = random.Random(seed), photo_folder(tmp_path / "in", per_class=40), tmp_path / "out"
    log, wanted = tmp_path / "log", requested(root, SPEC)
    window = 8
    for _ in range(6):
        before, items = len(acknowledged(log)), dice.randrange(5, 30)
        if in_a_child(run_until_item, root, out, log, items, window) == 0:
            break
        lost_at_most = window * SPEC.per_image + 2 * LIMITS.max_images
        assert len(acknowledged(log)) - before >= items * SPEC.per_image - lost_at_most
    summary = run(root, out, spec=SPEC)
    assert judge(out, wanted, acknowledged(log)).clean
    assert summary.images + summary.skipped == len(wanted)
    assert verify(out).ok


def can_trace() -> bool:
    try:
        return subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_trace(), reason="strace is missing or not allowed")
def test_killed_in_the_database(tmp_path: Path) -> None:
    """SQLite writes, flushes and renames out of Python's sight: strace kills there."""
    root = photo_folder(tmp_path / "in", per_class=2)
    wanted = requested(root, SPEC)
    script = f"import sys; sys.path[:0] = {sys.path!r}\nfrom pathlib import Path\nfrom data_fakes import *\n"
    script += f"run_durably(Path({str(root)!r}), Path(sys.argv[1]), spec=job_spec(per_image=2))"
    kills = 0
    for when in (2, 6, 11):
        out = tmp_path / f"{when}"
        inject = f"inject={TRACED}:signal=KILL:when={when}"
        trace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={TRACED}", "-e", inject]
        process = subprocess.run([*trace, sys.executable, "-c", script, str(out)], capture_output=True, check=False)
        kills += process.returncode != 0
        run(root, out, spec=SPEC)
        verdict = judge(out, wanted)
        assert verdict.clean, (when, verdict)
        assert verdict.published == wanted
    assert kills >= 1
