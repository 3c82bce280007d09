"""The shipped model repository behind a real tritonserver, against ONNX Runtime's own outputs of the same graphs.

`make triton-env` sets up what these tests need; without it they are skipped.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from real_triton import NEEDS_TRITON
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.grpc.aio import InferenceServerClient as AsyncClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from captory_bench.measuring.denoising import denoise
from captory_bench.measuring.graphs import decode_latents, encode_text, open_graphs
from captory_bench.measuring.workload import Painting, paintings, photos
from captory_bench.peers.contenders import Conditions
from captory_bench.peers.trial import Setting
from captory_bench.peers.triton import TritonRequests, start_triton
from captory_bench.peers.triton_repository import PAINTER
from captory_engine.device import StageCounts
from captory_engine.errors import Unavailable
from captory_engine.family import find_family
from captory_engine.repository import default_repository, list_models, open_model
from captory_engine.sessions.base import TensorSpec
from captory_engine.sessions.options import SessionOptions
from captory_engine.sessions.registry import open_session
from captory_export.triton.host import find_triton, triton_server

ROOT = default_repository()
TEXT_ENCODER = find_family(ROOT).family.painter.text_encoder
UNET = find_family(ROOT).family.painter.denoiser
ROWS = 3
PAST, NEW = 5, 2  # positions in a token decoder's cache, and fed
SCALARS = {"timestep"}  # [B] in the graph, [B, 1] for Triton

Arrays = dict[str, np.ndarray]


pytestmark = NEEDS_TRITON


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The address of a Triton that serves the repository as it is."""
    with triton_server([ROOT], num_threads=1) as server:
        yield server.address


def some_inputs(specs: tuple[TensorSpec, ...], seed: int = 0) -> Arrays:
    """Rows of inputs within the range that every graph takes."""
    rng = np.random.default_rng(seed)
    return {spec.name: some_values(rng, spec) for spec in specs}


def some_values(rng: np.random.Generator, spec: TensorSpec) -> np.ndarray:
    length = PAST if spec.name.startswith("past") else NEW
    shape = (ROWS, *(length if size == -1 else size for size in spec.shape))
    if spec.dtype.kind == "i":
        return rng.integers(0, 48, shape).astype(spec.dtype)
    values = (rng.uniform(size=shape) > 0.5) if spec.name == "past_mask" else rng.normal(size=shape)
    return values.astype(spec.dtype)


def on_the_wire(arrays: Arrays) -> list[InferInput]:
    return [tensor(name, array[:, None] if name in SCALARS else array) for name, array in arrays.items()]


def tensor(name: str, array: np.ndarray) -> InferInput:
    made = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def own_outputs(name: str, inputs: Arrays) -> Arrays:
    session = open_session("onnx", open_model(ROOT, name), SessionOptions(num_threads=1))
    return session.run(inputs)


def test_every_model_is_served(served: str) -> None:
    client = InferenceServerClient(served)
    assert client.is_server_ready()
    assert sorted(model.name for model in client.get_model_repository_index().models) == list_models(ROOT)
    assert all(client.is_model_ready(name) for name in list_models(ROOT))


@pytest.mark.parametrize("name", list_models(ROOT))
def test_outputs_are_those_of_onnx_runtime(served: str, name: str) -> None:
    inputs = some_inputs(open_model(ROOT, name).inputs)
    expected = own_outputs(name, inputs)
    result = InferenceServerClient(served).infer(name, on_the_wire(inputs))
    assert expected
    for output, array in expected.items():
        np.testing.assert_allclose(result.as_numpy(output), array, rtol=1e-5, atol=1e-5, err_msg=output)


def test_a_wrong_shape_is_refused_and_the_next_request_is_not(served: str) -> None:
    client = InferenceServerClient(served)
    inputs = some_inputs(open_model(ROOT, UNET).inputs)
    with pytest.raises(InferenceServerException, match="unexpected shape"):
        client.infer(UNET, on_the_wire(inputs | {"sample": inputs["sample"][..., :-1]}))
    assert client.infer(UNET, on_the_wire(inputs)).as_numpy("out_sample").shape == inputs["sample"].shape


def test_a_request_that_the_graph_cannot_take_is_an_error(served: str) -> None:
    client = InferenceServerClient(served)
    inputs = some_inputs(open_model(ROOT, TEXT_ENCODER).inputs)
    with pytest.raises(InferenceServerException, match="indices element out of data bounds"):
        client.infer(TEXT_ENCODER, on_the_wire({name: array + (1 << 20) for name, array in inputs.items()}))
    assert client.infer(TEXT_ENCODER, on_the_wire(inputs)).as_numpy("last_hidden_state") is not None


def changed_copy(root: Path, name: str, change: str, to: str) -> None:
    shutil.copytree(ROOT / name, root / name)
    config = root / name / "config.pbtxt"
    text = config.read_text()
    assert change in text
    config.write_text(text.replace(change, to))


async def test_requests_batched_by_triton_get_their_own_rows(tmp_path: Path) -> None:
    batching = 'instance_group { count: 1 } dynamic_batching { max_queue_delay_microseconds: 500000 }\nbackend: "'
    changed_copy(tmp_path, TEXT_ENCODER, 'backend: "', batching)
    requests = [some_inputs(open_model(ROOT, TEXT_ENCODER).inputs, seed) for seed in range(4)]
    bad = {name: array + (1 << 20) for name, array in requests[0].items()}
    with triton_server([tmp_path]) as server:
        async with AsyncClient(server.address) as client:
            calls = [client.infer(TEXT_ENCODER, on_the_wire(inputs)) for inputs in [*requests, bad]]
            *results, failed = await asyncio.gather(*calls, return_exceptions=True)
            statistics = await client.get_inference_statistics(TEXT_ENCODER)
    assert isinstance(failed, InferenceServerException)
    for inputs, result in zip(requests, results, strict=True):
        expected = own_outputs(TEXT_ENCODER, inputs)["last_hidden_state"]
        np.testing.assert_allclose(result.as_numpy("last_hidden_state"), expected, rtol=1e-5, atol=1e-5)
    assert max(batch.batch_size for batch in statistics.model_stats[0].batch_stats) > ROWS


def test_a_configuration_that_is_not_the_graphs_stops_the_server(tmp_path: Path) -> None:
    changed_copy(tmp_path, TEXT_ENCODER, '"input_ids"', '"tokens"')
    with pytest.raises(Unavailable, match="'tokens' is TYPE_INT64, in the graph absent"), triton_server([tmp_path]):
        pass


async def test_the_benchmarks_arm_paints_in_batches_what_the_graphs_paint_alone() -> None:
    jobs = [replace(job, steps=2 + job.steps // 8) for job in paintings(8, 5)]
    items = photos(3, 5)
    conditions = Conditions(ROOT, "", num_threads=1, steps=2)
    async with start_triton(conditions, find_triton(), Setting(8, 0.5, 1, 1)) as contender:
        painted = await contender.paint_all(jobs)
        captioned = await contender.paint_photos(items, steps=2)
        assert isinstance(contender.requests, TritonRequests)
        statistics = await contender.requests.client.get_inference_statistics(PAINTER)
    assert max(batch.batch_size for batch in statistics.model_stats[0].batch_stats) > 1
    found = [Painting(photo.id, captioned.prompts[photo.id], 2, photo.seed) for photo in items]
    graphs = open_graphs(ROOT, num_threads=1)
    negative = encode_text(graphs, [""])
    for job in [*jobs, *found]:
        latents = denoise(graphs, [job], encode_text(graphs, [job.prompt]), negative, StageCounts())
        image = (painted.images | captioned.images)[job.id]
        np.testing.assert_allclose(image.astype(int), decode_latents(graphs, latents)[0].astype(int), atol=1)
    assert all(photo.class_name in captioned.prompts[photo.id] for photo in items)
