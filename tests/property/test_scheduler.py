"""The policy by simulation: nobody starves, bounds hold, every task is released once, saturated batches are full."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from captory_engine.items import WorkClass
from captory_engine.scheduler import WEIGHTS, Entry, Profile, Shares, StageQueue, pick

CHAIN = ("vision", "caption", "text", "denoise", "vae")


@dataclass
class Job:
    """A simulated item: how many steps each stage takes, its denoising key and rows a step."""

    id: int
    steps: dict[str, int]
    key: str
    rows: int
    rank: int
    stage: int = 0
    done: int = 0


class Simulation:
    """A device with a virtual clock: one batch at a time, every batch costs its rows plus one."""

    def __init__(self, profiles: dict[str, Profile]) -> None:
        self.shares = Shares()
        self.stages = [StageQueue(name, profiles[name]) for name in CHAIN]
        self.now = 0.0
        self.jobs: dict[int, Job] = {}
        self.entries: dict[int, Entry] = {}
        self.released: Counter[int] = Counter()
        self.history: list[tuple[str, int, tuple[int, ...]]] = []

    def admit(self, job: Job) -> None:
        self.jobs[job.id] = job
        self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        stage = self.stages[job.stage]
        rows = job.rows if stage.name == "denoise" else 1
        key = job.key if stage.name == "denoise" else "any"
        wait = stage.profile.max_wait_s[WorkClass.INTERACTIVE if job.rank == 0 else WorkClass.BULK]
        entry = Entry(job.rank, job.id, key, rows, self.now, self.now + wait)
        self.entries[job.id] = entry
        stage.add(entry)

    def step(self) -> bool:
        batch = pick(self.stages, self.shares, self.now)
        if batch is None:
            return False
        stage = next(stage for stage in self.stages if stage.name == batch.stage)
        assert batch.task_ids
        assert len({self.entries[task].key for task in batch.task_ids}) == 1
        assert batch.rows <= stage.max_rows or len(batch.task_ids) == 1
        assert batch.rows == sum(self.entries[task].rows for task in batch.task_ids) == sum(batch.rows_of.values())
        self.history.append((batch.stage, batch.rows, batch.task_ids))
        for task in batch.task_ids:
            stage.remove(self.entries[task])
        stage.launch(batch)
        self.shares.charge({rank: rows * stage.profile.row_cost for rank, rows in batch.rows_of.items()})
        self.now += batch.rows + 1
        stage.land(batch)
        for task in batch.task_ids:
            self._complete(self.jobs[task])
        return True

    def _complete(self, job: Job) -> None:
        job.done += 1
        if job.done == job.steps[CHAIN[job.stage]]:
            job.stage, job.done = job.stage + 1, 0
        if job.stage == len(CHAIN):
            self.released[job.id] += 1
        else:
            self._enqueue(job)


def profiles(vae_wait: float = 50.0, bulk_wait: float = float("inf")) -> dict[str, Profile]:
    waits = {WorkClass.INTERACTIVE: 0.0, WorkClass.BULK: bulk_wait}
    caps = {"vision": 8, "caption": 16, "text": 16, "denoise": 16, "vae": 8}
    own = {"vae": waits | {WorkClass.BULK: vae_wait}}
    return {name: Profile(cap, neck=name == "denoise", max_wait_s=own.get(name, waits)) for name, cap in caps.items()}


def random_job(rng: random.Random, index: int, *, rank: int = 1) -> Job:
    steps = {"vision": 1, "caption": rng.randint(3, 12), "text": 1, "denoise": rng.choice([4, 8, 20, 40]), "vae": 1}
    return Job(index, steps, rng.choice(["64", "96"]), rng.choice([1, 2]), rank)


@given(st.integers(0, 2**32), st.integers(1, 120))
@settings(max_examples=60)
def test_every_admitted_task_is_released_exactly_once(seed: int, num_jobs: int) -> None:
    rng = random.Random(seed)
    simulation = Simulation(profiles())
    waiting = [random_job(rng, index, rank=rng.choice([0, 1, 1, 1])) for index in range(num_jobs)]
    for _ in itertools.count():
        while waiting and rng.random() < 0.5:
            simulation.admit(waiting.pop(0))
        if not simulation.step() and not waiting:
            break
    assert simulation.released == Counter(range(num_jobs))
    assert all(stage.rows == 0 for stage in simulation.stages)


def test_a_saturated_job_keeps_every_batch_nearly_full() -> None:
    rng = random.Random(1)
    simulation = Simulation(profiles())
    jobs = (Job(index, random_job(rng, index).steps, "64", 1, 1) for index in range(600))
    for job in itertools.islice(jobs, 96):
        simulation.admit(job)
    finished = 0
    while finished < 400:  # a bounded window, as a client keeps it
        assert simulation.step()
        for job in itertools.islice(jobs, sum(simulation.released.values()) - finished):
            simulation.admit(job)
        finished = sum(simulation.released.values())
    fills = {
        name: [rows for stage, rows, _ in simulation.history[50:] if stage == name]
        for name in ("vision", "caption", "denoise")
    }
    assert sum(fills["denoise"]) / (16 * len(fills["denoise"])) >= 0.97
    assert sum(fills["vision"]) / (8 * len(fills["vision"])) >= 0.9
    assert sum(fills["caption"]) / (16 * len(fills["caption"])) >= 0.7


def test_a_slow_item_never_holds_a_fast_one() -> None:
    simulation = Simulation(profiles(vae_wait=0.0))
    steps = {"vision": 1, "caption": 1, "text": 1, "denoise": 40, "vae": 1}
    simulation.admit(Job(0, steps, "64", 1, 1))
    for _ in range(5):
        simulation.step()
    simulation.admit(Job(1, steps | {"denoise": 4}, "64", 1, 1))
    while not simulation.released[1]:
        assert simulation.step()
    assert simulation.released[0] == 0
    together = [tasks for stage, _, tasks in simulation.history if stage == "denoise" and len(tasks) == 2]
    assert len(together) == 4


def test_interactive_work_passes_waiting_bulk_work() -> None:
    simulation = Simulation(profiles())
    rng = random.Random(2)
    for index in range(200):
        simulation.admit(random_job(rng, index))
    for _ in range(40):
        simulation.step()
    quick = {"vision": 1, "caption": 2, "text": 1, "denoise": 4, "vae": 1}
    simulation.admit(Job(999, quick, "64", 1, 0))
    before = len(simulation.history)
    while not simulation.released[999]:
        assert simulation.step()
    assert len(simulation.history) - before <= sum(quick.values()) + 1


def test_bulk_work_is_served_under_endless_interactive_work() -> None:
    simulation = Simulation(profiles(bulk_wait=200.0))
    steps = {"vision": 1, "caption": 3, "text": 1, "denoise": 8, "vae": 1}
    simulation.admit(Job(0, steps, "64", 1, 1))
    for index in range(1, 41):
        simulation.admit(Job(index, steps, "64", 2, 0))
    admitted = 41
    while not simulation.released[0]:
        assert simulation.step()
        assert simulation.now < sum(steps.values()) * 400.0
        in_flight = admitted - 1 - sum(simulation.released.values())
        for _ in range(40 - in_flight):
            simulation.admit(Job(admitted, steps, "64", 2, 0))
            admitted += 1
    assert simulation.released[0] == 1


def test_classes_that_both_want_the_device_get_it_by_weight() -> None:
    simulation = Simulation(profiles())
    steps = {"vision": 1, "caption": 1, "text": 1, "denoise": 1000, "vae": 1}
    for index in range(80):
        simulation.admit(Job(index, steps, "64", 1, index % 2))
    for _ in range(300):
        assert simulation.step()
    rows = Counter[int]()
    for _, _, tasks in simulation.history[100:]:
        rows.update(simulation.jobs[task].rank for task in tasks)
    wanted = WEIGHTS[0] / sum(WEIGHTS)
    assert abs(rows[0] / rows.total() - wanted) < 0.1


def test_turns_of_equal_cost_follow_the_weights() -> None:
    shares, turns = Shares(), Counter[int]()
    for _ in range(500):
        rank = shares.owed({0, 1})[0]
        turns[rank] += 1
        shares.charge({0: 3.0 * (rank == 0), 1: 3.0 * (rank == 1)})
    assert abs(turns[0] / turns[1] - WEIGHTS[0] / WEIGHTS[1]) < 0.1


def test_a_class_that_was_away_is_owed_nothing_for_it() -> None:
    shares = Shares()
    for _ in range(1000):
        shares.charge({0: 0.0, 1: 8.0})
    assert shares.owed({0, 1}) == [0, 1]
    shares.charge({0: 64.0, 1: 0.0})  # more than bulk has had lately, far less than it has had in all
    assert shares.owed({0, 1}) == [1, 0]


def test_bulk_rides_with_interactive_work_only_while_it_makes_it_little_slower() -> None:
    stage = StageQueue("denoise", Profile(16, mixed_rows=4))
    for task in range(3):
        stage.add(Entry(1, task, "64", 2, 0.0, 9.0))
    stage.add(Entry(0, 9, "64", 2, 0.0, 0.0))
    batch = stage.batch(0, 0.0)
    assert (batch.task_ids, batch.rows_of) == ((9, 0), {0: 2, 1: 2})
    assert stage.batch(1, 0.0).task_ids == (0, 1, 2)


def test_sizes_take_turns() -> None:
    simulation = Simulation(profiles(vae_wait=0.0))
    steps = {"vision": 1, "caption": 1, "text": 1, "denoise": 30, "vae": 1}
    for index in range(8):
        simulation.admit(Job(index, steps, "64", 1, 1))
    simulation.admit(Job(8, steps | {"denoise": 5}, "96", 1, 1))
    while not simulation.released[8]:
        assert simulation.step()
    assert sum(simulation.released.values()) == 1


def test_an_oversized_step_runs_alone() -> None:
    simulation = Simulation(profiles() | {"denoise": Profile(1)})
    simulation.admit(Job(0, dict.fromkeys(CHAIN, 1), "64", 2, 1))
    while simulation.step():
        pass
    assert simulation.released == Counter([0])
