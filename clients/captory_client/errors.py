"""What a caller of the client sees instead of gRPC's own errors."""

from __future__ import annotations

from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc import StatusCode, aio
from grpc_status import rpc_status

LOST = frozenset({StatusCode.UNAVAILABLE, StatusCode.CANCELLED})
# What gRPC itself says when a connection breaks in the middle of a write; from the server they come with details.
LOST_WITHOUT_DETAILS = frozenset({StatusCode.INTERNAL, StatusCode.UNKNOWN})


class ClientError(Exception):
    """A call did not succeed. `code` is gRPC's name for it, `reason` the server's word for programs."""

    def __init__(self, message: str, *, code: str, reason: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class ServerLost(ClientError):  # noqa: N818
    """The server cannot be reached, or went away and did not come back in time."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code=StatusCode.UNAVAILABLE.name)


def explain(error: aio.AioRpcError) -> ClientError:
    """The client's error for gRPC's."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # has what from_call reads
    if error.code() in LOST or (status is None and error.code() in LOST_WITHOUT_DETAILS):
        return ServerLost(error.details() or "the server is gone")
    reason = reason_of(status) if status else ""
    return ClientError(error.details() or "no details", code=error.code().name, reason=reason)


def reason_of(status: status_pb2.Status) -> str:
    """The machine-readable reason of a status, or its code's name."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return str(info.reason)
    return str(code_pb2.Code.Name(status.code))
