"""A server as a process: signals, the pipes to its parent, the exit code."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path

from captory_engine.errors import CaptoryError
from captory_server.address import UNIX
from captory_server.app import App, OpenPipeline
from captory_server.config import Settings
from captory_server.lifelines import tell_address, watch_parent
from captory_server.logs import event
from captory_server.ports import Pipeline

ORPHAN_S = 10
USAGE = 2
NOT_THERE = {"FAMILY_MISSING", "REPOSITORY_MISSING", "MODES_MISSING", "MODE_INVALID"}  # what the caller named

log = logging.getLogger(__name__)


def run_server(
    settings: Settings,
    open_pipeline: OpenPipeline | None = None,
    *,
    address_fd: int | None = None,
    parent_fd: int | None = None,
) -> int:
    """Serve until a signal. Returns the exit code: 0 after a drain, 2 for a wrong name, else 1; the log says why."""
    event(log, logging.INFO, "starting", **settings.model_dump(mode="json"))
    try:
        asyncio.run(_serve(settings, open_pipeline or open_engine, address_fd, parent_fd))
    except (CaptoryError, OSError, RuntimeError) as error:
        event(log, logging.ERROR, "failed", type=type(error).__name__, why=str(error))
        return USAGE if getattr(error, "reason", "") in NOT_THERE else 1
    event(log, logging.INFO, "stopped")
    return 0


async def open_engine(settings: Settings) -> Pipeline:
    """The engine's own pipeline."""
    from captory_engine.assembly import EngineConfig, open_pipeline

    return await open_pipeline(
        EngineConfig(
            repository=settings.repository,
            family=settings.family,
            modes=settings.modes,
            backend=settings.backend,
            num_threads=settings.threads,
            num_lanes=settings.lanes,
            measure=settings.measure,
            limits=settings.limits,
            providers=settings.providers,
            torch=settings.torch,
            triton=settings.triton,
            tensorrt=settings.tensorrt,
            writer=settings.writer,
            captioner=settings.captioner,
            vllm=settings.vllm,
        )
    )


async def _serve(
    settings: Settings, open_pipeline: OpenPipeline, address_fd: int | None, parent_fd: int | None
) -> None:
    stop = asyncio.Event()
    _on_signals(stop.set)
    if parent_fd is not None:
        watch_parent(parent_fd, lambda: _orphaned(settings.address, stop.set))
    app = App(settings)
    try:
        address = await app.bind()
        if await _unless(stop, app.load(open_pipeline)):
            event(log, logging.INFO, "serving", address=address)
            if address_fd is not None:
                tell_address(address_fd, address)
            await app.run(stop)
            await app.drain()
    finally:
        await app.close()


async def _unless(stop: asyncio.Event, load: Coroutine[object, object, None]) -> bool:
    """Wait for `load`, or give it up when told to stop, and let it clear up. Returns whether it is done."""
    loading, stopping = asyncio.create_task(load), asyncio.create_task(stop.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if not loading.done():
        loading.cancel()
        await asyncio.wait({loading})
        return False
    loading.result()
    return True


def _on_signals(stop: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT drains; the second, by the default action, stops at once."""
    loop = asyncio.get_running_loop()

    def first() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, first)


def _orphaned(address: str, stop: Callable[[], None]) -> None:
    """Nobody is left to answer: go quickly, and leave no socket behind in the folder that the parent made."""
    event(log, logging.WARNING, "orphaned")
    signal.alarm(ORPHAN_S)  # ends the process should a model hold it up
    if address.startswith(UNIX):
        socket = Path(address.removeprefix(UNIX))
        with suppress(OSError):
            socket.unlink(missing_ok=True)
            socket.parent.rmdir()
    stop()
