"""The life of an item on the fake backend: every mode, every way in and out, and faults that stay with their item."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import fake_repository
from PIL import Image

from captory_engine import assembly, images
from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.cache import LruCache, SingleFlight
from captory_engine.errors import BadModel, BadOutput, CaptoryError, Expired, InvalidInput, Unavailable
from captory_engine.info import Limits
from captory_engine.items import (
    Captioned,
    Determinism,
    Done,
    Event,
    Failed,
    Item,
    Mode,
    Painted,
    Parameters,
    Prompted,
    Provenance,
    Sample,
    Stage,
)
from captory_engine.manifest import write_manifest
from captory_engine.modes import Instruction, TokenPolicy
from captory_engine.pipeline import Pipeline, draft_seed
from captory_engine.sessions.fake import FakeSession, fail_on, nan_rows
from captory_engine.stages import Share
from captory_engine.wording import Worded, Wording


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A family whose writer knows every task."""
    root = fake_repository(tmp_path_factory.mktemp("repository"))
    family = root / "fake_denoiser" / "family.yaml"
    face = 'templates: {face: "<|bos|><|face|>{text}<|long|>", '
    family.write_text(family.read_text().replace("templates: {", face))
    write_manifest(family.parent)
    return root


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeSession]:
    """The sessions that a pipeline opens, by model, for their faults and records."""
    opened: dict[str, FakeSession] = {}

    def open_session(backend: str, model: Any, options: Any) -> FakeSession:
        opened[model.name] = FakeSession.of(model)
        return opened[model.name]

    monkeypatch.setattr(assembly, "open_session", open_session)
    return opened


@asynccontextmanager
async def serving(repository: Path, modes: Path | None = None, **limits: int) -> AsyncIterator[Pipeline]:
    pipeline = await open_pipeline(EngineConfig(repository, modes=modes, backend="fake", limits=Limits(**limits)))
    try:
        yield pipeline
    finally:
        await pipeline.close()


def item(pipeline: Pipeline, index: int = 0, *, num_samples: int = 1, **changes: Any) -> Item:
    parameters = replace(pipeline.info.defaults, **changes.pop("parameters", {}))
    samples = tuple(Sample(k, 0, 1000 * index + k) for k in range(num_samples))
    given = {"image": png(index)} if not changes.keys() & {"caption", "prompt"} else {}
    return Item(f"item-{index}", parameters, samples, **({"class_name": "crane"} | given | changes))


async def events_of(pipeline: Pipeline, wanted: Item) -> list[Event]:
    return [event async for event in pipeline.run(wanted)]


def provenances(events: list[Event]) -> list[Provenance]:
    made = [event.provenance for event in events if isinstance(event, Painted)]
    return sorted(made, key=lambda one: one.sample.seed)


def pixels(events: list[Event]) -> list[str]:
    return [made.pixel_sha256 for made in provenances(events)]


class Telling:
    """A writer that says one thing, or raises it."""

    def __init__(self, answer: str | Exception) -> None:
        self.answer = answer
        self.heard: list[dict[str, str]] = []

    async def attempt(self, instruction: Instruction, words: Mapping[str, str], seed: int, share: Share) -> str:
        self.heard.append(dict(words))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def tell(pipeline: Pipeline, answer: str | Exception) -> Telling:
    """Give the pipeline another writer."""
    writer = Telling(answer)
    pipeline._wording = Wording(writer, SingleFlight(LruCache[Worded](9, 9999, lambda worded: len(worded.text or ""))))
    return writer


@pytest.mark.parametrize("mode", list(Mode))
async def test_every_mode_paints_every_sample(repository: Path, mode: Mode) -> None:
    async with serving(repository) as pipeline:
        events = await events_of(pipeline, item(pipeline, num_samples=3, mode=mode))
    assert len(set(pixels(events))) == 3
    done = events[-1]
    assert isinstance(done, Done)
    assert (done.num_images, done.num_failed) == (3, 0)
    assert {"image"} <= done.stage_seconds.keys()
    assert any(isinstance(event, Captioned) for event in events) == (mode is not Mode.BASIC)


@pytest.mark.parametrize("mode", list(Mode))
async def test_an_image_says_which_instruction_file_made_its_prompt(repository: Path, mode: Mode) -> None:
    async with serving(repository) as pipeline:
        assert set(pipeline.info.modes) == set(Mode)
        [made] = provenances(await events_of(pipeline, item(pipeline, mode=mode)))
        assert made.mode_sha256 == pipeline.info.mode_sha256[mode] == pipeline.modes.digests[mode]
        assert (made.mode, made.token_policy) == (mode, pipeline.modes.plans[mode].policy)


async def test_items_enter_and_leave_at_any_stage(repository: Path) -> None:
    async with serving(repository) as pipeline:
        kinds = {}
        for stage in Stage:
            leaving = {"stop_after": stage}
            kinds[stage] = {type(event) for event in await events_of(pipeline, item(pipeline, parameters=leaving))}
        with_caption = await events_of(pipeline, item(pipeline, caption="a red crane"))
        with_prompt = await events_of(pipeline, item(pipeline, prompt="anything at all"))
    assert kinds[Stage.CAPTION] == {Captioned, Done}
    assert kinds[Stage.PROMPT] == {Captioned, Prompted, Done}
    assert kinds[Stage.IMAGE] == {Captioned, Prompted, Painted, Done}
    assert [event.text for event in with_caption if isinstance(event, Prompted)] == ["a photo of crane, a red crane"]
    assert [event.text for event in with_prompt if isinstance(event, Prompted)] == ["anything at all"]


async def test_company_changes_no_pixel(repository: Path) -> None:
    async with serving(repository) as pipeline:
        alone = [pixels(await events_of(pipeline, item(pipeline, index))) for index in range(3)]
    async with serving(repository) as pipeline:
        wanted = [item(pipeline, index) for index in range(3)]
        others = [
            item(pipeline, 10 + index, parameters={"steps": 2 + index, "sampler": "euler", "guidance_scale": 1.0})
            for index in range(20)
        ]
        together = await asyncio.gather(*(events_of(pipeline, one) for one in [*others[:7], *wanted, *others[7:]]))
        assert max(pipeline.device.counts["denoise"].batch_rows) > 8
    assert [pixels(events) for events in together[7:10]] == alone


async def test_unguided_items_cost_one_row_a_step(repository: Path) -> None:
    rows = {}
    for scale in (1.0, 3.0):
        async with serving(repository) as pipeline:
            before = pipeline.device.counts["denoise"].computed_rows
            await events_of(pipeline, item(pipeline, parameters={"guidance_scale": scale, "steps": 6}))
            rows[scale] = pipeline.device.counts["denoise"].computed_rows - before
    assert rows == {1.0: 6, 3.0: 12}


async def test_equal_content_is_captioned_and_encoded_once(repository: Path, sessions: dict[str, FakeSession]) -> None:
    async with serving(repository) as pipeline:
        vision, text = len(sessions["fake_vision"].batches), len(sessions["fake_text"].batches)
        same = [replace(item(pipeline), id=str(index)) for index in range(5)]
        await asyncio.gather(*(events_of(pipeline, one) for one in same))
    assert len(sessions["fake_vision"].batches[vision:]) == 1
    assert sum(sessions["fake_text"].batches[text:]) == 1  # the empty negative prompt is known from the warm-up


async def test_both_captions_of_a_mix_come_of_one_look(repository: Path, sessions: dict[str, FakeSession]) -> None:
    async with serving(repository) as pipeline:
        looks = len(sessions["fake_vision"].batches)
        events = await events_of(pipeline, item(pipeline, num_samples=8, mode=Mode.RECAP_MIX))
    assert {event.length for event in events if isinstance(event, Captioned)} == {"short", "long"}
    assert len(sessions["fake_vision"].batches) - looks == 1


async def test_a_life_is_its_caller_s_to_cancel(repository: Path) -> None:
    async with serving(repository) as pipeline:
        events: list[Event] = []
        begun = asyncio.Event()

        def note(event: Event) -> None:
            events.append(event)
            begun.set()

        long = item(pipeline, num_samples=4, parameters={"steps": 150})
        life = asyncio.create_task(pipeline.live(long, note))
        await begun.wait()
        assert pipeline.num_items == 1
        life.cancel()
        await asyncio.wait([life])
        assert life.cancelled()
        assert pipeline.num_items == 0
        assert not any(isinstance(event, Done) for event in events)


async def test_a_nan_row_fails_alone(repository: Path, sessions: dict[str, FakeSession]) -> None:
    async with serving(repository) as pipeline:
        before = [pixels(await events_of(pipeline, item(pipeline, index))) for index in range(4)]

    def poisoned(inputs: Mapping[str, Any], row: int) -> bool:
        return bool(inputs["timestep"][row] < 300) and bool(np.allclose(inputs["sample"][row], target, atol=1e-6))

    async with serving(repository) as pipeline:
        seen: list[Any] = []
        sessions["fake_denoiser"].faults.append(lambda call: seen.append(dict(call.inputs)))
        await events_of(pipeline, item(pipeline, 2))
        target = next(inputs["sample"][0] for inputs in seen if inputs["timestep"][0] < 300)
    async with serving(repository) as pipeline:
        sessions["fake_denoiser"].faults.append(nan_rows("out_sample", poisoned))
        after = await asyncio.gather(*(events_of(pipeline, item(pipeline, index)) for index in range(4)))
    assert [pixels(after[index]) for index in (0, 1, 3)] == [before[index] for index in (0, 1, 3)]
    assert [event.reason for event in after[2] if isinstance(event, Failed)] == ["NON_FINITE"]
    assert not pixels(after[2])


async def test_a_failing_call_costs_nobody_else(repository: Path, sessions: dict[str, FakeSession]) -> None:
    async with serving(repository) as pipeline:
        expected = [pixels(await events_of(pipeline, item(pipeline, index))) for index in range(4)]
    async with serving(repository) as pipeline:
        sessions["fake_denoiser"].faults.append(fail_on(len(sessions["fake_denoiser"].batches) + 2))
        found = await asyncio.gather(*(events_of(pipeline, item(pipeline, index)) for index in range(4)))
    assert [pixels(events) for events in found] == expected


async def test_an_unexpected_error_costs_one_image(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode, calls = images.encode_image, []

    def failing_once(*args: Any) -> bytes:
        calls.append(args)
        if len(calls) == 2:
            raise MemoryError
        return encode(*args)

    async with serving(repository) as pipeline:
        monkeypatch.setattr(images, "encode_image", failing_once)
        events = await events_of(pipeline, item(pipeline, num_samples=4))
    assert len(pixels(events)) == 3
    assert [(event.reason, event.status) for event in events if isinstance(event, Failed)] == [("INTERNAL", "INTERNAL")]


async def test_nothing_is_captioned_written_or_encoded_twice(repository: Path) -> None:
    async with serving(repository) as pipeline:
        wanted = item(pipeline, mode=Mode.REWRITE)
        first = await events_of(pipeline, wanted)
        before = {stage: pipeline.device.counts[stage].batches for stage in ("vision", "caption", "write", "text")}
        assert pixels(await events_of(pipeline, wanted)) == pixels(first)
        assert {stage: pipeline.device.counts[stage].batches for stage in before} == before
    assert all(before.values())


async def test_a_stage_holds_a_bounded_number_of_tasks(repository: Path, sessions: dict[str, FakeSession]) -> None:
    async with serving(repository) as pipeline:
        denoiser: Any = pipeline.device._engines["denoise"]
        held: list[int] = []
        sessions["fake_denoiser"].faults.append(
            lambda call: held.extend(slots.num_taken for slots in denoiser._slots.values())
        )
        wanted = [item(pipeline, index, num_samples=40, prompt=f"p {index}") for index in range(8)]
        found = await asyncio.gather(*(events_of(pipeline, one) for one in wanted))
    assert all(len(pixels(events)) == 40 for events in found)
    assert 0 < max(held) <= denoiser.profile.max_tasks < 8 * 40


async def test_a_dead_backend_is_said_so(repository: Path, sessions: dict[str, FakeSession]) -> None:
    async with serving(repository) as pipeline:
        sessions["fake_vision"].down = True
        with pytest.raises(CaptoryError, match="down"):
            await events_of(pipeline, item(pipeline, 99))
        sessions["fake_vision"].down = False
        assert pixels(await events_of(pipeline, item(pipeline, 99)))


async def test_a_broken_image_is_its_items_error_in_every_mode(repository: Path) -> None:
    async with serving(repository) as pipeline:
        for mode in Mode:
            with pytest.raises(InvalidInput):
                await events_of(pipeline, item(pipeline, mode=mode, image=b"not an image"))
        assert pixels(await events_of(pipeline, item(pipeline)))


async def test_a_passed_deadline_stops_the_item(repository: Path, sessions: dict[str, FakeSession]) -> None:
    async with serving(repository) as pipeline:
        with pytest.raises(Expired):
            await events_of(pipeline, item(pipeline, parameters={"deadline_s": 1e-9, "steps": 50}))
        assert pipeline.num_items == 0
        await events_of(pipeline, item(pipeline, 1))
        assert pipeline.device.num_tasks == 0


async def test_leaving_the_iterator_stops_the_item(repository: Path) -> None:
    async with serving(repository) as pipeline:
        running = pipeline.run(item(pipeline, num_samples=4, parameters={"steps": 150}))
        assert isinstance(await anext(running), Captioned)
        await running.aclose()
        assert pipeline.num_items == 0
        before = pipeline.device.counts["denoise"].batches
        await events_of(pipeline, item(pipeline, 1, prompt="p", parameters={"steps": 5, "guidance_scale": 1.0}))
        assert pipeline.device.counts["denoise"].batches - before <= 5 + 2
        assert pipeline.device.num_tasks == 0


async def test_a_prompt_over_the_token_budget_is_dropped_or_cut(repository: Path) -> None:
    words = "word " * 60
    async with serving(repository) as pipeline:
        dropped = await events_of(pipeline, item(pipeline, caption=words, mode=Mode.RECAP_SHORT))
        cut = await events_of(pipeline, item(pipeline, caption=words, mode=Mode.CIP))
    [failed] = [event for event in dropped if isinstance(event, Failed)]
    assert failed.dropped
    assert failed.reason == "OVER_TOKEN_BUDGET"
    assert isinstance(dropped[-1], Done)
    assert dropped[-1].num_failed == 0
    [painted] = [event for event in cut if isinstance(event, Painted)]
    assert painted.provenance.token_count > 48
    assert painted.provenance.token_policy == "truncate"


async def test_a_prompt_that_is_split_gives_each_image_its_part(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "cip.yaml").write_text(
        'captions: [short]\ntemplate: "a photo of {c}, {caption}"\nclassless: "{caption}"\npolicy: split\n'
    )
    words = ", ".join(f"clause number {k}" for k in range(8))
    async with serving(repository, tmp_path) as pipeline:
        wanted = replace(item(pipeline, caption=words), samples=tuple(Sample(0, k, k) for k in range(8)))
        events = await events_of(pipeline, wanted)
        parts = pipeline._painter.tokenizer.split(f"a photo of crane, {words}")
    made = provenances(events)
    assert " ".join(parts) == f"a photo of crane, {words}"
    assert 1 < len(parts) < 8
    assert [one.prompt for one in made] == [parts[k % len(parts)] for k in range(8)]
    assert all(one.token_count > 48 and one.token_policy == TokenPolicy.SPLIT for one in made)  # before the split
    assert {event.text for event in events if isinstance(event, Prompted)} == set(parts)
    assert sum(isinstance(event, Prompted) for event in events) == len(parts)


async def test_a_closed_loop_paints_again_from_the_caption_of_its_draft(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted: list[tuple[str, int, Determinism]] = []
    async with serving(repository) as pipeline:
        paint = pipeline._painter.paint

        async def noted(prompt: str, sample: Sample, parameters: Parameters) -> Any:
            painted.append((prompt, sample.seed, parameters.determinism))
            return await paint(prompt, sample, parameters)

        monkeypatch.setattr(pipeline._painter, "paint", noted)
        wanted = item(pipeline, 3, mode=Mode.CLOSED_LOOP)
        assert [pipeline.rounds(one) for one in (wanted, replace(wanted, image=None, prompt="x"))] == [2, 1]
        events = await events_of(pipeline, wanted)
        [made] = provenances(events)
        again = await events_of(pipeline, item(pipeline, 3, mode=Mode.CLOSED_LOOP, prompt=made.prompt))
        alone = await events_of(pipeline, item(pipeline, 3, mode=Mode.CIP))
    [real], [told] = [event.text for event in events if isinstance(event, Captioned)], made.synthetic_captions
    assert (made.caption, made.prompt) == (real, f"a photo of crane, {told}")
    assert made.sample == wanted.samples[0]
    assert painted[:2] == [
        (f"a photo of crane, {real}", draft_seed(3000, 1), Determinism.EXACT),
        (made.prompt, 3000, Determinism.STABLE),
    ]
    assert pixels(again) == pixels(events) != pixels(alone)
    assert [event.text for event in events if isinstance(event, Prompted)] == [made.prompt]


async def test_a_closed_loop_that_is_to_end_at_the_prompt_paints_nothing(repository: Path) -> None:
    async with serving(repository) as pipeline:
        before = pipeline.device.counts["denoise"].batches
        leaving = item(pipeline, mode=Mode.CLOSED_LOOP, parameters={"stop_after": Stage.PROMPT})
        events = await events_of(pipeline, leaving)
        assert pipeline.device.counts["denoise"].batches == before
    assert {type(event) for event in events} == {Captioned, Prompted, Done}


def test_no_draft_has_another_image_s_seed() -> None:
    seeds = {draft_seed(seed, turn) for seed in range(300) for turn in (1, 2)}
    assert len(seeds) == 600
    assert all(0 <= seed < 2**53 for seed in seeds)


async def test_attributes_that_come_with_a_face_are_told_and_no_caption_is_asked_for(repository: Path) -> None:
    attributes = ("young", "a hat", "\x00")
    async with serving(repository) as pipeline:
        vision = pipeline.device.counts["vision"].batches
        writer = tell(pipeline, "A young woman with a hat and a smile looks at us.")
        [made] = provenances(await events_of(pipeline, item(pipeline, mode=Mode.FACE, attributes=attributes)))
        assert pipeline.device.counts["vision"].batches == vision
        [plain] = provenances(await events_of(pipeline, item(pipeline, mode=Mode.CIP, attributes=attributes)))
    assert writer.heard == [{"c": "crane", "caption": "", "attributes": "young, a hat"}]
    assert (made.prompt, made.writer, made.caption) == (writer.answer, "model", "")
    assert (made.attributes, plain.attributes) == (attributes, ())


@pytest.mark.parametrize(
    ("answer", "writer"),
    [
        ("high above us glides a brown bird", "model"),
        ("", "fallback"),
        ("word " * 1_000_000, "fallback"),
        ("ein schöner brauner Vogel über dem See", "fallback"),
        ("\x00\x1b[2J", "fallback"),
        (BadOutput("ANSWER_TOO_LONG", "more than 256 KiB"), "fallback"),
    ],
    ids=["good", "empty", "endless", "umlauts", "control", "10 MB"],
)
async def test_words_that_are_refused_fall_back_to_the_caption(
    repository: Path, answer: str | Exception, writer: str
) -> None:
    async with serving(repository) as pipeline:
        tell(pipeline, answer)
        wanted = item(pipeline, mode=Mode.REWRITE, caption="a brown bird", num_samples=2)
        made = provenances(await events_of(pipeline, wanted))
    said = answer if writer == "model" else "a brown bird"
    assert [(one.prompt, one.writer) for one in made] == [(f"a photo of crane, {said}", writer)] * 2
    assert [one.caption for one in made] == ["a brown bird"] * 2


async def test_a_writer_that_is_away_costs_the_images_that_wait_for_it_alone(repository: Path) -> None:
    async with serving(repository) as pipeline:
        tell(pipeline, Unavailable("WRITER_DOWN", "nobody answers"))
        events = await events_of(pipeline, item(pipeline, mode=Mode.REWRITE, num_samples=2))
        assert pixels(await events_of(pipeline, item(pipeline)))
    failed = [event for event in events if isinstance(event, Failed)]
    assert [(one.reason, one.status, one.dropped) for one in failed] == [("WRITER_DOWN", "UNAVAILABLE", False)] * 2
    assert isinstance(events[-1], Done)
    assert events[-1].num_failed == 2


async def test_instruction_files_that_are_wrong_do_not_open(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "cip.yaml").write_text("template: '{colour}'\nclassless: a")
    with pytest.raises(BadModel, match="colour"):
        await open_pipeline(EngineConfig(repository, modes=tmp_path, backend="fake"))


async def test_a_family_that_cannot_paint_does_not_open(
    repository: Path, sessions: dict[str, FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeSession, "run", lambda self, inputs: {})
    with pytest.raises(BadModel, match="cannot paint"):
        await open_pipeline(EngineConfig(repository, backend="fake"))
