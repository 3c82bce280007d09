"""One channel to one Triton, on an event loop in a thread of its own; threads ask, and wait for what it says.

What nobody answers is asked again, with pauses that grow, for as long as the options allow: running a graph changes
nothing, so asking twice does no harm. What Triton refuses is not asked again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from threading import Thread
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_delay, wait_random_exponential
from tritonclient.grpc import MAX_GRPC_MESSAGE_SIZE
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException

from captory_engine.errors import CaptoryError, OutOfMemory, Unavailable, Unreachable
from captory_engine.sessions.options import TritonOptions

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
NOBODY = {"UNAVAILABLE", "NOT_FOUND"}  # Triton is down, or the model is: a model that is unloaded is not found
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
Ask = Callable[[InferenceServerClient], Awaitable[T]]
log = logging.getLogger(__name__)


class Link:
    """To the Triton of the options. Any thread may `ask`."""

    def __init__(self, options: TritonOptions, name: str) -> None:
        self._options = options
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="captory-triton", daemon=True)
        self._thread.start()
        self._client: InferenceServerClient = self._run(_connect(options.address))

    def ask(self, question: Ask[T]) -> T:
        """What `question` gives.

        Raises `Unreachable` when nobody answers for `patience_s`, or not within `timeout_s`; `OutOfMemory`;
        `Unavailable` for whatever else Triton says.
        """
        if not self._thread.is_alive():
            raise self._closed()
        try:
            return self._run(self._patiently(question))
        except CancelledError:
            raise self._closed() from None
        except InferenceServerException as error:
            raise self._in_our_words(error) from error

    def close(self) -> None:
        """End channel and thread; whoever still waits, or asks from here on, gets an error."""
        if self._thread.is_alive():
            self._run(self._end())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    async def _end(self) -> None:
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await self._client.close()

    def _closed(self) -> Unavailable:
        return Unavailable("SESSION_CLOSED", f"{self._name} is closed.")

    def _run(self, answer: Awaitable[T]) -> T:
        async def awaited() -> T:
            return await answer

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result()

    async def _patiently(self, question: Ask[T]) -> T:
        attempts = AsyncRetrying(
            retry=retry_if_exception(nobody_answers),
            wait=wait_random_exponential(FIRST_PAUSE_S, LONGEST_PAUSE_S),
            stop=stop_after_delay(self._options.patience_s),
            before_sleep=self._tell,
            reraise=True,
        )

        async def asked() -> T:  # tenacity awaits coroutine functions alone
            return await question(self._client)

        return await attempts(asked)

    def _tell(self, attempt: RetryCallState) -> None:
        if attempt.attempt_number == 1:
            log.warning("%s: Triton at %s does not answer; asking again", self._name, self._options.address)

    def _in_our_words(self, error: InferenceServerException) -> CaptoryError:
        status, words = _status(error), str(error.message())
        address, name = self._options.address, self._name
        if nobody_answers(error):
            return Unreachable("TRITON_DOWN", f"{name}: no Triton at {address} answers for it.")
        if status == "DEADLINE_EXCEEDED":
            return Unreachable("TRITON_SLOW", f"{name}: Triton took more than {self._options.timeout_s:g} s.")
        log.warning("%s: Triton at %s says %s: %s", name, address, status, words)
        if any(sign in words.lower() for sign in _NO_MEMORY):
            return OutOfMemory("OUT_OF_MEMORY", f"{name}: the batch does not fit Triton's memory.")
        return Unavailable("BACKEND_FAILED", f"{name} could not be run by Triton.")


async def _connect(address: str) -> InferenceServerClient:
    return InferenceServerClient(address, channel_args=CHANNEL_OPTIONS)


def nobody_answers(error: BaseException) -> bool:
    """Whether Triton, or the model there, is away, maybe only for now."""
    return isinstance(error, InferenceServerException) and _status(error) in NOBODY


def _status(error: InferenceServerException) -> str:
    return str(error.status() or "").removeprefix("StatusCode.")
