"""The Triton arm's models and their repository, on the `fake` backend and without Triton."""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import fake_triton
import numpy as np
import pytest
from fake_triton import Request
from families import SIZE_PX, fake_repository
from google.protobuf import json_format, text_format
from PIL import Image
from tritonclient.grpc import model_config_pb2

from captory_bench.measuring.graphs import cip_prompts, open_graphs
from captory_bench.measuring.workload import Painting, Photo, photos
from captory_bench.peers import triton
from captory_bench.peers.contenders import Conditions, PeerUnavailable
from captory_bench.peers.trial import Setting
from captory_bench.peers.triton_repository import CAPTIONER, MODELS, PAINTER, write_repository
from captory_engine.family import find_family
from captory_export.triton.host import PYTHON_VARIABLE

SETTING = Setting(8, 0.02, 2, 1)
Open = Callable[[str], Any]


@pytest.fixture
def conditions(tmp_path: Path) -> Conditions:
    return Conditions(fake_repository(tmp_path / "family"), "", 2, 4)


@pytest.fixture
def written(conditions: Conditions, tmp_path: Path) -> Path:
    write_repository(tmp_path / "written", conditions, SETTING)
    return tmp_path / "written"


@pytest.fixture
def open_model(written: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open a model as Triton does: by its file, with the configuration as JSON."""
    fake_triton.install(monkeypatch)

    def opened(name: str) -> Any:
        from captory_bench.peers.triton_models import tensors

        monkeypatch.setattr(tensors, "open_graphs", partial(open_graphs, backend="fake"))
        model = fake_triton.load(written / name / "1" / "model.py").TritonPythonModel()
        model.initialize({"model_config": as_json(read_config(written, name))})
        return model

    return opened


def as_json(config: Any) -> str:
    """With defaults, as Triton prints it."""
    return json_format.MessageToJson(
        config, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def read_config(root: Path, name: str) -> Any:
    text = (root / name / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def request_for(model: str, values: dict[str, list[Any]]) -> Request:
    """A request as the client makes it, off the wire."""
    kinds = {port.name: triton._TYPES[port.data_type][1] for port in MODELS[model].inputs}
    arrays = {name: np.array([values[name]], kind) for name, kind in kinds.items()}
    return Request(arrays)


def painting_request(steps: int, seed: int, guidance_scale: float = 2.0) -> Request:
    values: dict[str, list[Any]] = {
        "prompt": [b"a mug"],
        "steps": [steps],
        "seed": [seed],
        "guidance_scale": [guidance_scale],
        "guidance_interval": [0.0, 1.0],
        "sampler": [b"dpmpp-2m"],
    }
    return request_for(PAINTER, values)


def photo_request(photo: Photo) -> Request:
    return request_for(CAPTIONER, {"photo": [photo.data], "class_name": [photo.class_name.encode()]})


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_configured_as_the_setting_says(written: Path, conditions: Conditions, name: str) -> None:
    config = read_config(written, name)
    assert config.backend == "python"
    assert config.max_batch_size == 8
    assert config.dynamic_batching.max_queue_delay_microseconds == 20_000
    assert config.instance_group[0].count == 2
    assert config.parameters["threads"].string_value == "1"
    assert config.parameters["repository"].string_value == str(conditions.repository)


def test_a_model_finds_our_packages_beside_it(written: Path) -> None:
    for name in MODELS:
        for package in ("captory_bench", "captory_engine", "captory_training"):
            assert (written / name / "1" / package / "__init__.py").is_file()


def test_each_painted_request_gets_its_own_image_whatever_rides_with_it(open_model: Open) -> None:
    model = open_model(PAINTER)
    parameters = ((4, 1, 2.0), (2, 2, 2.0), (4, 3, 2.0), (4, 4, 1.0))
    requests = [painting_request(steps, seed, scale) for steps, seed, scale in parameters]
    together = [response.arrays for response in model.execute(requests)]
    assert [int(arrays["batch_size"].item()) for arrays in together] == [2, 1, 2, 1]
    for request, arrays in zip(requests, together, strict=True):
        (alone,) = model.execute([request])
        assert arrays["image"].item() == alone.arrays["image"].item()
        assert int(alone.arrays["batch_size"].item()) == 1
    assert len({arrays["image"].item() for arrays in together}) == 4
    with Image.open(io.BytesIO(together[0]["image"].item())) as image:
        assert image.size == (SIZE_PX, SIZE_PX)


def test_a_request_of_two_rows_is_refused(open_model: Open) -> None:
    request = painting_request(2, 1)
    double = Request({name: np.concatenate([array, array]) for name, array in request.arrays.items()})
    with pytest.raises(ValueError, match="too many values"):
        open_model(PAINTER).execute([double])


def test_photographs_are_captioned_with_their_class(open_model: Open) -> None:
    model, items = open_model(CAPTIONER), photos(3, 5)
    responses = model.execute([photo_request(photo) for photo in items])
    prompts = [response.arrays["prompt"].item().decode() for response in responses]
    for photo, prompt in zip(items, prompts, strict=True):
        assert prompt.startswith(cip_prompts(["x"], [photo.class_name])[0].removesuffix("x"))
        (alone,) = model.execute([photo_request(photo)])
        assert alone.arrays["prompt"].item().decode() == prompt


async def test_the_client_sends_what_the_models_read(conditions: Conditions, open_model: Open) -> None:
    calls: list[tuple[str, dict[str, list[int]]]] = []

    class Client:
        async def infer(self, model: str, inputs: list[Any]) -> Any:
            calls.append((model, {tensor.name(): list(tensor.shape()) for tensor in inputs}))
            return Answer()

    class Answer:
        def as_numpy(self, name: str) -> np.ndarray:
            found = {"prompt": b"a prompt", "image": b"an image", "batch_size": 3}
            return np.array([[found[name]]], np.object_)

    painter = find_family(conditions.repository).family.painter
    requests = triton.TritonRequests(Client(), painter)  # type: ignore[arg-type]
    assert await requests.paint(Painting("one", "a mug", 8, 5)) == (b"an image", "a mug", 3)
    assert await requests.paint_photo(photos(1, 5)[0], 8) == (b"an image", "a prompt", 3)
    assert [model for model, _ in calls] == [PAINTER, CAPTIONER, PAINTER]
    for model, shapes in calls:
        assert shapes == {port.name: [1, port.size] for port in MODELS[model].inputs}


async def test_without_triton_the_peer_is_unavailable(conditions: Conditions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, "/nowhere/python")
    with pytest.raises(PeerUnavailable, match="nowhere"):
        async with triton.open_triton(conditions):
            pass
