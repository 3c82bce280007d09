"""Draws what every prompt mode makes of the same pictures: `python -m captory_training.modes_sheet --out sheet.png`.

Each row is a job of its own, run by `captory run` with the embedded family and nothing on vLLM whatever the
environment names, and shows what its records say: the caption, the prompt, and the image painted from it.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tarfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, NamedTuple

import typer
from PIL import Image, ImageDraw, ImageFont

from captory_data.spec import MODES
from captory_training.evaluation import FIRST_SCENE, MAX_SEED, SCENES_A_SEED
from captory_training.evaluation_sheet import FAINT, INK, MISSING, PAPER
from captory_training.picto.captions import trait_phrases
from captory_training.picto.kinds import KIND_BY_KEY
from captory_training.picto.render import render
from captory_training.picto.scene import Scene, sample_scene

COMMAND = (sys.executable, "-c", "from captory_client.cli import main; main()", "run", "--writer=", "--captioner=")
SOME_FAILED = 3  # an exit code: the images that there are can be shown
SHOWN = ("crane_bird", "crane_machine", "face")
EACH = 2  # scenes of a kind; a shuffled caption is that of the other one
FIRST = FIRST_SCENE + MAX_SEED * SCENES_A_SEED
PICTURE_PX, TEXT_PX, LABEL_PX, GAP_PX = 112, 250, 96, 10
FONT_PX, LINE_PX = 11, 14
LINE_CHARACTERS, LABEL_CHARACTERS = 42, 15
MAX_LINES = PICTURE_PX // LINE_PX  # beside a picture


class Row(NamedTuple):
    """One job: what stands before its row, and its options of `captory run`."""

    label: str
    options: tuple[str, ...]


class Example(NamedTuple):
    """One image with what its record says: all that went before the prompt, each with what it is, and the prompt."""

    picture: Image.Image
    before: tuple[str, ...]
    prompt: str


ROWS = (
    *(Row(mode, ("--mode", mode)) for mode in MODES),
    Row("basic, curated names", ("--mode", "basic", "--class-names", "curated")),
)


def scenes_to_show() -> list[Scene]:
    """Scenes of one object, `EACH` of every kind that is shown, the kinds in turn."""
    fresh = map(sample_scene, count(FIRST))
    return [
        next(scene for scene in fresh if scene.kind == kind and scene.count == 1) for _ in range(EACH) for kind in SHOWN
    ]


def write_source(folder: Path, scenes: Sequence[Scene]) -> Path:
    """Pictures with a `metadata.csv` below `folder`; returns the file of their classes, raw and curated."""
    source = folder / "pictures"
    source.mkdir(parents=True)
    for scene in scenes:
        Image.fromarray(render(scene)).save(source / f"{_key(scene)}.png")
    rows = ((f"{_key(scene)}.png", scene.kind, ";".join(_attributes(scene))) for scene in scenes)
    _write_csv(source / "metadata.csv", ("file_name", "class_id", "attributes"), rows)
    kinds = (KIND_BY_KEY[kind] for kind in SHOWN)
    names = ((kind.key, kind.class_name, kind.singular) for kind in kinds)
    return _write_csv(folder / "classes.csv", ("id", "name", "curated"), names)


def run_job(row: Row, source: Path, classes: Path, out: Path) -> dict[str, Example]:
    """The examples of one job, by the picture's key. Raises `RuntimeError` with its words when it does not run."""
    command = [*COMMAND, str(source), "--out", str(out), "--classes", str(classes), "--quiet", *row.options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - ours
    if done.returncode not in (0, SOME_FAILED):
        raise RuntimeError(f"{row.label}: {done.stderr.strip()}")
    return read_examples(out)


def read_examples(out: Path) -> dict[str, Example]:
    """Every image of a dataset with its record, by the key of its source without the suffix."""
    examples = {}
    for path in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(path) as shard:
            contents = {info.name: _content(shard, info) for info in shard}
        for record in (json.loads(data) for name, data in contents.items() if name.endswith(".json")):
            picture = Image.open(io.BytesIO(contents[f"{record['id']}.png"]))
            examples[Path(record["source"]).stem] = Example(picture, tuple(_before(record)), record["prompt"])
    return examples


def modes_sheet(scenes: Sequence[Scene], made: Mapping[str, Mapping[str, Example]]) -> Image.Image:
    """True pictures on top, one a column, and below them a row of examples for every label of `made`."""
    width, height = PICTURE_PX + TEXT_PX + 2 * GAP_PX, PICTURE_PX + GAP_PX
    size = (LABEL_PX + GAP_PX + len(scenes) * width, GAP_PX + (1 + len(made)) * height)
    sheet = Image.new("RGB", size, PAPER)
    for column, scene in enumerate(scenes):
        left = LABEL_PX + GAP_PX + column * width
        kind = KIND_BY_KEY[scene.kind]
        sheet.paste(_enlarged(Image.fromarray(render(scene))), (left, GAP_PX))
        _write(sheet, (left, GAP_PX), [(f"class {kind.class_name}, curated {kind.singular}", INK, 1)])
        for row, examples in enumerate(made.values(), start=1):
            _draw(sheet, (left, GAP_PX + row * height), examples.get(_key(scene)))
    for row, label in enumerate(("true picture", *made)):
        _lines(sheet, (GAP_PX, GAP_PX + row * height), textwrap.wrap(label, LABEL_CHARACTERS), INK)
    return sheet


def _before(record: Mapping[str, Any]) -> Iterator[str]:
    """What the prompt was made of, in the order in which it came."""
    if record["mode"] == "face" and record["attributes"]:
        yield f"attributes: {', '.join(record['attributes'])}"
    if record["caption"]:
        lender = Path(record["caption_source"]).stem
        yield f"caption{lender and f' of {lender}'}: {record['caption']}"
    yield from (f"caption of the draft: {text}" for text in record["synthetic_captions"])


def _draw(sheet: Image.Image, corner: tuple[int, int], example: Example | None) -> None:
    if example is None:
        sheet.paste(Image.new("RGB", (PICTURE_PX, PICTURE_PX), MISSING), corner)
        return
    sheet.paste(_enlarged(example.picture), corner)
    before = [(text, FAINT, MAX_LINES // (1 + len(example.before))) for text in example.before]
    _write(sheet, corner, [*before, (example.prompt, INK, MAX_LINES - sum(lines for _, _, lines in before))])


def _write(sheet: Image.Image, corner: tuple[int, int], texts: Sequence[tuple[str, tuple[int, ...], int]]) -> None:
    """Texts in their colours under each other, right of the picture at `corner`, each of so many lines at most."""
    left, top = corner[0] + PICTURE_PX + GAP_PX, corner[1]
    for text, colour, max_lines in texts:
        lines = textwrap.wrap(text, LINE_CHARACTERS, max_lines=max_lines, placeholder=" …")
        _lines(sheet, (left, top), lines, colour)
        top += len(lines) * LINE_PX


def _lines(sheet: Image.Image, corner: tuple[int, int], lines: Sequence[str], colour: tuple[int, ...]) -> None:
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT_PX)
    for number, line in enumerate(lines):
        pen.text((corner[0], corner[1] + number * LINE_PX), line, fill=colour, font=font)


def _enlarged(picture: Image.Image) -> Image.Image:
    return picture.convert("RGB").resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BICUBIC)


def _key(scene: Scene) -> str:
    return f"{scene.kind}-{scene.seed}"


def _attributes(scene: Scene) -> list[str]:
    """What a face's attributes are; none for what is no face."""
    face = scene.groups[0].face
    return [*trait_phrases(face), scene.colour] if face else []


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def _content(shard: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = shard.extractfile(info)
    assert file is not None, "a shard holds files only"
    return file.read()


def main(
    out: Annotated[Path, typer.Option(help="Where to write the sheet, a PNG.")] = Path("docs/images/modes.png"),
) -> None:
    """Run a small job in every mode, and draw what came of it."""
    scenes = scenes_to_show()
    with TemporaryDirectory() as folder:
        classes = write_source(Path(folder), scenes)
        made = {}
        for number, row in enumerate(ROWS):
            typer.echo(row.label, err=True)
            made[row.label] = run_job(row, Path(folder) / "pictures", classes, Path(folder) / str(number))
    modes_sheet(scenes[: len(SHOWN)], made).save(out, optimize=True)


if __name__ == "__main__":
    typer.run(main)
