"""The loop of one device: pick the next batch, run it, complete it. Knows queues and tasks, never tensors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeVar

from captory_engine.errors import CaptoryError, Unavailable
from captory_engine.items import WorkClass
from captory_engine.scheduler import RANKS, Batch, Entry, Profile, StageQueue, pick

log = logging.getLogger(__name__)

# Tasks of a class that a stage holds, in full batches: enough for the policy to choose from, and no more.
PLACES = 4

TaskT = TypeVar("TaskT", bound="Task", contravariant=True)


class Need(NamedTuple):
    """What a task's next step needs: tasks of equal key share a batch, `rows` is the step's price."""

    key: Hashable
    rows: int


@dataclass(slots=True)
class Task:
    """One row of an engine's work from join to retirement. The engine sets `result` or `error` when it ends."""

    result: Any = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to run."""
        return self.result is not None or self.error is not None


class StepEngine(Protocol[TaskT]):
    """A captioner, a writer and a painter are the same thing: items in flight, one batched step, some finish."""

    name: str
    profile: Profile

    def need(self, task: TaskT) -> Need:
        """Say what is runnable."""
        ...

    def run(self, tasks: Sequence[TaskT]) -> int:
        """Run one batch, in the device's thread; a row that ends says so on its task. Returns the rows computed."""
        ...

    def retire(self, task: TaskT) -> None:
        """Forget the task, ended or not, and free what it holds."""
        ...


@dataclass(slots=True)
class _Ticket:
    """A task's place in the loop."""

    task: Task
    work_class: WorkClass
    arrival: int
    future: asyncio.Future[Any]
    entry: Entry | None = None
    running: bool = False
    alone: bool = False


@dataclass(slots=True)
class StageCounts:
    """Counters of one stage since the start."""

    batches: int = 0
    useful_rows: int = 0
    computed_rows: int = 0
    seconds: float = 0.0
    batch_rows: Counter[int] = field(default_factory=Counter)


class Device:
    """One device and its loop. Engines stand in pipeline order, upstream first."""

    def __init__(
        self, engines: Sequence[StepEngine[Any]], *, max_in_flight: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._engines = {engine.name: engine for engine in engines}
        self._stages = [StageQueue(engine.name, engine.profile) for engine in engines]
        self._stage = {stage.name: stage for stage in self._stages}
        self._tickets: dict[int, _Ticket] = {}
        self._ids = count()
        self._changed = asyncio.Event()
        self._in_flight: set[asyncio.Task[None]] = set()
        self._max_in_flight = max_in_flight
        self._places = {
            (engine.name, work_class): asyncio.Semaphore(PLACES * engine.profile.max_rows)
            for engine in engines
            for work_class in WorkClass
        }
        self._clock = clock
        self._threads = ThreadPoolExecutor(max_in_flight, thread_name_prefix="captory-device")
        self.counts = {engine.name: StageCounts() for engine in engines}

    async def serve(self) -> None:
        """The loop. Runs until cancelled."""
        while True:
            batch = pick(self._stages, self._clock()) if len(self._in_flight) < self._max_in_flight else None
            if batch is None:
                await self._changed.wait()
                self._changed.clear()
            else:
                self._launch(batch)

    async def submit(self, stage: str, task: Task, work_class: WorkClass = WorkClass.BULK) -> Any:
        """Run one task to its end and return its result. Cancelling the caller takes the task out within a step.

        A stage holds a bounded number of tasks of each class, and so of slots; further callers wait for a place.
        """
        async with self._places[stage, work_class]:
            task_id = next(self._ids)
            ticket = _Ticket(task, work_class, task_id, asyncio.get_running_loop().create_future())
            self._tickets[task_id] = ticket
            self._enqueue(stage, task_id, ticket)
            try:
                return await ticket.future
            finally:
                self._leave(stage, task_id, ticket)

    @property
    def num_tasks(self) -> int:
        """Tasks that joined and have not left."""
        return len(self._tickets)

    async def close(self) -> None:
        """Wait for the batches in flight, then end the threads."""
        await asyncio.gather(*self._in_flight, return_exceptions=True)
        self._threads.shutdown(wait=True)
        self.fail(Unavailable("CLOSED", "the engine is shutting down"))

    def fail(self, error: Exception) -> None:
        """Give every waiting caller an error: nothing will run any more."""
        for ticket in self._tickets.values():
            if not ticket.future.done():
                ticket.future.set_exception(error)

    def _enqueue(self, stage: str, task_id: int, ticket: _Ticket) -> None:
        key, rows = self._engines[stage].need(ticket.task)
        now = self._clock()
        overdue = now + self._stage[stage].profile.max_wait_s[ticket.work_class]
        lane = (key, task_id) if ticket.alone else (key, None)
        ticket.entry = Entry(RANKS[ticket.work_class], ticket.arrival, task_id, lane, rows, now, overdue)
        self._stage[stage].add(ticket.entry)
        self._changed.set()

    def _launch(self, batch: Batch) -> None:
        for task_id in batch.task_ids:
            ticket = self._tickets[task_id]
            assert ticket.entry is not None
            self._stage[batch.stage].remove(ticket.entry)
            ticket.entry, ticket.running = None, True
        self._stage[batch.stage].in_flight += 1
        running = asyncio.create_task(self._run(batch))
        self._in_flight.add(running)
        running.add_done_callback(self._landed)

    def _landed(self, running: asyncio.Task[None]) -> None:
        self._in_flight.discard(running)
        self._changed.set()

    async def _run(self, batch: Batch) -> None:
        engine, tickets = self._engines[batch.stage], [self._tickets[task_id] for task_id in batch.task_ids]
        started = self._clock()
        try:
            computed = await asyncio.get_running_loop().run_in_executor(
                self._threads, engine.run, [ticket.task for ticket in tickets]
            )
        except Exception as error:  # one bad row must not fail its mates, whatever the engine raised
            self._isolate(tickets, error)
            computed = batch.rows
        else:
            for ticket in tickets:
                ticket.alone = False
        self._stage[batch.stage].in_flight -= 1
        self._count(batch, computed, self._clock() - started)
        for task_id, ticket in zip(batch.task_ids, tickets, strict=True):
            self._complete(batch.stage, task_id, ticket)

    def _isolate(self, tickets: list[_Ticket], error: Exception) -> None:
        """A failed batch is run again row by row, once; a row that fails alone fails."""
        if not isinstance(error, CaptoryError):
            log.exception("a batch of %d rows failed", len(tickets), exc_info=error)
        for ticket in tickets:
            if len(tickets) == 1:
                ticket.task.error = error
            ticket.alone = True

    def _complete(self, stage: str, task_id: int, ticket: _Ticket) -> None:
        ticket.running = False
        if ticket.future.done():  # its caller left while the batch ran
            self._retire(stage, task_id, ticket)
        elif ticket.task.error is not None:
            ticket.future.set_exception(ticket.task.error)
        elif ticket.task.ended:
            ticket.future.set_result(ticket.task.result)
        else:
            self._enqueue(stage, task_id, ticket)

    def _leave(self, stage: str, task_id: int, ticket: _Ticket) -> None:
        """The caller is gone. What runs now is retired when its batch lands; all else at once."""
        if ticket.entry is not None:
            self._stage[stage].remove(ticket.entry)
            ticket.entry = None
        if not ticket.running:
            self._retire(stage, task_id, ticket)

    def _retire(self, stage: str, task_id: int, ticket: _Ticket) -> None:
        if self._tickets.pop(task_id, None) is not None:
            self._engines[stage].retire(ticket.task)

    def _count(self, batch: Batch, computed: int, seconds: float) -> None:
        counts = self.counts[batch.stage]
        counts.batches += 1
        counts.useful_rows += batch.rows
        counts.computed_rows += computed
        counts.seconds += seconds
        counts.batch_rows[computed] += 1
