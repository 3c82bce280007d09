"""What passes between the job runner and the function that makes results."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

from captory_data.identity import Wanted


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One item to make images of, named by `wanted`. Exactly one of `image`, `caption` and `prompt` is given.

    `attributes` stand beside it, for a mode that makes its prompt of them.
    """

    key: str
    class_id: str | None
    class_name: str
    wanted: tuple[Wanted, ...]
    image: bytes | None = None
    caption: str | None = None
    prompt: str | None = None
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """What makes the results; the first outcome. `notice` is what people must know of the images."""

    models: Mapping[str, str]
    backend: str = ""
    notice: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageDone:
    """One item left a stage ("caption", "prompt"): for progress only."""

    key: str
    stage: str


@dataclass(frozen=True, slots=True)
class Finished:
    """One image of the item `key`: encoded bytes, and what only its maker knows.

    `writer` says who wrote the prompt: "template", "model", "fallback" (the model's words were refused) or "client".
    `mode_sha256` is that of the mode's instruction file; `synthetic_captions` are those of a closed loop's drafts.
    """

    key: str
    id: str
    image: bytes
    caption: str
    prompt: str
    models: Mapping[str, str]
    pixel_sha256: str
    token_count: int = 0
    token_policy: str = ""
    backend: str = ""
    writer: str = ""
    mode_sha256: str = ""
    attributes: tuple[str, ...] = ()
    synthetic_captions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """One image that will not come, or with `id` None every one still open of the item. `dropped`: by policy."""

    key: str
    id: str | None
    reason: str
    message: str
    dropped: bool = False


@dataclass(frozen=True, slots=True)
class ItemDone:
    """The item's last outcome. `stage_seconds` counts from its arrival to the end of each stage."""

    key: str
    stage_seconds: Mapping[str, float] = field(default_factory=dict)


Outcome = Started | StageDone | Finished | Failure | ItemDone

# Items in, outcomes out, in any order, each item ending with one ItemDone. Called only when there is work. It raises
# errors.TransportError when results can no longer come.
Synthesize = Callable[[AsyncIterator[WorkItem]], AsyncGenerator[Outcome, None]]
