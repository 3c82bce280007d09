"""A Python-based Triton backend called `onnxruntime`: ONNX Runtime on the CPU, for a Triton without NVIDIA's own.

It serves the same model folders: tensors by the names of `config.pbtxt`, graph in the version's folder. The requests
that Triton's batcher hands over together are one run of the graph, and a request that fails fails alone. Every
instance of a model is a process with a session of its own. Threads a session: the model's parameter
`intra_op_thread_count`, as NVIDIA's backend calls it, else CAPTORY_TRITON_THREADS, else 0 (all cores).

It runs in Triton's environment: NumPy, ONNX Runtime and Triton's module are all that it may import.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

Array = NDArray[Any]
THREADS_PARAMETER = "intra_op_thread_count"
THREADS_VARIABLE = "CAPTORY_TRITON_THREADS"
DEFAULT_MODEL_FILE = "model.onnx"
GRAPH_TYPES = {
    "TYPE_BOOL": "tensor(bool)",
    "TYPE_UINT8": "tensor(uint8)",
    "TYPE_UINT16": "tensor(uint16)",
    "TYPE_UINT32": "tensor(uint32)",
    "TYPE_UINT64": "tensor(uint64)",
    "TYPE_INT8": "tensor(int8)",
    "TYPE_INT16": "tensor(int16)",
    "TYPE_INT32": "tensor(int32)",
    "TYPE_INT64": "tensor(int64)",
    "TYPE_FP16": "tensor(float16)",
    "TYPE_FP32": "tensor(float)",
    "TYPE_FP64": "tensor(double)",
    "TYPE_STRING": "tensor(string)",
}


class TritonPythonModel:
    """One instance of one model; Triton calls `initialize` once, then `execute` with one batch after the other."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the graph. Raises `TritonModelException` for one that is not what the configuration says."""
        config = json.loads(args["model_config"])
        self._batched = config["max_batch_size"] > 0
        file_name = config.get("default_model_filename") or DEFAULT_MODEL_FILE
        graph = Path(args["model_repository"]) / args["model_version"] / file_name
        self._session = ort.InferenceSession(str(graph), _options(config), ["CPUExecutionProvider"])
        self._outputs = [tensor["name"] for tensor in config["output"]]
        _check(config["input"], self._session.get_inputs(), all_of_them=True)
        _check(config["output"], self._session.get_outputs(), all_of_them=False)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request, in order."""
        jobs = [_Job(request) for request in requests]
        for group in self._groups([job for job in jobs if job.response is None]):
            self._answer(group)
        return [job.response for job in jobs]

    def finalize(self) -> None:
        """Free the graph and its threads."""
        del self._session

    def _groups(self, jobs: Sequence[_Job]) -> Iterator[list[_Job]]:
        """Jobs that fit one run: equal names and row shapes. Without a batch dimension, each by itself."""
        groups: dict[object, list[_Job]] = {}
        for index, job in enumerate(jobs):
            groups.setdefault(job.shapes if self._batched else index, []).append(job)
        yield from groups.values()

    def _answer(self, jobs: Sequence[_Job]) -> None:
        """Run all jobs at once; should that fail, each alone, so that only the guilty one gets the error."""
        try:
            outputs = self._run(jobs)
        except Exception as error:  # ONNX Runtime's errors share no base class
            if len(jobs) == 1:
                jobs[0].refuse(str(error), pb_utils.TritonError.INVALID_ARG)
                return
            for job in jobs:
                self._answer([job])
            return
        for job, rows in zip(jobs, _split(outputs, [job.num_rows for job in jobs]), strict=True):
            job.respond(rows)

    def _run(self, jobs: Sequence[_Job]) -> dict[str, Array]:
        names = [name for name in self._outputs if any(name in job.wanted for job in jobs)]
        first, *others = jobs
        inputs = first.inputs
        if others:
            inputs = {name: np.concatenate([job.inputs[name] for job in jobs]) for name in inputs}
        arrays: Any = self._session.run(names, inputs)
        outputs: dict[str, Array] = dict(zip(names, arrays, strict=True))
        num_rows = sum(job.num_rows for job in jobs)
        if self._batched and any(array.shape[:1] != (num_rows,) for array in outputs.values()):
            shapes = {name: array.shape for name, array in outputs.items()}
            raise ValueError(f"{num_rows} rows went in, and these came out: {shapes}")
        return outputs


@dataclass
class _Job:
    """A request on its way to its response."""

    request: Any
    inputs: dict[str, Array] = field(init=False, default_factory=dict)
    response: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.wanted = frozenset(self.request.requested_output_names())
        if self.request.is_cancelled():
            self.refuse("The request was cancelled.", pb_utils.TritonError.CANCELLED)
            return
        try:
            self.inputs = {tensor.name(): _from_wire(tensor.as_numpy()) for tensor in self.request.inputs()}
        except ValueError as error:  # bytes that are no text
            self.refuse(str(error), pb_utils.TritonError.INVALID_ARG)

    @property
    def num_rows(self) -> int:
        """Rows of the first dimension, which all inputs of a batching model share."""
        return len(next(iter(self.inputs.values())))

    @property
    def shapes(self) -> frozenset[tuple[str, tuple[int, ...]]]:
        """What must be equal for two jobs to ride together."""
        return frozenset((name, array.shape[1:]) for name, array in self.inputs.items())

    def respond(self, outputs: Mapping[str, Array]) -> None:
        """Answer with those outputs that the request asked for."""
        tensors = [pb_utils.Tensor(name, _to_wire(array)) for name, array in outputs.items() if name in self.wanted]
        self.response = pb_utils.InferenceResponse(output_tensors=tensors)

    def refuse(self, words: str, code: int) -> None:
        """Answer with an error."""
        self.response = pb_utils.InferenceResponse(output_tensors=[], error=pb_utils.TritonError(words, code))


def _split(outputs: Mapping[str, Array], counts: Sequence[int]) -> Iterator[dict[str, Array]]:
    """The outputs of each job; a single job takes them as they are, batch dimension or none."""
    if len(counts) == 1:
        yield dict(outputs)
        return
    start = 0
    for count in counts:
        yield {name: array[start : start + count] for name, array in outputs.items()}
        start += count


def _options(config: Mapping[str, Any]) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = _num_threads(config)
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    # idle instances must not burn the cores that another one computes on
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _num_threads(config: Mapping[str, Any]) -> int:
    text = os.environ.get(THREADS_VARIABLE, "0")
    parameter = config.get("parameters", {}).get(THREADS_PARAMETER)
    if parameter:
        text = parameter["string_value"]
    if not text.isdecimal():
        raise pb_utils.TritonModelException(f"{text!r} is no number of threads")
    return int(text)


def _check(declared: Sequence[Mapping[str, Any]], actual: Sequence[Any], *, all_of_them: bool) -> None:
    """Names and types of the configuration must be those of the graph; outputs may be left out."""
    types = {value.name: value.type for value in actual}
    for tensor in declared:
        name, wanted = tensor["name"], GRAPH_TYPES.get(tensor["data_type"], "a type that is not served")
        if types.get(name) != wanted:
            found = types.get(name, "absent")
            raise pb_utils.TritonModelException(f"tensor {name!r} is {tensor['data_type']}, in the graph {found}")
    missing = types.keys() - {tensor["name"] for tensor in declared}
    if all_of_them and missing:
        raise pb_utils.TritonModelException(f"the graph's inputs {sorted(missing)} are not in the configuration")


def _from_wire(array: Array) -> Array:
    """BYTES come as bytes objects; ONNX Runtime wants text."""
    if array.dtype != np.object_:
        return array
    return np.array([one.decode() for one in array.ravel()], np.object_).reshape(array.shape)


def _to_wire(array: Array) -> Array:
    if array.dtype != np.object_:
        return array
    return np.array([str(one).encode() for one in array.ravel()], np.object_).reshape(array.shape)
