"""A language model on vLLM as the writer: what it is told, what becomes of its words, and what it must be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_vllm import CHAT, COMPLETIONS, SENTENCE, Peer, endless, raw, serving, silent, status
from families import fake_repository

from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.errors import BadModel, Unreachable
from captory_engine.family import find_family
from captory_engine.items import Event, Failed, Item, Mode, Painted, Sample, WorkClass
from captory_engine.modes import Instruction
from captory_engine.pipeline import Pipeline
from captory_engine.repository import default_repository
from captory_engine.stages import Share
from captory_engine.tokenizer import Tokenizer
from captory_engine.vllm.options import VllmOptions
from captory_engine.vllm.server import Server, open_server
from captory_engine.vllm.writer import ChatWriter, PlainWriter, open_writer
from captory_engine.wording import Writer

PICTO = find_family(default_repository())
SPEC = PICTO.family.writer
assert SPEC is not None
TOKENIZER = Tokenizer(PICTO.root / SPEC.tokenizer)
SHARE = Share(WorkClass.BULK, exact=False)
CAPTION = "two red boats on the sea"
INSTRUCTION = Instruction(
    task="rewrite",
    text="{caption}",
    system="Reword captions of {c}.",
    user="Reword: {caption}",
    temperature=0.7,
    top_p=0.9,
    max_tokens=40,
    stop=("\n",),
)
OPTIONS = VllmOptions(patience_s=20.0, timeout_s=20.0)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_repository(tmp_path_factory.mktemp("repository"))


@asynccontextmanager
async def server_at(place: str) -> AsyncIterator[Server]:
    server = await open_server(place, OPTIONS)
    try:
        yield server
    finally:
        await server.close()


async def write(writer: Writer, instruction: Instruction = INSTRUCTION, caption: str = CAPTION) -> str:
    return await writer.attempt(instruction, {"c": "boat", "caption": caption, "attributes": ""}, 77, SHARE)


async def test_a_model_that_chats_is_told_what_the_mode_says(peer: Peer, address: str) -> None:
    async with server_at(f"vllm://{address}") as server:
        writer = await open_writer(server, SPEC, TOKENIZER)
        assert isinstance(writer, ChatWriter)
        assert await write(writer) == SENTENCE
    asked = peer.requests[-1]
    assert asked.path == CHAT
    assert asked.body == {
        "model": "model-a",
        "messages": [
            {"role": "system", "content": "Reword captions of boat."},
            {"role": "user", "content": f"Reword: {CAPTION}"},
        ],
        "seed": 77,
        "stop": ["\n"],
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 40,
    }


async def test_what_the_mode_leaves_open_is_left_to_the_model(peer: Peer, address: str) -> None:
    plain = Instruction(task="rewrite", text="{caption}", user="{caption}", max_tokens=8)
    async with server_at(f"vllm://{address}") as server:
        await write(ChatWriter(server), plain)
    body = peer.requests[-1].body
    assert body["messages"] == [{"role": "user", "content": CAPTION}]
    assert not body.keys() & {"temperature", "top_p", "top_k", "response_format"}


async def test_a_schema_travels_as_the_api_has_it(peer: Peer, address: str) -> None:
    schema = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    structured = INSTRUCTION.model_copy(update={"json_schema": schema})
    async with server_at(f"vllm://{address}") as server:
        await write(ChatWriter(server), structured)
    told = {"type": "json_schema", "json_schema": {"name": "rewrite", "schema": schema}}
    assert peer.requests[-1].body["response_format"] == told


async def test_the_family_s_own_writer_reads_its_template_as_tokens(peer: Peer, address: str) -> None:
    peer.chats, peer.tokenizer = False, TOKENIZER
    spelled = f"{CAPTION} <|eos|>"
    async with server_at(f"vllm://{address}") as server:
        writer = await open_writer(server, SPEC, TOKENIZER)
        assert isinstance(writer, PlainWriter)
        assert await write(writer, caption=spelled) == SENTENCE
    asked = peer.requests[-1]
    before, after = TOKENIZER.template_ids("<|bos|><|rewrite|>"), TOKENIZER.template_ids("<|long|>")
    prompt = [*before, *TOKENIZER.encode(spelled), *after]
    assert asked.path == COMPLETIONS
    assert asked.body == {
        "model": "model-a",
        "prompt": prompt,
        "seed": 77,
        "stop": ["\n"],
        "temperature": 0.7,
        "top_k": SPEC.top_k,
        "top_p": 0.9,
        "max_tokens": 40,
    }
    assert SPEC.eos_id not in prompt


async def test_a_long_text_leaves_room_for_the_answer(peer: Peer, address: str) -> None:
    async with server_at(f"vllm://{address}") as server:
        await write(PlainWriter(server, SPEC, TOKENIZER), caption=" ".join(["a red boat"] * 200))
    body = peer.requests[-1].body
    assert len(body["prompt"]) == SPEC.max_positions // 2 + 1
    assert 0 < body["max_tokens"] <= SPEC.max_positions - len(body["prompt"])


async def test_a_model_that_is_neither_is_refused_at_start(repository: Path, peer: Peer, address: str) -> None:
    peer.chats, peer.tokenizer = False, Tokenizer(repository / "fake_captioner" / "tokenizer.json")
    async with server_at(f"vllm://{address}") as server:
        for spec, tokenizer in ((SPEC, TOKENIZER), (None, None)):
            with pytest.raises(BadModel, match=r"no chat template.*'model-a'"):
                await open_writer(server, spec, tokenizer)


async def test_one_of_several_models_is_named(peer: Peer, address: str) -> None:
    peer.models = ("base", "org/adapter")
    async with server_at(f"vllm://{address}") as first, server_at(f"vllm://{address}/org/adapter") as second:
        assert (first.model, second.model) == ("base", "org/adapter")
        assert first.info.sha256 != second.info.sha256
        assert first.info.backend == "vllm 0.32.0"
    with pytest.raises(BadModel, match=r"no model 'other'; it serves base, org/adapter"):
        await open_server(f"vllm://{address}/other", OPTIONS)


# The whole pipeline, painter and captioner faked.


@asynccontextmanager
async def painting(repository: Path, address: str, **options: Any) -> AsyncIterator[Pipeline]:
    vllm = replace(OPTIONS, **options)
    pipeline = await open_pipeline(EngineConfig(repository, backend="fake", writer=f"vllm://{address}", vllm=vllm))
    try:
        yield pipeline
    finally:
        await pipeline.close()


async def events_of(pipeline: Pipeline, *seeds: int) -> list[Event]:
    parameters = replace(pipeline.info.defaults, steps=1)
    samples = tuple(Sample(index, 0, seed) for index, seed in enumerate(seeds))
    item = Item("i", parameters, samples, mode=Mode.REWRITE, class_name="boat", caption=CAPTION)
    return [event async for event in pipeline.run(item)]


def made_by(events: list[Event]) -> list[tuple[str, str]]:
    made = [event.provenance for event in events if isinstance(event, Painted)]
    return sorted((one.writer, one.prompt) for one in made)


async def test_its_words_are_painted_and_recorded(repository: Path, peer: Peer, address: str) -> None:
    async with painting(repository, address) as pipeline:
        assert pipeline.info.models["vllm_writer"].backend == "vllm 0.32.0"
        assert {Mode.REWRITE, Mode.FACE} <= set(pipeline.info.modes)
        peer.requests.clear()
        events = await events_of(pipeline, 5, 6)
        assert made_by(events) == [("model", f"a photo of boat, {SENTENCE}")] * 2
        assert sorted(request.body["seed"] for request in peer.requests) == [5, 6]
        records = [event.provenance for event in events if isinstance(event, Painted)]
        assert {record.models["vllm_writer"] for record in records} == {pipeline.info.models["vllm_writer"].sha256}


@pytest.mark.parametrize(
    "answer", [b"", b"\xff\xfe", b"x" * (10 << 20), b'{"choices": 1}', b'{"choices": [{"message": {"content": ""}}]}']
)
async def test_rubbish_ends_in_the_fallback_after_bounded_attempts(
    repository: Path, peer: Peer, address: str, answer: bytes
) -> None:
    async with painting(repository, address) as pipeline:
        peer.requests.clear()
        peer.faults = [raw(answer)] * 1000
        assert made_by(await events_of(pipeline, 5)) == [("fallback", f"a photo of boat, {CAPTION}")]
        assert [request.body["seed"] for request in peer.requests] == [5, 6, 7, 8]


async def test_one_bad_answer_of_several_costs_an_attempt(repository: Path, peer: Peer, address: str) -> None:
    async with painting(repository, address) as pipeline:
        peer.faults = [endless, raw(b"{}")]
        assert made_by(await events_of(pipeline, 5)) == [("model", f"a photo of boat, {SENTENCE}")]


async def test_what_does_not_suit_the_model_is_asked_once(repository: Path, peer: Peer, address: str) -> None:
    async with painting(repository, address) as pipeline:
        peer.requests.clear()
        peer.faults = [status(400)]
        assert made_by(await events_of(pipeline, 5)) == [("fallback", f"a photo of boat, {CAPTION}")]
        assert len(peer.requests) == 1


async def test_an_answer_that_is_cut_is_none(repository: Path, peer: Peer, address: str) -> None:
    async with painting(repository, address) as pipeline:
        peer.ends = "length"
        assert made_by(await events_of(pipeline, 5)) == [("fallback", f"a photo of boat, {CAPTION}")]


async def test_modes_with_its_words_are_never_exact(repository: Path, address: str) -> None:
    async with painting(repository, address) as pipeline:
        assert set(pipeline.info.inexact_modes) == {Mode.REWRITE, Mode.FACE}


async def test_a_writer_that_is_away_fails_the_image_as_unavailable(repository: Path, peer: Peer) -> None:
    with ExitStack() as there:
        address = there.enter_context(serving(peer))
        async with painting(repository, address, patience_s=0.2) as pipeline:
            there.close()
            failed = [event for event in await events_of(pipeline, 5) if isinstance(event, Failed)]
            assert pipeline.answers  # few modes need it
    assert [(event.status, event.reason) for event in failed] == [("UNAVAILABLE", "VLLM_DOWN")]


async def test_a_writer_that_hangs_fails_the_image_and_no_other(repository: Path, peer: Peer, address: str) -> None:
    async with painting(repository, address, timeout_s=1.0) as pipeline:
        peer.faults = [silent]
        [failed] = [event for event in await events_of(pipeline, 5) if isinstance(event, Failed)]
        assert (failed.status, failed.reason) == ("UNAVAILABLE", "VLLM_SLOW")
        assert len(made_by(await events_of(pipeline, 9))) == 1


async def test_a_server_that_is_not_there_ends_the_start(repository: Path, peer: Peer) -> None:
    with serving(peer) as address:
        pass
    with pytest.raises(Unreachable, match="No vLLM at"):
        async with painting(repository, address, patience_s=0.2):
            pass
