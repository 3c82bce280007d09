"""Requests to a vLLM server: how many at once, what is asked again, and answers that nobody can trust."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import Any

import pytest
from clocks import Clock
from fake_vllm import CHAT, Fault, Peer, cut, endless, raw, serving, silent, status, trickling, zipped
from hypothesis import given
from hypothesis import strategies as st
from ports import free_port

from captory_engine.errors import BadModel, BadOutput, CaptoryError, Unavailable, Unreachable, Unsuited
from captory_engine.vllm import endpoint as endpoint_module
from captory_engine.vllm.answers import read_chat, read_completion, read_models
from captory_engine.vllm.endpoint import KEY_VARIABLE, MAX_ANSWER_BYTES, Endpoint, api_key
from captory_engine.vllm.options import Own, Served, VllmOptions, place_of

BODY = {"model": "model-a", "messages": [{"role": "user", "content": "a caption"}]}
KEY = "a-secret-of-some-length"


@asynccontextmanager
async def connected(address: str, key: str = "", **options: Any) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(address, VllmOptions(**({"patience_s": 20.0, "timeout_s": 20.0} | options)), key)
    try:
        yield endpoint
    finally:
        await endpoint.close()


async def test_an_answer_comes_as_text(peer: Peer, address: str) -> None:
    async with connected(address) as endpoint:
        assert read_chat(await endpoint.post(CHAT, BODY)) == (peer.text, 11, False)
        assert [model.id for model in read_models(await endpoint.get("/v1/models"))] == ["model-a"]
    assert [request.body for request in peer.requests] == [BODY]
    assert "authorization" not in peer.requests[0].headers


async def test_the_key_is_sent_and_never_logged(address: str, peer: Peer, caplog: pytest.LogCaptureFixture) -> None:
    peer.key = KEY
    peer.faults = [status(503)]
    with caplog.at_level(logging.DEBUG):
        async with connected(address, KEY) as endpoint:
            await endpoint.post(CHAT, BODY)
        async with connected(address, "another") as endpoint:
            with pytest.raises(Unavailable, match=KEY_VARIABLE) as refused:
                await endpoint.post(CHAT, BODY)
    assert peer.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert refused.value.reason == "VLLM_KEY"
    assert KEY not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith(("httpx", "httpcore"))]


def test_a_key_that_cannot_be_sent_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, f" {KEY}\n")
    assert api_key() == KEY
    monkeypatch.setenv(KEY_VARIABLE, "two\nlines")
    with pytest.raises(BadModel, match=KEY_VARIABLE) as refused:
        api_key()
    assert "two" not in str(refused.value)


async def test_the_window_is_full_and_never_over(peer: Peer, address: str) -> None:
    peer.gate.clear()
    async with connected(address, max_concurrent=3) as endpoint:
        asked = [asyncio.create_task(endpoint.post(CHAT, BODY)) for _ in range(12)]
        assert await asyncio.to_thread(peer.wait_busy, 3)
        assert len(peer.requests) == 3
        peer.gate.set()
        await asyncio.gather(*asked)
    assert len(peer.requests) == 12
    assert peer.max_busy == 3


@pytest.mark.parametrize("faults", [[status(429)], [status(503), status(503)], [cut], [status(503), cut, status(429)]])
async def test_what_failed_safely_is_asked_again(peer: Peer, address: str, faults: list[Fault]) -> None:
    peer.faults = list(faults)
    async with connected(address) as endpoint:
        assert read_chat(await endpoint.post(CHAT, BODY)).text == peer.text
    assert len(peer.requests) == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "kind", "reason"),
    [
        (status(500), Unavailable, "VLLM_FAILED"),
        (status(404), Unavailable, "VLLM_FAILED"),
        (status(307), Unavailable, "VLLM_FAILED"),
        (status(403), Unavailable, "VLLM_KEY"),
        (status(400), Unsuited, "VLLM_REFUSED"),
        (status(413), Unsuited, "VLLM_REFUSED"),
        (raw(b"x" * (10 << 20)), BadOutput, "ANSWER_TOO_LONG"),
        (endless, BadOutput, "ANSWER_TOO_LONG"),
        (raw(b'{"choices": [{"message": {"content": "caf\xe9"}}]}'), BadOutput, "ANSWER_NOT_TEXT"),
        (zipped(gzip.compress(b"x" * (10 << 20))), BadOutput, "ANSWER_NOT_TEXT"),
    ],
)
async def test_what_is_refused_or_no_answer_is_not_asked_again(
    peer: Peer, address: str, fault: Fault, kind: type[CaptoryError], reason: str
) -> None:
    peer.faults = [fault]
    async with connected(address) as endpoint:
        with pytest.raises(kind) as failed:
            await endpoint.post(CHAT, BODY)
        assert failed.value.reason == reason
        assert len(peer.requests) == 1
        assert read_chat(await endpoint.post(CHAT, BODY)).text == peer.text


async def test_an_answer_may_be_as_long_as_allowed(peer: Peer, address: str) -> None:
    peer.faults = [raw(b"x" * MAX_ANSWER_BYTES)]
    async with connected(address) as endpoint:
        assert len(await endpoint.post(CHAT, BODY)) == MAX_ANSWER_BYTES


@pytest.mark.parametrize("fault", [silent, trickling])
async def test_one_that_takes_too_long_is_given_up_there_as_well(peer: Peer, address: str, fault: Fault) -> None:
    peer.faults = [fault]
    async with connected(address, timeout_s=0.3) as endpoint:
        with pytest.raises(Unreachable) as slow:
            await endpoint.post(CHAT, BODY)
        assert await asyncio.to_thread(peer.hung_up.wait, 10)
    assert slow.value.reason == "VLLM_SLOW"
    assert len(peer.requests) == 1


async def test_who_is_cancelled_ends_the_request_there(peer: Peer, address: str) -> None:
    peer.faults = [silent]
    async with connected(address, max_concurrent=1) as endpoint:
        asking = asyncio.create_task(endpoint.post(CHAT, BODY))
        assert await asyncio.to_thread(peer.wait_busy, 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await asyncio.to_thread(peer.hung_up.wait, 10)
        assert read_chat(await endpoint.post(CHAT, BODY)).text == peer.text  # its place is free again


async def test_a_deadline_ends_the_patience() -> None:
    async with connected(f"127.0.0.1:{free_port()}", patience_s=600.0) as endpoint:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await endpoint.post(CHAT, BODY)


async def test_nobody_there_for_longer_than_patience() -> None:
    address = f"127.0.0.1:{free_port()}"
    async with connected(address, patience_s=0.2) as endpoint:
        with pytest.raises(Unreachable, match=f"No vLLM at {address} answers") as down:
            await endpoint.post(CHAT, BODY)
    assert down.value.reason == "VLLM_DOWN"


class Watched(Endpoint):
    """Tells what it notes."""

    def __init__(self, address: str, options: VllmOptions, clock: Clock | None = None) -> None:
        super().__init__(address, options, clock=clock or Clock())
        self.noted: asyncio.Queue[bool] = asyncio.Queue()

    def _note(self, *, answers: bool) -> None:
        super()._note(answers=answers)
        self.noted.put_nowait(answers)

    async def until(self, answers: bool) -> None:
        async with asyncio.timeout(20):
            while await self.noted.get() != answers:
                pass


@asynccontextmanager
async def watched(address: str, clock: Clock | None = None, **options: float) -> AsyncIterator[Watched]:
    endpoint = Watched(address, VllmOptions(**({"patience_s": 60.0} | options)), clock)
    endpoint.watch()
    try:
        yield endpoint
    finally:
        await endpoint.close()


async def test_it_is_known_when_it_goes_and_when_it_is_back(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "HEARTBEAT_S", 0.01)
    with ExitStack() as there:
        address = there.enter_context(serving(peer))
        async with watched(address) as endpoint:
            await endpoint.until(True)
            there.close()
            await endpoint.until(False)
            assert not endpoint.answers
            with serving(Peer(), int(address.rpartition(":")[2])):
                await endpoint.until(True)
                assert endpoint.answers


async def test_one_that_hangs_is_known_too(peer: Peer, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "HEALTH_TIMEOUT_S", 0.05)
    peer.hangs = True
    async with watched(address) as endpoint:
        await endpoint.until(False)
        assert not endpoint.answers


async def test_who_comes_when_it_has_long_been_away_does_not_wait_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "HEARTBEAT_S", 60.0)
    clock = Clock()
    async with watched(f"127.0.0.1:{free_port()}", clock) as endpoint:
        await endpoint.until(False)
        clock.now_s = 60.0
        async with asyncio.timeout(20):  # of its own patience not a second passes
            for _ in range(3):
                with pytest.raises(Unreachable):
                    await endpoint.post(CHAT, BODY)


async def test_waiting_for_a_place_costs_no_patience(peer: Peer, address: str) -> None:
    peer.gate.clear()
    clock = Clock()
    endpoint = Watched(address, VllmOptions(max_concurrent=1, patience_s=10.0), clock)
    first, second = (asyncio.create_task(endpoint.post(CHAT, BODY)) for _ in range(2))
    assert await asyncio.to_thread(peer.wait_busy, 1)
    clock.now_s = 100.0
    peer.faults = [raw(b"first"), status(503)]
    peer.gate.set()
    assert await first == "first"
    assert read_chat(await second).text == peer.text
    await endpoint.close()


async def test_no_room_for_longer_than_patience(peer: Peer, address: str) -> None:
    peer.faults = [status(429)] * 1000
    async with connected(address, patience_s=0.2) as endpoint:
        with pytest.raises(Unreachable) as busy:
            await endpoint.post(CHAT, BODY)
    assert busy.value.reason == "VLLM_BUSY"


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "null",
        "[" * 100_000,
        json.dumps({"choices": []}),
        json.dumps({"choices": [{"message": "words"}], "text": "words"}),
        json.dumps({"choices": [{"message": {"content": ["words"]}, "text": 7}]}),
        json.dumps({"choices": [{"message": {"content": "a"}, "text": "a"}], "usage": {"completion_tokens": -1}}),
        json.dumps({"choices": [{"message": {"content": "a"}, "text": "a"}], "usage": {"completion_tokens": 1 << 32}}),
        '{"choices": [{"message": {"content": "\\ud800"}, "text": "\\ud800"}]}',
    ],
)
def test_another_shape_is_no_answer(body: str) -> None:
    for read in (read_chat, read_completion, read_models):
        with pytest.raises(BadOutput) as refused:
            read(body)
        assert refused.value.reason == "ANSWER_MALFORMED"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["choices", "message", "content", "text"]), inner),
)


@given(st.text() | JSON.map(json.dumps))
def test_any_text_is_words_or_refused(body: str) -> None:
    for read in (read_chat, read_completion):
        with suppress(BadOutput):
            assert isinstance(read(body).text, str)


def test_words_that_are_missing_are_none() -> None:
    assert read_chat('{"choices": [{"message": {"content": null}}], "usage": null}') == ("", 0, False)


def test_addresses() -> None:
    assert place_of("vllm://127.0.0.1:8000") == Served("127.0.0.1:8000")
    assert place_of("vllm://[::1]:8000/org/name") == Served("[::1]:8000", "org/name")
    assert place_of("vllm:org/name@abc") == Own("org/name@abc")
    assert place_of("vllm:/models/writer") == Own("/models/writer")


@pytest.mark.parametrize(
    "value",
    [
        "vllm:",
        "vllm://",
        "vllm://host",
        "vllm://host:0",
        "vllm://host:70000",
        "vllm://user:secret@host:8000",
        "vllm://host:8000?key=secret",
        "http://host:8000",
        "org/name",
    ],
)
def test_what_is_no_address_is_refused(value: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - its words differ
        place_of(value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "argument",
    [
        "--trust-remote-code",
        "--trust_remote_code",
        "--trust-rem",
        "--api-key=secret",
        "--host=0.0.0.0",
        "--port",
        "--config=f",
    ],
)
def test_arguments_that_are_not_for_a_caller_are_refused(argument: str) -> None:
    with pytest.raises(ValueError, match="arguments may not have") as refused:
        VllmOptions(arguments=("--enforce-eager", argument))
    assert "secret" not in str(refused.value)
    assert VllmOptions(arguments=("--enforce-eager", "--max-model-len=128", "--config-format=hf"))


@pytest.mark.parametrize(
    "wrong", [{"max_concurrent": 0}, {"patience_s": 0}, {"timeout_s": -1.0}, {"gpu_memory": 0.0}, {"gpu_memory": 1.5}]
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VllmOptions(**wrong)
