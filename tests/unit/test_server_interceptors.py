"""A caller that has gone before the answer could be sent."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import pytest
from grpc import aio

from captory_engine.errors import Expired
from captory_server.interceptors import Boundary


class Gone:
    """The context of a call whose caller has gone: gRPC cannot send any more."""

    async def abort_with_status(self, status: object) -> None:
        raise aio.InternalError("the batch failed")

    async def write(self, message: object) -> None:
        raise aio.InternalError("the batch failed")


async def expire(request: object, context: object) -> None:
    raise Expired("DEADLINE", "the deadline passed")


async def answer(request: object, context: object) -> Any:
    yield b"an image"


@pytest.mark.parametrize(
    ("kind", "behaviour"), [("unary_unary", expire), ("unary_stream", answer)], ids=["abort", "write"]
)
async def test_who_has_gone_is_a_cancelled_call_and_no_error(
    kind: str, behaviour: Any, caplog: pytest.LogCaptureFixture
) -> None:
    handler = getattr(grpc, f"{kind}_rpc_method_handler")(behaviour, lambda message: message)

    async def continuation(details: object) -> Any:
        return handler

    wrapped: Any = await Boundary(1).intercept_service(continuation, None)  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError), caplog.at_level(logging.ERROR):
        await getattr(wrapped, kind)(b"", Gone())
    assert caplog.records == []
