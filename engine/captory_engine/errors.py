"""The small tree of errors. A class carries its gRPC status by name; `reason` is machine-readable and fixed."""

from __future__ import annotations

from typing import ClassVar


class CaptoryError(Exception):
    """An error with words for the caller. Anything else that is raised is INTERNAL, without words."""

    grpc_status: ClassVar[str] = "INTERNAL"

    def __init__(self, reason: str, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field


class InvalidInput(CaptoryError):  # noqa: N818
    """The caller's item cannot be taken as it is."""

    grpc_status = "INVALID_ARGUMENT"


class Exhausted(CaptoryError):  # noqa: N818
    """A limit is reached; the same call may go through after `retry_after_s`."""

    grpc_status = "RESOURCE_EXHAUSTED"

    def __init__(self, reason: str, message: str, *, retry_after_s: float) -> None:
        super().__init__(reason, message)
        self.retry_after_s = retry_after_s


class Expired(CaptoryError):  # noqa: N818
    """The item's deadline passed."""

    grpc_status = "DEADLINE_EXCEEDED"


class BadOutput(CaptoryError):  # noqa: N818
    """A model gave what must not be published: NaN, Inf, a wrong shape, words that are none."""

    grpc_status = "DATA_LOSS"


class Unsuited(BadOutput):
    """A model elsewhere does not take the request as it is; asked again, it would not either."""


class Unavailable(CaptoryError):  # noqa: N818
    """A backend is down; nothing was computed."""

    grpc_status = "UNAVAILABLE"


class Unreachable(Unavailable):
    """A backend does not answer at all; no row of the batch is to blame, and none would do better alone."""


class OutOfMemory(Unavailable):
    """A batch is too large for the backend's memory; a smaller one may fit."""


class BadModel(CaptoryError):  # noqa: N818
    """A model folder is missing, incomplete, or not what its manifest says."""

    grpc_status = "FAILED_PRECONDITION"
