"""What both models share: settings out of a model's configuration, values out of requests of one row, and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from captory_bench.measuring.graphs import Graphs, open_graphs


def open_graphs_of(args: Mapping[str, str]) -> Graphs:
    """Open the graphs that the model's parameters name, with the threads that they give."""
    parameters = json.loads(args["model_config"])["parameters"]
    values = {name: parameter["string_value"] for name, parameter in parameters.items()}
    return open_graphs(Path(values["repository"]), values["family"], num_threads=int(values["threads"]))


def row(request: Any, name: str) -> Any:
    """The values of one input, [dims]. Raises `ValueError` for a request of several rows."""
    (values,) = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
    return values


def text(request: Any, name: str) -> str:
    """An input of one string."""
    (value,) = row(request, name)
    return str(value, "utf-8")


def answer(**outputs: bytes | int) -> Any:
    """A response of one row with these outputs, each one string of bytes or one number."""
    kinds = {name: np.object_ if isinstance(value, bytes) else np.int32 for name, value in outputs.items()}
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, np.array([[value]], kinds[name])) for name, value in outputs.items()]
    )
