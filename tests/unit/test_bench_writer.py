"""The writer's benchmark: what is checked, what counts, who is missing and why; and the whole command."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from families import fake_repository
from rich.console import Console
from typer.testing import CliRunner

from captory_bench.commands import bench
from captory_bench.measuring.outcome import Outcome, Times
from captory_bench.measuring.served import ArmFailed
from captory_bench.measuring.stats import Stats
from captory_bench.measuring.subject import Subject
from captory_bench.writer.hosts import NotMeasured, find_writer, hosted, version_of_vllm
from captory_bench.writer.measure import EMBEDDED, VLLM, Job, Measured, Settings
from captory_bench.writer.prompting import Task, Written, tasks
from captory_bench.writer.report import summarise, writer_tables
from captory_engine.device import StageCounts
from captory_engine.vllm.process import PYTHON_VARIABLE
from captory_proto.v1 import captory_pb2 as pb

NUM = 4
CAPTION = "a large red crane bird in the centre, on grass, lit from the left"
REWORDED = "on the grass, a large red crane bird in the centre, with light from the left"
SUBJECT = Subject(Path("repository"))
MACHINE = {"cpu": "", "cpus": 2, "threads": 2, "memory_gib": 8, "system": "", "python": "3", "versions": {}}
MACHINE |= {"load_average": [0.0, 0.0, 0.0]}


def written(wall_s: float, texts: dict[int, str] | None = None, fallen_back: int = 0) -> Written:
    """Four prompts, those of `texts` in other words, the first so many fallen back to the caption."""
    wanted = [Task(f"t{index}", CAPTION, index) for index in range(NUM)]
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
    "wrong",
    [
        written(2.0, {1: " "}),
        written(2.0, fallen_back=1),
        written(2.0, {1: "three small blue bat clubs at the top, on sand, lit from the left"}),
        Written(written(2.0).tasks, {}, 2.0),
    ],
    ids=["empty", "refused more often", "another thing", "no answer"],
)
def test_worse_prompts_do_not_count(measured: Measured, wrong: Written) -> None:
    measured.rounds[1][VLLM] = wrong
    figures = summarise(measured)
    assert not figures["checks"]["ok"]
    assert figures["targets"] == []


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
    console = Console(record=True, width=140, file=io.StringIO())
    console.print(writer_tables(summarise(measured) | {"machine": MACHINE}))
    words = console.export_text()
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


async def test_a_server_without_a_model_on_vllm_fails_the_arm(tmp_path: Path) -> None:
    async with hosted(Subject(fake_repository(tmp_path), backend="fake", num_threads=1)) as served:
        with pytest.raises(ArmFailed, match="none of its models"):
            await version_of_vllm(served)


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
