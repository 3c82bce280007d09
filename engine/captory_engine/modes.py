"""How each mode makes its prompts: one instruction file a mode, shipped; a folder of one's own may replace any.

A file is data: which captions it needs, the templates, the token policy, and what a language model is told.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator

from captory_engine.errors import BadModel
from captory_engine.family import explain
from captory_engine.items import Mode

SHIPPED = Path(__file__).with_name("instructions")
MAX_FILE_BYTES = 64 << 10
MAX_ROUNDS = 4
FIELDS = ("c", "caption", "attributes", "words")
SPOKEN = "text"  # the field of a structured answer that holds the words
_FIELD = re.compile(r"\{([^{}]*)\}")

CaptionLength = Literal["short", "long"]


class TokenPolicy(StrEnum):
    """What happens to a prompt that is longer than the text encoder takes."""

    TRUNCATE = "truncate"
    DROP = "drop"
    SPLIT = "split"


class WriterKind(StrEnum):
    """Who words the prompt: the template alone, or a language model whose words the template frames."""

    TEMPLATE = "template"
    MODEL = "model"


def fields_of(template: str) -> frozenset[str]:
    """The names in braces."""
    return frozenset(_FIELD.findall(template))


def fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with every field in place. In one pass, so a value that spells a field stays as it is."""
    return _FIELD.sub(lambda field: values[field[1]], template)


def _known_fields(template: str) -> str:
    unknown = sorted(fields_of(template) - set(FIELDS))
    if unknown:
        known = ", ".join(f"{{{name}}}" for name in FIELDS)
        raise ValueError(f"there is no field {{{unknown[0]}}}; there are {known}")
    if set("{}") & set(_FIELD.sub("", template)):
        raise ValueError("a brace stands alone")
    return template


Text = Annotated[str, Field(max_length=8000)]
Template = Annotated[Text, AfterValidator(_known_fields)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Instruction(_Section):
    """What a language model is told, and how it answers.

    One that chats gets `system` and `user`. One that does not gets `text` inside the template `task` of its family,
    as it was trained. A temperature, top_p or limit that is not given is the writer's own. With a `json_schema` the
    answer is an object, whose `text` are the words.
    """

    task: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    text: Template
    system: Template = ""
    user: Template
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=4096)]
    stop: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=64)], ...], Field(max_length=4)] = ()
    max_attempts: Annotated[int, Field(ge=1, le=16)] = 4
    json_schema: dict[str, JsonValue] | None = None

    @model_validator(mode="after")
    def _check(self) -> Instruction:
        if "words" in self.fields:
            raise ValueError("{words} are the writer's own: they cannot be told to it")
        if self.json_schema is not None and not _speaks(self.json_schema):
            raise ValueError(f"json_schema: the object that it describes has no property {SPOKEN!r}")
        return self

    @property
    def fields(self) -> frozenset[str]:
        """All fields that it names."""
        return fields_of(self.text + self.system + self.user)


class Acceptance(_Section):
    """Which words of a writer are kept. What is not given: Lei et al., arXiv 2307.08526, ASCII and 5 < words < 65."""

    ascii: bool = True
    min_words: Count = 6
    max_words: Count = 64

    @model_validator(mode="after")
    def _check(self) -> Acceptance:
        if self.min_words > self.max_words:
            raise ValueError("min_words is above max_words")
        return self


class Templates(_Section):
    """A prompt with its class, and one for an item without a class, in which that clause is dropped."""

    template: Template
    classless: Template

    @model_validator(mode="after")
    def _check_templates(self) -> Templates:
        if "c" in fields_of(self.classless):
            raise ValueError("classless: {c} cannot stand there")
        if not (self.template.strip() and self.classless.strip()):
            raise ValueError("template and classless: neither may be empty")
        return self

    @property
    def fields(self) -> frozenset[str]:
        """All fields that they name."""
        return fields_of(self.template + self.classless)


class PromptPlan(Templates):
    """How one mode makes its prompt.

    `captions` are the lengths that it may need; none at all means that the captioner is not asked. Of two, an image's
    seed takes the long one in `long_share` of all cases. With a `writer` model the templates frame its `{words}`, and
    `fallback` takes their place when they are refused. In each round after the first, the synthetic image is captioned
    and painted anew from that caption.
    """

    captions: Annotated[tuple[CaptionLength, ...], Field(max_length=2)] = ()
    long_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    policy: TokenPolicy = TokenPolicy.TRUNCATE
    writer: WriterKind = WriterKind.TEMPLATE
    instruction: Instruction | None = None
    accept: Acceptance = Acceptance()
    fallback: Templates | None = None
    rounds: Annotated[int, Field(ge=1, le=MAX_ROUNDS)] = 1

    @model_validator(mode="after")
    def _check_whole(self) -> PromptPlan:
        if len(set(self.captions)) < len(self.captions):
            raise ValueError("captions: one length stands there twice")
        if self.needed and not self.captions:
            raise ValueError(f"captions: {{{min(self.needed)}}} needs one")
        if self.rounds > 1 and "caption" not in self.needed:
            raise ValueError("rounds: without {caption} every round is the same")
        self._check_writer()
        return self

    def _check_writer(self) -> None:
        told = self.instruction is not None and self.fallback is not None
        worded = all("words" in fields_of(template) for template in (self.template, self.classless))
        if self.writer is WriterKind.MODEL and not (told and worded):
            raise ValueError("writer: a model needs an instruction, a fallback, and {words} in both templates")
        if self.writer is WriterKind.TEMPLATE and (self.instruction or self.fallback or "words" in self.fields):
            raise ValueError("writer: instruction, fallback and {words} are for a model")
        if self.fallback is not None and "words" in self.fallback.fields:
            raise ValueError("fallback: there are no {words} when they are refused")

    @cached_property
    def needed(self) -> frozenset[str]:
        """Of `caption` and `attributes`, what the mode makes its prompt of."""
        named = self.fields | (self.instruction.fields if self.instruction else frozenset())
        named |= self.fallback.fields if self.fallback else frozenset()
        return named & {"caption", "attributes"}


class Modes(NamedTuple):
    """Every mode's plan, and the sha256 of the file that it comes from."""

    plans: Mapping[Mode, PromptPlan]
    digests: Mapping[Mode, str]


def read_modes(own: Path | None = None) -> Modes:
    """The shipped instruction files, but for those that the folder `own` has by the same name.

    Raises `BadModel` that names the file and each field that is wrong, missing or unknown.
    """
    found = {mode: SHIPPED / f"{mode}.yaml" for mode in Mode}
    if own is not None:
        found |= dict(_own_files(own))
    contents = {mode: _read(path) for mode, path in found.items()}
    plans = {mode: _parse(found[mode], content) for mode, content in contents.items()}
    return Modes(plans, {mode: hashlib.sha256(content).hexdigest() for mode, content in contents.items()})


def _own_files(folder: Path) -> Iterator[tuple[Mode, Path]]:
    """A name that is no mode's is refused: a misspelt file would otherwise change nothing, unnoticed."""
    if not folder.is_dir():
        raise BadModel("MODES_MISSING", f"There is no folder of instruction files at {str(folder)!r}.")
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in (".yaml", ".yml")):
        if path.suffix != ".yaml" or path.stem not in set(Mode):
            raise BadModel("MODE_INVALID", f"{path.name!r} names no mode; there are {', '.join(Mode)}, each .yaml.")
        yield Mode(path.stem), path


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
        raise BadModel("MODE_INVALID", f"{str(path)!r} is no instruction file.")
    return path.read_bytes()


def _parse(path: Path, content: bytes) -> PromptPlan:
    try:
        return PromptPlan.model_validate(yaml.safe_load(content))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadModel("MODE_INVALID", f"{str(path)!r} is not valid YAML.") from error
    except ValidationError as error:
        raise BadModel("MODE_INVALID", f"The instruction file {str(path)!r} does not hold: {explain(error)}.") from None


def _speaks(schema: Mapping[str, Any]) -> bool:
    properties = schema.get("properties")
    return isinstance(properties, dict) and SPOKEN in properties
