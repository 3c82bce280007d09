"""What is published, what failed and why: the truth about an output folder (SQLite through SQLAlchemy Core)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, delete, func, insert, literal_column, select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from captory_data.database import database_errors, open_database, prepare
from captory_data.errors import LedgerError
from captory_data.rows import (
    ClassRow,
    Counts,
    FailureRow,
    GalleryRow,
    ImageRow,
    PublishedImage,
    RunRow,
    Shard,
    State,
    StoredJob,
)
from captory_data.schema import classes, failures, gallery, images, job, runs, shards
from captory_data.spec import JobSpec

LEDGER_NAME = "ledger.sqlite"
PAGE_ROWS = 500


class Ledger:
    """One open ledger. Safe to call from several threads: one operation runs at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._engine = open_database(path)
        self._one_at_a_time = threading.RLock()
        with self._transaction() as connection:
            prepare(connection, path)

    def close(self) -> None:
        """Let go of the file."""
        with self._one_at_a_time:
            self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._one_at_a_time, database_errors(self.path), self._engine.begin() as connection:
            yield connection

    # The job

    def job(self) -> StoredJob | None:
        """The folder's job, once there is one."""
        with self._transaction() as connection:
            row = connection.execute(select(job)).one_or_none()
        if row is None:
            return None
        try:
            models = None if row.models is None else json.loads(row.models)
            spec = JobSpec.from_canonical(json.loads(row.spec))
            return StoredJob(spec, models, row.backend, row.notice, json.loads(row.versions), row.created)
        except (ValueError, TypeError, KeyError) as error:
            raise LedgerError(f"{self.path} is damaged: its job cannot be read") from error

    def create_job(self, spec: JobSpec, created: str) -> None:
        """Write down the new folder's job."""
        with self._transaction() as connection:
            connection.execute(insert(job).values(id=1, spec=json.dumps(spec.canonical()), created=created))

    def set_maker(self, models: Mapping[str, str], backend: str, notice: str, versions: Mapping[str, str]) -> None:
        """Write down what makes the images."""
        texts = {
            "models": json.dumps(dict(models), sort_keys=True),
            "versions": json.dumps(dict(versions), sort_keys=True),
        }
        with self._transaction() as connection:
            connection.execute(update(job).values(backend=backend, notice=notice, **texts))

    def classes(self) -> list[ClassRow]:
        """Every class, by position."""
        with self._transaction() as connection:
            rows = connection.execute(select(classes).order_by(classes.c.position)).all()
        return [ClassRow(*row) for row in rows]

    def add_classes(self, rows: Sequence[ClassRow]) -> None:
        """Append classes; a position is never given twice."""
        with self._transaction() as connection:
            for row in rows:
                connection.execute(insert(classes).values(**row._asdict()))

    # Images

    def publish(
        self,
        shard: tuple[int, Shard] | None,
        published: Sequence[ImageRow],
        failed: Sequence[FailureRow],
        shown: Sequence[GalleryRow] = (),
    ) -> None:
        """In one transaction: the shard with its images, what failed, and what the report will show."""
        with self._transaction() as connection:
            if shard is not None:
                number, row = shard
                connection.execute(insert(shards).values(number=number, **asdict(row)))
                connection.execute(insert(images), [{**image._asdict(), "shard": number} for image in published])
                done = [image.id for image in published]
                connection.execute(delete(failures).where(failures.c.id.in_(done)))
            for failure in failed:
                connection.execute(_failure(failure))
            for source in shown:
                connection.execute(upsert(gallery).values(**source._asdict()).on_conflict_do_nothing())

    def states(self, ids: Sequence[str]) -> dict[str, State]:
        """The state of those of the ids that have one."""
        found: dict[str, State] = {}
        for start in range(0, len(ids), PAGE_ROWS):
            page = ids[start : start + PAGE_ROWS]
            with self._transaction() as connection:
                for row in connection.execute(select(failures).where(failures.c.id.in_(page))):
                    found[row.id] = State(published=False, reason=row.reason, dropped=row.dropped)
                for (image_id,) in connection.execute(select(images.c.id).where(images.c.id.in_(page))):
                    found[image_id] = State(published=True)
        return found

    def image(self, image_id: str) -> PublishedImage | None:
        """One published image, with its shard."""
        query = select(images, shards).join(shards).where(images.c.id == image_id)
        with self._transaction() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            return None
        values = row._mapping
        shard = Shard(row.name, values[shards.c.sha256], values[shards.c.count])
        return PublishedImage(_image(values), shard)

    def images_of(self, number: int) -> list[ImageRow]:
        """The images of one shard, in the order in which they came."""
        query = select(images).where(images.c.shard == number).order_by(literal_column("images.rowid"))
        with self._transaction() as connection:
            return [_image(row._mapping) for row in connection.execute(query)]

    def shards(self) -> Iterator[tuple[int, Shard]]:
        """Every shard with its number, in order."""
        last = -1
        while True:
            query = select(shards).where(shards.c.number > last).order_by(shards.c.number).limit(PAGE_ROWS)
            with self._transaction() as connection:
                page = connection.execute(query).all()
            for row in page:
                yield row.number, Shard(row.name, row.sha256, row._mapping[shards.c.count])
            if not page:
                return
            last = page[-1].number

    def next_shard(self) -> int:
        """The first free shard number."""
        with self._transaction() as connection:
            last = connection.execute(select(func.max(shards.c.number))).scalar_one()
        return 0 if last is None else int(last) + 1

    # Counts, and what the report shows

    def counts(self) -> Counts:
        """How many images are published, failed and dropped."""
        with self._transaction() as connection:
            published = connection.execute(select(func.count()).select_from(images)).scalar_one()
            rows = connection.execute(select(failures.c.dropped, func.count()).group_by(failures.c.dropped)).all()
        by_dropped = {bool(dropped): int(count) for dropped, count in rows}
        return Counts(int(published), by_dropped.get(False, 0), by_dropped.get(True, 0))

    def counts_by_class(self) -> dict[int, int]:
        """Images published by class position."""
        query = select(images.c.class_position, func.count()).group_by(images.c.class_position)
        with self._transaction() as connection:
            return {int(position): int(count) for position, count in connection.execute(query)}

    def failures_by_reason(self) -> dict[str, int]:
        """Failures and drops by reason, the most frequent first."""
        count = func.count()
        query = select(failures.c.reason, count).group_by(failures.c.reason).order_by(count.desc(), failures.c.reason)
        with self._transaction() as connection:
            return {str(reason): int(number) for reason, number in connection.execute(query)}

    def failures(self, limit: int = -1) -> list[FailureRow]:
        """The first failures in order of source."""
        query = select(failures).order_by(failures.c.source, failures.c.id).limit(limit)
        with self._transaction() as connection:
            rows = connection.execute(query).all()
        return [FailureRow(*(row._mapping[name] for name in FailureRow._fields)) for row in rows]

    def gallery(self) -> list[GalleryRow]:
        """The sources that the report shows, by class, then source."""
        query = select(gallery).order_by(gallery.c.class_position, gallery.c.source)
        with self._transaction() as connection:
            return [GalleryRow(*row) for row in connection.execute(query)]

    def add_run(self, run: RunRow) -> None:
        """Write down one run's figures."""
        values = {**run._asdict(), "stages": json.dumps(run.stages)}
        with self._transaction() as connection:
            connection.execute(insert(runs).values(**values))

    def runs(self) -> list[RunRow]:
        """The runs so far."""
        with self._transaction() as connection:
            rows = connection.execute(select(runs).order_by(runs.c.number)).all()
        return [RunRow(row.started, row.seconds, row.images, json.loads(row.stages)) for row in rows]


def _image(row: Mapping[Any, Any]) -> ImageRow:
    return ImageRow(*(row[images.c[name]] for name in ImageRow._fields))


def _failure(row: FailureRow) -> Any:
    statement = upsert(failures).values(**row._asdict(), attempts=1)
    changed = {"reason": row.reason, "message": row.message, "dropped": row.dropped}
    return statement.on_conflict_do_update(
        index_elements=[failures.c.id], set_={**changed, "attempts": failures.c.attempts + 1}
    )
