"""Captory beside its peers: the contenders, how a capacity is searched, and what becomes of a peer that fails."""

from __future__ import annotations

import asyncio
import io
import json
import math
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from families import fake_repository
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from captory_bench.commands import bench
from captory_bench.measuring.machine import describe_machine
from captory_bench.measuring.outcome import Agreement, Outcome, Times, compare
from captory_bench.measuring.served import ArmFailed
from captory_bench.measuring.workload import MIXED_STEPS, Painting, Photo, paintings, photos
from captory_bench.peers import contenders, measure
from captory_bench.peers.captory import Captory, open_captory
from captory_bench.peers.contenders import (
    CAPTORY,
    Conditions,
    Opener,
    OpenLoopContender,
    PeerOutcome,
    PeerUnavailable,
    PerRequest,
    Reply,
    conditions_for,
    find_opener,
)
from captory_bench.peers.groups import alike, alike_batches, fewer
from captory_bench.peers.hosting import Hosting
from captory_bench.peers.open_loop import Probe, Search, capacity_at_p95
from captory_bench.peers.painter import Painter
from captory_bench.peers.report import summarise
from captory_bench.peers.tables import peer_tables
from captory_bench.peers.trial import Setting, best_of, candidates
from captory_bench.peers.wire import Painted, Wanted, painting_body, photo_body, read_body, read_reply

SERVICE_S = 0.1  # of the queue that is simulated: ten images a second, one after the other


@pytest.fixture(scope="module")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Conditions:
    return Conditions(fake_repository(tmp_path_factory.mktemp("repository")), "", 1, 2, "fake")


class InProcess:
    """Requests that a `Painter` answers at once."""

    def __init__(self, conditions: Conditions) -> None:
        self.painter = Painter(conditions)
        self.seen: list[str] = []
        self.refuses = ""

    async def paint(self, job: Painting) -> Reply:
        return self._answer(Wanted(job))

    async def paint_photo(self, photo: Photo, steps: int) -> Reply:
        return self._answer(read_body(photo_body(photo, steps)))

    def _answer(self, wanted: Wanted) -> Reply:
        self.seen.append(wanted.job.id)
        if wanted.job.id == self.refuses:
            raise ArmFailed(f"{self.refuses}: no")
        painted = self.painter.paint([wanted])[0]
        return Reply(*painted)


def per_request(requests: InProcess, name: str = "litserve") -> PerRequest:
    return PerRequest(name, "in this process", requests, lambda: 0.0)


class Queue:
    """A contender with one server that needs `SERVICE_S` an image, in simulated time."""

    name, settings = "queue", "simulated"

    def __init__(self) -> None:
        self.runs: list[list[Painting]] = []
        self.first_arrivals: list[float] = []

    async def paint_all(self, jobs: Sequence[Painting]) -> Outcome:
        raise AssertionError("the open loop only")

    async def paint_photos(self, photos: Sequence[Photo], steps: int) -> Outcome:
        raise AssertionError("the open loop only")

    async def open_loop(self, jobs: Sequence[Painting], arrivals_s: Sequence[float]) -> Outcome:
        self.runs.append(list(jobs))
        self.first_arrivals.append(arrivals_s[0])
        free, latencies = 0.0, {}
        for job, at_s in zip(jobs, arrivals_s, strict=True):
            free = max(free, at_s) + SERVICE_S
            latencies[job.id] = free - at_s
        return Outcome(latencies=latencies, times=Times(free, 0.0))


def probed(*found: tuple[float, float]) -> Search:
    """A search with a bound of 1 s after these rates and p95s."""
    return Search(1.0, 8.0, 0.1, [Probe(rate, p95_s, Outcome()) for rate, p95_s in found])


def test_a_search_goes_outwards_until_both_sides_are_known_then_between_them() -> None:
    assert probed().next_per_s == 8.0
    assert probed((8, 0.5)).next_per_s == 12
    assert probed((9, 2.0)).next_per_s == 6
    assert probed((8, 0.5), (18, 2.0)).next_per_s == 12
    assert not probed((8, 0.5), (9, 2.0)).done
    assert probed((8, 0.5), (8.7, 2.0)).done
    assert not probed((8, 0.5)).done
    assert not probed((8, 2.0)).done


def test_what_held_above_a_rate_that_failed_is_no_capacity() -> None:
    search = probed((8, 2.0), (9, 0.5), (5, 0.5))
    assert (search.held_per_s, search.failed_per_s) == (5, 8)


async def test_the_capacity_of_a_queue_is_found_and_bounded() -> None:
    quick, slow = Queue(), Queue()
    found = await capacity_at_p95(
        {"quick": quick, "slow": slow},
        lambda index: [Painting(f"{index}-{job}", "a mug", 8, job) for job in range(2000)],
        1.0,
        {"quick": 8.0, "slow": 20.0},
        resolution=0.05,
        max_probes=12,
    )
    for search in found.values():
        assert search.done
        assert 7 < search.held_per_s < 10.2  # what is sent faster than it is served cannot hold for long
        assert search.held_per_s < search.failed_per_s <= 1.05 * search.held_per_s
    assert found["slow"].held_per_s == pytest.approx(found["quick"].held_per_s, rel=0.06)
    assert len(quick.runs) <= len(slow.runs) <= 12
    assert quick.runs == slow.runs[: len(quick.runs)]  # the same jobs in the same runs
    units = {first * probe.rate_per_s for first, probe in zip(slow.first_arrivals, found["slow"].probes, strict=True)}
    assert max(units) - min(units) < 1e-9  # the same arrivals, only closer together


def test_jobs_that_are_alike_go_together_in_order_of_arrival() -> None:
    jobs = [Painting(str(index), "a mug", steps, index) for index, steps in enumerate((8, 16, 8, 8, 16))]
    jobs[3] = replace(jobs[3], guidance_scale=1.0)
    assert alike(jobs) == [[0, 2], [1, 4], [3]]
    assert [[job.id for job in batch] for batch in alike_batches(jobs, 1)] == [["0"], ["2"], ["1"], ["4"], ["3"]]
    assert list(alike_batches([], 4)) == []


def test_fewer_jobs_keep_their_mix() -> None:
    found = fewer(paintings(96, 7), 12)
    assert sorted(job.steps for job in found) == sorted(MIXED_STEPS * 3)
    assert {job.id for job in fewer(paintings(96, 7), 96)} == {job.id for job in paintings(96, 7)}


def test_a_request_survives_the_wire() -> None:
    job = replace(paintings(1, 7)[0], guidance_scale=1.0, guidance_interval=(0.2, 0.8))
    photo = photos(1, 7)[0]
    assert read_body(painting_body(job)) == Wanted(job)
    wanted = read_body(photo_body(photo, 3))
    assert (wanted.photo, wanted.class_name, wanted.job.steps) == (photo.data, photo.class_name, 3)
    assert (wanted.job.id, wanted.job.seed, wanted.job.prompt) == (photo.id, photo.seed, "")


def test_a_host_hears_what_it_is_told(conditions: Conditions) -> None:
    hosting = Hosting(conditions, Setting(8, 0.02, 2, 1), 4711)
    assert Hosting.from_argument(hosting.to_argument()) == hosting


@pytest.mark.parametrize(("together", "sizes"), [(False, [2, 2, 1, 1, 1]), (True, [5] * 5)])
def test_a_batch_of_all_kinds_gives_what_each_gives_alone(
    conditions: Conditions, together: bool, sizes: list[int]
) -> None:
    painter = Painter(conditions, together=together)
    wanted = [Wanted(job) for job in paintings(4, 7)]
    wanted.insert(1, read_body(photo_body(photos(1, 7)[0], 8)))
    painted = painter.paint(wanted)
    assert [one.batch_size for one in painted] == sizes
    assert [one._replace(batch_size=1) for one in painted] == [painter.paint([one])[0] for one in wanted]
    assert painted[1].prompt.startswith(f"a photo of {photos(1, 7)[0].class_name}")
    assert read_reply(painted[1].png, painted[1].headers) == painted[1]


def test_any_prompt_fits_into_a_header() -> None:
    painted = Painted(b"", "ein Hügel, 100 %\nx-other: yes", 3)
    assert all(value.isascii() and value.isprintable() for value in painted.headers.values())
    assert read_reply(b"", painted.headers) == painted


async def test_single_requests_make_a_contender(conditions: Conditions) -> None:
    requests = InProcess(conditions)
    contender = per_request(requests)
    assert isinstance(contender, OpenLoopContender)
    jobs, items = paintings(4, 7), photos(2, 7)
    painted, captioned = await contender.paint_all(jobs), await contender.paint_photos(items, 2)
    assert painted.images.keys() == {job.id for job in jobs}
    assert painted.prompts == {job.id: job.prompt for job in jobs}
    assert captioned.images.keys() == captioned.latencies.keys() == {photo.id for photo in items}
    assert painted.times.wall_s >= max(painted.latencies.values()) > 0
    opened = await contender.open_loop(jobs, [0.0, 0.01, 0.02, 0.03])
    assert compare(painted, opened).max_difference == 0
    assert requests.seen[-4:] == [job.id for job in jobs]
    assert all(0 < latency_s < opened.times.wall_s for latency_s in opened.latencies.values())


async def test_pixels_are_taken_as_they_are(conditions: Conditions) -> None:
    class Pixels(InProcess):
        async def paint(self, job: Painting) -> Reply:
            with Image.open(io.BytesIO(bytes((await super().paint(job)).image))) as image:
                return Reply(np.asarray(image), job.prompt)

    jobs = paintings(1, 7)
    one = await per_request(Pixels(conditions)).paint_all(jobs)
    other = await per_request(InProcess(conditions)).paint_all(jobs)
    assert compare(one, other).max_difference == 0


async def test_a_peer_that_refuses_one_request_has_failed(conditions: Conditions) -> None:
    requests = InProcess(conditions)
    jobs = paintings(3, 7)
    requests.refuses = jobs[1].id
    with pytest.raises(PeerUnavailable, match=f"failed: {jobs[1].id}: no"):
        await per_request(requests).paint_all(jobs)


async def test_a_peer_that_does_not_finish_has_failed(conditions: Conditions, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(InProcess):
        async def paint_photo(self, photo: Photo, steps: int) -> Reply:
            return await asyncio.Future()

    monkeypatch.setattr(contenders, "TURN_TIMEOUT_S", 0.01)
    with pytest.raises(PeerUnavailable, match=r"did not finish within 0\.01 s"):
        await per_request(Stuck(conditions)).paint_photos(photos(1, 7), 2)


async def test_the_best_setting_is_chosen_by_a_trial_of_all(conditions: Conditions) -> None:
    started = []

    @asynccontextmanager
    async def start(setting: Setting) -> AsyncIterator[PerRequest]:
        started.append(setting)
        yield Fake("litserve", str(setting), InProcess(conditions), lambda: 0.0)

    class Fake(PerRequest):
        async def paint_all(self, jobs: Sequence[Painting]) -> Outcome:
            return Outcome(times=Times(1.0 if "up to 16" in self.settings and "2 workers" in self.settings else 2.0))

        async def paint_photos(self, photos: Sequence[Photo], steps: int) -> Outcome:
            return Outcome(times=Times(1.0))

    settings = candidates(2)
    async with best_of(settings, start, 2) as contender:
        assert started == [*settings, Setting(16, 0.02, 2, 1)]
        assert "; batches of up to 16 within 20 ms, 2 workers of 1 threads; its trial" in contender.settings
        assert "2.0 s, against 3.0 s for batches of up to 32" in contender.settings
    assert len(candidates(1)) == len(set(candidates(1))) == 2
    assert all(setting.together for setting in candidates(2, together=True))


def test_an_opener_is_found_by_name_and_its_absence_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contenders.PEERS, "absent", "captory_bench.peers.no_such_module:open_it")
    with pytest.raises(PeerUnavailable, match="not installed: No module named"):
        find_opener("absent")
    assert callable(find_opener("litserve"))


def test_all_cpus_and_the_checkpoints_of_the_clone_are_found(conditions: Conditions) -> None:
    found = conditions_for(conditions.repository, "", 0, 2, "fake")
    assert found.num_threads > 0
    assert found.weights == conditions.repository.parent / "training" / "checkpoints" / "fake"


def register(monkeypatch: pytest.MonkeyPatch, name: str, opener: object) -> None:
    """A module with one opener, as that peer's."""
    module = ModuleType(f"peer_{name}")
    module.__dict__["open_it"] = opener
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(contenders.PEERS, name, f"{module.__name__}:open_it")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """litserve is another Captory, ray paints other images, diffusers dies in the middle, triton does not start.

    A `Painter` would not do: the fake captioner's words depend on how it is fed.
    """

    class Wrong(Captory):
        async def paint_photos(self, photos: Sequence[Photo], steps: int) -> Outcome:
            outcome = await super().paint_photos(photos, steps)
            return replace(outcome, images={key: 255 - pixels for key, pixels in outcome.images.items()})

    class Dying(Captory):
        async def open_loop(self, jobs: Sequence[Painting], arrivals_s: Sequence[float]) -> Outcome:
            raise PeerUnavailable("failed: it died")

    def another(kind: type[Captory], name: str) -> Opener:
        @asynccontextmanager
        async def opener(conditions: Conditions) -> AsyncIterator[Captory]:
            async with open_captory(conditions) as captory:
                yield kind(captory.served, captory.settings, name)

        return opener

    @asynccontextmanager
    async def absent(conditions: Conditions) -> AsyncIterator[Captory]:
        raise PeerUnavailable("there is no such server here")
        yield

    right, wrong, dying = another(Captory, "litserve"), another(Wrong, "ray"), another(Dying, "diffusers")
    for name, opener in {"litserve": right, "ray": wrong, "diffusers": dying, "triton": absent}.items():
        register(monkeypatch, name, opener)


@pytest.mark.usefixtures("peers")
async def test_the_right_peer_gets_figures_and_the_others_a_reason(conditions: Conditions) -> None:
    names = ("diffusers", "litserve", "triton")
    settings = measure.Settings(conditions, 8, 2, num_arrivals=8, max_probes=2, only=names)
    said: list[str] = []
    figures = summarise(await measure.measure(settings, said.append))
    assert figures["peers"].keys() == {"litserve"}, figures["checks"]
    assert figures["not_measured"]["triton"] == "there is no such server here"
    assert figures["not_measured"]["diffusers"] == "failed: it died"
    assert figures["checks"]["ok"]
    assert figures["checks"]["agreement"]["litserve uniform"]["max_difference"] == 0
    assert figures["checks"]["agreement"]["litserve capacity"]["num_compared"] >= 8
    assert figures["targets"][0]["name"] == "captory_over_litserve_uniform"
    uniform = figures["peers"]["litserve"]["uniform"]
    assert uniform["spread"][0] <= uniform["ratio"] <= uniform["spread"][1]
    assert len(uniform[CAPTORY]["images_per_s_by_round"]) == 2
    assert figures["p95_bound_s"] > 0
    assert any("triton" in words for words in said)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(peer_tables({**figures, "machine": describe_machine(1)}))
    assert "triton was not measured: there is no such server here" in console.export_text()


@pytest.mark.usefixtures("peers")
def test_the_command_ends_with_1_when_a_peer_paints_other_images(conditions: Conditions) -> None:
    options = ["peers", "--images", "8", "--rounds", "1", "--steps", "2", "--arrivals", "8", "--threads", "1", "--json"]
    where = ["--repository", str(conditions.repository), "--backend", "fake"]
    told = CliRunner().invoke(bench, [*options, *where, "--only", "triton"])
    assert told.exit_code == 0, told.output
    assert '"triton": "there is no such server here"' in told.stdout
    wrong = CliRunner().invoke(bench, [*options, *where, "--only", "ray"])
    assert wrong.exit_code == 1, wrong.output
    assert json.loads(wrong.stdout)["not_measured"] == {"ray": "its images are not Captory's: no figures"}
    assert json.loads(wrong.stdout)["targets"] == []
    assert CliRunner().invoke(bench, [*options, *where, "--only", "quadriton"]).exit_code == 2


LONG = "a photo of mug, two small red mugs at the top"


def scripted(prompt: str, agreement: Agreement) -> measure.Versus:
    """A script's rewritten work with that prompt for every image, in batches of three and one."""
    images = {str(index): np.zeros((2, 2, 3), np.uint8) for index in range(4)}
    captory = Outcome(images, dict.fromkeys(images, LONG), times=Times(1.0))
    peer = PeerOutcome(images, dict.fromkeys(images, prompt), times=Times(2.0), batches=Counter({3: 1, 1: 1}))
    return measure.Versus("a script", rewritten=[measure.Pair(captory, peer)], references=[agreement])


def test_rewritten_work_counts_when_it_was_rewritten_and_agrees(conditions: Conditions) -> None:
    def figures(versus: measure.Versus) -> dict[str, Any]:
        return summarise(measure.Measured(measure.Settings(conditions, 4, 1), peers={"diffusers": versus}))

    right = figures(scripted(LONG, Agreement(8, 0, 0.1, 2)))
    found = right["peers"]["diffusers"]["rewritten"]
    assert found["ratio"] == 2
    assert (found["peer"]["batches"], found["peer"]["mean_batch"]) == ({1: 1, 3: 1}, 2)
    assert "mean_batch" not in found[CAPTORY]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(peer_tables({**right, "machine": describe_machine(1)}))
    assert "2.0" in next(line for line in console.export_text().splitlines() if "rewritten" in line)
    unwritten = figures(scripted("a photo of mug, a mug", Agreement(8, 0, 0.1, 2)))
    assert unwritten["not_measured"] == {"diffusers": "captions were not rewritten: no figures"}
    assert not unwritten["checks"]["ok"]
    other = figures(scripted(LONG, Agreement(8, 0, 50.0, 255)))
    assert other["peers"] == {}
    assert not other["checks"]["ok"]


@pytest.mark.usefixtures("peers")
async def test_a_script_with_a_writer_is_held_against_a_plain_loop(
    conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Script:
        name, settings = "diffusers-1", "a script"

        def __init__(self, captory: Captory) -> None:
            self.paint_all, self.paint_photos = captory.paint_all, captory.paint_photos
            self.paint_rewritten = captory.paint_rewritten

    @asynccontextmanager
    async def opener(conditions: Conditions) -> AsyncIterator[Script]:
        async with open_captory(conditions) as captory:
            yield Script(captory)

    register(monkeypatch, "diffusers-1", opener)
    settings = measure.Settings(conditions, 8, 2, only=("diffusers-1",))
    versus = (await measure.measure(settings, lambda _: None)).peers["diffusers-1"]
    assert [len(pair.captory.images) for pair in versus.rewritten] == [8, 8]
    assert [len(pair.peer.images) for pair in versus.rewritten] == [1, 1]
    assert all(agreement.max_difference == 0 for agreement in versus.references)
    assert sum(agreement.num_compared for agreement in versus.references) == 18
    assert not versus.capacity


def test_every_batch_is_counted_once() -> None:
    replies = [Reply(b"", "", size) for size in (3, 1, 3, 3, 1, 0)]
    assert contenders.batches_of(replies) == {3: 1, 1: 2}


def test_a_capacity_ratio_lies_between_the_edges() -> None:
    def versus(captory: Search, peer: Search) -> measure.Versus:
        return measure.Versus("", capacity={CAPTORY: captory, "ray": peer})

    from captory_bench.peers.report import CAPACITY, ratios

    both = ratios(versus(probed((12, 0.5), (15, 2.0)), probed((6, 0.5), (8, 2.0))))[CAPACITY]
    assert both == [12 / 8, 12 / 6, 15 / 6]
    none_held = ratios(versus(probed((12, 0.5), (15, 2.0)), probed((3, 2.0))))[CAPACITY]
    assert none_held == [12 / 3]
    never_failed = ratios(versus(probed((12, 0.5)), probed((6, 0.5))))[CAPACITY]
    assert never_failed == [0.0, 2.0, 2.0]
    assert not any(map(math.isinf, never_failed))
