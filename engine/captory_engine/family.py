"""A family: which models make up a captioner, a writer and a painter, and the settings that they were trained with.

`family.yaml` lies in the folder of the painter's denoiser, since a repository's root holds model folders only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from captory_engine.errors import BadModel

FAMILY_FILE = "family.yaml"
DEFAULT_FAMILY = "picto"
MAX_FAMILY_BYTES = 1 << 20

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
ModelFile = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$")]
TokenIds = tuple[Annotated[int, Field(ge=0)], ...]
Positive = Annotated[int, Field(ge=1)]
TokenId = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Channels = tuple[float, float, float]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Captioner(_Section):
    """An image captioner: a vision encoder and a token decoder that starts from a prefix.

    Of a photograph that is no square it sees the centre or, with `stretch`, all of it squeezed into one.
    """

    architecture: Literal["blip", "blip-2", "vit-gpt2"]
    vision: ModelName
    decoder: ModelName
    tokenizer: ModelFile
    image_size_px: Positive
    image_mean: Channels
    image_std: Channels
    stretch: bool = False
    resample: Literal["bilinear", "bicubic", "lanczos"] = "bicubic"
    bos_id: TokenId
    eos_id: TokenId
    pad_id: TokenId
    prefixes: dict[Literal["short", "long"], TokenIds]
    max_new_tokens: Positive
    max_positions: Positive
    num_layers: Positive
    num_heads: Positive
    head_dim: Positive

    @model_validator(mode="after")
    def _check(self) -> Captioner:
        if set(self.prefixes) != {"short", "long"}:
            raise ValueError("prefixes needs both short and long")
        if min(self.image_std) <= 0:
            raise ValueError("image_std must be above 0")
        return self


class Writer(_Section):
    """A language model that rewrites captions; each template holds `{text}` once, among special tokens and words."""

    architecture: Literal["qwen2", "llama"]
    decoder: ModelName
    tokenizer: ModelFile
    eos_id: TokenId
    pad_id: TokenId = 0
    templates: dict[str, str]
    max_new_tokens: Positive
    max_positions: Positive
    num_layers: Positive
    num_kv_heads: Positive
    head_dim: Positive
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: Positive | None = None

    @model_validator(mode="after")
    def _check(self) -> Writer:
        wrong = [name for name, template in self.templates.items() if template.count("{text}") != 1]
        if wrong:
            raise ValueError(f"templates {', '.join(wrong)}: {{text}} must stand there exactly once")
        return self


class Schedule(_Section):
    """The noise schedule of training, in diffusers' words; how a sampler walks it is the sampler's own."""

    num_train_timesteps: Positive
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
    beta_start: Share
    beta_end: Share
    prediction_type: Literal["epsilon", "v_prediction"]


class Flow(_Section):
    """The schedule of a model of rectified flow."""

    num_train_timesteps: Positive
    shift: Annotated[float, Field(gt=0)]
    prediction_type: Literal["flow"]


class FurtherText(_Section):
    """A further input of token ids of the text encoder, with a tokenizer of its own. `pad_id` fills it up."""

    input: str
    tokenizer: ModelFile
    max_tokens: Positive
    pad_id: TokenId


class PainterDefaults(_Section):
    """What a request that leaves these out gets."""

    steps: Positive
    guidance_scale: Annotated[float, Field(ge=0)]
    sampler: str


class Painter(_Section):
    """A latent diffusion model. `sizes` are all (width, height) in pixels that it can paint.

    `pad_id` fills a prompt's ids up to `max_tokens`; None: the tokenizer's own. `conditions` names, for each further
    input of the denoiser, the text encoder's output that it takes. Where `empty_is_zero`, an empty negative prompt is
    zeros. Latents leave as latents / scaling_factor + shift_factor.
    """

    architecture: Literal["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3"]
    text_encoder: ModelName
    denoiser: ModelName
    vae_decoder: ModelName
    tokenizer: ModelFile
    max_tokens: Positive
    pad_id: TokenId | None = None
    latent_channels: Positive
    vae_scale_factor: Positive
    sizes: Annotated[tuple[tuple[Positive, Positive], ...], Field(min_length=1)]
    scaling_factor: Annotated[float, Field(gt=0)]
    shift_factor: float = 0.0
    schedule: Annotated[Schedule | Flow, Field(discriminator="prediction_type")]
    conditions: dict[str, str] = {"encoder_hidden_states": "last_hidden_state"}
    further_text: tuple[FurtherText, ...] = ()
    empty_is_zero: bool = False
    defaults: PainterDefaults

    @model_validator(mode="after")
    def _check(self) -> Painter:
        odd = [size for size in self.sizes if size[0] % self.vae_scale_factor or size[1] % self.vae_scale_factor]
        if odd:
            raise ValueError(f"sizes {odd} are no multiples of vae_scale_factor {self.vae_scale_factor}")
        return self


class Adapter(_Section):
    """Low-rank weights that were merged into a checkpoint."""

    file: str
    sha256: str
    scale: float


class Source(_Section):
    """Where weights come from: a hub's commit, or the digest of a folder's files."""

    checkpoint: str
    revision: str
    licence: str
    loras: tuple[Adapter, ...] = ()


class Family(_Section):
    """The whole family. `in_world_only`: what it makes of real photographs is outside what it learnt.

    One without a captioner is served with one on vLLM.
    """

    name: ModelName
    description: str
    in_world_only: bool
    sources: dict[Literal["captioner", "writer", "painter"], Source] = {}
    captioner: Captioner | None = None
    painter: Painter
    writer: Writer | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """The names of all its models, captioner first."""
        names = [self.captioner.vision, self.captioner.decoder] if self.captioner else []
        names += [self.writer.decoder] if self.writer else []
        names += [self.painter.text_encoder, self.painter.denoiser, self.painter.vae_decoder]
        return tuple(dict.fromkeys(names))

    @property
    def token_decoders(self) -> frozenset[str]:
        """The names of the models that decode token by token, with a cache."""
        return frozenset(part.decoder for part in (self.captioner, self.writer) if part)


class LocatedFamily(NamedTuple):
    """A family and the repository that holds its models and, at `root / tokenizer`, its tokenizers."""

    root: Path
    family: Family


def find_family(root: Path, name_or_path: str | Path = "") -> LocatedFamily:
    """Find a family by name in the repository `root`, or in a repository at another path.

    Without a name, and in a repository given by path, it is the only family there, or `picto` among several.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text in (".", ".."):
        root, text = Path(name_or_path), ""
    families = {family.name: family for family in _families(root)}
    if not text:
        text = next(iter(families)) if len(families) == 1 else DEFAULT_FAMILY
    if text not in families:
        there = ", ".join(sorted(families)) or "none"
        raise BadModel("FAMILY_MISSING", f"There is no family {text!r} in {str(root)!r}; there: {there}.")
    return LocatedFamily(root, families[text])


def read_family(path: Path) -> Family:
    """Read one `family.yaml`; unknown, missing and wrong fields are all named in the error."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_FAMILY_BYTES:
        raise BadModel("FAMILY_INVALID", f"{str(path)!r} is no family file.")
    try:
        return Family.model_validate(yaml.safe_load(path.read_bytes()))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise BadModel("FAMILY_INVALID", f"{str(path)!r} is not valid YAML.") from error
    except ValidationError as error:
        raise BadModel("FAMILY_INVALID", f"The family file {str(path)!r} does not hold: {explain(error)}.") from None


def explain(error: ValidationError) -> str:
    """Every field of a family, or of one of its sections, that does not hold."""
    problems = error.errors(include_url=False, include_context=False)
    words = ((".".join(map(str, one["loc"])) or "the whole", one["msg"]) for one in problems)
    return "; ".join(f"{where}: {what.removeprefix('Value error, ')}" for where, what in words)


def _families(root: Path) -> Iterator[Family]:
    if not root.is_dir():
        raise BadModel("REPOSITORY_MISSING", f"There is no model repository at {str(root)!r}.")
    for path in sorted(root.glob(f"*/{FAMILY_FILE}")):
        if not path.parent.name.startswith("."):
            yield read_family(path)
