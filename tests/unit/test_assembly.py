"""A pipeline that does not open leaves nothing open."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from families import fake_repository

from captory_engine import assembly
from captory_engine.assembly import EngineConfig, open_pipeline
from captory_engine.errors import BadModel
from captory_engine.sessions.fake import FakeSession
from captory_engine.sessions.options import TritonOptions


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[FakeSession]:
    """The sessions that were opened; one that is closed is down."""
    sessions: list[FakeSession] = []

    def open_session(backend: str, model: Any, options: Any) -> FakeSession:
        sessions.append(FakeSession.of(model))
        return sessions[-1]

    monkeypatch.setattr(assembly, "open_session", open_session)
    return sessions


@pytest.mark.parametrize("step", ["_profiles", "_build", "_warm_up"])
async def test_what_was_opened_is_closed_when_a_later_step_fails(
    step: str, opened: list[FakeSession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise BadModel("STEP", f"{step} fails")

    monkeypatch.setattr(assembly, step, fail)
    with pytest.raises(BadModel, match=f"{step} fails"):
        await open_pipeline(EngineConfig(fake_repository(tmp_path), backend="fake"))
    assert opened
    assert all(session.down for session in opened)


async def test_who_is_told_to_stop_while_models_open_closes_them(
    opened: list[FakeSession], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, told = threading.Event(), threading.Event()
    open_sessions = assembly.open_sessions

    def slowly(*args: Any) -> Any:
        begun.set()
        told.wait(10)
        return open_sessions(*args)

    monkeypatch.setattr(assembly, "open_sessions", slowly)
    opening = asyncio.create_task(open_pipeline(EngineConfig(fake_repository(tmp_path), backend="fake")))
    await asyncio.to_thread(begun.wait, 10)
    opening.cancel()
    told.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert opened
    assert all(session.down for session in opened)


def test_who_is_told_to_stop_while_triton_is_away_stops_at_once(tmp_path: Path) -> None:
    """The process, too: no thread waits on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        away = TritonOptions(f"127.0.0.1:{probe.getsockname()[1]}", patience_s=120)  # bound, and nobody listens
        config = EngineConfig(fake_repository(tmp_path), backend="triton", triton=away)

        async def stopped() -> None:
            async with asyncio.timeout(0.5):
                await open_pipeline(config)

        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            asyncio.run(stopped())
        assert time.monotonic() - began_s < 60
