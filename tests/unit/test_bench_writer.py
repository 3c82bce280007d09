"""The writer's benchmark: what is checked, what counts, who is missing and why; and the whole command."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from families import fake_repository
from rich.console import Console
from typer.testing import CliRunner

from captory_bench.commands import bench
from captory_bench.measuring import workload
from captory_bench.measuring.outcome import Outcome, Times
from captory_bench.measuring.served import ArmFailed
from captory_bench.measuring.stats import Stats
from captory_bench.measuring.subject import Subject
from captory_bench.page.blocks_writer import writer as writer_block
from captory_bench.writer import hosts, measure
from captory_bench.writer.hosts import (
    NotMeasured,
    check_embedded,
    describe_vllm,
    find_writer,
    hosted,
    vllm_arguments,
)
from captory_bench.writer.measure import ALONE, EMBEDDED, VLLM, Job, Measured, Settings
from captory_bench.writer.prompting import Task, Written, tasks
from captory_bench.writer.report import summarise, writer_tables
from captory_client.errors import ClientError
from captory_engine.device import StageCounts
from captory_engine.vllm.process import PYTHON_VARIABLE
from captory_proto.v1 import captory_pb2 as pb

NUM = 40  # a round: three of them are enough to judge
CAPTION = "a large red crane bird in the centre, on grass, lit from the left"
REWORDED = "on the grass, a large red crane bird in the centre, with light from the left"
OTHER = "three small blue bat clubs at the top, on sand, lit from the left"
SUBJECT = Subject(Path("repository"))
MACHINE = {"cpu": "", "cpus": 2, "threads": 2, "memory_gib": 8, "system": "", "python": "3", "versions": {}}
MACHINE |= {"load_average": [0.0, 0.0, 0.0]}


def written(wall_s: float, texts: dict[int, str] | None = None, fallen_back: int = 0, num: int = NUM) -> Written:
    """Prompts, those of `texts` in other words, the first so many fallen back to the caption."""
    wanted = [Task(f"t{index}", CAPTION, index) for index in range(num)]
    prompts = {
        task.id: pb.PromptResult(
            text=(texts or {}).get(index, REWORDED), writer="fallback" if index < fallen_back else "model"
        )
        for index, task in enumerate(wanted)
    }
    return Written(wanted, prompts, wall_s)


def job(seconds: float, write_s: float) -> Job:
    images = {str(index): np.zeros((2, 2, 3), np.uint8) for index in range(NUM)}
    stages = {"write": StageCounts(seconds=write_s), "denoise": StageCounts(seconds=10.0 - write_s)}
    return Job(Outcome(images, times=Times(seconds)), Stats(stages))


def printed(figures: dict) -> str:
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(writer_tables(figures))
    return console.export_text()


@pytest.fixture
def measured() -> Measured:
    rounds = [
        {
            EMBEDDED: written(1.0),
            f"{EMBEDDED}, one at a time": written(4.0),
            VLLM: written(wall_s),
            f"{VLLM}, one at a time": written(8.0),
        }
        for wall_s in (2.0, 2.0, 4.0)
    ]
    jobs = [{EMBEDDED: job(2.0, share), VLLM: job(4.0, 0.0)} for share in (0.4, 0.5, 1.2)]
    return Measured(Settings(SUBJECT, NUM, 3, NUM), "vllm 1.0", rounds, jobs)


def test_ratios_are_medians_within_rounds(measured: Measured) -> None:
    figures = summarise(measured)
    assert figures["checks"]["ok"]
    assert figures["arms"][EMBEDDED]["prompts_per_s"] == NUM
    assert figures["ratios"]["vllm_over_embedded"] == {"median": 0.5, "spread": [0.25, 0.5]}
    assert figures["ratios"]["vllm_over_one_at_a_time"] == {"median": 4.0, "spread": [2.0, 4.0]}
    assert figures["ratios"]["embedded_over_one_at_a_time"]["median"] == 4.0
    assert json.loads(json.dumps(figures)) == figures


def test_the_share_of_the_job_is_held_against_its_target(measured: Measured) -> None:
    figures = summarise(measured)
    [target] = figures["targets"]
    assert (target["value"], target["high"], target["met"]) == (pytest.approx(0.05), pytest.approx(0.12), True)
    assert figures["job"]["images_per_s"][EMBEDDED]["median"] == NUM / 2
    assert figures["job"]["images_per_s"][VLLM]["median"] == NUM / 4


@pytest.mark.parametrize(
    ("arm", "wrong"),
    [
        (EMBEDDED, written(2.0, {1: " "})),
        (VLLM, written(2.0, {1: " "})),
        (VLLM, Written(written(2.0).tasks, {}, 2.0)),
    ],
    ids=["empty", "empty, vllm", "no answer"],
)
def test_missing_prompts_do_not_count(measured: Measured, arm: str, wrong: Written) -> None:
    measured.rounds[1][arm] = wrong
    figures = summarise(measured)
    assert not figures["checks"]["ok"]
    assert figures["targets"] == []


REFUSED_MORE_OFTEN = written(2.0, fallen_back=NUM // 4)
OF_ANOTHER_THING = written(2.0, dict.fromkeys(range(NUM // 4), OTHER))


@pytest.mark.parametrize("worse", [REFUSED_MORE_OFTEN, OF_ANOTHER_THING], ids=["refused more often", "another thing"])
@pytest.mark.parametrize("arm", [VLLM, f"{VLLM}, {ALONE}"])
def test_a_worse_vllm_is_named_and_takes_no_target_away(measured: Measured, arm: str, worse: Written) -> None:
    measured.rounds[1][arm] = worse
    figures = summarise(measured) | {"machine": MACHINE}
    assert figures["checks"]["ok"]
    assert figures["checks"]["worse"] == [arm]
    assert len(figures["targets"]) == 1
    assert f"WORSE THAN THE EMBEDDED WRITER'S: {arm}" in printed(figures)
    assert f"worse than the embedded writer's: **{arm}**." in writer_block({"writer": figures})


@pytest.mark.parametrize("worse", [REFUSED_MORE_OFTEN, OF_ANOTHER_THING], ids=["refused more often", "another thing"])
def test_an_embedded_writer_that_is_worse_one_at_a_time_does_not_count(measured: Measured, worse: Written) -> None:
    measured.rounds[1][f"{EMBEDDED}, {ALONE}"] = worse
    figures = summarise(measured)
    assert not figures["checks"]["ok"]
    assert figures["targets"] == []


@pytest.mark.parametrize("num", [32, 34])  # of three rounds: 96 and 102
def test_few_prompts_are_not_judged(measured: Measured, num: int) -> None:
    for one in measured.rounds:
        one[f"{EMBEDDED}, {ALONE}"] = written(2.0, fallen_back=num // 4, num=num)
    figures = summarise(measured)
    assert figures["checks"]["ok"] == (3 * num < figures["checks"]["min_judged"])


def test_what_few_accepted_prompts_keep_is_not_judged(measured: Measured) -> None:
    for one in measured.rounds:
        one |= {name: written(1.0, fallen_back=NUM - 1) for name in one}
        one[VLLM] = written(1.0, dict.fromkeys(range(NUM), OTHER), fallen_back=NUM - 1)
    assert summarise(measured)["checks"]["worse"] == []


def test_a_missing_image_spoils_the_figures(measured: Measured) -> None:
    measured.jobs[0][VLLM].outcome.images.popitem()
    assert not summarise(measured)["checks"]["ok"]


def test_prompts_that_fell_back_say_nothing_of_the_model(measured: Measured) -> None:
    for one in measured.rounds:
        one |= {name: written(1.0, {1: "anything"}, fallen_back=NUM) for name in one}
    figures = summarise(measured)
    assert figures["arms"][EMBEDDED]["accepted"] == 0.0
    assert figures["arms"][EMBEDDED]["kept"] is None
    assert figures["checks"]["ok"]


def test_arms_have_the_same_captions_and_seeds_of_their_own() -> None:
    one, other = tasks(8, 600, 0), tasks(8, 600, 1)
    assert [task.caption for task in one] == [task.caption for task in other]
    assert {task.seed for task in one}.isdisjoint(task.seed for task in other)
    assert all(0 <= task.seed < 2**53 for task in other)


def test_tables_name_every_arm_and_who_is_missing(measured: Measured) -> None:
    measured.not_measured["another"] = "it is not here"
    words = printed(summarise(measured) | {"machine": MACHINE})
    assert all(name in words for name in measured.rounds[0])
    assert "not measured: another: it is not here" in words
    assert "5.0%" in words


def test_a_missing_vllm_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="as asked"):
        find_writer(SUBJECT, "none")
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "python"))
    for asked in ("", "vllm:some/model@main"):
        with pytest.raises(NotMeasured, match=f"no vLLM in .*{PYTHON_VARIABLE}"):
            find_writer(SUBJECT, asked)


def test_a_vllm_that_runs_is_taken_as_it_is() -> None:
    assert find_writer(SUBJECT, "vllm://127.0.0.1:8000") == "vllm://127.0.0.1:8000"


def test_the_family_s_own_checkpoint_is_served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("python", "vllm"):  # an environment that has both
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "python"))
    subject = Subject(fake_repository(tmp_path / "repository"))
    with pytest.raises(NotMeasured, match="training/checkpoints/fake"):
        find_writer(subject, "")
    checkpoint = tmp_path / "training" / "checkpoints" / "fake" / "writer"
    checkpoint.mkdir(parents=True)
    assert find_writer(subject, "") == f"vllm:{checkpoint}"
    assert find_writer(subject, "vllm:some/model@main") == "vllm:some/model@main"


async def test_the_embedded_writer_is_embedded_whatever_the_environment_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("CAPTORY_WRITER", "CAPTORY_CAPTIONER"):
        monkeypatch.setenv(name, "vllm://127.0.0.1:1")  # nobody answers there
    async with hosted(Subject(fake_repository(tmp_path), backend="fake", num_threads=1)) as served:
        await check_embedded(served)
        with pytest.raises(ArmFailed, match="none of its models"):
            await describe_vllm(served, "vllm:folder")


class ClientOfVllm:
    """Of a server that has its writer there."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def __aenter__(self) -> ClientOfVllm:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def server_info(self) -> pb.ServerInfo:
        return pb.ServerInfo(models=[pb.ModelInfo(backend="fake"), pb.ModelInfo(backend="vllm 1.0")])


async def test_a_model_on_vllm_is_not_embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hosts, "Client", ClientOfVllm)
    monkeypatch.setattr(hosts, "GPU", tmp_path / "none")
    with pytest.raises(ArmFailed, match="has a model on vLLM"):
        await check_embedded(Host(EMBEDDED))  # type: ignore[arg-type]
    told = [await describe_vllm(Host(VLLM), writer) for writer in ("vllm:folder", "vllm://127.0.0.1:1")]  # type: ignore[arg-type]
    assert told == ["vllm 1.0, --no-enable-prefix-caching --enforce-eager", "vllm 1.0, with settings of its own"]


def test_a_vllm_of_our_own_is_compiled_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(hosts, "GPU", tmp_path)
    assert vllm_arguments("vllm:folder") == ["--no-enable-prefix-caching"]
    monkeypatch.setattr(hosts, "GPU", tmp_path / "none")
    assert vllm_arguments("vllm:folder") == ["--no-enable-prefix-caching", "--enforce-eager"]
    assert vllm_arguments("vllm://127.0.0.1:8000") == []


class Host:
    """A server that does its work at once, until it is asked for more than it is good for."""

    def __init__(self, name: str, fails_at: str = "", good_for: int = 1 << 30) -> None:
        self.address = name
        self._fails_at = fails_at
        self._left = good_for
        self._looks = 0
        self.events: list[str] = []

    def work(self, what: str) -> None:
        self.events.append(f"{self.address}: {what}")
        if what == self._fails_at:
            self._left -= 1
            if self._left < 0:
                raise ClientError("it is gone\nand here is its log", code="UNAVAILABLE")

    async def stats(self) -> Stats:
        self._looks += 1
        return Stats({name: StageCounts(seconds=float(self._looks)) for name in ("write", "denoise")})

    async def photos(self, items: Sequence[workload.Photo], steps: int, mode: int) -> Outcome:
        self.work("photos")
        images = {item.id: np.zeros((2, 2, 3), np.uint8) for item in items}
        return Outcome(images, times=Times(1.0))


def run_with(monkeypatch: pytest.MonkeyPatch, *servers: Host) -> Measured:
    """Three rounds, with these servers in place of real ones."""
    named, coming, events = {one.address: one for one in servers}, iter(servers), list[str]()
    for one in servers:
        one.events = events

    @asynccontextmanager
    async def open_next(subject: Subject, writer: str = "") -> AsyncIterator[Host]:
        server = next(coming)
        yield server
        events.append(f"{server.address}: ended")

    async def fake_write(address: str, wanted: Sequence[Task], max_in_flight: int) -> Written:
        named[address].work("write" if max_in_flight > 1 else "write alone")
        return written(1.0, num=len(wanted))

    async def nothing(*_: object) -> str:
        return ""

    fakes = {"hosted": open_next, "write": fake_write, "check_embedded": nothing, "describe_vllm": nothing}
    fakes["find_writer"] = lambda *_: "vllm:folder"
    for name, fake in fakes.items():
        monkeypatch.setattr(measure, name, fake)
    return asyncio.run(measure.measure(Settings(SUBJECT, 8, 3, 4), str))


EMBEDDED_ARMS = {EMBEDDED, f"{EMBEDDED}, {ALONE}"}


def test_all_rounds_have_all_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    made = run_with(monkeypatch, Host(EMBEDDED), Host(VLLM))
    assert [set(one) for one in made.rounds] == [EMBEDDED_ARMS | {VLLM, f"{VLLM}, {ALONE}"}] * 3
    assert [set(one) for one in made.jobs] == [{EMBEDDED, VLLM}] * 3
    assert made.not_measured == {}


@pytest.mark.parametrize(
    ("what", "good_for"),
    [("write", 0), ("photos", 0), ("write", 1), ("write alone", 0), ("write alone", 1), ("photos", 2), ("photos", 3)],
)
def test_a_vllm_that_fails_on_the_way_is_left_out_of_all_rounds(
    monkeypatch: pytest.MonkeyPatch, what: str, good_for: int
) -> None:
    """The first of `write` and `photos` is the warm-up. Its server ends at once."""
    on_vllm = Host(VLLM, what, good_for)
    made = run_with(monkeypatch, Host(EMBEDDED), on_vllm)
    last = max(index for index, event in enumerate(on_vllm.events) if event == f"{VLLM}: {what}")
    assert on_vllm.events[last + 1] == f"{VLLM}: ended"
    assert made.not_measured == {VLLM: "it is gone"}
    assert [set(one) for one in made.rounds] == [EMBEDDED_ARMS] * 3
    assert [set(one) for one in made.jobs] == [{EMBEDDED}] * 3
    assert set(summarise(made)["arms"]) == EMBEDDED_ARMS


@pytest.mark.parametrize("what", ["write", "write alone", "photos"])
def test_an_embedded_writer_that_fails_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    with pytest.raises(ClientError, match="it is gone"):
        run_with(monkeypatch, Host(EMBEDDED, what, 1), Host(VLLM))


def test_the_command_measures_and_checks(tmp_path: Path) -> None:
    repository, out = fake_repository(tmp_path / "repository"), tmp_path / "figures.json"
    options = ["--prompts", "8", "--rounds", "2", "--photos", "4", "--steps", "1", "--vllm", "none"]
    options += ["--backend", "fake", "--repository", str(repository), "--json", "--out", str(out)]
    told = CliRunner().invoke(bench, ["writer", *options])
    assert told.exit_code == 0, told.output
    figures = json.loads(out.read_text())
    assert list(figures["arms"]) == [EMBEDDED, f"{EMBEDDED}, one at a time"]
    assert all(arm["prompts_per_s"] > 0 for arm in figures["arms"].values())
    assert figures["not_measured"] == {VLLM: "left out as asked"}
    assert list(figures["ratios"]) == ["embedded_over_one_at_a_time"]
    assert 0 < figures["job"]["share"] < 1
    assert figures["checks"]["ok"]
