"""The one place where an exception becomes a `google.rpc.Status`."""

from __future__ import annotations

import asyncio
import logging

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from captory_engine.errors import CaptoryError, Exhausted
from captory_server.logs import event, where

DOMAIN = "captory"
RETRY_UNAVAILABLE_S = 1.0

log = logging.getLogger(__name__)


def status_of(error: BaseException) -> status_pb2.Status:
    """The status for `error`. What nobody foresaw is INTERNAL without words, and is logged here, once."""
    match error:
        case CaptoryError():
            return _foreseen(error)
        case DecodeError():
            return make_status("INVALID_ARGUMENT", "MALFORMED", "the message cannot be decoded")
        case asyncio.CancelledError():
            return make_status("CANCELLED", "CANCELLED", "the item was cancelled")
        case _:
            event(log, logging.ERROR, "internal_error", type=type(error).__name__, where=where(error))
            log.debug("internal_error", exc_info=error)
            return make_status("INTERNAL", "INTERNAL", "internal error")


def make_status(code: str, reason: str, message: str, *details: Message) -> status_pb2.Status:
    """A status with its machine-readable reason, and details."""
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message=message)
    for detail in (error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN), *details):
        status.details.add().Pack(detail)
    return status


def grpc_code(status: status_pb2.Status) -> grpc.StatusCode:
    """The call's status code for a status message."""
    return _CODES[status.code]


def _foreseen(error: CaptoryError) -> status_pb2.Status:
    return make_status(error.grpc_status, error.reason, error.message, *_details(error))


def _details(error: CaptoryError) -> list[Message]:
    if error.grpc_status == "INVALID_ARGUMENT" and error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        return [error_details_pb2.BadRequest(field_violations=[violation])]
    if isinstance(error, Exhausted):
        return [_retry(error.retry_after_s)]
    return [_retry(RETRY_UNAVAILABLE_S)] if error.grpc_status == "UNAVAILABLE" else []


def _retry(delay_s: float) -> error_details_pb2.RetryInfo:
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(round(delay_s * 1000))
    return retry


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
