"""What can go wrong with datasets, in and out: errors of a run carry its exit code, errors of an item a reason."""

from __future__ import annotations

from enum import StrEnum


class DataError(Exception):
    """Base of the errors that end a run. `exit_code` is the command's."""

    exit_code = 1


class SourceError(DataError):
    """The input as a whole cannot be used."""

    exit_code = 2


class SpecError(DataError):
    """Parameters that are wrong, or other than those that the output folder was made with."""

    exit_code = 2


class LockedError(DataError):
    """Another process works on the output folder."""


class LedgerError(DataError):
    """The ledger or manifest is missing, corrupt, or of another version. The message names the file."""


class FatalStorageError(DataError):
    """The disk refused a write or a flush. Never retried: what it holds is unknown until the next start."""


class TransportError(DataError):
    """Results stopped coming (the server is down). Raised by `synthesize`; the run can be resumed."""


class Reason(StrEnum):
    """Why an item failed before it reached the server, or after it."""

    BAD_KEY = "BAD_KEY"
    BAD_METADATA = "BAD_METADATA"
    BAD_RESULT = "BAD_RESULT"
    CORRUPT_ARCHIVE = "CORRUPT_ARCHIVE"
    DUPLICATE_KEY = "DUPLICATE_KEY"
    EMPTY_FILE = "EMPTY_FILE"
    INCOMPLETE = "INCOMPLETE"
    NO_PARTNER = "NO_PARTNER"
    OUTSIDE_INPUT = "OUTSIDE_INPUT"
    TOO_LARGE = "TOO_LARGE"
    UNKNOWN_CLASS = "UNKNOWN_CLASS"
    UNREADABLE = "UNREADABLE"


class ItemError(Exception):
    """One item that cannot be used; its neighbours are not touched."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = str(reason)
        self.message = message
