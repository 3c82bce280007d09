"""Around every method of the server, health and reflection too: decoding, and errors as rich statuses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from grpc import aio
from grpc_status import rpc_status

from captory_server.status import status_of

Context = aio.ServicerContext[Any, Any]
Decode = Callable[[bytes], Any]
Behaviour = Callable[[Any, Context], Any]
_ARITY = {False: "unary", True: "stream"}


class Boundary(aio.ServerInterceptor):
    """Lets no exception out of a method but as a status.

    Requests are decoded within it, so that what cannot be decoded is the caller's error and not the server's.
    """

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the method's behaviour; an unknown method stays UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        return handler and _wrap(handler)


def _wrap(handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
    requests = _DecodedStream if handler.request_streaming else _decoded
    answer = _streaming if handler.response_streaming else _single
    kind = f"{_ARITY[handler.request_streaming]}_{_ARITY[handler.response_streaming]}"
    behaviour = answer(getattr(handler, kind), requests, handler.request_deserializer)
    make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
    wrapped: grpc.RpcMethodHandler[Any, Any] = make(behaviour, None, handler.response_serializer)
    return wrapped


def _single(behaviour: Behaviour, requests: Callable[[Any, Decode], Any], decode: Decode) -> Behaviour:
    async def call(request: Any, context: Context) -> Any:
        try:
            return await behaviour(requests(request, decode), context)
        except Exception as error:
            await _abort(context, error)

    return call


def _streaming(behaviour: Behaviour, requests: Callable[[Any, Decode], Any], decode: Decode) -> Behaviour:
    async def call(request: Any, context: Context) -> None:
        try:
            # Closed at once when the call ends, not when the collector finds it: its items must stop.
            async with aclosing(behaviour(requests(request, decode), context)) as responses:
                async for response in responses:
                    await context.write(response)
        except Exception as error:
            await _abort(context, error)

    return call


def _decoded(request: bytes, decode: Decode) -> Any:
    return decode(request)


class _DecodedStream:
    """An iterator, not a generator: it keeps no message while its caller works on it."""

    def __init__(self, requests: AsyncIterator[bytes], decode: Decode) -> None:
        self._requests = requests
        self._decode = decode

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return self._decode(await anext(self._requests))


async def _abort(context: Context, error: Exception) -> None:
    if isinstance(error, aio.AbortError):
        raise error
    await context.abort_with_status(rpc_status.to_status(status_of(error)))
