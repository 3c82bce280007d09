"""The command as a person calls it: a child process, its exit code, its one JSON object."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

COMMAND = Path(sys.executable).parent / "captory"
SAMPLE = Path(__file__).parents[2] / "clients" / "captory_client" / "sample"
PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "photos"


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    summary: dict[str, Any]
    stderr: str


def captory(*words: str | Path, timeout_s: float = 240.0) -> Outcome:
    """Run `captory WORDS…`; a command that prints JSON has it in `summary`."""
    done = subprocess.run([COMMAND, *map(str, words)], capture_output=True, text=True, timeout=timeout_s, check=False)
    summary = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    return Outcome(done.returncode, summary, done.stderr)


def run(source: Path, out: Path, *words: str) -> Outcome:
    """`captory run` with few steps and a JSON summary."""
    steps = () if (out / "manifest.json").exists() or "--steps" in words else ("--steps", "2", "--guidance", "1")
    return captory("run", source, "--out", out, "--json", *steps, *words)
