"""From checkpoints to a family in a model repository of its own, published when all of it is there and right."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from captory_engine.errors import BadModel
from captory_engine.family import Captioner, Family, Painter, Writer
from captory_export.architectures import Role, find_architecture
from captory_export.checkpoints import Checkpoint, find, num_weight_bytes
from captory_export.exportable import Exportable
from captory_export.family_file import DESCRIPTION, source_of, write_family
from captory_export.lora import Lora, merged
from captory_export.model_folders import export_part
from captory_export.precision import Precision, faults
from captory_export.publishing import published
from captory_export.repository import to_json
from captory_export.sections import checked

ROOM = 2.2  # bytes on disk for each byte of weights: fp16 may become fp32
MAX_NAME = 40  # letters of a family's name: a model's has up to 64, and says what it is behind it
Size = tuple[int, int]
Say = Callable[[str], object]


class Wanted(NamedTuple):
    """What is to be exported. Checkpoints are references; `writer` may be empty, and `name` is then the painter's.

    Unless `for_cpu`, graphs are left as a GPU wants them.
    """

    captioner: str
    writer: str
    painter: str
    loras: tuple[Lora, ...] = ()
    precision: Precision = Precision.FP32
    sizes: tuple[Size, ...] = ()
    name: str = ""
    for_cpu: bool = True


class Prepared(NamedTuple):
    """What is to be exported, looked through. Everything is by role, but for `licences`, which are files by name."""

    wanted: Wanted
    name: str
    checkpoints: Mapping[Role, Checkpoint]
    sections: Mapping[str, Captioner | Painter | Writer]
    licences: Mapping[str, bytes]
    num_bytes: int  # on disk, about


def export_family(wanted: Wanted, out: Path, say: Say) -> dict[str, Any]:
    """Write the repository `out`; returns the parity report, by role.

    Raises `BadModel` for what cannot be exported or is not what the checkpoint is; `out` is as it was then.
    """
    prepared = prepare(wanted)
    with published(out, prepared.num_bytes) as root:
        return write_models(prepared, root, say)


def prepare(wanted: Wanted) -> Prepared:
    """Find the checkpoints, and refuse what cannot be exported before anything is computed. Raises `BadModel`."""
    references: dict[Role, str] = {"painter": wanted.painter, "captioner": wanted.captioner, "writer": wanted.writer}
    checkpoints: dict[Role, Checkpoint] = {
        role: find(reference) for role, reference in references.items() if reference or role != "writer"
    }
    painter = checkpoints["painter"]
    name = _checked(wanted.name or painter.own_settings().get("name") or _named(painter))
    merging = [painter] if wanted.loras else []
    num_bytes = sum(num_weight_bytes(one.path) for one in (*checkpoints.values(), *merging))
    return Prepared(
        wanted=wanted,
        name=name,
        checkpoints=checkpoints,
        sections={role: _section(role, one, wanted.sizes, f"{name}_{role}") for role, one in checkpoints.items()},
        licences={f"{role}-{file}": text for role, one in checkpoints.items() for file, text in one.licences().items()},
        num_bytes=round(ROOM * num_bytes),
    )


def write_models(prepared: Prepared, root: Path, say: Say) -> dict[str, Any]:
    """Write all models and the family file into `root`; returns the parity report, by role. Raises `BadModel`."""
    wanted, name = prepared.wanted, prepared.name
    report: dict[str, Any] = {}
    sources: dict[str, Any] = {}
    for role, checkpoint in prepared.checkpoints.items():
        loras = wanted.loras if role == "painter" else ()
        sources[role] = source_of(checkpoint, loras)
        with merged(checkpoint, loras, root.parent) as whole:
            exportable = _open(role, whole, wanted.sizes)
            report[role] = export_role(
                exportable, root, f"{name}_{role}", wanted.precision, say, for_cpu=wanted.for_cpu
            )
    own = {"description": DESCRIPTION, "in_world_only": False, **prepared.checkpoints["painter"].own_settings()}
    told = {key: own[key] for key in ("description", "in_world_only")}
    family = checked(Family, name, {"name": name, **told, "sources": sources, **prepared.sections})
    write_family(root, family, {**prepared.licences, "report.json": to_json(report)})
    return report


def export_role(
    exportable: Exportable, root: Path, name: str, precision: Precision, say: Say, *, for_cpu: bool = True
) -> dict[str, Any]:
    """Write the models of one checkpoint, one graph in memory at a time, then check them together.

    Returns the parity report. Raises `BadModel`.
    """
    folders: dict[str, Path] = {}
    report: dict[str, Any] = {}
    torch.manual_seed(0)  # examples are the same every time
    for part in exportable.parts():
        folder = root / f"{name}_{part.suffix}"
        say(f"{folder.name}: exporting")
        report[part.suffix] = export_part(part, folder, precision, for_cpu=for_cpu)
        folders[part.suffix] = folder
        say(f"{folder.name}: differs by {report[part.suffix]['max_abs_difference']:.2g} from the checkpoint")
        del part  # the next is made while nothing holds this one
    say(f"{name}: from end to end")
    report["end_to_end"] = exportable.check(folders)
    if broken := faults(report["end_to_end"], precision):
        raise BadModel("PARITY", f"{name} is not what the checkpoint is: {'; '.join(broken)}.")
    return report


def parse_sizes(text: str) -> tuple[Size, ...]:
    """`WIDTHxHEIGHT`, with commas. Raises `BadModel`."""
    found = [re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", word.strip()) for word in text.split(",") if word.strip()]
    if not all(found):
        words = "sizes are WIDTHxHEIGHT, such as 512x768, of at most 99999 pixels, with commas"
        raise BadModel("SIZES", f"{text!r}: {words}.")
    return tuple((int(match[1]), int(match[2])) for match in found if match)


def _section(role: Role, checkpoint: Checkpoint, sizes: tuple[Size, ...], name: str) -> Captioner | Painter | Writer:
    """The family file's section of a checkpoint whose settings may hold anything. Raises `BadModel`."""
    try:
        return _open(role, checkpoint, sizes).section(name)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        words = f"The settings of {checkpoint.name} are not those of its architecture ({error!r})"
        raise BadModel("UNSUPPORTED", f"{words}; fetch it again, or save it with save_pretrained().") from error


def _open(role: Role, checkpoint: Checkpoint, sizes: tuple[Size, ...]) -> Exportable:
    opener = find_architecture(role, checkpoint)
    exportable: Exportable = opener(checkpoint, sizes) if role == "painter" else opener(checkpoint)
    return exportable


def _named(checkpoint: Checkpoint) -> str:
    """A family's name out of a checkpoint's."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", checkpoint.name.rpartition("/")[2]).strip("-")[:MAX_NAME] or "family"


def _checked(name: object) -> str:
    """A family's name, of which the names of its models are made. Raises `BadModel`."""
    if not isinstance(name, str) or not re.fullmatch(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}", name):
        words = f"letters, digits, `_` and `-`, at most {MAX_NAME}"
        raise BadModel("FAMILY_NAME", f"{name!r} is no name of a family: {words}.")
    return name
