"""The loop of one device: pick the next batch, run it, complete it. Knows queues and tasks, never tensors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any, NamedTuple, Protocol, TypeVar

from captory_engine.errors import CaptoryError, OutOfMemory, Unavailable, Unreachable
from captory_engine.items import WorkClass
from captory_engine.scheduler import RANKS, Batch, Entry, Profile, Shares, StageQueue, pick, pick_ahead

log = logging.getLogger(__name__)

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
        """Run one batch, in a lane's thread, maybe beside another; a row that ends says so on its task.

        Returns the rows computed.
        """
        ...

    def retire(self, task: TaskT) -> None:
        """Forget the task, ended or not, and free what it holds."""
        ...


@dataclass(slots=True)
class _Ticket:
    """A task's place in the loop."""

    task: Task
    work_class: WorkClass
    max_wait_s: float
    future: asyncio.Future[Any]
    entry: Entry | None = None
    running: bool = False
    alone: bool = False


@dataclass(slots=True)
class StageCounts:
    """Counters of one stage since the start. `seconds` are those in which batches ran, of all lanes together."""

    batches: int = 0
    useful_rows: int = 0
    computed_rows: int = 0
    seconds: float = 0.0
    batch_rows: Counter[int] = field(default_factory=Counter)
    max_rows: int = 0


class _Launched(NamedTuple):
    """A batch that a lane runs, or that stands ready for one."""

    batch: Batch
    tickets: Sequence[_Ticket]
    entries: Sequence[Entry]


class _Ran(NamedTuple):
    """What came of a batch: rows computed and seconds spent, and the error if it failed as a whole."""

    computed: int
    seconds: float
    error: Exception | None


class Device:
    """One device and its loop. Engines stand in pipeline order, upstream first.

    A device has lanes: batches that it runs at once. On a CPU a lane is a thread; a GPU has one.
    """

    def __init__(
        self, engines: Sequence[StepEngine[Any]], *, num_lanes: int = 1, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_lanes = num_lanes
        self.counts = {engine.name: StageCounts(max_rows=engine.profile.max_rows) for engine in engines}
        self._engines = {engine.name: engine for engine in engines}
        self._stages = [StageQueue(engine.name, engine.profile) for engine in engines]
        self._stage = {stage.name: stage for stage in self._stages}
        self._shares = Shares()
        self._tickets: dict[int, _Ticket] = {}
        self._num_tasks = Counter[WorkClass]()
        self._ids = count()
        self._changed = asyncio.Event()
        self._in_flight: dict[Future[_Ran], _Launched] = {}
        self._landed = asyncio.Event()
        self._places = {
            (engine.name, work_class): asyncio.Semaphore(engine.profile.max_tasks)
            for engine in engines
            for work_class in WorkClass
        }
        self._clock = clock
        self._started_s = clock()
        self._threads = ThreadPoolExecutor(num_lanes, thread_name_prefix="captory-lane")

    async def serve(self) -> None:
        """The loop. Runs until cancelled."""
        while True:
            batch = self._pick()
            if batch is None:
                await self._changed.wait()
                self._changed.clear()
            else:
                self._launch(batch)

    @property
    def answers(self) -> bool:
        """Whether work that comes now is begun now; a device elsewhere may be away."""
        return True

    @property
    def uptime_s(self) -> float:
        """Seconds since the device was made."""
        return self._clock() - self._started_s

    async def submit(self, stage: str, task: Task, work_class: WorkClass = WorkClass.BULK) -> Any:
        """Run one task to its end and return its result. Cancelling the caller takes the task out within a step.

        A stage holds a bounded number of tasks of each class, and so of slots; further callers wait for a place.
        """
        async with self._places[stage, work_class]:
            task_id = next(self._ids)
            max_wait_s = self._stage[stage].profile.max_wait_s[work_class]
            ticket = _Ticket(task, work_class, max_wait_s, asyncio.get_running_loop().create_future())
            self._tickets[task_id] = ticket
            self._num_tasks[work_class] += 1
            self._enqueue(stage, task_id, ticket, self._clock())
            self._changed.set()
            if work_class is WorkClass.INTERACTIVE:
                self._recall()
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
        while self._in_flight:
            self._landed.clear()
            await self._landed.wait()
        self._threads.shutdown(wait=True)
        self.fail(Unavailable("CLOSED", "the engine is shutting down"))

    def fail(self, error: Exception) -> None:
        """Give every waiting caller an error: nothing will run any more."""
        for ticket in self._tickets.values():
            if not ticket.future.done():
                ticket.future.set_exception(error)

    def _enqueue(self, stage: str, task_id: int, ticket: _Ticket, now_s: float) -> None:
        key, rows = self._engines[stage].need(ticket.task)
        lane = (key, task_id if ticket.alone else None)
        rank, overdue_s = RANKS[ticket.work_class], now_s + ticket.max_wait_s
        ticket.entry = Entry(rank, task_id, lane, rows, now_s, overdue_s)
        self._stage[stage].add(ticket.entry)

    def _pick(self) -> Batch | None:
        """For a lane that is free, or else one batch to stand ready for the first that will be.

        Nothing stands ready while there is interactive work, whose next step could then not follow at once.
        """
        num_free = self.num_lanes - len(self._in_flight)
        if num_free > 0:
            return pick(self._stages, self._shares, self._clock())
        if num_free == 0 and not self._num_tasks[WorkClass.INTERACTIVE]:
            return pick_ahead(self._stages, self._shares, self._clock())
        return None

    def _launch(self, batch: Batch) -> None:
        stage, tickets = self._stage[batch.stage], [self._tickets[task_id] for task_id in batch.task_ids]
        entries = [ticket.entry for ticket in tickets if ticket.entry is not None]
        for ticket, entry in zip(tickets, entries, strict=True):
            stage.remove(entry)
            ticket.entry, ticket.running = None, True
        stage.launch(batch)
        loop = asyncio.get_running_loop()
        running = self._threads.submit(self._run, self._engines[batch.stage], batch, [one.task for one in tickets])
        self._in_flight[running] = _Launched(batch, tickets, entries)
        running.add_done_callback(lambda ran: ran.cancelled() or loop.call_soon_threadsafe(self._land, ran))

    def _recall(self) -> None:
        """Interactive work has come: bulk work that stands ready and has not begun gives way to it."""
        for running, launched in list(self._in_flight.items()):
            if not launched.batch.rows_of[RANKS[WorkClass.INTERACTIVE]] and running.cancel():
                del self._in_flight[running]
                self._take_back(launched)
                self._landed.set()

    def _take_back(self, launched: _Launched) -> None:
        """Everything waits again as if it had not been launched, as long as it has waited already."""
        stage = self._stage[launched.batch.stage]
        stage.land(launched.batch)
        for ticket, entry in zip(launched.tickets, launched.entries, strict=True):
            ticket.running = False
            if ticket.future.done():  # its caller left meanwhile
                self._retire(stage.name, entry.task_id, ticket)
            else:
                ticket.entry = entry
                stage.add(entry)

    def _run(self, engine: StepEngine[Any], batch: Batch, tasks: Sequence[Task]) -> _Ran:
        """One batch, in a lane."""
        started_s = self._clock()
        try:
            computed, error = engine.run(tasks), None
        except Exception as raised:  # one bad row must not fail its mates, whatever the engine raised
            computed, error = batch.rows, raised
        return _Ran(computed, self._clock() - started_s, error)

    def _land(self, running: Future[_Ran]) -> None:
        (batch, tickets, _), ran = self._in_flight.pop(running), running.result()
        self._changed.set()
        self._landed.set()
        stage = self._stage[batch.stage]
        stage.land(batch)
        self._shares.charge({rank: rows * stage.profile.row_cost for rank, rows in batch.rows_of.items()})
        self._count(batch, ran)
        self._judge(batch, tickets, ran.error)
        now_s = self._clock()
        for task_id, ticket in zip(batch.task_ids, tickets, strict=True):
            self._complete(batch.stage, task_id, ticket, now_s)

    def _judge(self, batch: Batch, tickets: Sequence[_Ticket], error: Exception | None) -> None:
        """What becomes of the rows of a batch: they go on, or are tried again in smaller company."""
        if error is None:
            for ticket in tickets:
                ticket.alone = False
        elif isinstance(error, OutOfMemory) and len(tickets) > 1:
            self._shrink(batch)
        elif isinstance(error, Unreachable):
            for ticket in tickets:
                ticket.task.error = error
        else:
            self._isolate(tickets, error)

    def _shrink(self, batch: Batch) -> None:
        """What did not fit into memory is run again in smaller batches, and no later one is as large."""
        stage = self._stage[batch.stage]
        stage.lower(batch)
        self.counts[batch.stage].max_rows = stage.max_rows
        log.warning(
            "%s: %d rows do not fit into memory; from now on at most %d", stage.name, batch.rows, stage.max_rows
        )

    def _isolate(self, tickets: Sequence[_Ticket], error: Exception) -> None:
        """A failed batch is run again row by row, once; a row that fails alone fails."""
        if not isinstance(error, CaptoryError):
            log.exception("a batch of %d rows failed", len(tickets), exc_info=error)
        for ticket in tickets:
            if len(tickets) == 1:
                ticket.task.error = error
            ticket.alone = True

    def _complete(self, stage: str, task_id: int, ticket: _Ticket, now_s: float) -> None:
        ticket.running = False
        if ticket.future.done():  # its caller left while the batch ran
            self._retire(stage, task_id, ticket)
        elif ticket.task.error is not None:
            ticket.future.set_exception(ticket.task.error)
        elif ticket.task.ended:
            ticket.future.set_result(ticket.task.result)
        else:
            self._enqueue(stage, task_id, ticket, now_s)

    def _leave(self, stage: str, task_id: int, ticket: _Ticket) -> None:
        """The caller is gone. What runs now is retired when its batch lands; all else at once."""
        if ticket.entry is not None:
            self._stage[stage].remove(ticket.entry)
            ticket.entry = None
        if not ticket.running:
            self._retire(stage, task_id, ticket)

    def _retire(self, stage: str, task_id: int, ticket: _Ticket) -> None:
        if self._tickets.pop(task_id, None) is not None:
            self._num_tasks[ticket.work_class] -= 1
            self._engines[stage].retire(ticket.task)

    def _count(self, batch: Batch, ran: _Ran) -> None:
        counts = self.counts[batch.stage]
        counts.batches += 1
        counts.useful_rows += batch.rows
        counts.computed_rows += ran.computed
        counts.seconds += ran.seconds
        counts.batch_rows[ran.computed] += 1
