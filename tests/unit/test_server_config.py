"""Settings: file < environment < flag; and only addresses that no other machine can reach."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from captory_server.address import check_address, with_port
from captory_server.config import explain, load


def test_the_later_wins_over_the_earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "captory.yaml"
    file.write_text("grace_s: 1\nthreads: 1\nmax_calls: 1\nlimits: {max_steps: 7}\n")
    monkeypatch.setenv("CAPTORY_THREADS", "2")
    monkeypatch.setenv("CAPTORY_MAX_CALLS", "2")
    monkeypatch.setenv("CAPTORY_LIMITS__MAX_ITEMS", "5")
    settings = load(file, max_calls=3, threads=None)
    assert (settings.grace_s, settings.threads, settings.max_calls) == (1, 2, 3)
    assert (settings.limits.max_steps, settings.limits.max_items) == (7, 5)


def test_each_wrong_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "captory.yaml"
    file.write_text("adress: unix:/x\n")
    with pytest.raises(ValidationError) as refused:
        load(file, threads=-1)
    assert {line.partition(":")[0] for line in explain(refused.value)} == {"adress", "threads"}


def test_a_file_that_is_not_there_is_no_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.yaml")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load().threads = 3


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "127.8.9.1:1", "localhost:65535", "[::1]:50061", "unix:/run/x.sock"]
)
def test_this_machine_s_own_addresses_are_taken(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:80",
        "[::]:80",
        "192.168.1.1:80",
        "example.com:80",
        ":80",
        "localhost",
        "localhost:70000",
        "localhost:-1",
        "127.0.0.1:8a",
        "127.0.0.1:٣",
        "unix:",
        "unix:" + "x" * 108,
        "",
    ],
)
def test_any_other_is_refused(address: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its words differ
        check_address(address)


def test_port_0_becomes_the_port_that_was_bound() -> None:
    assert with_port("[::1]:0", 77) == "[::1]:77"
    assert with_port("unix:/x", 1) == "unix:/x"
