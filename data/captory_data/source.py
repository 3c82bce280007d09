"""An input as one ordered sequence of items, each with a unique key and a way to load it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from captory_data.classes import MAX_CLASSES, RAW, Classes, read_classes
from captory_data.errors import ItemError, Reason, SourceError
from captory_data.keys import KeyIndex, safe_key
from captory_data.sources.entry import IMAGE_SUFFIXES, Entry, Scan
from captory_data.sources.files import read_span
from captory_data.sources.folder import is_image, scan_folder
from captory_data.sources.metadata import METADATA_NAMES, scan_metadata
from captory_data.sources.tars import scan_tars

SUFFIXES = " ".join(sorted(IMAGE_SUFFIXES))
LOOKED_FOR = f"images ({SUFFIXES}) in it or in class folders, {' or '.join(METADATA_NAMES)}, or .tar files"


@dataclass(frozen=True, slots=True)
class Payload:
    """What an item brings into the pipeline: exactly one of image, caption and prompt, and the attributes if any."""

    image: bytes | None = None
    caption: str | None = None
    prompt: str | None = None
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One item of an input. The key is unique in it; `class_id` is None without a class.

    Where there is a `partner`, the item is that one's image or caption under its own key and class.
    """

    key: str
    class_id: str | None
    class_name: str
    root: Path
    entry: Entry
    partner: SourceItem | None = None

    @property
    def caption_source(self) -> str:
        """The key of the item whose image or caption this is, where it is another's."""
        return self.partner.key if self.partner else ""

    def load(self) -> Payload:
        """Read the item.

        Raises:
            ItemError: it cannot be used; the reason says why.
        """
        if self.entry.reason is not None:
            raise ItemError(self.entry.reason, self.entry.message)
        if self.partner is None:
            return self._load()
        try:
            return self.partner._load()
        except ItemError as error:
            raise ItemError(error.reason, f"its partner {self.partner.key}: {error.message}") from error

    @property
    def can_lend(self) -> bool:
        """Whether its image or caption can stand for another's."""
        return self.entry.reason is None and self.entry.prompt is None

    def broken(self, error: ItemError) -> SourceItem:
        """This item, which only says why it cannot be used."""
        return replace(self, entry=Entry.broken(error))

    def _load(self) -> Payload:
        entry = self.entry
        if entry.prompt is not None:
            return Payload(prompt=entry.prompt)
        attributes = tuple(entry.attributes)
        if entry.caption is not None:
            return Payload(caption=entry.caption, attributes=attributes)
        return Payload(read_span(self.root, entry.path or "", entry.offset, entry.size), attributes=attributes)


class Source:
    """Items sorted by key. Holds places, not content; iterating again starts again."""

    def __init__(self, root: Path, scan: Scan, classes: Classes | None = None, *, recaption: bool = False) -> None:
        self._root = root
        self._index = KeyIndex()
        self._recaption = recaption
        self.ignored = 0
        self._names: dict[str, str] = {}
        self._copies: Counter[str] = Counter()
        for name, entry in scan:
            if entry is None:
                self.ignored += 1
            else:
                self._add(safe_key(name), entry)
        self.classes = classes or Classes(self._names)

    def __len__(self) -> int:
        return len(self._index)

    def __iter__(self) -> Iterator[SourceItem]:
        for key, text in self._index:
            yield self._item(key, Entry.loads(text))

    def __getitem__(self, key: str) -> SourceItem:
        """The item with this key. Raises `KeyError`."""
        return self._item(key, Entry.loads(self._index[key]))

    def close(self) -> None:
        """Free the index."""
        self._index.close()

    def _add(self, key: str, entry: Entry) -> None:
        if self._recaption and entry.path is not None:
            entry = entry._replace(caption=None, prompt=None)
        if entry.class_id is not None:
            entry = entry._replace(class_id=safe_key(entry.class_id))
        if not self._index.add(key, entry.dumps()):
            error = ItemError(Reason.DUPLICATE_KEY, f"the key {key} was given before")
            self._copies[key] += 1
            self._index.add(f"{key}#duplicate-{self._copies[key]}", Entry.broken(error).dumps())
        elif entry.class_id is not None:
            self._note_class(entry.class_id, entry.class_name or entry.class_id)

    def _note_class(self, class_id: str, name: str) -> None:
        """Of several names for one class, the first in the alphabet, whatever the order of the rows."""
        self._names[class_id] = min(self._names.get(class_id, name), name)
        if len(self._names) > MAX_CLASSES:
            raise SourceError(f"{self._root} has more than {MAX_CLASSES} classes")

    def _item(self, key: str, entry: Entry) -> SourceItem:
        if entry.reason is None and not self.classes.knows(entry.class_id):
            error = ItemError(Reason.UNKNOWN_CLASS, f"class {entry.class_id!r} is not in the classes file")
            return SourceItem(key, None, "", self._root, Entry.broken(error))
        return SourceItem(key, entry.class_id, self.classes.name(entry.class_id), self._root, entry)


def open_source(
    path: Path,
    *,
    classes: Path | None = None,
    class_names: str = RAW,
    recaption: bool = False,
    exclude: Path | None = None,
) -> Source:
    """An input folder or tar as a `Source`.

    `classes` is a file of names, `class_names` says which of them, raw or curated. `recaption` puts images through the
    captioner even where captions or prompts are given; `exclude` is a folder below `path` to pass over (the output).

    Raises:
        SourceError: there is nothing to work on, with what was looked for.
    """
    if classes is None and class_names != RAW:
        raise SourceError(f"{class_names} class names come from a classes file, and none is given")
    known = read_classes(classes, class_names) if classes else None
    try:
        root = path.resolve(strict=True)
        if exclude is not None and exclude.resolve() == root:
            raise SourceError(f"input and output are the same folder: {path}")
        source = Source(*_scan(root, exclude.resolve() if exclude else None), known, recaption=recaption)
    except OSError as error:
        raise SourceError(f"input {path}: {error.strerror or error}") from error
    if not len(source):
        raise SourceError(f"no items in {path} ({source.ignored} other files). Looked for {LOOKED_FOR}.")
    return source


def _scan(root: Path, exclude: Path | None) -> tuple[Path, Scan]:
    """The folder that paths are relative to, and the scan of this kind of input."""
    if root.is_file():
        if root.suffix != ".tar":
            raise SourceError(f"{root} is neither a folder nor a .tar file")
        return root.parent, scan_tars(root.parent, [root.name])
    metadata = [name for name in METADATA_NAMES if (root / name).is_file()]
    if len(metadata) > 1:
        raise SourceError(f"{root} holds both {' and '.join(metadata)}: keep one")
    if metadata:
        return root, scan_metadata(root, metadata[0])
    tars = [entry.name for entry in root.iterdir() if entry.suffix == ".tar" and not entry.name.startswith(".")]
    if tars and any(is_image(entry.name) for entry in root.iterdir()):
        raise SourceError(f"{root} holds both .tar files and images: give one kind")
    return root, (scan_tars(root, tars) if tars else scan_folder(root, exclude))
