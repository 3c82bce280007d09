"""Exceptions as statuses, and a log that says what happened but not what was asked for."""

from __future__ import annotations

import logging

import pytest
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc import StatusCode

from captory_engine import errors
from captory_server.logs import OneLine, event, text_hash
from captory_server.status import grpc_code, status_of


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidInput("R", "m", field="f"), StatusCode.INVALID_ARGUMENT),
        (errors.Exhausted("R", "m", retry_after_s=1.5), StatusCode.RESOURCE_EXHAUSTED),
        (errors.Expired("R", "m"), StatusCode.DEADLINE_EXCEEDED),
        (errors.BadOutput("R", "m"), StatusCode.DATA_LOSS),
        (errors.Unavailable("R", "m"), StatusCode.UNAVAILABLE),
        (DecodeError("secret"), StatusCode.INVALID_ARGUMENT),
        (ValueError("secret"), StatusCode.INTERNAL),
        (ExceptionGroup("secret", [ValueError("secret")]), StatusCode.INTERNAL),
    ],
)
def test_each_error_has_its_code_and_no_more_words_than_it_should(error: Exception, code: StatusCode) -> None:
    status = status_of(error)
    assert grpc_code(status) is code
    assert "secret" not in str(status)


def test_details_say_which_field_and_when_to_come_again() -> None:
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    first, second = status_of(errors.InvalidInput("BAD_FIELD", "m", field="prompt")).details
    assert first.Unpack(info)
    assert (info.domain, info.reason) == ("captory", "BAD_FIELD")
    assert second.Unpack(bad)
    assert bad.field_violations[0].field == "prompt"
    assert status_of(errors.Exhausted("FULL", "m", retry_after_s=1.5)).details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_what_nobody_foresaw_is_logged_once_without_its_words(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    try:
        raise ValueError("a prompt that somebody wrote")
    except ValueError as error:
        status_of(error)
    [record] = caplog.records
    assert "ValueError" in record.getMessage()
    assert "test_server_status.py" in record.getMessage()
    assert "somebody" not in record.getMessage()


def test_a_line_of_the_log_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    event(logging.getLogger("test"), logging.INFO, "item", id="a\nb\x1b[31m", why="\u2028")
    line = OneLine().format(caplog.records[0])
    assert line.isprintable()
    assert r"a\nb" in line


def test_a_hash_stands_for_a_text() -> None:
    assert text_hash("a crane") == text_hash("a crane") != text_hash("a bat")
    assert "crane" not in text_hash("a crane\ud800")
