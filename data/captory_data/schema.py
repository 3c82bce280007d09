"""The ledger's tables. A change here is a new SCHEMA_VERSION."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

SCHEMA_VERSION = 1
metadata = MetaData()

job = Table(
    "job",
    metadata,
    Column("id", Integer, primary_key=True),  # always 1
    Column("spec", Text, nullable=False),
    Column("created", String(32), nullable=False),
    Column("models", Text),  # until the first result: null
    Column("backend", Text, nullable=False, default=""),
    Column("notice", Text, nullable=False, default=""),
    Column("versions", Text, nullable=False, default="{}"),
)
classes = Table(
    "classes",
    metadata,
    Column("position", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("name", Text, nullable=False),
)
shards = Table(
    "shards",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("sha256", String(64), nullable=False),
    Column("count", Integer, nullable=False),
)
images = Table(
    "images",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("source", Text, nullable=False),
    Column("class_position", Integer, nullable=False, index=True),  # -1: no class
    Column("shard", Integer, ForeignKey("shards.number"), nullable=False, index=True),
    Column("sha256", String(64), nullable=False),  # of the encoded file
    Column("record", Text, nullable=False),
)
failures = Table(
    "failures",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("source", Text, nullable=False),
    Column("prompt_index", Integer, nullable=False),
    Column("sample_index", Integer, nullable=False),
    Column("reason", String(64), nullable=False, index=True),
    Column("message", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("dropped", Boolean, nullable=False),
)
# The sources that the report shows; a bounded number.
gallery = Table(
    "gallery",
    metadata,
    Column("source", Text, primary_key=True),
    Column("class_position", Integer, nullable=False),
    Column("thumbnail", LargeBinary),
)
runs = Table(
    "runs",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("started", String(32), nullable=False),
    Column("seconds", Float, nullable=False),
    Column("images", BigInteger, nullable=False),
    Column("stages", Text, nullable=False),  # JSON: stage -> [items, seconds in all]
)
