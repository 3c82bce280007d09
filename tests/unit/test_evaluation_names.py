"""`captory eval picto --names`: what counts as right, the interval over seeds, and the way through a real server."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from families import fake_repository
from PIL import Image
from rich.console import Console
from test_evaluation import write_reader
from typer.testing import CliRunner

from captory_client.errors import ClientError
from captory_proto.v1 import captory_pb2 as pb
from captory_training import evaluation_names
from captory_training.commands import evaluate
from captory_training.evaluation import FIRST_SCENE, SCENES_A_SEED, Pixels, Settings, Share
from captory_training.evaluation_names import ARMS, BASELINE, POLYSEMOUS, Trial, compare, polysemous_scenes
from captory_training.evaluation_names_report import Estimate, names_table, names_values, over_seeds
from captory_training.oracle import Reading
from captory_training.picto.kinds import KIND_BY_KEY
from captory_training.picto.render import render
from captory_training.picto.scene import Scene

CURATED_CIP = "cip, curated name"


def read(scene: Scene, **changes: str) -> Reading:
    return {name: str(getattr(scene, name)) for name in ("kind", "colour", "background")} | changes


def other_look(kind: str) -> str:
    """The kind that shares its name with this one."""
    name = KIND_BY_KEY[kind].class_name
    return next(other.key for other in POLYSEMOUS if other.class_name == name and other.key != kind)


def trial(num_wrong: int, seed: int = 0) -> Trial:
    """Eight scenes, right in all arms, but that the baseline shows the other look in the first so many."""
    scenes = polysemous_scenes(8, seed)
    right: list[Reading | None] = [read(scene) for scene in scenes]
    wrong: list[Reading | None] = [read(scene, kind=other_look(scene.kind)) for scene in scenes[:num_wrong]]
    return Trial(scenes, {arm: [*right] for arm in ARMS} | {BASELINE: [*wrong, *right[num_wrong:]]})


def test_four_names_mean_two_things_each() -> None:
    names = [kind.class_name for kind in POLYSEMOUS]
    assert sorted(names) == sorted(["crane", "bat", "mouse", "bass"] * 2)


def test_kinds_take_turns_and_scenes_are_fresh() -> None:
    scenes = polysemous_scenes(16, seed=2)
    assert [scene.kind for scene in scenes] == [kind.key for kind in POLYSEMOUS] * 2
    seeds = [scene.seed for scene in scenes]
    assert len(set(seeds)) == 16
    first = FIRST_SCENE + 2 * SCENES_A_SEED
    assert all(first <= seed < first + SCENES_A_SEED for seed in seeds)
    assert {scene.seed for scene in polysemous_scenes(16, seed=3)}.isdisjoint(seeds)


def test_a_raw_name_leaves_open_what_a_curated_one_says() -> None:
    crane = KIND_BY_KEY["crane_machine"]
    names = {arm: how.class_name(crane) for arm, how in ARMS.items()}
    assert names == {
        "basic, raw name": "crane",
        "basic, curated name": "crane machine",
        "cip, raw name": "crane",
        "cip, curated name": "crane machine",
    }


def test_the_other_look_is_wrong_and_counts_for_its_class() -> None:
    made = trial(3)  # crane bird, crane machine, bat animal
    assert made.share(BASELINE, "kind") == Share(5, 8)
    assert made.share(BASELINE, "kind", "crane") == Share(0, 2)
    assert made.share(BASELINE, "kind", "bat") == Share(1, 2)
    assert made.share(BASELINE, "colour") == Share(8, 8)
    assert made.share(CURATED_CIP, "kind") == Share(8, 8)


def test_an_image_that_did_not_come_is_wrong_in_everything() -> None:
    made = trial(0)
    made.readings[CURATED_CIP][0] = None
    assert made.share(CURATED_CIP, "kind") == made.share(CURATED_CIP, "background") == Share(7, 8)
    assert names_values([made])["failed"] == {**dict.fromkeys(ARMS, 0), CURATED_CIP: 1}


def test_the_interval_is_over_seeds() -> None:
    found = over_seeds([0.4, 0.5, 0.6])
    assert found.mean == pytest.approx(0.5)
    assert found.half_width == pytest.approx(4.303 * 0.1 / 3**0.5)
    assert over_seeds([0.4]) == Estimate(0.4, None)
    assert str(over_seeds([0.5, 0.5])) == "50.0 ± 0.0"
    assert str(over_seeds([0.5])) == "50.0"


def test_the_gain_is_taken_seed_by_seed() -> None:
    """Baselines of 4, 2 and 0 wrong of 8: the others gain a half, a quarter and nothing."""
    figures = names_values([trial(num, seed) for seed, num in enumerate((4, 2, 0))])
    assert figures["arms"][BASELINE]["kind_over_baseline"] == {"mean": 0.0, "half_width": 0.0}
    gain = figures["arms"][CURATED_CIP]["kind_over_baseline"]
    assert gain["mean"] == pytest.approx(0.25)
    assert gain["half_width"] == pytest.approx(4.303 * 0.25 / 3**0.5)
    assert figures["arms"][BASELINE]["right"]["kind"]["mean"] == pytest.approx(0.75)
    assert figures["arms"][BASELINE]["kind_by_class"]["crane"]["mean"] == pytest.approx(1 / 3)
    assert (figures["n"], figures["seeds"]) == (8, 3)


def test_the_table_has_a_column_an_arm_and_fits_a_terminal() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(names_table([trial(2, seed) for seed in range(2)]))
    words = console.export_text()
    assert "…" not in words
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in split_rows(words)}
    assert rows["kind"] == ["75.0 ± 0.0", *["100.0 ± 0.0"] * 3]
    assert rows["over raw name"] == ["0.0 ± 0.0", *["25.0 ± 0.0"] * 3]
    assert rows["crane"] == ["0.0 ± 0.0", *["100.0 ± 0.0"] * 3]
    assert rows["background"] == ["100.0 ± 0.0"] * 4
    heads = [line.strip("┃").split("┃") for line in words.splitlines() if line.startswith("┃")]
    assert [" ".join(part.strip() for part in parts) for parts in zip(*heads, strict=True)][1:] == list(ARMS)


def split_rows(words: str) -> list[list[str]]:
    return [line.strip("│").split("│") for line in words.splitlines() if line.startswith("│")]


class Painter:
    """Stands in for client and oracle: an image holds the number of its painting, read back as what was asked for.

    The captioner tells a picture's seed, and fails on one; later paintings are done sooner.
    """

    def __init__(self, scenes: Sequence[Scene], without_caption: Scene) -> None:
        self._seeds = {render(scene).tobytes(): scene.seed for scene in scenes}
        self._without_caption = without_caption.seed
        self.painted: list[tuple[str, int]] = []

    async def caption(self, image: bytes, *, length: str) -> pb.CaptionResult:
        with Image.open(io.BytesIO(image)) as picture:
            seed = self._seeds[np.asarray(picture).tobytes()]
        if seed == self._without_caption:
            raise ClientError("no caption", code="INTERNAL")
        return pb.CaptionResult(text=f"{length} {seed}")

    async def prompt(self, caption: str, *, class_name: str, mode: str) -> list[pb.PromptResult]:
        return [pb.PromptResult(text=f"{mode}, {class_name}, {caption}")]

    async def generate(self, prompt: str, *, seed: int, **_: object) -> list[pb.ImageResult]:
        number = len(self.painted)
        self.painted.append((prompt, seed))
        for _turn in range(8 - number % 8):
            await asyncio.sleep(0)
        buffer = io.BytesIO()
        Image.new("RGB", (1, 1), (number, 0, 0)).save(buffer, "PNG")
        return [pb.ImageResult(data=buffer.getvalue())]

    def read(self, images: Sequence[Pixels]) -> list[Reading]:
        asked = (self.painted[image[0, 0, 0]] for image in images)
        return [{"kind": prompt, "colour": str(seed), "background": ""} for prompt, seed in asked]


def test_readings_land_in_their_own_arm_and_arms_share_seeds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    by_seed = [polysemous_scenes(8, seed) for seed in (5, 6)]
    missing = by_seed[0][3]
    painter = Painter([scene for scenes in by_seed for scene in scenes], missing)

    @asynccontextmanager
    async def fake_serving(_: Settings) -> AsyncIterator[Painter]:
        yield painter

    monkeypatch.setattr(evaluation_names, "serving", fake_serving)
    monkeypatch.setattr(evaluation_names, "Oracle", lambda _: painter)
    trials = asyncio.run(compare(Settings(tmp_path, num_scenes=8, seed=5), 2, str))
    assert [trial.scenes for trial in trials] == by_seed
    for trial in trials:
        for arm, mode, curated in (
            ("basic, raw name", "MODE_BASIC", False),
            ("basic, curated name", "MODE_BASIC", True),
            ("cip, raw name", "MODE_CIP", False),
            ("cip, curated name", "MODE_CIP", True),
        ):
            kinds = [KIND_BY_KEY[scene.kind] for scene in trial.scenes]
            names = [kind.singular if curated else kind.class_name for kind in kinds]
            assert trial.readings[arm] == [
                None
                if scene == missing
                else {"kind": f"{mode}, {name}, short {scene.seed}", "colour": str(scene.seed), "background": ""}
                for scene, name in zip(trial.scenes, names, strict=True)
            ]
    assert len(set(painter.painted)) == len(painter.painted) == 4 * (2 * 8 - 1)


def test_the_command_goes_through_a_real_server(tmp_path: Path) -> None:
    root = write_reader(fake_repository(tmp_path))
    options = ["--names", "--n", "8", "--seeds", "2", "--steps", "1", "--repository", str(root), "--backend", "fake"]
    told = CliRunner().invoke(evaluate, ["picto", *options, "--json"])
    assert told.exit_code == 0, told.output
    figures = json.loads(told.stdout)
    assert (figures["n"], figures["seeds"]) == (8, 2)
    assert figures["failed"] == dict.fromkeys(ARMS, 0)
    assert figures["arms"][BASELINE]["right"]["kind"]["mean"] == 0.0  # this oracle knows houses and trees only


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--names", "--n", "7"], "scenes"),
        (["--names", "--seed", "9998"], "seeds"),
        (["--names", "--sheet", "sheet.png"], "sheet"),
        (["--seeds", "5"], "--names"),
    ],
)
def test_what_cannot_be_compared_is_refused(options: list[str], word: str) -> None:
    told = CliRunner().invoke(evaluate, ["picto", *options])
    assert told.exit_code == 2
    assert word in told.stderr
