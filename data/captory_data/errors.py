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

    BAD_KEY = "bad_key"
    BAD_METADATA = "bad_metadata"
    BAD_RESULT = "bad_result"
    CORRUPT_ARCHIVE = "corrupt_archive"
    DUPLICATE_KEY = "duplicate_key"
    EMPTY_FILE = "empty_file"
    INCOMPLETE = "incomplete"
    OUTSIDE_INPUT = "outside_input"
    TOO_LARGE = "too_large"
    UNKNOWN_CLASS = "unknown_class"
    UNREADABLE = "unreadable"


class ItemError(Exception):
    """One item that cannot be used; its neighbours are not touched."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = str(reason)
        self.message = message
