"""What a pipeline has done on vLLM: the parts of a family whose place is taken, and the servers that take them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import NamedTuple

from captory_engine.family import LocatedFamily
from captory_engine.info import ModelInfo
from captory_engine.modes import PromptPlan
from captory_engine.tokenizer import Tokenizer
from captory_engine.vllm.captioner import captioner_info, check_vision
from captory_engine.vllm.options import VllmOptions
from captory_engine.vllm.server import Server, open_server
from captory_engine.vllm.writer import ChatWriter, open_writer
from captory_engine.wording import Writer


class Roles(NamedTuple):
    """What is on vLLM. A writer that `chats` takes any task, another only those of the family's templates."""

    servers: tuple[Server, ...]
    models: dict[str, ModelInfo]
    writer: Writer | None
    captioner: Server | None

    @property
    def chats(self) -> bool:
        """Whether the writer takes any task."""
        return isinstance(self.writer, ChatWriter)

    def words(self, plan: PromptPlan) -> bool:
        """Whether any of a mode's words come from here: vLLM does not promise the same ones twice."""
        captioned = self.captioner is not None and bool(plan.captions)
        return captioned or (self.writer is not None and plan.instruction is not None)


async def open_roles(
    located: LocatedFamily, writer: str, captioner: str, options: VllmOptions, unless_open: AsyncExitStack
) -> Roles:
    """Reach or start the servers that are named, `vllm://HOST:PORT` or `vllm:REF`; one may be both.

    Raises `Unavailable` where nobody answers, `BadOutput` for answers that are not vLLM's, and `BadModel` for a model
    that cannot do what it is there for.
    """
    servers: dict[str, Server] = {}
    for place in filter(None, dict.fromkeys((writer, captioner))):
        servers[place] = await open_server(place, options)
        unless_open.push_async_callback(servers[place].close)
    models: dict[str, ModelInfo] = {}
    if writer:
        models["vllm_writer"] = servers[writer].info
    if captioner:
        await check_vision(servers[captioner])
        models["vllm_captioner"] = captioner_info(servers[captioner])
    words = await _open_writer(servers[writer], located) if writer else None
    return Roles(tuple(servers.values()), models, words, servers.get(captioner))


async def _open_writer(server: Server, located: LocatedFamily) -> Writer:
    own = located.family.writer
    return await open_writer(server, own, Tokenizer(located.root / own.tokenizer) if own else None)
