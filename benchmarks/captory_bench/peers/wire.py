"""How a request travels to LitServe and Ray Serve: JSON there, photographs in base64; a PNG back, its prompt beside."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from captory_bench.workload import Painting, Photo

PATH = "/predict"
PROMPT_HEADER = "x-prompt"
MEDIA_TYPE = "image/png"
KEEP_ALIVE_S = 3600  # of a connection: longer than a peer stands still


class Wanted(NamedTuple):
    """One image to be painted. With a photograph the job has no prompt yet: it comes from the caption."""

    job: Painting
    photo: bytes = b""
    class_name: str = ""


class Painted(NamedTuple):
    """An encoded image and the prompt that it was painted from."""

    png: bytes
    prompt: str

    @property
    def headers(self) -> dict[str, str]:
        """The prompt, as a header can carry it."""
        return {PROMPT_HEADER: quote(self.prompt)}


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


def read_prompt(headers: Mapping[str, str]) -> str:
    """The prompt out of a reply's headers."""
    return unquote(headers[PROMPT_HEADER])
