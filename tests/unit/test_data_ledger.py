"""The ledger, its lock, and what it refuses."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from captory_data.dataset import open_ledger
from captory_data.errors import LedgerError, LockedError
from captory_data.ledger import LEDGER_NAME, Ledger
from captory_data.lock import locked
from captory_data.rows import FailureRow, ImageRow, Shard, State
from captory_data.schema import SCHEMA_VERSION


def image(number: int) -> ImageRow:
    return ImageRow(f"{number:032x}", f"{number}.png", -1, "ab" * 32, "{}")


def failure(number: int, reason: str = "r") -> FailureRow:
    return FailureRow(f"{number:032x}", f"{number}.png", 0, 0, reason, "m", False)


def test_a_shard_and_its_images_come_together(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / LEDGER_NAME)
    ledger.publish((0, Shard("a", "00", 2)), [image(1), image(2)], [failure(3)])
    with pytest.raises(LedgerError):
        ledger.publish((1, Shard("b", "00", 2)), [image(4), image(2)], [])
    assert ledger.states([image(n).id for n in range(6)]) == {
        image(1).id: State(True),
        image(2).id: State(True),
        failure(3).id: State(False, "r"),
    }
    assert [shard.name for _, shard in ledger.shards()] == ["a"]
    assert ledger.next_shard() == 1
    assert ledger.images_of(0) == [image(1), image(2)]
    ledger.close()


def test_publishing_clears_the_failure(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / LEDGER_NAME)
    for reason in ("one", "two"):
        ledger.publish(None, [], [failure(1, reason)])
    assert ledger.failures_by_reason() == {"two": 1}
    ledger.publish((0, Shard("a", "00", 1)), [image(1)], [])
    assert ledger.failures() == []
    ledger.close()


def test_journal_and_flushes(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / LEDGER_NAME)
    with ledger._transaction() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "delete"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
    ledger.close()


def test_many_ids_in_one_question(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / LEDGER_NAME)
    ledger.publish((0, Shard("a", "00", 3000)), [image(n) for n in range(3000)], [])
    assert len(ledger.states([image(n).id for n in range(4000)])) == 3000
    ledger.close()


@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
def test_another_version_is_refused(tmp_path: Path, version: int) -> None:
    path = tmp_path / LEDGER_NAME
    Ledger(path).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={version}")
    connection.close()
    with pytest.raises(LedgerError, match=f"{path} has schema {version}"):
        Ledger(path)


def test_damage_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / LEDGER_NAME
    path.write_bytes(b"this is no database, but it is long enough to look at" * 50)
    with pytest.raises(LedgerError, match=LEDGER_NAME):
        Ledger(path)


def test_a_lost_ledger_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with (
        pytest.raises(LedgerError, match=r"ledger.sqlite is missing, though shards is there"),
        open_ledger(tmp_path, create=True),
    ):
        pass
    with pytest.raises(LedgerError, match="missing"), open_ledger(tmp_path / "other"):
        pass


def test_the_lock_names_its_holder(tmp_path: Path) -> None:
    hold = f"import sys; sys.path[:0]={sys.path!r}; from pathlib import Path; from captory_data.lock import locked\n"
    hold += f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"in use by process {process.pid}"), locked(tmp_path):
        pass
    process.kill()
    process.communicate()
    with locked(tmp_path):
        pass
