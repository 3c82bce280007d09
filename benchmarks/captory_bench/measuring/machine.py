"""On what was measured: hardware, versions, the commit, load."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from captory_engine.sessions.options import available_cpus

RESULTS = "benchmarks/results"  # what a run has just written there does not make its tree another
PACKAGES = ("captory", "onnxruntime", "numpy", "grpcio", "protobuf", "pillow")


def describe_machine(num_threads: int) -> dict[str, Any]:
    """Plain values for the record. A load average above the CPUs means that times are noisy."""
    return {
        "cpu": _cpu_model(),
        "cpus": available_cpus(),
        "threads": num_threads or available_cpus(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "commit": _commit(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def _commit() -> str | None:
    """That of the checkout which this file is in, with `-dirty` when the tree is not clean; None without one."""
    git, root = shutil.which("git"), Path(__file__).resolve().parents[3]
    if git is None or not (root / ".git").exists():
        return None

    def ask(*words: str) -> str:
        return subprocess.run(  # noqa: S603 - git, and words of ours
            [git, "-C", str(root), *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = ask("status", "--porcelain", "--", ".", f":!{RESULTS}")
        return ask("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except subprocess.CalledProcessError:  # git does not trust the folder, or there is no commit yet
        return None


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, all its threads; 0 where the system does not tell (it has no /proc)."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    user, system = stat.read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def package_version(name: str) -> str:
    """The installed version of a package, or that there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
