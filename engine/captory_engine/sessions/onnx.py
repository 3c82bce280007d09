"""ONNX Runtime behind the Session contract: one graph, one thread pool, checked before and after each run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import onnxruntime as ort

from captory_engine.errors import BadModel, OutOfMemory, Unavailable
from captory_engine.repository import ModelFolder
from captory_engine.sessions.base import Array
from captory_engine.sessions.checks import check_inputs, check_outputs
from captory_engine.sessions.options import SessionOptions, TensorRtOptions
from captory_engine.sessions.tensorrt_plans import engines_root

TENSORRT, CUDA = "TensorrtExecutionProvider", "CUDAExecutionProvider"
# ONNX Runtime tells of memory in words only: its CPU allocator, its arenas, and CUDA.
_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate memory", "out of memory")


class OnnxSession:
    """A graph of the model repository on ONNX Runtime's own providers.

    The whole folder has passed `verify_model`, which knows no links, and ONNX Runtime refuses external data
    outside the model's own folder, so nothing outside the folder is ever read.
    """

    def __init__(self, model: ModelFolder, options: SessionOptions) -> None:
        self.name = model.name
        self.inputs = model.inputs
        self.outputs = model.outputs
        self.max_batch = model.max_batch
        self.digest = model.digest
        self.backend = describe_backend(options)
        self._output_names = [spec.name for spec in model.outputs]
        self._runtime: Any = _load(model, options)
        _check_signature(model, self._runtime)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; see `Session.run`."""
        batch = check_inputs(self, inputs)
        if self._runtime is None:
            raise Unavailable("SESSION_CLOSED", f"{self.name} is closed.")
        try:
            arrays = self._runtime.run(self._output_names, dict(inputs))
        except Exception as error:  # ONNX Runtime's errors share no base class
            if any(words in str(error).lower() for words in _NO_MEMORY):
                raise OutOfMemory("OUT_OF_MEMORY", f"{self.name}: a batch of {batch} does not fit.") from error
            raise Unavailable("BACKEND_FAILED", f"{self.name} could not be run.") from error
        outputs = dict(zip(self._output_names, arrays, strict=True))
        check_outputs(self, outputs, batch)
        return outputs

    def close(self) -> None:
        """Free the graph and its threads."""
        self._runtime = None


def describe_backend(options: SessionOptions) -> str:
    """Return what `exact` determinism depends on: runtime, version, providers, threads and CPU features."""
    own = {TENSORRT: f"{TENSORRT}:{options.tensorrt.precision}"}
    providers = "+".join(own.get(name, name) for name in options.providers)
    return f"onnxruntime {ort.__version__} {providers} threads={options.num_threads} cpu={cpu_fingerprint()}"


def cpu_fingerprint() -> str:
    """Return a short hash of the CPU features that NumPy detects."""
    features = import_module("numpy._core._multiarray_umath").__cpu_features__
    present = ",".join(sorted(name for name, has in features.items() if has))
    return hashlib.sha256(present.encode()).hexdigest()[:8]


def _load(model: ModelFolder, options: SessionOptions) -> Any:
    missing = set(options.providers) - set(ort.get_available_providers())
    if missing:
        words = f"This ONNX Runtime has no {', '.join(sorted(missing))}"
        raise BadModel("PROVIDER_MISSING", f"{words}; NVIDIA's are in the package onnxruntime-gpu.")
    try:
        runtime = ort.InferenceSession(str(model.model_path), _session_options(options), _providers(options))
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise BadModel("MODEL_UNREADABLE", f"ONNX Runtime cannot load model {model.name!r}.") from error
    failed = set(options.providers) - set(runtime.get_providers())  # it goes on without them, on the CPU
    if failed:
        raise BadModel("PROVIDER_FAILED", f"ONNX Runtime cannot start {', '.join(sorted(failed))} on this machine.")
    return runtime


def _providers(options: SessionOptions) -> list[str | tuple[str, dict[str, str]]]:
    told = {TENSORRT: tensorrt_options, CUDA: cuda_options}
    return [(name, told[name](options.tensorrt)) if name in told else name for name in options.providers]


def cuda_options(options: TensorRtOptions) -> dict[str, str]:
    """What ONNX Runtime's CUDA provider is told: the GPU."""
    return {"device_id": str(options.gpu)}


def tensorrt_options(options: TensorRtOptions) -> dict[str, str]:
    """What its TensorRT provider is told: GPU, types, and a folder for the engines that it builds and keeps."""
    folder = engines_root(options.engines) / "onnxruntime"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return {
        **cuda_options(options),
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": str(folder),
        "trt_fp16_enable": str(options.precision == "fp16"),
        "trt_bf16_enable": str(options.precision == "bf16"),
    }


def _session_options(options: SessionOptions) -> Any:
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.num_threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.enable_cpu_mem_arena = True
    settings.use_deterministic_compute = True
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    return settings


def _check_signature(model: ModelFolder, runtime: Any) -> None:
    """Refuse a graph whose names are not those of its configuration; types and shapes show at the first run."""
    inputs = {tensor.name for tensor in runtime.get_inputs()}
    outputs = {tensor.name for tensor in runtime.get_outputs()}
    declared = {spec.name for spec in model.inputs}
    absent = {spec.name for spec in model.outputs} - outputs
    if declared != inputs or absent:
        words = f"declared inputs {sorted(declared)} and outputs, but the graph has {sorted(inputs)}, {sorted(outputs)}"
        raise BadModel("MODEL_SIGNATURE", f"Model {model.name!r}: {words}.")
