"""`captory bench all`: every benchmark one after the other, each in a process of its own, and one table of targets.

A part that fails or runs out of its time is told and the others go on. Small sizes together stay within 40 minutes on
two cores: a part's limit is what it may take there, and all limits add up to just that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from captory_bench.measuring.subject import Say

Run = Callable[[Sequence[str], Path, float | None], int | None]

COMMAND = (sys.executable, "-c", "from captory_client.cli import main; main()", "bench")
TABLE_WIDTH = "120"
STOP_S = 15.0  # that a part has to end its children when it is told to stop


class Part(NamedTuple):
    """One benchmark: its options for small sizes and for full ones, and its limit at small sizes."""

    name: str
    limit_s: float
    small: tuple[str, ...] = ()
    full: tuple[str, ...] = ()


# What batch sizes pay is measured first: the servers of the others use it.
PARTS = (
    Part("profile", 75),
    Part("serve", 265, ("--images", "96", "--steps", "8"), ("--images", "256")),
    Part("sharing", 250, (), ("--images", "512", "--interactive", "60")),
    Part("guidance", 70, (), ("--full",)),
    Part("load", 270, ("--steps", "8"), ("--full",)),
    Part("growth", 115, (), ("--full",)),
    Part("peers", 960, ("--only", "diffusers,diffusers-1,litserve,ray,triton"), ("--full",)),
    Part("orchestrator", 240, (), ("--full",)),
    Part("kernels", 85),
    Part("writer", 70, ("--vllm", "none")),
)


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a part. `figures` is its JSON, None where it wrote none."""

    name: str
    seconds: float
    exit_code: int | None  # None: it ran out of its time
    figures: dict[str, Any] | None

    @property
    def right(self) -> bool:
        """Whether what was timed was checked and right."""
        return self.figures is not None and bool(self.figures.get("checks", {"ok": True})["ok"])

    @property
    def words(self) -> str:
        """How it went, for the table."""
        if self.exit_code is None:
            return "ran out of its time"
        if self.figures is None:
            return f"failed with exit code {self.exit_code}"
        if not self.right:
            return "outputs are wrong: their figures do not count"
        return "ran" if self.exit_code == 0 else f"ended with exit code {self.exit_code}"


def run_all(out: Path, *, full: bool, say: Say, run: Run | None = None, parts: Sequence[Part] = PARTS) -> list[Ran]:
    """Run the parts; each writes `bench-NAME.json` and `bench-NAME.txt`, its tables, into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    ran = []
    for part in parts:
        say(f"{_clock(time.monotonic() - started_s)} {part.name}")
        ran.append(_run_part(part, out, run or run_child, full=full))
        say(f"{_clock(time.monotonic() - started_s)} {part.name}: {ran[-1].words} ({ran[-1].seconds:.0f} s)")
    return ran


def _run_part(part: Part, out: Path, run: Run, *, full: bool) -> Ran:
    file = out / f"bench-{part.name}.json"
    file.unlink(missing_ok=True)  # an older run's figures are not this one's
    options = (part.name, "--out", str(file), *(part.full if full else part.small))
    started_s = time.monotonic()
    code = run([*COMMAND, *options], file.with_suffix(".txt"), None if full else part.limit_s)
    figures = json.loads(file.read_text()) if file.exists() else None
    return Ran(part.name, time.monotonic() - started_s, code, figures)


def run_child(command: Sequence[str], table: Path, limit_s: float | None) -> int | None:
    """Run one command; its tables go to a file. Returns its exit code, None past the limit."""
    with table.open("w") as kept:
        child = subprocess.Popen(command, stdout=kept, env={**os.environ, "COLUMNS": TABLE_WIDTH})  # noqa: S603 - ours
        try:
            return child.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End a child that still runs; servers that it started end with it."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(STOP_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _clock(seconds: float) -> str:
    return f"[{int(seconds) // 60:3d}:{int(seconds) % 60:02d}]"
