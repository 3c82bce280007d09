"""How the arms that run in one process use the CPUs: one worker with all threads, or a worker with one thread for each.

Which of the two is faster depends on the graphs and the machine, so both are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from captory_bench.measuring.graphs import Graphs, open_graphs
from captory_engine.sessions.options import available_cpus

Work = TypeVar("Work")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Crew:
    """Worker threads that run batches of their own side by side, over the same graphs of `num_threads` each."""

    graphs: Graphs
    num_workers: int = 1
    num_threads: int = 1

    def map(self, function: Callable[[Work], Result], batches: Sequence[Work]) -> list[Result]:
        """Every batch's result in order; a worker takes the next batch when it is free."""
        with ThreadPoolExecutor(self.num_workers) as workers:
            return list(workers.map(function, batches))

    def __str__(self) -> str:
        workers, threads = _counted(self.num_workers, "worker"), _counted(self.num_threads, "thread")
        return f"{workers} of {threads}"


def open_crews(repository: Path, family: str, backend: str, num_threads: int) -> list[Crew]:
    """The two ways to use `num_threads` (0: all CPUs), or the one where there is one thread. Raises `BadModel`."""
    threads = num_threads or available_cpus()
    ways = {(1, threads), (threads, 1)}
    return [
        Crew(open_graphs(repository, family, backend=backend, num_threads=each), workers, each)
        for workers, each in sorted(ways)
    ]


def _counted(num: int, what: str) -> str:
    return f"{num} {what}{'' if num == 1 else 's'}"
