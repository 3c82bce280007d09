"""One vLLM server over HTTP: a window of requests, bounded answers, patience while it is away.

Asking for text changes nothing there, so what was lost on the way is safely asked again. Global state: at import this
module silences the line that httpx logs for every request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from captory_engine.errors import BadModel, BadOutput, CaptoryError, Unavailable, Unreachable
from captory_engine.vllm.options import VllmOptions

KEY_VARIABLE = "CAPTORY_VLLM_API_KEY"
MAX_ANSWER_BYTES = 256 << 10
CONNECT_TIMEOUT_S = 5.0
KEEP_ALIVE_S = 2.0  # less than the 5 s after which vLLM hangs up
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 1.0
BUSY = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}
# The request does not suit the model: it is too long, or asks for what the model cannot do.
UNSUITED = {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)
logging.getLogger("httpcore").setLevel(logging.WARNING)


class _Away(Unreachable):
    """Nobody answers, or the server has no room; maybe only for now."""


def api_key() -> str:
    """The bearer token of the environment; empty when there is none. Raises `BadModel` for one that cannot be sent."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BadModel("VLLM_KEY", f"{KEY_VARIABLE} has characters that no key has; set it to the server's key.")
    return key


class Endpoint:
    """To the vLLM at `address`, HOST:PORT. For one event loop; a caller that is cancelled ends its request there."""

    def __init__(self, address: str, options: VllmOptions, key: str = "") -> None:
        self.address = address
        self._options = options
        self._window = asyncio.Semaphore(options.max_concurrent)
        self._answers = False
        self._asking: asyncio.Task[None] | None = None
        self._client = httpx.AsyncClient(
            base_url=f"http://{address}",
            headers={"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {key}"} if key else {}),
            timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),  # `_once` bounds the whole
            limits=httpx.Limits(keepalive_expiry=KEEP_ALIVE_S),
            trust_env=False,
        )

    @property
    def answers(self) -> bool:
        """Whether it did so when it was last asked; while it does not, it is asked every second."""
        return self._answers

    async def get(self, path: str) -> str:
        """What is at `path`; raises as `post`."""
        return await self._patiently("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> str:
        """The answer to `body`, as text of at most `MAX_ANSWER_BYTES`.

        Raises `Unreachable` when nobody answers, or not within the time allowed; `BadOutput` for an answer that is
        too long or no UTF-8, and for a request that does not suit the model; `Unavailable` for any other refusal.
        """
        return await self._patiently("POST", path, json.dumps(body).encode())

    async def close(self) -> None:
        """End all connections."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        await self._client.aclose()

    async def _patiently(self, method: str, path: str, content: bytes | None) -> str:
        attempts = AsyncRetrying(
            retry=retry_if_exception_type(_Away),
            wait=wait_random_exponential(FIRST_PAUSE_S, LONGEST_PAUSE_S),
            stop=stop_after_delay(self._options.patience_s),
            reraise=True,
        )
        answer: str = await attempts(self._once, method, path, content)
        return answer

    async def _once(self, method: str, path: str, content: bytes | None) -> str:
        try:
            async with self._window, asyncio.timeout(self._options.timeout_s):
                answer = await self._send(method, path, content)
        except TimeoutError:
            words = f"vLLM at {self.address} took more than {self._options.timeout_s:g} s."
            raise Unreachable("VLLM_SLOW", words) from None
        except (httpx.NetworkError, httpx.ConnectTimeout, httpx.RemoteProtocolError) as error:
            self._note(answers=False)
            raise _Away("VLLM_DOWN", f"No vLLM at {self.address} answers.") from error
        self._note(answers=True)
        return answer

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
            return _Away("VLLM_BUSY", f"vLLM at {self.address} has no room (HTTP {status}).")
        if status in UNSUITED:
            words = (
                f"vLLM at {self.address} does not take the request (HTTP {status}): too long for it, or no text model."
            )
            return BadOutput("VLLM_REFUSED", words)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return Unavailable("VLLM_KEY", f"vLLM at {self.address} wants another key: set {KEY_VARIABLE}.")
        return Unavailable("VLLM_FAILED", f"vLLM at {self.address} answers with HTTP {status}; its log says why.")

    def _note(self, *, answers: bool) -> None:
        """Log the change, not every request that meets it; see to it that its return is noticed too."""
        if answers and not self._answers:
            log.info("vLLM at %s answers", self.address)
        elif self._answers and not answers:
            log.warning("vLLM at %s does not answer; asking again", self.address)
            self._asking = asyncio.create_task(self._ask_until_back(), name="captory-vllm-away")
        self._answers = answers

    async def _ask_until_back(self) -> None:
        while not self._answers:
            await asyncio.sleep(LONGEST_PAUSE_S)
            with suppress(CaptoryError):
                await self._once("GET", "/health", None)
