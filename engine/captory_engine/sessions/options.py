"""What a backend is told when it opens a model."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


def available_cpus() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """Resolved options of a session; `providers` are ONNX Runtime's, in the order of preference.

    `spin` lets idle threads burn CPU to wake sooner: good for one session alone, bad for several on few cores.
    """

    num_threads: int = field(default_factory=available_cpus)
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    spin: bool = False
