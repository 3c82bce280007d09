"""One vLLM server over HTTP: a window of requests, bounded answers, patience while it is away.

Asking for text changes nothing there, so what was lost on the way is safely asked again. Global state: at import this
module silences the line that httpx logs for every request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import httpx
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from captory_engine.errors import BadModel, BadOutput, CaptoryError, Unavailable, Unreachable, Unsuited
from captory_engine.items import WorkClass
from captory_engine.vllm.options import VllmOptions
from captory_engine.vllm.window import Window

CHAT = "/v1/chat/completions"
KEY_VARIABLE = "CAPTORY_VLLM_API_KEY"
MAX_ANSWER_BYTES = 256 << 10
CONNECT_TIMEOUT_S = 5.0
HEARTBEAT_S, HEALTH_TIMEOUT_S = 1.0, 2.0
KEEP_ALIVE_S = 2.0  # less than the 5 s after which vLLM hangs up
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
BUSY = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
# The request does not suit the model: it is too long, or asks for what the model cannot do.
UNSUITED = {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)


Body = Callable[[], Awaitable[bytes]]


class _Away(Unreachable):
    """Nobody answers; maybe only for now."""


class _Busy(_Away):
    """The server has no room; maybe only for now."""


def api_key() -> str:
    """The bearer token of the environment; empty when there is none. Raises `BadModel` for one that cannot be sent."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BadModel("VLLM_KEY", f"{KEY_VARIABLE} has characters that no key has; set it to the server's key.")
    return key


class Endpoint:
    """To the vLLM at `address`, HOST:PORT. For one event loop; a caller that is cancelled ends its request there."""

    def __init__(
        self, address: str, options: VllmOptions, key: str = "", *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.address = address
        self._clock = clock
        self._options = options
        self._window = Window(options.max_concurrent)
        self._away_since_s: float | None = None
        self._watching: asyncio.Task[None] | None = None
        self._client = httpx.AsyncClient(
            base_url=f"http://{address}",
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),  # `_once` bounds the whole
            limits=httpx.Limits(keepalive_expiry=KEEP_ALIVE_S),
            trust_env=False,
        )

    @property
    def answers(self) -> bool:
        """Whether it did so when it was last asked, by the watch or by a request that lost its patience."""
        return self._away_since_s is None

    def watch(self) -> None:
        """From now on ask it every second whether it is well."""
        self._watching = asyncio.create_task(self._keep_asking(), name="captory-vllm-watch")

    async def get(self, path: str) -> str:
        """What is at `path`; raises as `post`."""
        return await self._patiently("GET", path, None, WorkClass.INTERACTIVE)

    async def post(self, path: str, body: Mapping[str, Any], work_class: WorkClass = WorkClass.BULK) -> str:
        """The answer to `body`, as text of at most `MAX_ANSWER_BYTES`.

        Raises `Unreachable` when nobody answers for as long as patience lasts, or not within the time allowed;
        `BadOutput` for an answer that is too long or no UTF-8; `Unsuited` for a request that does not suit the model;
        `Unavailable` for any other refusal.
        """

        async def dump() -> bytes:
            return json.dumps(body).encode()

        return await self.post_made(path, dump, work_class)

    async def post_made(self, path: str, make: Body, work_class: WorkClass = WorkClass.BULK) -> str:
        """As `post`, with a body that is made only when there is a place for the request."""
        return await self._patiently("POST", path, make, work_class)

    async def close(self) -> None:
        """End all connections."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self._client.aclose()

    async def _patiently(self, method: str, path: str, make: Body | None, work_class: WorkClass) -> str:
        """One place for all attempts: while nobody answers, nobody else would be answered either."""
        async with self._window.place(work_class):
            content = await make() if make else None
            attempts = AsyncRetrying(
                retry=retry_if_exception_type(_Away),
                wait=wait_random_exponential(FIRST_PAUSE_S, LONGEST_PAUSE_S),
                stop=self._patience(),
                reraise=True,
            )
            answer: str = await attempts(self._once, method, path, content)
            return answer

    def _patience(self) -> Callable[[RetryCallState], bool]:
        """Whether it is lost: counted from the first attempt that failed, or from when the watch saw it go."""
        failed_s: float | None = None

        def lost(attempt: RetryCallState) -> bool:
            nonlocal failed_s
            now_s = self._clock()
            failed_s = now_s if failed_s is None else failed_s
            gone_s = failed_s if self._away_since_s is None else min(failed_s, self._away_since_s)
            if now_s - gone_s < self._options.patience_s:
                return False
            assert attempt.outcome is not None
            self._note(answers=isinstance(attempt.outcome.exception(), _Busy))
            return True

        return lost

    async def _once(self, method: str, path: str, content: bytes | None) -> str:
        try:
            async with asyncio.timeout(self._options.timeout_s):
                return await self._send(method, path, content)
        except TimeoutError:
            words = f"vLLM at {self.address} took more than {self._options.timeout_s:g} s."
            raise Unreachable("VLLM_SLOW", words) from None
        except (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError) as error:
            raise _Away("VLLM_DOWN", f"No vLLM at {self.address} answers.") from error

    async def _keep_asking(self) -> None:
        while True:
            self._note(answers=await self._is_well())
            await asyncio.sleep(HEARTBEAT_S)

    async def _is_well(self) -> bool:
        with suppress(httpx.HTTPError, TimeoutError, CaptoryError):
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await self._send("GET", "/health", None)
                return True
        return False

    async def _send(self, method: str, path: str, content: bytes | None) -> str:
        headers = {"Content-Type": "application/json"} if content else {}
        async with self._client.stream(method, path, content=content, headers=headers) as response:
            if response.status_code != HTTPStatus.OK:
                raise self._refused(response.status_code)
            return await self._bounded(response)

    async def _bounded(self, response: httpx.Response) -> str:
        """The bytes as they come, never unpacked: nothing small becomes large."""
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                words = f"vLLM at {self.address} gave an answer of more than {MAX_ANSWER_BYTES} bytes."
                raise BadOutput("ANSWER_TOO_LONG", words)
        try:
            return body.decode()
        except UnicodeDecodeError:
            raise BadOutput("ANSWER_NOT_TEXT", f"vLLM at {self.address} gave an answer that is no UTF-8.") from None

    def _refused(self, status: int) -> CaptoryError:
        if status in BUSY:
            return _Busy("VLLM_BUSY", f"vLLM at {self.address} has no room (HTTP {status}).")
        if status in UNSUITED:
            words = (
                f"vLLM at {self.address} does not take the request (HTTP {status}): too long for it, or no text model."
            )
            return Unsuited("VLLM_REFUSED", words)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return Unavailable("VLLM_KEY", f"vLLM at {self.address} wants another key: set {KEY_VARIABLE}.")
        return Unavailable("VLLM_FAILED", f"vLLM at {self.address} answers with HTTP {status}; its log says why.")

    def _note(self, *, answers: bool) -> None:
        """Keep since when it is away; log the change."""
        if answers and not self.answers:
            log.info("vLLM at %s answers again", self.address)
            self._away_since_s = None
        elif self.answers and not answers:
            log.warning("vLLM at %s does not answer; asking again", self.address)
            self._away_since_s = self._clock()
