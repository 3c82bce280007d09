"""A language model on vLLM as the writer: a request an attempt; vLLM batches those that are under way at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from captory_engine import family as families
from captory_engine.errors import BadModel, BadOutput, Unsuited
from captory_engine.modes import Instruction, fill
from captory_engine.stages import Share, framed
from captory_engine.tokenizer import Tokenizer
from captory_engine.vllm.answers import read_chat, read_completion, read_text
from captory_engine.vllm.endpoint import CHAT
from captory_engine.vllm.server import Server
from captory_engine.wording import Writer

COMPLETIONS, DETOKENIZE = "/v1/completions", "/detokenize"
PROBE = "Two red boats, and a crane; 12 houses."


async def open_writer(server: Server, spec: families.Writer | None, tokenizer: Tokenizer | None) -> Writer:
    """The model as one that chats or, when it has no chat template, as the family's own writer.

    Raises `BadModel` when it is neither.
    """
    if await _chats(server):
        return ChatWriter(server)
    if spec is not None and tokenizer is not None and await _has_tokens(server, tokenizer):
        return PlainWriter(server, spec, tokenizer)
    words = f"has no chat template, or none with a system's turn, and is not the family's own writer: {server.model!r}"
    raise BadModel("VLLM_NO_CHAT", f"The model of vLLM at {server.endpoint.address} {words}.")


@dataclass(frozen=True, slots=True)
class ChatWriter:
    """A model that is told the instruction's `system` and `user`. What the instruction leaves open is its own."""

    server: Server

    async def attempt(self, instruction: Instruction, words: Mapping[str, str], seed: int, share: Share) -> str:
        """One answer, sampled by `seed` (`captory_engine.wording.Writer`)."""
        asked = {"messages": _messages(fill(instruction.system, words), fill(instruction.user, words))}
        body = _sampling(self.server, instruction, seed) | {"max_tokens": instruction.max_tokens} | asked
        if instruction.json_schema is not None:
            schema = {"name": instruction.task, "schema": instruction.json_schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        answer = read_chat(await self.server.endpoint.post(CHAT, body, share.work_class))
        if answer.cut:
            raise BadOutput("ANSWER_CUT", "The writer's answer does not end within its tokens.")
        return answer.text


@dataclass(frozen=True, slots=True)
class PlainWriter:
    """The family's own language model, which answers inside its templates, by the ids of the family's tokenizer.

    So a caption that spells a special token stays text, as with the embedded writer.
    """

    server: Server
    spec: families.Writer
    tokenizer: Tokenizer

    async def attempt(self, instruction: Instruction, words: Mapping[str, str], seed: int, share: Share) -> str:
        """One answer, sampled by `seed` (`captory_engine.wording.Writer`)."""
        prefix, max_tokens = framed(self.spec, self.tokenizer, instruction, words)
        own: dict[str, Any] = {"temperature": self.spec.temperature}
        own |= {"top_k": self.spec.top_k} if self.spec.top_k else {}
        body = own | _sampling(self.server, instruction, seed) | {"prompt": prefix, "max_tokens": max_tokens}
        return read_completion(await self.server.endpoint.post(COMPLETIONS, body, share.work_class)).text


def _sampling(server: Server, instruction: Instruction, seed: int) -> dict[str, Any]:
    """What chat and plain completions have in common."""
    body: dict[str, Any] = {"model": server.model, "seed": seed, "stop": list(instruction.stop)}
    body |= {} if instruction.temperature is None else {"temperature": instruction.temperature}
    body |= {} if instruction.top_p is None else {"top_p": instruction.top_p}
    return body


def _messages(system: str, user: str) -> list[dict[str, str]]:
    told = [{"role": "system", "content": system}] if system else []
    return [*told, {"role": "user", "content": user}]


async def _chats(server: Server) -> bool:
    """Whether it takes a chat with a system's turn; without a template for that, vLLM refuses the request."""
    try:
        body = {"model": server.model, "max_tokens": 1, "messages": _messages("Answer in English.", PROBE)}
        await server.endpoint.post(CHAT, body)
    except Unsuited:
        return False
    return True


async def _has_tokens(server: Server, tokenizer: Tokenizer) -> bool:
    """Whether it reads the family's ids as the same text.

    Not whether it makes the same ids of a text: transformers 5 takes a Qwen2's own normalizer, whatever its file says.
    """
    ids = tokenizer.encode(PROBE)
    text = read_text(await server.endpoint.post(DETOKENIZE, {"model": server.model, "tokens": ids}))
    return text.strip() == tokenizer.decode(ids)
