"""`make gpu-bench` on the CPU: the same code at tiny sizes, with no more installed than it may need."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from captory_engine.family import find_family
from captory_engine.repository import default_repository

torch = pytest.importorskip("torch", reason="the GPU benchmark needs torch and diffusers (make test installs them)")
pytest.importorskip("diffusers")

from captory_bench.gpu import painting, picto  # noqa: E402
from captory_bench.gpu.__main__ import main  # noqa: E402
from captory_bench.gpu.clock import Budget  # noqa: E402
from captory_bench.gpu.fp8 import Fp8Linear  # noqa: E402
from captory_bench.gpu.models import FULL, TINY_SD15, Model, count_flops  # noqa: E402
from captory_bench.gpu.report import NO_GPU, to_text  # noqa: E402
from captory_bench.gpu.run import Order, Run  # noqa: E402
from captory_bench.gpu.setup import TINY_SCALE, Setup  # noqa: E402
from captory_bench.gpu.variants import GRAPHS, PLAIN, VARIANTS  # noqa: E402

ROOT = Path(__file__).parents[2]
# What torch, NumPy and diffusers bring with them.
ALLOWED = {"torch", "numpy", "diffusers", "safetensors", "PIL"}
ABSENT = [
    "grpc",
    "google",
    "onnxruntime",
    "onnx",
    "pydantic",
    "pydantic_settings",
    "tokenizers",
    "transformers",
    "rich",
]
ABSENT += ["typer", "tritonclient", "sqlalchemy", "pyarrow", "jinja2", "webdataset", "accelerate", "datasets", "peft"]
SCRIPT = """
import runpy, sys
from importlib.machinery import PathFinder
absent = set(%r)

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in absent else super().find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
sys.path[:0] = %r
sys.argv = ["captory_bench.gpu", *%r]
try:
    runpy.run_module("captory_bench.gpu", run_name="__main__")
finally:
    print("loaded:", *sorted(name for name in sys.modules if name.startswith("captory_")))
"""


class Ran(NamedTuple):
    code: int
    output: str
    record: dict[str, Any]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """One run of everything, in a process that finds none of the main job's packages."""
    out = tmp_path_factory.mktemp("gpu") / "tiny.json"
    folders = [str(ROOT / name) for name in ("benchmarks", "engine", "training")]
    script = SCRIPT % (ABSENT, folders, ["--tiny", "--out", str(out)])
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert out.exists(), process.stderr[-2000:]
    assert out.with_suffix(".txt").read_text() in process.stdout
    return Ran(process.returncode, process.stdout, json.loads(out.read_text()))


def test_everything_runs_and_every_check_holds(ran: Ran) -> None:
    assert ran.record["not_run"] == {}
    assert ran.record["checks"]["ok"]
    assert ran.code == 0


def test_no_gpu_no_gpu_figures(ran: Ran) -> None:
    assert not ran.record["is_gpu"]
    assert ran.record["targets"] == []
    assert NO_GPU in ran.output


@pytest.mark.parametrize("name", ["sdxl", "sd15", "sd21"])
def test_each_painter_is_measured_beside_the_eager_loop(ran: Ran, name: str) -> None:
    painted = ran.record["models"][name]
    batches = {str(batch) for batch in TINY_SCALE.batches}
    assert painted["eager"].keys() == painted["engine"].keys() == batches
    assert all(entry["ok"] and entry["difference"] < 0.05 for entry in painted["variants"])
    assert {PLAIN.name, GRAPHS.name} <= {entry["name"] for entry in painted["variants"]}
    assert painted["full_image"]["ok"]
    assert painted["skipped"] == []
    for figures in painted["engine"].values():
        speed = figures["images_per_s"]
        assert speed["20"] > speed["50"] > 0
        assert len(figures["share_of_matrix_rate"]["20"]) == TINY_SCALE.passes


def test_the_ways_to_batch_paint_the_same_images(ran: Ran) -> None:
    mixed = ran.record["mixed"]
    assert mixed["checks"]["difference"] < 0.05
    assert mixed["arms"]["step_level"]["row_efficiency"] > mixed["arms"]["request_level"]["row_efficiency"]
    assert len(mixed["step_over"]["request_level"]) == TINY_SCALE.rounds


def test_picto_is_painted_as_on_the_cpu(ran: Ran) -> None:
    assert ran.record["picto"]["checks"]["equal_captions"] == 1.0
    assert ran.record["picto"]["checks"]["mean_difference"] < 0.01


def test_our_code_imports_no_more_than_is_allowed(ran: Ran) -> None:
    modules = ran.output.splitlines()[-1].split()[1:]
    assert "captory_bench.gpu.run" in modules
    roots = {imported for module in modules for imported in _imports(module)}
    assert roots - sys.stdlib_module_names - ALLOWED == {"captory_bench", "captory_engine", "captory_training"}


def _imports(module: str) -> set[str]:
    """Roots of what a module imports when it is loaded or called, but not for type checkers alone."""
    folder = {"captory_bench": "benchmarks", "captory_engine": "engine", "captory_training": "training"}
    path = ROOT / folder[module.split(".")[0]] / module.replace(".", "/")
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(source.read_text())
    body = [node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))]
    nodes = [node for statement in body for node in ast.walk(statement)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("model", FULL, ids=lambda model: model.name)
def test_the_full_configurations_cost_what_was_published(model: Model) -> None:
    unet, _ = count_flops(model)
    assert unet / 1e12 == pytest.approx(model.published_tflop, rel=1e-3)


def setup(budget_s: float = 1000.0) -> Setup:
    return Setup(torch.device("cpu"), "fp32", TINY_SCALE, Budget(budget_s), 1e9, 1, lambda words: None)


def test_a_wrong_result_gives_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(unet: Any, variant: Any) -> Any:
        own = right(unet, variant)
        own.conv_out.weight.data *= -1
        return own

    right = painting.prepared
    monkeypatch.setattr(painting, "prepared", broken)
    measured = painting.Painting(setup(), TINY_SD15)
    assert measured.run((PLAIN,)) is None
    assert not measured.record["variants"][0]["ok"]
    assert measured.record["engine"] == {}
    assert "variant" not in measured.record


def test_eight_bit_layers_are_near() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(64, 48).bfloat16()
    states = torch.randn(3, 11, 64).bfloat16()
    found, expected = Fp8Linear(linear).to(torch.bfloat16)(states), linear(states)
    assert found.shape == expected.shape
    assert 0 < (found - expected).abs().mean() / expected.abs().mean() < 0.06


def test_the_fastest_right_variant_is_chosen_but_none_on_eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong, eight_bit = replace(PLAIN, name="wrong"), replace(PLAIN, name="fp8", fp8=True)
    times = {wrong: 0.1, eight_bit: 0.2, GRAPHS: 0.3, PLAIN: 0.4}
    monkeypatch.setattr(
        painting.Painting,
        "_try",
        lambda self, variant: {"name": variant.name, "ok": variant is not wrong, "step_s": times[variant]},
    )
    measured = painting.Painting(setup(), TINY_SD15)
    assert measured._choose(tuple(times)) is GRAPHS
    assert [entry["name"] for entry in measured.record["variants"]] == [one.name for one in times]


def test_a_variant_that_cannot_run_is_a_line_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(unet: Any, variant: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(painting, "prepared", failing)
    measured = painting.Painting(setup(), TINY_SD15)
    assert measured.run((GRAPHS,)) is None
    assert "no such kernel" in measured.record["variants"][0]["error"]


def test_what_does_not_fit_the_budget_is_skipped_and_said() -> None:
    measured = painting.Painting(setup(budget_s=painting.SECONDS_A_BATCH / 2), TINY_SD15)
    assert measured.run(VARIANTS) is None
    assert len(measured.record["skipped"]) == len(TINY_SCALE.batches) + len(VARIANTS)
    assert measured.record["eager"] == {}


def test_the_budget_counts_from_its_start() -> None:
    now = iter([100.0, 103.0, 109.0])
    budget = Budget(10.0, lambda: next(now))
    assert budget.allows(7.0)
    assert not budget.allows(2.0)


def test_a_run_that_outlasts_its_budget_is_saved_and_ended() -> None:
    script = "import threading; from captory_bench.gpu.clock import stop_after\n"
    script += "stop_after(0.01, lambda: print('saved', flush=True)); threading.Event().wait()"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout) == (3, "saved\n")


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "no GPU" in capsys.readouterr().err


def test_images_that_differ_do_not_agree() -> None:
    grey = np.full((4, 4, 3), 100.0)
    one, near, far = (picto.Painted((5, 6), grey + shift) for shift in (0, 1, 40))
    other_words = picto.Painted((5, 7), grey)
    assert picto.agreement([one, near], [one, one])["ok"]
    assert not picto.agreement([far, far], [one, one])["ok"]
    assert not picto.agreement([other_words, other_words], [one, one])["ok"]


def test_targets_are_of_right_results_on_a_gpu_only(tmp_path: Path) -> None:
    order = Order(True, "cpu", "fp32", 10.0, tmp_path / "gpu.json", frozenset(), lambda words: None)
    run = Run(order)
    run.record["is_gpu"] = True
    shares = {1: {"share_of_matrix_rate": {20: [0.4, 0.42]}}, 4: {"share_of_matrix_rate": {20: [0.61, 0.6]}}}
    run.record["models"]["sdxl"] = {"size_px": 1024, "flops": {"unet_row_tflop": 1.0, "ok": True}, "engine": shares}
    run.record["mixed"] = {"step_over": {"request_level": [1.9]}, "checks": {"ok": False}}
    run._conclude()
    assert [(one["name"], one["met"]) for one in run.record["targets"]] == [
        ("sdxl_20_steps_share_of_matrix_rate", True)
    ]
    assert not run.record["checks"]["ok"]
    run.record["mixed"]["checks"]["ok"] = True
    run._conclude()
    assert [one["met"] for one in run.record["targets"]] == [True, True]


def test_pictos_settings_are_those_of_its_family() -> None:
    family = find_family(default_repository(), "picto").family
    painter, captioner = family.painter, family.captioner
    assert captioner is not None
    defaults = painter.defaults
    assert (defaults.steps, defaults.guidance_scale, defaults.sampler) == (picto.STEPS, picto.GUIDANCE, picto.SAMPLER)
    assert (captioner.bos_id, captioner.eos_id, captioner.pad_id) == (picto.BOS, picto.EOS, picto.PAD)
    assert captioner.prefixes["short"] == (picto.BOS, picto.SHORT)
    assert captioner.max_new_tokens == picto.MAX_NEW_TOKENS
    assert painter.sizes == ((picto.SIZE_PX, picto.SIZE_PX),)
    assert painter.vae_scale_factor == picto.SCALE


def test_the_table_shows_what_is_wrong() -> None:
    figures = {"step_s": [0.1], "images_per_s": {"20": 1.0, "50": 0.4}, "unet_tflop_per_s": 1.0}
    figures["share_of_matrix_rate"] = {"20": [0.4], "50": [0.4]}
    entry = {"name": "graphs", "batch": 4, "ok": False, "difference": 0.5, "step_s": 0.1, "took_s": 3.0}
    painted = {"size_px": 64, "flops": {"unet_row_tflop": 1.0}, "eager": {"1": figures}, "engine": {}}
    record = {
        "is_gpu": True,
        "machine": {"device": "a GPU", "torch": "2", "diffusers": "0"},
        "dtype": "bf16",
        "models": {"sdxl": {**painted, "variants": [entry], "skipped": ["engine, batch 16: late"]}},
        "not_run": {"picto": "the budget was spent"},
        "targets": [{"name": "share", "value": 0.4, "bound": 0.5, "met": False}],
        "checks": {"ok": False},
        "seconds": 1.0,
        "budget_s": 2.0,
    }
    text = to_text(record)
    for words in ("WRONG RESULT", "MISSED", "not run: picto", "skipped: engine, batch 16", "checks FAIL"):
        assert words in text
    assert NO_GPU not in text
