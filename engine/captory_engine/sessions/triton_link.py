"""One channel to one Triton, on an event loop in a thread of its own; threads ask, and wait for what it says.

Nothing is asked twice here: who may wait for a Triton that is away, and for how long, is the device's matter.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from threading import Lock, Thread
from typing import Any, TypeVar

from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from captory_engine.errors import CaptoryError, OutOfMemory, Unavailable, Unreachable
from captory_engine.sessions.options import TritonOptions

DOWN, SLOW = "TRITON_DOWN", "TRITON_SLOW"  # reasons of `Unreachable`
NOBODY = {"UNAVAILABLE", "NOT_FOUND"}  # Triton is down, or the model is: a model that is unloaded is not found
LATE = "DEADLINE_EXCEEDED"
CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.max_receive_message_length", MAX_GRPC_MESSAGE_SIZE),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),  # how long connecting may take
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_NO_MEMORY = ("out of memory", "failed to allocate", "bad_alloc")

T = TypeVar("T")
Ask = Callable[[InferenceServerClient], Coroutine[Any, Any, T]]
log = logging.getLogger(__name__)


class Link:
    """To the Triton of the options. Any thread may `ask`."""

    def __init__(self, options: TritonOptions, name: str) -> None:
        self._options = options
        self._name = name
        self._lock = Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="captory-triton", daemon=True)
        self._thread.start()
        self._client: InferenceServerClient = self._begin(_connect(options.address)).result()

    def ask(self, question: Ask[T]) -> T:
        """What `question` gives.

        Raises `Unreachable` when nobody answers (`DOWN`) or nobody within `timeout_s` (`SLOW`); `OutOfMemory`;
        `Unavailable` for whatever else Triton says, and when this is closed meanwhile.
        """
        with self._lock:  # what is asked of a loop that has stopped would wait for ever
            if self._closed:
                raise self._gone()
            answer = self._begin(question(self._client))
        try:
            return answer.result()
        except CancelledError:
            raise self._gone() from None
        except InferenceServerException as error:
            raise self._in_our_words(error) from error

    def close(self) -> None:
        """End channel and thread; whoever still waits, or asks from here on, gets an error."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._begin(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _begin(self, answer: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(answer, self._loop)

    async def _end(self) -> None:
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await self._client.close()

    def _gone(self) -> Unavailable:
        return Unavailable("SESSION_CLOSED", f"{self._name} is closed.")

    def _in_our_words(self, error: InferenceServerException) -> CaptoryError:
        status, words = status_of(error), str(error.message())
        address, name = self._options.address, self._name
        if status in NOBODY:
            return Unreachable(DOWN, f"{name}: no Triton at {address} answers for it.")
        if status == LATE:
            return Unreachable(SLOW, f"{name}: Triton took more than {self._options.timeout_s:g} s.")
        log.warning("%s: Triton at %s says %s: %s", name, address, status, words)
        if any(sign in words.lower() for sign in _NO_MEMORY):
            return OutOfMemory("OUT_OF_MEMORY", f"{name}: the batch does not fit Triton's memory.")
        return Unavailable("BACKEND_FAILED", f"{name} could not be run by Triton.")


async def _connect(address: str) -> InferenceServerClient:
    return InferenceServerClient(address, channel_args=CHANNEL_OPTIONS)


def status_of(error: InferenceServerException) -> str:
    """The gRPC status of what a call came to, by its name."""
    return str(error.status() or "").removeprefix("StatusCode.")
