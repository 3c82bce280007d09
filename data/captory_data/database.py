"""Opening the ledger's SQLite file: one connection, rollback journal, full flushes, explicit transactions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Connection as DriverConnection
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import StaticPool

from captory_data import schema
from captory_data.errors import FatalStorageError, LedgerError

BUSY_TIMEOUT_S = 30
SYNCHRONOUS = "FULL"
DAMAGE = ("malformed", "not a database", "disk image", "no such table", "no such column", "file is encrypted")


def open_database(path: Path) -> Engine:
    """An engine of exactly one connection."""
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: DriverConnection, _: Any) -> None:
        connection.isolation_level = None  # the driver's own transactions are off
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute(f"PRAGMA synchronous={SYNCHRONOUS}")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


@contextmanager
def database_errors(path: Path) -> Iterator[None]:
    """Damage is a LedgerError that names the file; a refusal of the disk is a FatalStorageError."""
    try:
        yield
    except DBAPIError as error:
        words = str(error.orig)
        if isinstance(error, OperationalError) and not any(sign in words for sign in DAMAGE):
            raise FatalStorageError(f"{path}: {words}. Put that right, then run the same command again.") from error
        raise LedgerError(damaged(path, words)) from error


def prepare(connection: Connection, path: Path) -> None:
    """Make the tables of a new file; refuse a damaged one or another version's."""
    version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    tables = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one()
    if version == 0 and tables == 0:
        schema.metadata.create_all(connection)
        connection.exec_driver_sql(f"PRAGMA user_version={schema.SCHEMA_VERSION}")
    elif version != schema.SCHEMA_VERSION:
        raise LedgerError(f"{path} has schema {version}; this version of captory reads {schema.SCHEMA_VERSION}.")
    elif (health := connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()) != "ok":
        raise LedgerError(damaged(path, health))


def damaged(path: Path, words: str) -> str:
    """What to say of a damaged file."""
    return f"{path} is damaged ({words}). Restore it from a copy, or use another output folder."
