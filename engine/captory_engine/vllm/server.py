"""A vLLM server that answers, ours or another's: where it is, which model it serves, and what that model is."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

from captory_engine.errors import BadModel
from captory_engine.info import ModelInfo
from captory_engine.manifest import MANIFEST, digest_of, hash_files, verify_manifest
from captory_engine.vllm.answers import Model, read_models, read_version
from captory_engine.vllm.endpoint import Endpoint, api_key
from captory_engine.vllm.options import Own, Served, VllmOptions, place_of
from captory_engine.vllm.process import LocalVllm

START_PATIENCE_S = 60.0  # with one that is not there at the start: less than `captory run` waits for its server


@dataclass(frozen=True, slots=True)
class Server:
    """`model` is the name that requests give. `info` has a sha256 over the files, for a folder that is served by us.

    Of any other model it is one over its names, which is all that a server tells.
    """

    endpoint: Endpoint
    model: str
    info: ModelInfo
    process: LocalVllm | None = None

    async def close(self) -> None:
        """End the connections and, of a server of ours, the process."""
        try:
            await self.endpoint.close()
        finally:
            if self.process is not None:
                await self.process.close()


async def open_server(value: str, options: VllmOptions) -> Server:
    """Reach `vllm://HOST:PORT`, or start `vllm:REF` and wait for it.

    Raises `Unavailable` where nobody answers, `BadModel` for a model that is not there, not what its manifest says, or
    a folder with links, code or pickles.
    """
    place = place_of(value)
    server = await (_reach(place, options) if isinstance(place, Served) else _start(place, options))
    server.endpoint.watch()
    return server


async def _reach(place: Served, options: VllmOptions) -> Server:
    key = api_key()
    looking = Endpoint(place.address, replace(options, patience_s=min(options.patience_s, START_PATIENCE_S)), key)
    try:
        model, backend = await _look(looking, place.model)
    finally:
        await looking.close()
    endpoint = Endpoint(place.address, options, key)
    return Server(endpoint, model.id, ModelInfo(_sha256_of_names(model.id, model.root or ""), backend))


async def _start(place: Own, options: VllmOptions) -> Server:
    sha256 = await asyncio.to_thread(_sha256_of, place.ref)
    key = api_key() or secrets.token_urlsafe(32)
    process = await LocalVllm.start(place.ref, options, key)
    endpoint = Endpoint(process.address, options, key)
    try:
        model, backend = await _look(endpoint, "")
    except BaseException:
        await endpoint.close()
        await process.close()
        raise
    return Server(endpoint, model.id, ModelInfo(sha256, backend), process)


async def _look(endpoint: Endpoint, name: str) -> tuple[Model, str]:
    """The model of this name, or the first, and what runs it."""
    models = read_models(await endpoint.get("/v1/models"))
    found = next((model for model in models if name in ("", model.id)), None)
    if found is None:
        there = ", ".join(model.id for model in models)
        raise BadModel("VLLM_MODEL", f"vLLM at {endpoint.address} serves no model {name!r}; it serves {there}.")
    return found, f"vllm {read_version(await endpoint.get('/version'))}"


def _sha256_of(ref: str) -> str:
    """Over a folder's files as they are now, sealed or not: sealing changes nothing. Of a hub's model over its name."""
    folder = Path(ref)
    if not folder.is_dir():
        return _sha256_of_names(ref)
    return verify_manifest(folder) if (folder / MANIFEST).is_file() else digest_of(hash_files(folder))


def _sha256_of_names(*names: str) -> str:
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()
