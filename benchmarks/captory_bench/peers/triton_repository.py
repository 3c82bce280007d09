"""The model repository of the Triton arm: a captioner and a painter in Python, each with dynamic batching."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

import captory_bench
import captory_engine
import captory_training
from captory_bench.peers.contenders import Conditions
from captory_bench.peers.trial import Setting

CAPTIONER, PAINTER = "captory_captioner", "captory_painter"
PACKAGES = (captory_bench, captory_engine, captory_training)
_MODELS = Path(__file__).parent / "triton_models"
_MESSAGES: Any = model_config_pb2  # built at run time, so no type checker sees its names


class Port(NamedTuple):
    """An input or output of one row."""

    name: str
    data_type: str
    size: int = 1


class _Model(NamedTuple):
    file: str
    inputs: Sequence[Port]
    outputs: Sequence[Port]


MODELS = {
    CAPTIONER: _Model(
        "captioner.py",
        (Port("photo", "TYPE_STRING"), Port("class_name", "TYPE_STRING")),
        (Port("prompt", "TYPE_STRING"),),
    ),
    PAINTER: _Model(
        "painter.py",
        (
            Port("prompt", "TYPE_STRING"),
            Port("steps", "TYPE_INT32"),
            Port("seed", "TYPE_INT64"),
            Port("guidance_scale", "TYPE_FP32"),
            Port("guidance_interval", "TYPE_FP64", 2),
            Port("sampler", "TYPE_STRING"),
        ),
        (Port("image", "TYPE_STRING"), Port("batch_size", "TYPE_INT32")),
    ),
}


def write_repository(root: Path, conditions: Conditions, setting: Setting) -> None:
    """Write both models. Their graphs are those of the repository that is measured: it is named, not copied."""
    parameters = {
        "repository": str(conditions.repository.absolute()),
        "family": conditions.family,
        "threads": str(setting.threads_a_worker),
    }
    for name, model in MODELS.items():
        folder = root / name / "1"
        folder.mkdir(parents=True)
        shutil.copyfile(_MODELS / model.file, folder / "model.py")
        _link_packages(folder)
        (root / name / "config.pbtxt").write_text(_config_text(name, model, setting, parameters), encoding="utf-8")


def _link_packages(folder: Path) -> None:
    """Our packages beside the model, where it finds them: these alone, and nothing that is installed with them."""
    for package in PACKAGES:
        (folder / package.__name__).symlink_to(Path(package.__path__[0]).absolute())


def _config_text(name: str, model: _Model, setting: Setting, parameters: Mapping[str, str]) -> str:
    config = _MESSAGES.ModelConfig(name=name, backend="python", max_batch_size=setting.batch_size)
    for ports, field in ((model.inputs, config.input), (model.outputs, config.output)):
        for port in ports:
            field.add(name=port.name, data_type=_MESSAGES.DataType.Value(port.data_type), dims=[port.size])
    config.dynamic_batching.max_queue_delay_microseconds = round(1e6 * setting.wait_s)
    config.instance_group.add(count=setting.num_workers, kind=_MESSAGES.ModelInstanceGroup.KIND_CPU)
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    text: str = text_format.MessageToString(config)
    return text
