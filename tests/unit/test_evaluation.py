"""`captory eval picto`: fresh scenes, honest counting, and the whole way through a real server."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from families import fake_repository
from onnx import TensorProto, helper
from PIL import Image
from rich.console import Console
from typer.testing import CliRunner

from captory_training.commands import default_repository, evaluate
from captory_training.evaluation import (
    CAPTIONER,
    FIRST_SCENE,
    MAX_SEED,
    ORACLE,
    PAINTER,
    SCENES_A_SEED,
    Evaluation,
    Share,
    fresh_scenes,
)
from captory_training.evaluation_report import shares_table, shares_values, wilson
from captory_training.evaluation_sheet import evaluation_sheet
from captory_training.oracle import MODEL, Oracle
from captory_training.picto.captions import full_caption
from captory_training.picto.render import render

LAST_TRAINING_SCENE, FIRST_TRIAL_SCENE = 10_000_000, 2**32
LABELS = {"kind": ["house", "tree"], "colour": ["red", "blue"], "count": ["1"], "position": ["centre"]}
LABELS |= {"background": ["sand"]}


def reader_graph() -> onnx.ModelProto:
    """Kind: tree where the mean is above grey. Colour: the larger of the red and the blue mean. The rest: no choice."""
    weights = {
        "kind": np.array([[0, 1], [0, 1], [0, 1]]),
        "colour": np.array([[1, 0], [0, 0], [0, 1]]),
        **{name: np.ones((3, 1)) for name in ("count", "position", "background")},
    }
    nodes = [
        helper.make_node("GlobalAveragePool", ["pixel_values"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        *(helper.make_node("MatMul", ["means", f"{name}_weight"], [name]) for name in LABELS),
    ]
    constants = [
        helper.make_tensor(f"{name}_weight", TensorProto.FLOAT, weight.shape, weight.ravel().astype(float))
        for name, weight in weights.items()
    ]
    inputs = [helper.make_tensor_value_info("pixel_values", TensorProto.FLOAT, ["batch", 3, 64, 64])]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", len(values)])
        for name, values in LABELS.items()
    ]
    graph = helper.make_graph(nodes, "reader", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def write_reader(root: Path) -> Path:
    folder = root / MODEL
    (folder / "2").mkdir(parents=True)
    (folder / "1").mkdir()
    (folder / "1" / "model.onnx").write_bytes(b"an older version")
    (folder / "2" / "model.onnx").write_bytes(reader_graph().SerializeToString())
    (folder / "labels.json").write_text(json.dumps(LABELS))
    return root


def plain(red: int, green: int, blue: int, side: int = 64) -> np.ndarray:
    return np.full((side, side, 3), (red, green, blue), np.uint8)


@pytest.fixture
def made() -> Evaluation:
    """Four scenes, told and painted without fault, but for the last, which did not come."""
    scenes = fresh_scenes(4, seed=3)
    pictures = [render(scene) for scene in scenes]
    readings = [{name: str(getattr(scene, name)) for name in ORACLE} for scene in scenes]
    return Evaluation(
        scenes=scenes,
        pictures=pictures,
        captions=[*map(full_caption, scenes[:3]), None],
        paintings=[*pictures[:3], None],
        true_readings=readings,
        painted_readings=[*readings[:3], None],
    )


def test_scenes_are_fresh_and_differ_by_seed() -> None:
    seeds = [scene.seed for scene in fresh_scenes(3, 0)]
    assert seeds == [FIRST_SCENE, FIRST_SCENE + 1, FIRST_SCENE + 2]
    assert FIRST_SCENE > LAST_TRAINING_SCENE
    assert FIRST_SCENE + (MAX_SEED + 1) * SCENES_A_SEED < FIRST_TRIAL_SCENE
    assert {scene.seed for scene in fresh_scenes(3, 1)}.isdisjoint(seeds)


def test_the_oracle_reads_names_from_the_newest_graph(tmp_path: Path) -> None:
    oracle = Oracle(write_reader(tmp_path))
    readings = oracle.read([plain(255, 250, 200), plain(0, 0, 30), plain(0, 0, 30, side=32)])
    assert [reading["kind"] for reading in readings] == ["tree", "house", "house"]
    assert [reading["colour"] for reading in readings] == ["red", "blue", "blue"]
    assert readings[0].keys() == LABELS.keys()
    assert oracle.read([]) == []


def test_the_oracle_reads_more_than_a_batch_in_order(tmp_path: Path) -> None:
    pictures = [plain(255, 255, 255) if index % 3 else plain(0, 0, 0) for index in range(150)]
    kinds = [reading["kind"] for reading in Oracle(write_reader(tmp_path)).read(pictures)]
    assert kinds == ["tree" if index % 3 else "house" for index in range(150)]


def test_what_did_not_come_is_wrong(made: Evaluation) -> None:
    assert made.captioner() == dict.fromkeys(CAPTIONER, Share(3, 4))
    assert made.painter() == dict.fromkeys(PAINTER, Share(3, 4))
    assert made.oracle() == dict.fromkeys(ORACLE, Share(4, 4))
    assert shares_values(made)["failed"] == {"captions": 1, "paintings": 1}


def test_a_wrong_word_counts_against_its_attribute_alone(made: Evaluation) -> None:
    scene = made.scenes[0]
    other = "red" if scene.colour != "red" else "blue"
    made.captions[0] = full_caption(scene).replace(scene.colour, other)
    assert made.captioner() == {**dict.fromkeys(CAPTIONER, Share(3, 4)), "colour": Share(2, 4)}


@pytest.mark.parametrize(
    ("right", "num", "low", "high"), [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (512, 512, 0.9926, 1.0)]
)
def test_wilson_intervals(right: int, num: int, low: float, high: float) -> None:
    assert wilson(Share(right, num)) == pytest.approx((low, high), abs=1e-4)


def test_the_table_and_the_sheet_show_everything(made: Evaluation) -> None:
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(shares_table(made))
    words = console.export_text()
    assert "4 fresh scenes" in words
    assert "1 captions, 1 images" in words
    sheet = evaluation_sheet(made, max_rows=3, columns=1)
    smaller = evaluation_sheet(made, max_rows=1, columns=2)
    assert sheet.height > smaller.height
    assert smaller.width > sheet.width
    assert len(sheet.getcolors(1 << 20) or []) > 100


def test_the_command_goes_through_a_real_server(tmp_path: Path) -> None:
    root = write_reader(fake_repository(tmp_path / "repository"))
    sheet = tmp_path / "sheet.png"
    options = ["--n", "5", "--repository", str(root), "--backend", "fake", "--sheet", str(sheet), "--json"]
    told = CliRunner().invoke(evaluate, ["picto", *options])
    assert told.exit_code == 0, told.output
    figures = json.loads(told.stdout)
    assert figures["n"] == 5
    assert figures["failed"] == {"captions": 0, "paintings": 0}
    assert (tuple(figures["captioner"]), tuple(figures["painter"])) == (CAPTIONER, PAINTER)
    assert set(figures["oracle"]) == set(ORACLE)
    assert all(0 <= share <= 1 for part in ("captioner", "painter", "oracle") for share in figures[part].values())
    with Image.open(sheet) as drawn:
        assert drawn.format == "PNG"


def test_refused_parameters_end_with_words(tmp_path: Path) -> None:
    root = write_reader(fake_repository(tmp_path))
    options = ["--n", "3", "--repository", str(root), "--backend", "fake", "--sampler", "nonsense"]
    told = CliRunner().invoke(evaluate, ["picto", *options])
    assert told.exit_code == 2
    assert "sampler" in told.stderr


def test_a_repository_without_an_oracle_ends_with_words(tmp_path: Path) -> None:
    told = CliRunner().invoke(evaluate, ["picto", "--n", "1", "--repository", str(tmp_path)])
    assert told.exit_code == 1
    assert MODEL in told.stderr


def test_the_embedded_family_is_evaluated_without_torch() -> None:
    if not (default_repository() / MODEL).is_dir():
        pytest.skip("the embedded family has no oracle here")
    script = (
        "import sys\nfrom captory_training.commands import evaluate\n"
        "try:\n    evaluate(['picto', '--n', '4', '--steps', '2', '--json'])\n"
        "finally:\n    assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["n"] == 4
