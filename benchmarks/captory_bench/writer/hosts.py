"""The servers of `captory bench writer`: one with the embedded writer, one whose writer is on vLLM."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc

from captory_bench.measuring.served import ArmFailed, Served, server_options
from captory_bench.measuring.subject import Subject
from captory_client.client import Client
from captory_client.local_server import LocalServer
from captory_engine.errors import Unavailable
from captory_engine.family import find_family
from captory_engine.vllm.process import DEFAULT_PYTHON, PYTHON_VARIABLE, find_python
from captory_proto.v1 import captory_pb2_grpc

LEAVE_OUT = "none"
START_TIMEOUT_S = 660.0  # a vLLM of its own loads torch and the model before the server says that it serves
STOP_TIMEOUT_S = 30.0  # it stops its vLLM first
GPU = Path("/dev/nvidiactl")  # NVIDIA's driver makes it wherever there is one, in containers too
NO_PREFIXES = "--no-enable-prefix-caching"
UNCOMPILED = "--enforce-eager"


class NotMeasured(Exception):  # noqa: N818
    """The arms on vLLM cannot run here; the words say why. The embedded ones go on."""


def find_writer(subject: Subject, asked: str) -> str:
    """What `--writer` gets: what was asked for, or the clone's checkpoint of the family, for a vLLM of our own.

    Raises `NotMeasured` with what is missing, and `BadModel`.
    """
    if asked == LEAVE_OUT:
        raise NotMeasured("left out as asked")
    if asked.startswith("vllm://"):
        return asked
    try:
        find_python()
    except Unavailable:
        python = os.environ.get(PYTHON_VARIABLE) or DEFAULT_PYTHON
        words = f"there is no vLLM in {python}; `make vllm-env` makes one for a CPU, or set {PYTHON_VARIABLE}"
        raise NotMeasured(words) from None
    return asked or f"vllm:{_checkpoint(subject)}"


@asynccontextmanager
async def hosted(subject: Subject, writer: str = "") -> AsyncIterator[Served]:
    """A child server with its own writer, or with one on vLLM, until the block is left. Raises `ClientError`."""
    options = [*server_options(*subject), *_writer_options(writer)]
    async with (
        LocalServer(
            ["--log-level", "warning", *options], start_timeout_s=START_TIMEOUT_S, stop_timeout_s=STOP_TIMEOUT_S
        ) as server,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        yield Served(server.address, server.pid, captory_pb2_grpc.CaptoryStub(channel))


def vllm_arguments(writer: str) -> list[str]:
    """How a vLLM of our own is run; one that is reached has its own settings.

    No arm finds the prefixes of another's prompts. Without a GPU it is not compiled: it starts sooner and is no slower.
    """
    if writer.startswith("vllm://"):
        return []
    return [NO_PREFIXES] if GPU.exists() else [NO_PREFIXES, UNCOMPILED]


async def describe_vllm(served: Served, writer: str) -> str:
    """What runs the writer, as the server says it, and how. Raises `ArmFailed` where no model is on vLLM."""
    versions = await _on_vllm(served)
    if not versions:
        raise ArmFailed("the server that was to have its writer on vLLM has none of its models there")
    return f"{versions[0]}, {' '.join(vllm_arguments(writer)) or 'with settings of its own'}"


async def check_embedded(served: Served) -> None:
    """Raises `ArmFailed` where a model is on vLLM."""
    if await _on_vllm(served):
        raise ArmFailed("the server that was to have its own writer has a model on vLLM")


async def _on_vllm(served: Served) -> list[str]:
    """What runs the models that are on vLLM, one each."""
    async with Client(served.address) as client:
        models = (await client.server_info()).models
    return [model.backend for model in models if model.backend.startswith("vllm")]


def _writer_options(writer: str) -> list[str]:
    """The later `--writer` counts: that of `server_options` names none."""
    return ["--writer", writer, *(f"--vllm-argument={one}" for one in vllm_arguments(writer))] if writer else []


def _checkpoint(subject: Subject) -> Path:
    """The writer of the family as a Hugging Face folder, beside the repository in a clone."""
    name = find_family(subject.repository, subject.family).family.name
    folder = (subject.repository.parent / "training" / "checkpoints" / name / "writer").resolve()
    if not folder.is_dir():
        raise NotMeasured(f"a clone keeps the writer's checkpoint in training/checkpoints/{name}; name one by --vllm")
    return folder
