"""An output folder: its lock, its ledger, its format and its manifest as one thing that stays consistent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from captory_data.classes import Classes
from captory_data.durable import make_folder
from captory_data.errors import DataError, LedgerError, SpecError
from captory_data.formats.base import NO_CLASS, Layout, Sample
from captory_data.formats.registry import open_format
from captory_data.ledger import LEDGER_NAME, Ledger
from captory_data.lock import locked
from captory_data.manifest import MANIFEST_NAME, build_manifest, write_manifest
from captory_data.records import Record
from captory_data.rows import ClassRow, FailureRow, GalleryRow, StoredJob
from captory_data.spec import JobSpec, differing

# Among the versions: of the instruction file of the job's mode, and of who lends captions in the control arms.
MODE_SHA256, PARTNERS_SHA256 = "mode_sha256", "partners_sha256"


class Batch(NamedTuple):
    """What is published together."""

    samples: Sequence[Sample]
    failures: Sequence[FailureRow] = ()
    gallery: Sequence[GalleryRow] = ()


class Dataset:
    """An output folder open for writing; made by `open_dataset`. `source_classes` are those that items may have."""

    def __init__(self, out: Path, ledger: Ledger, job: StoredJob, source_classes: Classes) -> None:
        self.out = out
        self.ledger = ledger
        self.job = job
        self.source_classes = source_classes
        self.classes = ledger.classes()
        self._partners: dict[str, str] = {}
        self._positions = {row.id: row.position for row in self.classes}
        self._format = open_format(job.spec.output_format, Layout(out, job.spec.image_format, self.classes))
        make_folder(self._format.folder)
        self._format.clean(ledger)

    def position(self, class_id: str | None) -> int:
        """A class's label in the dataset."""
        return NO_CLASS if class_id is None else self._positions[class_id]

    def publish(self, batch: Batch) -> None:
        """Make the batch part of the dataset: files first, then the ledger, then the manifest that follows from it.

        Raises:
            FatalStorageError: the disk refused; the batch may or may not be published, the next start knows.
        """
        rows = [sample.row for sample in batch.samples]
        shard = None
        if batch.samples:
            number = self.ledger.next_shard()
            shard = number, self._format.write(number, batch.samples)
        self.ledger.publish(shard, rows, batch.failures, batch.gallery)
        self.write_manifest(final=False)

    def write_manifest(self, *, final: bool) -> None:
        """Bring the manifest up to the ledger."""
        shards = self._format.listing(self.ledger, final=final)
        write_manifest(self.out, build_manifest(self.ledger, self.job, shards))

    def check_partners(self, sha256: str) -> None:
        """Check that captions are borrowed as for the earlier images; it is written down with what makes the first.

        Raises:
            SpecError: others lend than did.
        """
        if self.job.versions.get(PARTNERS_SHA256, sha256) != sha256:
            raise SpecError(
                f"{self.out} was made with other partners: in mode {self.job.spec.mode} they follow from the whole "
                "source, and its items or their classes are not those of then. Use another output folder, or the same "
                "source, classes file and --recaption as then"
            )
        self._partners = {PARTNERS_SHA256: sha256}

    def check_maker(self, models: Mapping[str, str], backend: str, notice: str, versions: Mapping[str, str]) -> None:
        """Write down what makes the images, or check that it is what made the earlier ones.

        Raises:
            SpecError: other models, or another instruction file of the job's mode.
        """
        stored = self.job.models
        if stored is not None and stored != dict(models):
            raise SpecError(f"{self.out} was made with other models: {_listed(differing(stored, dict(models)))}")
        if self.job.versions.get(MODE_SHA256, versions.get(MODE_SHA256)) != versions.get(MODE_SHA256):
            words = f"{self.out} was made with another instruction file of mode {self.job.spec.mode}"
            raise SpecError(f"{words}; go on with that one (--modes), or into a new folder")
        self.ledger.set_maker(models, backend, notice, {**versions, **self._partners})
        job = self.ledger.job()
        if job is not None:
            self.job = job


@contextmanager
def open_dataset(out: Path, spec: JobSpec, classes: Classes) -> Iterator[Dataset]:
    """The output folder for this job, new or to be continued, locked against other processes.

    Raises:
        LockedError, LedgerError, FatalStorageError: in use, damaged, not writable.
        SpecError: it was made with other parameters; the message says which.
    """
    make_folder(out)
    with locked(out), open_ledger(out, create=True) as ledger:
        job = _agree(out, ledger, spec)
        agreed = _agree_classes(out, ledger, classes)
        yield Dataset(out, ledger, job, agreed)


@contextmanager
def open_ledger(out: Path, *, create: bool = False) -> Iterator[Ledger]:
    """The folder's ledger.

    Raises:
        LedgerError: it is missing (beside other files of ours, or at all without `create`), or damaged.
    """
    path = out / LEDGER_NAME
    orphaned = [name for name in (MANIFEST_NAME, "shards", "data") if (out / name).exists()]
    if not path.exists() and (orphaned or not create):
        beside = f", though {' and '.join(orphaned)} is there" if orphaned else ""
        raise LedgerError(f"{path} is missing{beside}. Restore it from a copy, or use another output folder.")
    ledger = Ledger(path)
    try:
        yield ledger
    finally:
        ledger.close()


def stored_job(out: Path) -> StoredJob | None:
    """The job that a folder was made with; None where there is none yet."""
    if not (out / LEDGER_NAME).exists():
        return None
    with open_ledger(out) as ledger:
        return ledger.job()


def find_image(out: Path, image_id: str) -> tuple[Record, bytes]:
    """One published image's record and encoded bytes.

    Raises:
        DataError: there is no such image, or its file is damaged (the message names it).
    """
    with open_ledger(out) as ledger:
        job, found = ledger.job(), ledger.image(image_id)
        if job is None or found is None:
            raise DataError(f"{out} has no image {image_id}")
        row, shard = found
        reader = open_format(job.spec.output_format, Layout(out, job.spec.image_format, ledger.classes()))
        try:
            for stored in reader.read(shard, [row]):
                if stored.id == image_id:
                    return Record.loads(row.record), _checked(stored.image, row.sha256)
        except (OSError, ValueError) as error:
            place = reader.path(shard) or reader.folder
            raise DataError(f"{place} cannot be read: {error}. `captory verify` says more.") from error
    raise DataError(f"{out}: {shard.name} lacks image {image_id}. `captory verify` says more.")


def _checked(image: bytes, sha256: str) -> bytes:
    if hashlib.sha256(image).hexdigest() != sha256:
        raise ValueError("the image has other bytes than the ledger says")
    return image


def _agree(out: Path, ledger: Ledger, spec: JobSpec) -> StoredJob:
    job = ledger.job()
    if job is None:
        ledger.create_job(spec, datetime.now(UTC).isoformat(timespec="seconds"))
        return _agree(out, ledger, spec)
    if different := job.spec.difference(spec):
        raise SpecError(f"{out} was made with other parameters: {_listed(different)}")
    return job


def _agree_classes(out: Path, ledger: Ledger, classes: Classes) -> Classes:
    """New classes come after the known ones; a known one keeps its position and its name.

    Where no names are given but the folder has some, they came from a classes file: its list holds.
    """
    known = {row.id: row.name for row in ledger.classes()}
    renamed = {
        class_id: (known[class_id], name)
        for class_id, name in classes.names.items()
        if class_id in known and known[class_id] != name
    }
    if renamed and not classes.closed and all(class_id == theirs for class_id, (_, theirs) in renamed.items()):
        return Classes(known, closed=True)
    if renamed:
        raise SpecError(f"{out} was made with other class names: {_listed(renamed)}")
    new = [class_id for class_id in classes.ids() if class_id not in known]
    ledger.add_classes([ClassRow(len(known) + n, class_id, classes.name(class_id)) for n, class_id in enumerate(new)])
    return classes


def _listed(different: Mapping[str, tuple[object, object]]) -> str:
    return "; ".join(f"{name}: {ours!r} there, {theirs!r} now" for name, (ours, theirs) in different.items())
