"""A model behind a remote Triton server, as a session: batches are made here, and each is one request there."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype
from tritonclient.utils.shared_memory import SharedMemoryException

from captory_engine.errors import BadModel
from captory_engine.repository import ModelFolder
from captory_engine.sessions.base import Array, TensorSpec
from captory_engine.sessions.checks import check_inputs, check_outputs
from captory_engine.sessions.options import SessionOptions, TritonOptions
from captory_engine.sessions.triton_checks import Served, differences, look
from captory_engine.sessions.triton_link import Link
from captory_engine.sessions.triton_memory import LEAST_BYTES, Region, Regions, offsets

log = logging.getLogger(__name__)


class TritonSession:
    """The model of a folder, run by a Triton that serves the same. Several calls may be under way at once.

    Where Triton is on this host and shares its memory, a step sends no tensor, neither the latents, which change, nor
    the texts' embeddings, which do not: all are laid there. Raises `BadModel` where what is served has not the tensors
    of the folder's model, and `Unreachable` where no Triton answers.
    """

    def __init__(self, model: ModelFolder, options: SessionOptions) -> None:
        self.name = model.name
        self.inputs = model.inputs
        self.outputs = model.outputs
        self.max_batch = model.max_batch
        self.digest = model.digest
        self._timeout_s = options.triton.timeout_s
        self._wire_dims = {tensor.name: tuple(tensor.dims) for tensor in (*model.config.input, *model.config.output)}
        self._link = Link(options.triton, model.name)
        try:
            served = self._link.ask(lambda client: look(client, model.name, self._timeout_s))
            _check(model, served, options.triton.address)
            self._regions = self._link.ask(lambda client: _shared(client, options.triton))
        except BaseException:
            self._link.close()
            raise
        self.backend = f"triton {served.version} {served.config.backend or served.config.platform}"

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one batch; see `Session.run`. Raises `Unreachable` when no Triton answers, or not in time."""
        batch = check_inputs(self, inputs)
        outputs = self._link.ask(lambda client: self._infer(client, inputs, batch))
        check_outputs(self, outputs, batch)
        return outputs

    def close(self) -> None:
        """Take back what is shared, and end the channel; calls under way end with it."""
        regions, self._regions = self._regions, None
        try:
            if regions is not None:
                self._link.ask(lambda _: regions.close())
        finally:
            self._link.close()

    async def _infer(self, client: InferenceServerClient, inputs: Mapping[str, Array], batch: int) -> dict[str, Array]:
        tensors = {name: self._on_the_wire(name, array, batch) for name, array in inputs.items()}
        regions = self._regions
        if regions is None:
            return await self._send(client, tensors, batch)
        try:
            return await self._lay(client, regions, tensors, batch)
        except SharedMemoryException:  # no room for it
            return await self._send(client, tensors, batch)
        except InferenceServerException:  # a Triton that was restarted knows no region
            await regions.clear()
            raise

    async def _send(self, client: InferenceServerClient, tensors: Mapping[str, Array], batch: int) -> dict[str, Array]:
        """Everything goes over the wire."""
        asked = [InferRequestedOutput(spec.name) for spec in self.outputs]
        given = [_tensor(name, array) for name, array in tensors.items()]
        for one, array in zip(given, tensors.values(), strict=True):
            one.set_data_from_numpy(array)
        result: Any = await client.infer(self.name, given, outputs=asked, client_timeout=self._timeout_s)
        return {spec.name: _shaped(spec, result.as_numpy(spec.name), batch) for spec in self.outputs}

    async def _lay(
        self, client: InferenceServerClient, regions: Regions, tensors: Mapping[str, Array], batch: int
    ) -> dict[str, Array]:
        """Inputs lie in a region, and outputs of known size are laid there too; others are sent."""
        known = {spec.name: spec for spec in self.outputs if -1 not in spec.shape}
        sizes = {name: array.nbytes for name, array in tensors.items()}
        sizes |= {name: batch * prod(spec.shape) * spec.dtype.itemsize for name, spec in known.items()}
        places, num_bytes = offsets(sizes)
        async with regions.lent(num_bytes) as region:
            given, asked = [], []
            for name, array in tensors.items():
                region.write(array, places[name])
                given.append(_tensor(name, array))
                given[-1].set_shared_memory(region.name, array.nbytes, places[name])
            for spec in self.outputs:
                asked.append(InferRequestedOutput(spec.name))
                if spec.name in known:
                    asked[-1].set_shared_memory(region.name, sizes[spec.name], places[spec.name])
            result: Any = await client.infer(self.name, given, outputs=asked, client_timeout=self._timeout_s)
            found = {
                spec.name: _laid(result, spec, region, places[spec.name])
                if spec.name in known
                else result.as_numpy(spec.name)
                for spec in self.outputs
            }
            return {spec.name: _shaped(spec, found[spec.name], batch) for spec in self.outputs}

    def _on_the_wire(self, name: str, array: Array, batch: int) -> Array:
        """An array as Triton knows it: a graph's [B] travels as [B, 1] where its configuration reshapes it."""
        dims = self._wire_dims[name]
        return np.ascontiguousarray(array if len(dims) == array.ndim - 1 else array.reshape(batch, *dims))


def _check(model: ModelFolder, served: Served, address: str) -> None:
    found = differences(model, served)
    if found:
        words = f"Triton at {address} does not serve the model {model.name!r} of the repository: {'; '.join(found)}."
        raise BadModel("TRITON_MISMATCH", words)


async def _shared(client: InferenceServerClient, options: TritonOptions) -> Regions | None:
    """Shared memory, where a trial shows that Triton can map what is made here; None where it is not wanted.

    Raises `BadModel` where it is demanded and not to be had.
    """
    if options.shared_memory is False:
        return None
    regions = Regions(client, options.timeout_s)
    try:
        async with regions.lent(LEAST_BYTES):
            await regions.sweep()
            return regions
    except SharedMemoryException as error:
        if options.shared_memory:
            raise BadModel("NO_SHARED_MEMORY", "Triton and this process share no memory.") from error
    log.info("Triton shares no memory with this process: tensors are sent")
    return None


def _tensor(name: str, array: Array) -> Any:
    return InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))


def _laid(result: Any, spec: TensorSpec, region: Region, offset: int) -> Array | None:
    """An output that lies in a region, of the type and shape that Triton tells: its model may be another by now."""
    output = result.get_output(spec.name)
    if output is None:
        return None
    return region.read(np.dtype(triton_to_np_dtype(output.datatype)), tuple(output.shape), offset)


def _shaped(spec: TensorSpec, array: Array | None, batch: int) -> Array:
    """An output as the graph has it; whatever cannot be that is left for the check of outputs."""
    if array is None:
        return np.empty(0, spec.dtype)
    if not array.flags.writeable:  # a view of the message
        array = array.copy()
    same_size = array.size == batch * prod(spec.shape)
    return array.reshape(batch, *spec.shape) if array.ndim != len(spec.shape) + 1 and same_size else array
