"""`captory export --tensorrt`: refused at once where it cannot end well; its graphs are as a GPU wants them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

torch = pytest.importorskip("torch")
for module in ("onnxscript", "diffusers", "transformers"):
    pytest.importorskip(module)

from captory_export import families  # noqa: E402
from captory_export.commands import export  # noqa: E402
from captory_export.exportable import Graph, Part  # noqa: E402
from captory_export.model_folders import export_part  # noqa: E402
from captory_export.precision import Precision  # noqa: E402
from captory_export.tensorrt import build  # noqa: E402


class Exports(list[families.Wanted]):
    """What was exported, and no more done about it."""

    def __call__(self, wanted: families.Wanted, out: Path, say: Any) -> dict[str, Any]:
        self.append(wanted)
        return {}


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Exports:
    exported = Exports()
    monkeypatch.setattr(families, "export_family", exported)
    return exported


def run(tmp_path: Path, *flags: str) -> Any:
    app = typer.Typer()
    app.command()(export)
    required = ["--captioner", "captioner", "--painter", "painter", "--out", str(tmp_path / "out")]
    return CliRunner().invoke(app, [*required, *flags])


def test_without_tensorrt_nothing_is_exported(
    tmp_path: Path, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.delitem(sys.modules, "captory_engine.sessions.tensorrt", raising=False)
    told = run(tmp_path, "--tensorrt")
    assert (told.exit_code, exports) == (1, [])
    assert "pip install 'captory[tensorrt]'" in told.output


def test_weights_in_int8_are_not_for_tensorrt(tmp_path: Path, exports: Exports) -> None:
    told = run(tmp_path, "--tensorrt", "--precision", "int8")
    assert (told.exit_code, exports) == (1, [])
    assert "does not know the nodes of --precision int8" in told.output


def test_graphs_are_for_the_gpu_where_engines_are_built(
    tmp_path: Path, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []
    monkeypatch.setattr(build, "this_machine", lambda options: None)
    monkeypatch.setattr(build, "build_family", lambda repository, say: built.append(repository))
    assert run(tmp_path).exit_code == run(tmp_path, "--tensorrt").exit_code == 0
    assert [wanted.for_cpu for wanted in exports] == [True, False]
    assert built == [tmp_path / "out"]


class Convolution(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, sample: Any) -> Any:
        return self.convolution(sample)


def test_a_graph_for_a_gpu_is_not_rewritten_for_a_cpu(tmp_path: Path) -> None:
    graph = Graph(Convolution(), {"sample": torch.randn(2, 32, 8, 8)}, ["out_sample"])
    plain = export_part(Part("unet", graph), tmp_path / "gpu_unet", Precision.FP32, for_cpu=False)
    rewritten = export_part(Part("unet", graph), tmp_path / "cpu_unet", Precision.FP32)
    assert (plain["rewrites"], rewritten["rewrites"]["winograd"]) == ({}, 1)
