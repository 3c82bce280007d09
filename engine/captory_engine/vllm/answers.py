"""What a vLLM server says, read as untrusted: only the fields that are used, and those checked."""

from __future__ import annotations

from typing import Annotated, NamedTuple, TypeVar

from pydantic import BaseModel, Field, ValidationError

from captory_engine.errors import BadOutput

MAX_TOKENS = 1 << 20  # of one answer


class Answer(NamedTuple):
    """A model's words, as they came, and how many tokens they took; 0 where the server does not say.

    `cut` are those that end for want of tokens.
    """

    text: str
    token_count: int
    cut: bool = False


class Model(BaseModel):
    """One name that a server serves, and what is behind it: a folder, or a hub's name."""

    id: Annotated[str, Field(min_length=1, max_length=512)]
    root: str | None = None


class _Models(BaseModel):
    data: Annotated[list[Model], Field(min_length=1)]


class _Version(BaseModel):
    version: Annotated[str, Field(max_length=64)]


class _Text(BaseModel):
    prompt: str


class _Usage(BaseModel):
    completion_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] = 0


class _Message(BaseModel):
    content: str | None = None


class _Said(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Written(BaseModel):
    text: str


class _Chat(BaseModel):
    choices: Annotated[list[_Said], Field(min_length=1)]
    usage: _Usage | None = None


class _Completion(BaseModel):
    choices: Annotated[list[_Written], Field(min_length=1)]
    usage: _Usage | None = None


def read_models(body: str) -> list[Model]:
    """The models that a server serves, its first name first. This and all below raise `BadOutput` for another shape."""
    return _read(_Models, body).data


def read_version(body: str) -> str:
    """A server's version."""
    return _read(_Version, body).version


def read_text(body: str) -> str:
    """The text of ids."""
    return _read(_Text, body).prompt


def read_chat(body: str) -> Answer:
    """The words of a chat completion's first choice."""
    chat = _read(_Chat, body)
    said, num_tokens = chat.choices[0], chat.usage.completion_tokens if chat.usage else 0
    return Answer(said.message.content or "", num_tokens, said.finish_reason == "length")


def read_completion(body: str) -> Answer:
    """The words of a completion's first choice."""
    completion = _read(_Completion, body)
    return Answer(completion.choices[0].text, completion.usage.completion_tokens if completion.usage else 0)


Shape = TypeVar("Shape", bound=BaseModel)


def _read(shape: type[Shape], body: str) -> Shape:
    try:
        return shape.model_validate_json(body)
    except ValidationError:
        raise BadOutput("ANSWER_MALFORMED", "The answer of vLLM is not of the form that its API has.") from None
