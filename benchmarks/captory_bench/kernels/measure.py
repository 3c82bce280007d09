"""`captory bench kernels`: how near each graph comes to the machine's matrix-multiply rate, and where its time goes.

A graph's operations are counted twice: as the checkpoint defines them (its exporter's count, convolutions direct), and
as ONNX Runtime ran them (from its own profile), which are fewer where a graph computes the same with less.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from captory_bench.kernels.matmul_peak import matmul_peak
from captory_bench.measuring.subject import Say
from captory_engine.family import find_family
from captory_engine.profiles import stages
from captory_engine.repository import ModelFolder, open_model
from captory_engine.sessions.base import Array, Session, TensorSpec
from captory_engine.sessions.options import SessionOptions, available_cpus
from captory_engine.sessions.registry import open_session

TOLERANCE = 1e-3
NUM_TOP_OPS = 6
MIN_SECONDS = 0.3  # of a figure in a round
NUM_PROFILED = 10
MULTIPLICATIONS = {"MatMul", "FusedMatMul", "Gemm", "FusedGemm", "Conv", "FusedConv"}


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured: batches of `num_rows`, in `num_rounds` rounds over all graphs."""

    repository: Path
    family: str = ""
    num_rows: int = 16
    num_rounds: int = 5


class Op(NamedTuple):
    """What one kind of node costs a row, over all its nodes."""

    name: str
    num_nodes: int
    ms_per_row: float


class Ran(NamedTuple):
    """One run of a graph as ONNX Runtime's profile tells it."""

    flops_per_row: float
    ops: list[Op]


@dataclass(slots=True)
class Kernel:
    """One graph in one session of a single thread, with a batch for it."""

    folder: ModelFolder
    session: Session
    inputs: dict[str, Array]
    ran: Ran
    largest_difference: float


def measure(settings: Settings, say: Say) -> dict[str, Any]:
    """Measure every graph of the family, in one lane of one thread and in as many lanes as CPUs. Raises `BadModel`."""
    root, family = find_family(settings.repository, settings.family)
    kernels = {stage: _open(root, *place, settings.num_rows) for stage, place in stages(family).items()}
    num_lanes, ms = available_cpus(), defaultdict[tuple[str, int], list[float]](list)
    peaks = {1: matmul_peak(1), num_lanes: matmul_peak(num_lanes)}
    for number in range(1, settings.num_rounds + 1):
        say(f"kernels: round {number} of {settings.num_rounds}")
        for stage, kernel in kernels.items():
            for lanes in peaks:
                ms[stage, lanes].append(_ms_per_row(kernel, lanes, settings.num_rows))
    peaks = {lanes: max(rate, matmul_peak(lanes)) for lanes, rate in peaks.items()}
    medians = {stage: {lanes: median(ms[stage, lanes]) for lanes in peaks} for stage in kernels}
    graphs = {stage: _figures(kernel, medians[stage], peaks) for stage, kernel in kernels.items()}
    differences = {stage: kernel.largest_difference for stage, kernel in kernels.items()}
    return {
        "rows": settings.num_rows,
        "matmul_peak_gflops": {"one_thread": peaks[1], "all_cpus": peaks[num_lanes], "cpus": num_lanes},
        "graphs": graphs,
        "targets": [],
        "checks": _checks(differences),
    }


def profile_run(model: Path, inputs: Mapping[str, Array], num_rows: int) -> Ran:
    """Run a graph under ONNX Runtime's profiler on one thread."""
    import onnxruntime as ort

    options = _plain_options(ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    with TemporaryDirectory() as folder:
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        session = ort.InferenceSession(str(model), options, ["CPUExecutionProvider"])
        for _ in range(NUM_PROFILED):
            session.run(None, dict(inputs))
        events = json.loads(Path(session.end_profiling()).read_text())
    nodes = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    flops = sum(flops_of(event["args"]) for event in nodes) / NUM_PROFILED / num_rows
    return Ran(flops, _ops(nodes, num_rows))


def flops_of(node: Mapping[str, Any]) -> int:
    """Floating-point operations of a node of the profile; 0 for what multiplies no matrices."""
    if node["op_name"] not in MULTIPLICATIONS:
        return 0
    inputs, output = _shapes(node["input_type_shape"]), _shapes(node["output_type_shape"])[0]
    if "Conv" in node["op_name"]:
        return 2 * prod(output) * prod(inputs[1][1:])
    # A constant right-hand side is packed away and not listed; the left one is, whichever way round it is read.
    inner = prod(inputs[0]) // output[0] if "Gemm" in node["op_name"] else inputs[0][-1]
    return 2 * prod(output) * inner


def plausible_inputs(specs: tuple[TensorSpec, ...], num_rows: int, positions: int) -> dict[str, Array]:
    """One batch: one new token a row behind a half-full cache of so many positions, noise elsewhere."""
    rng = np.random.default_rng(num_rows)
    return {spec.name: _values(spec, num_rows, positions, rng) for spec in specs}


def _open(root: Path, model: str, positions: int, num_rows: int) -> Kernel:
    folder = open_model(root, model)
    inputs = plausible_inputs(folder.inputs, num_rows, positions)
    session = open_session("onnx", folder, SessionOptions(num_threads=1))
    ran = profile_run(folder.model_path, inputs, num_rows)
    return Kernel(folder, session, inputs, ran, _difference(folder, session, inputs))


def _difference(folder: ModelFolder, session: Session, inputs: dict[str, Array]) -> float:
    """Largest difference from the same graph with none of ONNX Runtime's optimisations; infinite if not finite."""
    import onnxruntime as ort

    plain = ort.InferenceSession(
        str(folder.model_path),
        _plain_options(ort.GraphOptimizationLevel.ORT_DISABLE_ALL),
        ["CPUExecutionProvider"],
    )
    names = [spec.name for spec in session.outputs]
    found, wanted = session.run(inputs), plain.run(names, inputs)
    largest = max(float(np.abs(found[name] - array).max()) for name, array in zip(names, wanted, strict=True))
    return largest if np.isfinite(largest) else float("inf")


def _plain_options(level: Any) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level, options.log_severity_level = level, 3
    return options


def _ms_per_row(kernel: Kernel, num_lanes: int, num_rows: int) -> float:
    """Milliseconds a row of the whole: lanes run the same batch at once, each a thread on a CPU of its own.

    By the CPU time of the lanes, in which other work on the machine does not count.
    """
    until = time.perf_counter() + MIN_SECONDS

    def run(_: int) -> float:
        spent_s, num_runs = time.thread_time(), 0
        while num_runs == 0 or time.perf_counter() < until:
            kernel.session.run(kernel.inputs)
            num_runs += 1
        return (time.thread_time() - spent_s) / num_runs

    with ThreadPoolExecutor(num_lanes) as lanes:
        batch_s = mean(lanes.map(run, range(num_lanes)))
    return 1000 * batch_s / (num_lanes * num_rows)


def _figures(kernel: Kernel, ms_per_row: Mapping[int, float], peaks: Mapping[int, float]) -> dict[str, Any]:
    parity = kernel.folder.path / "parity.json"
    defined = json.loads(parity.read_text()).get("flops_per_row") if parity.is_file() else None
    counted = kernel.ran.flops_per_row
    total = sum(op.ms_per_row for op in kernel.ran.ops)
    return {
        "model": kernel.folder.name,
        "digest": kernel.folder.digest,
        "flops_per_row": {"defined": defined, "run": round(counted)},
        "lanes": {
            str(lanes): {
                "ms_per_row": ms,
                "gflops": counted / ms / 1e6,
                "share_of_peak": counted / ms / 1e6 / peaks[lanes],
                "defined_gflops": defined and defined / ms / 1e6,
            }
            for lanes, ms in ms_per_row.items()
        },
        "ops": [{**op._asdict(), "share": op.ms_per_row / total} for op in kernel.ran.ops[:NUM_TOP_OPS]],
    }


def _checks(differences: Mapping[str, float]) -> dict[str, Any]:
    agreed = all(difference <= TOLERANCE for difference in differences.values())
    return {"ok": agreed, "tolerance": TOLERANCE, "largest_difference": dict(differences)}


def _ops(nodes: list[dict[str, Any]], num_rows: int) -> list[Op]:
    """The kinds of nodes by time, the median over the runs of each node."""
    times = defaultdict[tuple[str, str], list[float]](list)
    for node in nodes:
        times[node["args"]["op_name"], node["name"]].append(node["dur"])
    counts = Counter(name for name, _ in times)
    spent_us: Counter[str] = Counter()
    for (name, _), durations in times.items():
        spent_us[name] += median(durations)  # type: ignore[assignment]  # fractions of a microsecond
    return [Op(name, counts[name], us / 1000 / num_rows) for name, us in spent_us.most_common()]


def _shapes(listed: list[dict[str, list[int]]]) -> list[list[int]]:
    return [shape for tensor in listed for shape in tensor.values()]


def _values(spec: TensorSpec, num_rows: int, positions: int, rng: np.random.Generator) -> Array:
    dynamic = positions if spec.name.startswith("past_") else 1
    shape = (num_rows, *(dynamic if size == -1 else size for size in spec.shape))
    if np.issubdtype(spec.dtype, np.integer):
        return np.ones(shape, spec.dtype)
    if spec.name == "past_mask":
        return np.broadcast_to(np.arange(positions) < positions // 2, shape).astype(spec.dtype)
    return rng.standard_normal(shape).astype(spec.dtype)
