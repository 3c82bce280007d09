"""Where a vLLM server is, and what is asked of it, or of one of our own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

SCHEME = "vllm:"
# What is ours to settle, or nobody's: keys come by the environment, code of a model's repository is never run, and the
# model is the one that is named, whose files are known by their digest: no other weights, settings or tokens.
_REFUSED_ARGUMENTS = (
    "--api-key",
    "--code-revision",
    "--config",
    "--default-mm-loras",
    "--hf-config-path",
    "--hf-overrides",
    "--host",
    "--load-format",
    "--model",
    "--model-class-overrides",
    "--model-loader-extra-config",
    "--port",
    "--revision",
    "--served-model-name",
    "--tokenizer",
    "--tokenizer-revision",
    "--trust-remote-code",
    "--uds",
)


@dataclass(frozen=True, slots=True)
class VllmOptions:
    """How vLLM servers are asked, and how one of our own is run.

    At most `max_concurrent` requests are under way at one server. One that nobody answers is made again for up to
    `patience_s`; one that is answered may take `timeout_s`.

    Of a server of our own: `python` is the environment that holds vLLM (None: CAPTORY_VLLM_PYTHON, else `.venv-vllm`
    here); `gpu_memory` its share of the GPU's memory (None: vLLM's own); `arguments` are further ones of `vllm serve`;
    it may take `start_timeout_s` to load; `log_file` takes what it says. Raises `ValueError` for what cannot be.
    """

    max_concurrent: int = 64
    patience_s: float = 120.0
    timeout_s: float = 60.0
    python: Path | None = None
    gpu_memory: float | None = None
    arguments: tuple[str, ...] = ()
    start_timeout_s: float = 600.0
    log_file: Path | None = None

    def __post_init__(self) -> None:
        if self.max_concurrent < 1:
            raise ValueError("max_concurrent must be at least 1")
        if not min(self.patience_s, self.timeout_s, self.start_timeout_s) > 0:
            raise ValueError("patience_s, timeout_s and start_timeout_s must be above 0")
        if self.gpu_memory is not None and not 0 < self.gpu_memory <= 1:
            raise ValueError("gpu_memory is a share: above 0, at most 1")
        refused = [argument.partition("=")[0] for argument in self.arguments if _is_refused(argument)]
        if refused:
            raise ValueError(f"arguments may not have {', '.join(refused)}")


class Served(NamedTuple):
    """A server that runs already, at HOST:PORT; `model` is one of its names, or empty for its first."""

    address: str
    model: str = ""


class Own(NamedTuple):
    """A model that a server of our own is to serve: a folder, or `org/name@revision`."""

    ref: str


def place_of(value: str) -> Served | Own:
    """Read `vllm://HOST:PORT`, `vllm://HOST:PORT/MODEL` or `vllm:REF`. Raises `ValueError` for anything else."""
    if not value.startswith(f"{SCHEME}//"):
        if not value.startswith(SCHEME) or value == SCHEME:
            raise ValueError(f"{value!r} is neither vllm://HOST:PORT nor vllm:REF")
        return Own(value.removeprefix(SCHEME))
    url = urlsplit(value)
    if not url.hostname or not url.port or "@" in url.netloc or url.query or url.fragment or not _is_host(url.netloc):
        raise ValueError("a vLLM server is named vllm://HOST:PORT, and its key by CAPTORY_VLLM_API_KEY")
    return Served(url.netloc, url.path.strip("/"))


def _is_host(netloc: str) -> bool:
    """Whether it can be asked for at all: httpx and the resolver each refuse names of their own."""
    import httpx  # here, since settings are read also where nothing is on vLLM

    try:
        httpx.URL(f"http://{netloc}").raw_host.decode("ascii").encode("idna")
    except (httpx.InvalidURL, UnicodeError):
        return False
    return True


def _is_refused(argument: str) -> bool:
    """Also as vLLM's parser lets it be spelled: with underscores, cut short, or one field of it behind a dot."""
    name = argument.partition("=")[0].partition(".")[0].replace("_", "-")
    return name.startswith("--") and len(name) > 2 and any(one.startswith(name) for one in _REFUSED_ARGUMENTS)
