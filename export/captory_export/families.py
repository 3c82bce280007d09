"""From checkpoints to a family in a model repository of its own, published when all of it is there and right."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from captory_engine.errors import BadModel
from captory_export.architectures import Role, find_architecture
from captory_export.checkpoints import Checkpoint, find, num_weight_bytes
from captory_export.exportable import Exportable
from captory_export.family_file import source_of, write_family
from captory_export.lora import Lora, merged
from captory_export.model_folders import export_part
from captory_export.precision import Precision, faults
from captory_export.publishing import published

ROOM = 2.2  # bytes on disk for each byte of weights: fp16 may become fp32
MAX_NAME = 40  # letters of a family's name: a model's has up to 64, and says what it is behind it
Size = tuple[int, int]
Say = Callable[[str], object]


class Wanted(NamedTuple):
    """What is to be exported. Checkpoints are references; `writer` may be empty, and `name` is then the painter's."""

    captioner: str
    writer: str
    painter: str
    loras: tuple[Lora, ...] = ()
    precision: Precision = Precision.FP32
    sizes: tuple[Size, ...] = ()
    name: str = ""


def export_family(wanted: Wanted, out: Path, say: Say) -> dict[str, Any]:
    """Write the repository `out`; returns the parity report, by role.

    Raises `BadModel` for what cannot be exported or is not what the checkpoint is; `out` is as it was then.
    """
    references: dict[Role, str] = {"captioner": wanted.captioner, "writer": wanted.writer, "painter": wanted.painter}
    checkpoints = {role: find(reference) for role, reference in references.items() if reference or role != "writer"}
    for role, checkpoint in checkpoints.items():
        find_architecture(role, checkpoint)  # before anything is computed
    own = checkpoints["painter"].own_settings()
    name = _checked(wanted.name or own.get("name") or _named(checkpoints["painter"]))
    sections: dict[str, dict[str, Any]] = {}
    report: dict[str, Any] = {}
    with published(out, round(ROOM * sum(num_weight_bytes(one.path) for one in checkpoints.values()))) as root:
        for role, checkpoint in checkpoints.items():
            with ExitStack() as stack:
                exportable = _open(role, checkpoint, wanted, stack)
                sections[role], report[role] = export_role(exportable, root, f"{name}_{role}", wanted.precision, say)
        loras = {"painter": wanted.loras}
        sources: dict[str, dict[str, Any]] = {
            role: source_of(checkpoint, loras.get(role, ())) for role, checkpoint in checkpoints.items()
        }
        write_family(root, name, sections, sources, own, report)
    return report


def export_role(
    exportable: Exportable, root: Path, name: str, precision: Precision, say: Say
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the models of one checkpoint, one graph in memory at a time, then check them together.

    Returns the family file's section and the parity report.
    """
    folders: dict[str, Path] = {}
    report: dict[str, Any] = {}
    section = exportable.section(name)  # before anything is computed: it refuses what the engine would get wrong
    torch.manual_seed(0)  # examples are the same every time
    for part in exportable.parts():
        folder = root / f"{name}_{part.suffix}"
        say(f"{folder.name}: exporting")
        report[part.suffix] = export_part(part, folder, precision)
        folders[part.suffix] = folder
        say(f"{folder.name}: differs by {report[part.suffix]['max_abs_difference']:.2g} from the checkpoint")
        del part  # the next is made while nothing holds this one
    say(f"{name}: from end to end")
    report["end_to_end"] = exportable.check(folders)
    if broken := faults(report["end_to_end"], precision):
        raise BadModel("PARITY", f"{name} is not what the checkpoint is: {'; '.join(broken)}.")
    return section, report


def parse_sizes(text: str) -> tuple[Size, ...]:
    """`WIDTHxHEIGHT`, with commas. Raises `BadModel`."""
    found = [re.fullmatch(r"([1-9]\d{1,4})x([1-9]\d{1,4})", word.strip()) for word in text.split(",") if word.strip()]
    if not all(found):
        raise BadModel("SIZES", f"{text!r}: sizes are WIDTHxHEIGHT in pixels, with commas.")
    return tuple((int(match[1]), int(match[2])) for match in found if match)


def _open(role: Role, checkpoint: Checkpoint, wanted: Wanted, stack: ExitStack) -> Exportable:
    opener = find_architecture(role, checkpoint)
    if role != "painter":
        exportable: Exportable = opener(checkpoint)
        return exportable
    painter: Exportable = opener(stack.enter_context(merged(checkpoint, wanted.loras)), wanted.sizes)
    return painter


def _named(checkpoint: Checkpoint) -> str:
    """A family's name out of a checkpoint's."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", checkpoint.name.rpartition("/")[2]).strip("-")[:MAX_NAME] or "family"


def _checked(name: object) -> str:
    """A family's name, of which the names of its models are made. Raises `BadModel`."""
    if not isinstance(name, str) or not re.fullmatch(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}", name):
        words = f"letters, digits, `_` and `-`, at most {MAX_NAME}"
        raise BadModel("FAMILY_NAME", f"{name!r} is no name of a family: {words}.")
    return name
