"""The client's small parts: back-off, parameters, messages, interrupts, progress."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from fakes import family_info, png

from captory_client.backoff import Backoff, Patience
from captory_client.commands.run import Mode
from captory_client.interrupts import run_interruptible, unless
from captory_client.jobs import Run, open_workshop
from captory_client.local_server import START_TIMEOUT_S, VLLM_START_TIMEOUT_S, LocalServer
from captory_client.progress import Lines, Live, Silent, describe
from captory_client.settle import check, parse_size, settle
from captory_client.synthesizer import started
from captory_client.wire import items_to_wire, mode_to_wire
from captory_data.errors import SpecError
from captory_data.identity import wanted_images
from captory_data.outcomes import WorkItem
from captory_data.sources.columns import MAX_ATTRIBUTES, MAX_ATTRIBUTES_BYTES, described
from captory_data.spec import MODES, JobSpec
from captory_data.summary import Progress
from captory_engine.info import Limits
from captory_proto.v1 import captory_pb2 as pb
from captory_server import codec
from captory_server.codec import read_item
from captory_server.results import write_info

INFO = write_info(family_info(), version="1", max_message_bytes=1 << 20)
SPEC = settle({}, None, INFO)


def test_delays_double_up_to_the_longest_and_end() -> None:
    patience = Patience(Backoff(first_s=1, longest_s=4, total_s=10))
    assert [patience.next_delay_s() for _ in range(5)] == [1, 2, 4, 3, None]
    patience.renew()
    assert patience.next_delay_s() == 1


def test_what_is_not_asked_is_the_server_s_or_general_default() -> None:
    assert (SPEC.mode, SPEC.seed, SPEC.per_image, SPEC.family) == ("cip", 0, 1, "fake")
    assert (SPEC.steps, SPEC.sampler, SPEC.width, SPEC.height) == (4, "ddim", 16, 16)


def test_what_is_not_asked_is_as_the_output_was_made() -> None:
    stored = settle({"mode": "basic", "steps": 7, "negative_prompt": "blur"}, None, INFO)
    assert settle({}, stored, None) == stored
    assert settle({"steps": 8}, stored, None).difference(stored) == {"steps": (8, 7)}


@pytest.mark.parametrize(
    "asked",
    [
        {"sampler": "ddpm"},
        {"steps": 51},
        {"guidance_scale": 31.0},
        {"width": 17},
        {"negative_prompt": "x" * 257},
        {"family": "other"},
    ],
)
def test_what_the_server_cannot_do_is_refused_before_anything_begins(asked: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        check(settle(asked, None, INFO), INFO)


def test_words_that_are_not_repeated_are_never_exact() -> None:
    info = pb.ServerInfo()
    info.CopyFrom(INFO)
    info.inexact_modes.append(pb.MODE_REWRITE)
    exact = settle({"determinism": "exact"}, None, info)
    check(exact, info)
    with pytest.raises(SpecError, match="determinism: rewrite"):
        check(replace(exact, mode="rewrite"), info)


@pytest.mark.parametrize("asked", [{"seed": 2**53}, {"steps": 0}, {"guidance_scale": float("nan")}, {"mode": "x"}])
def test_what_is_no_value_at_all_is_refused(asked: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        settle(asked, None, INFO)


def test_a_run_tells_its_own_server_what_to_open(tmp_path: Path) -> None:
    own = {"modes": tmp_path, "writer": "vllm:w", "captioner": None}
    workshop = open_workshop(Run(tmp_path, tmp_path, family="picto", own_server=own))
    assert workshop._server_options == [f"--modes={tmp_path}", "--writer=vllm:w", "--family=picto"]
    open_workshop(Run(tmp_path, tmp_path, server="127.0.0.1:1", own_server=dict.fromkeys(own)))
    with pytest.raises(SpecError, match="modes, writer: "):
        open_workshop(Run(tmp_path, tmp_path, server="127.0.0.1:1", own_server=own))


async def test_who_is_stopped_while_a_server_starts_leaves_at_once_and_nothing_behind() -> None:
    started, ended, stop = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def start() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    waiting = asyncio.create_task(unless(stop, start()))
    await started.wait()
    stop.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_who_is_not_stopped_gets_what_was_made() -> None:
    async def make() -> str:
        return "made"

    assert await unless(asyncio.Event(), make()) == "made"


@pytest.mark.parametrize(
    ("options", "environment", "timeout_s"),
    [
        (["--family=picto"], "", START_TIMEOUT_S),
        (["--writer=vllm://127.0.0.1:8000"], "vllm://127.0.0.1:8000", START_TIMEOUT_S),
        (["--writer", "vllm:my-writer/"], "", VLLM_START_TIMEOUT_S),
        (["--captioner=vllm:org/name@main"], "", VLLM_START_TIMEOUT_S),
        ([], "vllm:my-writer/", VLLM_START_TIMEOUT_S),
    ],
)
def test_a_server_that_starts_a_vllm_has_time_to_load_it(
    options: list[str], environment: str, timeout_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPTORY_WRITER", environment)
    monkeypatch.delenv("CAPTORY_CAPTIONER", raising=False)
    assert LocalServer(options)._start_timeout_s == timeout_s
    assert LocalServer(options, start_timeout_s=1.0)._start_timeout_s == 1.0


def test_a_size_is_one_number_or_two() -> None:
    assert parse_size(None) == {}
    assert parse_size("64") == {"width": 64, "height": 64}
    assert parse_size("64x48") == {"width": 64, "height": 48}
    for text in ("", "x", "64x", "axb", "-1", "64x48x2"):
        with pytest.raises(SpecError):
            parse_size(text)


def work(spec: JobSpec, **given: object) -> WorkItem:
    return WorkItem("a/b.png", "crane", "crane (bird)", wanted_images(spec, "a/b.png"), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", MODES)
def test_an_item_means_the_same_to_the_server(mode: str) -> None:
    spec = settle({"mode": mode, "per_image": 3, "image_format": "webp", "determinism": "exact"}, None, INFO)
    [(message, _)] = items_to_wire(work(spec, image=png()), spec, INFO.limits)
    read = read_item(message, family_info())
    assert (read.mode, read.class_name, read.image) == (mode, "crane (bird)", png())
    assert [(s.prompt_index, s.sample_index, s.seed) for s in read.samples] == [
        (w.prompt_index, w.sample_index, w.seed) for w in wanted_images(spec, "a/b.png")
    ]
    assert (read.parameters.format, read.parameters.determinism) == ("webp", "exact")
    assert read.parameters.steps == spec.steps


def test_an_item_of_many_images_goes_in_parts() -> None:
    spec = settle({"per_image": 20}, None, INFO)
    parts = list(items_to_wire(work(spec, caption="x"), spec, INFO.limits))
    assert [len(message.samples) for message, _ in parts] == [8, 8, 4]
    assert len({message.id for message, _ in parts}) == 3
    assert [one for _, wanted in parts for one in wanted] == list(wanted_images(spec, "a/b.png"))


def test_an_image_that_is_too_large_is_sent_only_as_far_as_it_takes_to_refuse_it() -> None:
    [(message, _)] = items_to_wire(work(SPEC, image=b"x" * (1 << 20)), SPEC, INFO.limits)
    assert len(message.image) == INFO.limits.max_image_bytes + 1


def test_words_go_on_one_line_and_are_unicode() -> None:
    [(message, _)] = items_to_wire(work(SPEC, caption="a\ncrane\t on\u2028a lake\ud800 "), SPEC, INFO.limits)
    assert message.caption == "a crane on a lake?"


def test_attributes_go_along_on_one_line_each() -> None:
    told = work(SPEC, image=png(), attributes=("young", " a\nhat ", " "))
    [(message, _)] = items_to_wire(told, SPEC, INFO.limits)
    assert list(message.attributes) == ["young", "a hat"]
    assert read_item(message, family_info()).attributes == ("young", "a hat")


def test_attributes_that_an_input_may_have_are_taken_by_a_server() -> None:
    assert (codec.MAX_ATTRIBUTES, Limits().max_text_bytes) == (MAX_ATTRIBUTES, MAX_ATTRIBUTES_BYTES)
    read = described({"attributes": "young;\x00a\x9fhat\x07;\u2028"}).attributes
    [(message, _)] = items_to_wire(work(SPEC, image=png(), attributes=tuple(read)), SPEC, INFO.limits)
    assert read_item(message, family_info()).attributes == ("young", "a hat")


def test_a_run_is_told_which_instruction_file_its_mode_has() -> None:
    told = started(INFO, "recap-mix").versions
    assert told == {"server": "1", "mode_sha256": INFO.mode_sha256["recap-mix"]}
    assert len(INFO.mode_sha256) == len(MODES)
    assert started(pb.ServerInfo(version="0"), "cip").versions == {"server": "0"}


def test_every_mode_can_be_asked_for() -> None:
    assert get_args(Mode) == MODES


def test_every_mode_has_its_number() -> None:
    assert {pb.Mode.Name(mode_to_wire(mode)) for mode in MODES} == set(pb.Mode.keys()) - {"MODE_UNSPECIFIED"}


def test_the_first_signal_drains() -> None:
    heard: list[str] = []

    async def job(stop: asyncio.Event) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        await stop.wait()
        return "drained"

    assert run_interruptible(job, lambda: heard.append("first")) == "drained"
    assert heard == ["first"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_second_stops_at_once(number: signal.Signals) -> None:
    async def job(stop: asyncio.Event) -> None:
        os.kill(os.getpid(), number)
        await stop.wait()
        os.kill(os.getpid(), number)
        await asyncio.Event().wait()

    with pytest.raises(KeyboardInterrupt):
        run_interruptible(job, lambda: None)


def counted() -> Progress:
    progress = Progress(total_items=9, items=3, images=6, failed=1)
    progress.stages.update(caption=4, prompt=4)
    return progress


def test_progress_says_each_stage_and_the_speed() -> None:
    assert describe(counted(), 2.0) == "4 captions, 4 prompts, 6 images, 1 failed, 3.0 images/s"
    assert "0.0 images/s" in describe(Progress(1), 0.0)


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter([0.0, 5.0, 11.0, 12.0])
    with Lines(clock=lambda: next(times)) as lines:
        for _ in range(3):
            lines(counted())
    assert capsys.readouterr().err.splitlines() == [
        "3/9 items, 4 captions, 4 prompts, 6 images, 1 failed, 0.5 images/s"
    ]


@pytest.mark.parametrize("display", [Live, Silent])
def test_the_other_displays_take_the_same_calls(display: Callable[[], Live | Silent]) -> None:
    with display() as shown:
        shown(counted())
        shown.note("[bold]not markup[/bold]")


def test_help_is_quick_because_it_loads_little() -> None:
    heavy = "{'grpc', 'numpy', 'PIL', 'google', 'sqlalchemy', 'rich', 'pydantic', 'onnxruntime'}"
    imports = "import captory_client.cli, captory_client.commands.run, captory_server.commands"
    code = f"import sys; {imports}; print(sorted({heavy} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert ran.stdout.strip() in ("[]", "['google']")  # some distributions put `google` there at start-up
