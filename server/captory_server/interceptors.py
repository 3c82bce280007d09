"""Around every method of the server, health and reflection too: room for the call, decoding, errors as statuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import grpc
from grpc import aio
from grpc_status import rpc_status

from captory_engine.errors import Exhausted
from captory_server.gate import Gate
from captory_server.status import status_of

Context = aio.ServicerContext[Any, Any]
Decode = Callable[[bytes], Any]
Behaviour = Callable[[Any, Context], Any]
_ARITY = {False: "unary", True: "stream"}
RETRY_AFTER_S = 1.0


class Boundary(aio.ServerInterceptor):
    """Lets at most `max_calls` run at once, and no exception out of a method but as a status.

    Requests are decoded within it, so that what cannot be decoded is the caller's error and not the server's.
    """

    def __init__(self, max_calls: int) -> None:
        self._room = Gate(max_calls)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the method's behaviour; an unknown method stays UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        return handler and self._wrap(handler)

    def _wrap(self, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        requests = _DecodedStream if handler.request_streaming else _decoded
        answer = self._streaming if handler.response_streaming else self._single
        kind = f"{_ARITY[handler.request_streaming]}_{_ARITY[handler.response_streaming]}"
        behaviour = answer(getattr(handler, kind), requests, handler.request_deserializer)
        make: Any = getattr(grpc, f"{kind}_rpc_method_handler")
        wrapped: grpc.RpcMethodHandler[Any, Any] = make(behaviour, None, handler.response_serializer)
        return wrapped

    def _single(self, behaviour: Behaviour, requests: Callable[[Any, Decode], Any], decode: Decode) -> Behaviour:
        async def call(request: Any, context: Context) -> Any:
            try:
                with self._place():
                    return await behaviour(requests(request, decode), context)
            except Exception as error:
                await _abort(context, error)

        return call

    def _streaming(self, behaviour: Behaviour, requests: Callable[[Any, Decode], Any], decode: Decode) -> Behaviour:
        async def call(request: Any, context: Context) -> None:
            try:
                with self._place():
                    # Closed at once when the call ends, not when the collector finds it: its items must stop.
                    async with aclosing(behaviour(requests(request, decode), context)) as responses:
                        async for response in responses:
                            await context.write(response)
            except Exception as error:
                await _abort(context, error)

        return call

    @contextmanager
    def _place(self) -> Iterator[None]:
        if not self._room.try_enter(1):
            raise Exhausted("TOO_MANY_CALLS", "the server answers as many calls as it can", retry_after_s=RETRY_AFTER_S)
        try:
            yield
        finally:
            self._room.leave(1)


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
    if not isinstance(error, aio.InternalError):
        with suppress(aio.InternalError):
            await context.abort_with_status(rpc_status.to_status(status_of(error)))
    raise asyncio.CancelledError  # gRPC could not send: the caller has gone, which gRPC says only after this
