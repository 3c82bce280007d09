"""A vision-language model on vLLM as the captioner, against a peer: pictures arrive in the request, never by URL."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_vllm import CHAT, SENTENCE, Peer, raw, serving, status
from families import fake_repository
from PIL import Image

from captory_engine import assembly
from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.errors import BadModel, BadOutput, InvalidInput, Unavailable, Unreachable
from captory_engine.family import LocatedFamily, find_family
from captory_engine.items import Captioned, Event, Item, Mode, Painted, Sample, Stage
from captory_engine.pipeline import Pipeline
from captory_engine.vllm.captioner import MAX_SIDE_PX, TELLINGS, Telling, VllmCaptioner
from captory_engine.vllm.endpoint import Endpoint
from captory_engine.vllm.options import VllmOptions

INLINE = "data:image/png;base64,"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_repository(tmp_path_factory.mktemp("repository"))


@asynccontextmanager
async def captioning(repository: Path, address: str, **config: Any) -> AsyncIterator[Pipeline]:
    vllm = VllmOptions(patience_s=20.0, timeout_s=20.0)
    settings = {"backend": "fake", "captioner": f"vllm://{address}", "vllm": vllm} | config
    pipeline = await open_pipeline(EngineConfig(repository, **settings))
    try:
        yield pipeline
    finally:
        await pipeline.close()


def photograph(width: int, height: int, **options: Any) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", **options)
    return file.getvalue()


async def events_of(pipeline: Pipeline, image: bytes, mode: Mode, *, stop: Stage = Stage.IMAGE) -> list[Event]:
    parameters = replace(pipeline.info.defaults, steps=1, stop_after=stop)
    item = Item("i", parameters, (Sample(0, 0, 1),), mode=mode, class_name="boat", image=image)
    return [event async for event in pipeline.run(item)]


def pictures(peer: Peer) -> list[Image.Image]:
    """Every picture that the peer was shown; all of each request must be text or a PNG inside it."""
    found = []
    for request in peer.requests:
        for message in request.body["messages"]:
            parts = message["content"] if isinstance(message["content"], list) else []
            urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
            assert all(url.startswith(INLINE) for url in urls)
            found += [Image.open(io.BytesIO(base64.b64decode(url.removeprefix(INLINE), validate=True))) for url in urls]
    return found


async def test_its_caption_becomes_the_prompt(repository: Path, peer: Peer, address: str) -> None:
    async with captioning(repository, address) as pipeline:
        peer.requests.clear()
        events = await events_of(pipeline, photograph(64, 48), Mode.CIP)
        models = pipeline.info.models
    assert [event for event in events if isinstance(event, Captioned)] == [Captioned(SENTENCE, "short", 11)]
    [painted] = [event.provenance for event in events if isinstance(event, Painted)]
    assert painted.prompt == f"a photo of boat, {SENTENCE}"
    assert painted.models["vllm_captioner"] == models["vllm_captioner"].sha256
    assert not [name for name in models if "captioner" in name and name != "vllm_captioner"]
    [request] = peer.requests
    assert (request.path, request.body["model"], request.body["temperature"]) == (CHAT, "model-a", 0.0)
    assert [picture.size for picture in pictures(peer)] == [(64, 48)]
    assert "://" not in json.dumps(request.body)


@pytest.mark.parametrize(("mode", "length"), [(Mode.RECAP_SHORT, "short"), (Mode.RECAP_LONG, "long")])
async def test_each_length_is_asked_for_in_its_own_words(
    repository: Path, peer: Peer, address: str, mode: Mode, length: str
) -> None:
    async with captioning(repository, address) as pipeline:
        await events_of(pipeline, photograph(64, 64), mode)
    [told] = [part["text"] for part in peer.requests[-1].body["messages"][0]["content"] if part["type"] == "text"]
    assert told == TELLINGS[length].instruction
    assert peer.requests[-1].body["max_tokens"] == TELLINGS[length].max_tokens


async def test_what_is_sent_is_decoded_turned_and_made_smaller_here(repository: Path, peer: Peer, address: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "the camera's maker"  # turned by a quarter
    async with captioning(repository, address) as pipeline:
        peer.requests.clear()
        await events_of(pipeline, photograph(2000, 1000, exif=exif.tobytes()), Mode.CIP)
    [picture] = pictures(peer)
    assert picture.size == (MAX_SIDE_PX // 2, MAX_SIDE_PX)
    assert not picture.getexif()


async def test_the_same_picture_is_asked_about_once(repository: Path, peer: Peer, address: str) -> None:
    async with captioning(repository, address) as pipeline:
        peer.requests.clear()
        for _ in range(3):
            await events_of(pipeline, photograph(64, 64), Mode.CIP)
    assert len(peer.requests) == 1


async def test_bytes_that_are_no_picture_never_leave(repository: Path, peer: Peer, address: str) -> None:
    async with captioning(repository, address) as pipeline:
        peer.requests.clear()
        for mode in (Mode.CIP, Mode.BASIC):
            with pytest.raises(InvalidInput):
                await events_of(pipeline, photograph(64, 64)[:500], mode)
    assert peer.requests == []


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (raw(b'{"choices": [{"message": {"content": " \\u0000\\n "}}]}'), "CAPTION_EMPTY"),
        (raw(b"x" * (10 << 20)), "ANSWER_TOO_LONG"),
        (raw(b"\xff"), "ANSWER_NOT_TEXT"),
        (raw(b"[]"), "ANSWER_MALFORMED"),
        (status(400), "VLLM_REFUSED"),
        (raw('{"choices": [{"message": {"content": "湖上的两条红船"}}]}'.encode()), "CAPTION_LANGUAGE"),
    ],
)
async def test_no_caption_fails_the_item_with_the_reason(
    repository: Path, peer: Peer, address: str, fault: Any, reason: str
) -> None:
    async with captioning(repository, address) as pipeline:
        peer.faults = [fault]
        with pytest.raises(BadOutput) as failed:
            await events_of(pipeline, photograph(64, 64), Mode.CIP, stop=Stage.CAPTION)
        assert failed.value.reason == reason
        assert await events_of(pipeline, photograph(64, 64), Mode.CIP, stop=Stage.CAPTION)


async def test_its_typesetting_is_made_plain(repository: Path, peer: Peer, address: str) -> None:
    peer.text = "a “red” boat — the café’s…"
    async with captioning(repository, address) as pipeline:
        said, *_ = await events_of(pipeline, photograph(64, 64), Mode.CIP, stop=Stage.CAPTION)
    assert said == Captioned('a "red" boat - the café\'s...', "short", 11)


async def test_pictures_are_made_ready_when_there_is_a_place_for_them(
    repository: Path, peer: Peer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bytes] = []
    body = VllmCaptioner._body

    def noted(captioner: VllmCaptioner, image: bytes, telling: Telling) -> bytes:
        made.append(image)
        return body(captioner, image, telling)

    monkeypatch.setattr(VllmCaptioner, "_body", noted)
    vllm = VllmOptions(patience_s=20.0, timeout_s=20.0, max_concurrent=1)
    async with captioning(repository, address, vllm=vllm) as pipeline:
        made.clear()
        peer.gate.clear()
        asked = [
            asyncio.create_task(events_of(pipeline, photograph(64, 64 + k), Mode.CIP, stop=Stage.CAPTION))
            for k in range(4)
        ]
        assert await asyncio.to_thread(peer.wait_busy, 1)
        assert len(made) == 1
        peer.gate.set()
        await asyncio.gather(*asked)
    assert len(made) == 4


async def test_modes_with_its_captions_are_never_exact(repository: Path, address: str) -> None:
    async with captioning(repository, address) as pipeline:
        assert set(pipeline.info.inexact_modes) == set(pipeline.info.modes) - {Mode.BASIC}


async def test_a_model_without_eyes_is_refused_at_start(repository: Path, peer: Peer, address: str) -> None:
    peer.sees = False
    with pytest.raises(BadModel, match=r"'model-a' .*takes no pictures"):
        async with captioning(repository, address):
            pass


async def test_what_was_opened_is_closed_when_the_start_ends_early(
    repository: Path, peer: Peer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    async def close(endpoint: Endpoint) -> None:
        closed.append(endpoint.address)

    monkeypatch.setattr(Endpoint, "close", close)
    peer.faults = [raw(b'{"choices": [{"message": {"content": "a boat"}}]}'), status(500)]  # seen, then not
    with pytest.raises(Unavailable, match="HTTP 500"):
        async with captioning(repository, address):
            pass
    assert set(closed) == {address}


async def test_a_family_need_not_have_a_captioner(
    repository: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, family = find_family(repository)
    painter = LocatedFamily(root, family.model_copy(update={"captioner": None}))
    monkeypatch.setattr(assembly, "find_family", lambda *_: painter)
    async with captioning(repository, address) as pipeline:
        events = await events_of(pipeline, photograph(64, 64), Mode.CIP)
        assert [event.provenance.caption for event in events if isinstance(event, Painted)] == [SENTENCE]
    with pytest.raises(BadModel, match="--captioner"):
        await open_pipeline(EngineConfig(repository, backend="fake"))


async def test_while_it_is_away_the_pipeline_does_not_answer(repository: Path, peer: Peer) -> None:
    vllm = VllmOptions(patience_s=0.2, timeout_s=20.0)
    with ExitStack() as there:
        address = there.enter_context(serving(peer))
        async with captioning(repository, address, vllm=vllm) as pipeline:
            assert pipeline.answers
            there.close()
            with pytest.raises(Unreachable):
                await events_of(pipeline, photograph(64, 64), Mode.CIP)
            assert not pipeline.answers


async def test_one_server_may_be_both(repository: Path, peer: Peer, address: str) -> None:
    async with captioning(repository, address, writer=f"vllm://{address}") as pipeline:
        assert {"vllm_writer", "vllm_captioner"} <= set(pipeline.info.models)
        [painted] = [
            event for event in await events_of(pipeline, photograph(64, 64), Mode.REWRITE) if isinstance(event, Painted)
        ]
    assert painted.provenance.writer == "model"
