"""How a request travels to LitServe and Ray Serve: JSON there, photographs in base64; a PNG back, its prompt beside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from captory_bench.measuring.workload import Painting, Photo

PATH = "/predict"
PROMPT_HEADER, BATCH_HEADER = "x-prompt", "x-batch-size"
MEDIA_TYPE = "image/png"
KEEP_ALIVE_S = 3600  # of a connection: longer than a peer stands still


class Wanted(NamedTuple):
    """One image to be painted. With a photograph the job has no prompt yet: it comes from the caption."""

    job: Painting
    photo: bytes = b""
    class_name: str = ""


class Painted(NamedTuple):
    """An encoded image, the prompt that it was painted from, and how many requests were painted together."""

    png: bytes
    prompt: str
    batch_size: int

    @property
    def headers(self) -> dict[str, str]:
        """The prompt, as a header can carry it, and the size of the batch."""
        return {PROMPT_HEADER: quote(self.prompt), BATCH_HEADER: str(self.batch_size)}


def painting_body(job: Painting) -> dict[str, Any]:
    """The JSON body for a prompt."""
    return {"job": asdict(job)}


def photo_body(photo: Photo, steps: int) -> dict[str, Any]:
    """The JSON body for a photograph."""
    job = Painting(photo.id, "", steps, photo.seed)
    return {"job": asdict(job), "photo": base64.b64encode(photo.data).decode(), "class_name": photo.class_name}


def read_body(body: Mapping[str, Any]) -> Wanted:
    """What a body asks for."""
    job = Painting(**{**body["job"], "guidance_interval": tuple(body["job"]["guidance_interval"])})
    return Wanted(job, base64.b64decode(body.get("photo", "")), body.get("class_name", ""))


def read_reply(content: bytes, headers: Mapping[str, str]) -> Painted:
    """What a reply's content and headers tell."""
    return Painted(content, unquote(headers[PROMPT_HEADER]), int(headers[BATCH_HEADER]))
