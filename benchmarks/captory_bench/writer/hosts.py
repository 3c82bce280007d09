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


def _writer_options(writer: str) -> list[str]:
    """One of its own starts sooner without compiling; on a CPU it would not be faster."""
    own = writer.startswith("vllm:") and not writer.startswith("vllm://")
    return [*(["--writer", writer] if writer else []), *(["--vllm-argument=--enforce-eager"] if own else [])]


async def version_of_vllm(served: Served) -> str:
    """What runs the writer, as the server says it. Raises `ArmFailed` where none of its models is on vLLM."""
    async with Client(served.address) as client:
        models = (await client.server_info()).models
    versions = [model.backend for model in models if model.backend.startswith("vllm")]
    if not versions:
        raise ArmFailed("the server that was to have its writer on vLLM has none of its models there")
    return versions[0]


def _checkpoint(subject: Subject) -> Path:
    """The writer of the family as a Hugging Face folder, beside the repository in a clone."""
    name = find_family(subject.repository, subject.family).family.name
    folder = (subject.repository.parent / "training" / "checkpoints" / name / "writer").resolve()
    if not folder.is_dir():
        raise NotMeasured(f"a clone keeps the writer's checkpoint in training/checkpoints/{name}; name one by --vllm")
    return folder
