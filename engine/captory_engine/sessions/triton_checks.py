"""Is what a Triton serves the model of our folder? Every difference is named, before the first item is taken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tritonclient.grpc import model_config_pb2

from captory_engine.repository import ModelFolder

_messages: Any = model_config_pb2  # made at run time
_TYPES = _messages.DataType
_WIRE_NAMES = {"STRING": "BYTES"}


class Served(NamedTuple):
    """What a Triton says of itself and of one model."""

    version: str
    ready: bool
    metadata: Any = None  # ModelMetadataResponse, of a model that is ready
    config: Any = None  # ModelConfig


async def look(client: Any, name: str, timeout_s: float) -> Served:
    """Ask a Triton, by its `InferenceServerClient`, for a model."""
    version = (await client.get_server_metadata(client_timeout=timeout_s)).version
    if not await client.is_model_ready(name, client_timeout=timeout_s):
        return Served(version, ready=False)
    metadata = await client.get_model_metadata(name, client_timeout=timeout_s)
    config = (await client.get_model_config(name, client_timeout=timeout_s)).config
    return Served(version, True, metadata, config)


def differences(model: ModelFolder, served: Served) -> list[str]:
    """What keeps a served model from being this one, a line each."""
    if not served.ready:
        return ["it is not loaded there, or not ready"]
    return [
        *_of_tensors("input", model.config.input, served.metadata.inputs),
        *_of_tensors("output", model.config.output, served.metadata.outputs),
        *_of_batching(model, served.config),
    ]


def _of_tensors(kind: str, wanted: Sequence[Any], served: Sequence[Any]) -> Iterator[str]:
    there = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in served}
    for tensor in wanted:
        own = _wire_type(tensor.data_type), [-1, *tensor.dims]
        found = there.pop(tensor.name, None)
        if found != own:
            yield f"{kind} {tensor.name!r} is {_words(found)}, in the folder {_words(own)}"
    if kind == "input" and there:
        yield f"it wants further inputs: {', '.join(sorted(there))}"


def _of_batching(model: ModelFolder, config: Any) -> Iterator[str]:
    if config.max_batch_size < model.max_batch:
        yield f"it takes batches of {config.max_batch_size}, in the folder of {model.max_batch}"
    if delay_us := config.dynamic_batching.max_queue_delay_microseconds:
        yield f"its batcher waits {delay_us} us for more; batches are made here, so that must be 0"


def _wire_type(number: int) -> str:
    name = str(_TYPES.Name(number)).removeprefix("TYPE_")
    return _WIRE_NAMES.get(name, name)


def _words(tensor: tuple[str, list[int]] | None) -> str:
    return "absent" if tensor is None else f"{tensor[0]} {tensor[1]}"
