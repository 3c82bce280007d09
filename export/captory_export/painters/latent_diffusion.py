"""A folder of one of diffusers' pipelines as three graphs: text encoder, denoiser with a timestep a row, VAE decoder.

What differs between architectures is a `Kind`; the VAE, the family file's section and the check are the same for all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from captory_engine.errors import BadModel
from captory_engine.family import Painter
from captory_export.checkpoints import INDEX, Checkpoint
from captory_export.exportable import Axis, Graph, Part
from captory_export.made_up import made_up_images
from captory_export.painters.full_image import compare_images
from captory_export.pretrained import load, refuse
from captory_export.sections import checked
from captory_export.token_files import pad_id, tokenizer_json

VAE, SCHEDULER = "vae/config.json", "scheduler/scheduler_config.json"
Size = tuple[int, int]  # width and height in pixels


class Text(NamedTuple):
    """One input of token ids: its name, its tokenizer's folder and its length."""

    input: str
    tokenizer: str
    max_tokens: int


class Kind(NamedTuple):
    """What is an architecture's own. `texts`, `text_graph` and `denoiser_graph` load from a pipeline's folder."""

    architecture: str
    denoiser: str  # its folder, and the suffix of its model
    denoiser_class: str  # of diffusers
    texts: Callable[[Checkpoint], Sequence[Text]]
    text_graph: Callable[[Checkpoint], Graph]
    denoiser_graph: Callable[[Checkpoint, Tensor, Mapping[int, Axis]], Graph]  # for latents with these free axes
    conditions: Mapping[str, str]
    schedule: Callable[[Mapping[str, Any]], dict[str, Any]]  # from the scheduler's configuration
    defaults: Mapping[str, Any]
    any_size: bool = True  # whether its graphs can have free sizes


class VaeDecoderGraph(nn.Module):
    """`AutoencoderKL`: latent_sample [B, C, h, w], as the autoencoder has it, to sample [B, 3, H, W] in about [-1, 1].

    A `pixel_shuffle_factor` in the autoencoder's config unfolds its output channels into pixels.
    """

    def __init__(self, vae: Any, pixel_shuffle_factor: int = 1) -> None:
        super().__init__()
        self.before = vae.post_quant_conv or nn.Identity()
        self.decoder = vae.decoder
        self.pixel_shuffle_factor = pixel_shuffle_factor

    def forward(self, latent_sample: Tensor) -> Tensor:
        """Return the pixels, not clamped."""
        return functional.pixel_shuffle(self.decoder(self.before(latent_sample)), self.pixel_shuffle_factor)


@dataclass(frozen=True, slots=True)
class LatentPainter:
    """A pipeline's folder as an `Exportable`. `sizes`: the first is painted where a request names none.

    Graphs of one size are of that size alone, which is faster on a CPU; several leave height and width free.
    """

    checkpoint: Checkpoint
    kind: Kind
    sizes: tuple[Size, ...]

    def parts(self) -> Iterator[Part]:
        """See `Exportable`."""
        folders = [text.tokenizer for text in self.kind.texts(self.checkpoint)]
        files = {f"{folder}.json": tokenizer_json(self.checkpoint.path / folder) for folder in folders}
        yield Part("text_encoder", self.graph("text_encoder"), files)
        yield Part(self.kind.denoiser, self.graph(self.kind.denoiser))
        yield Part("vae_decoder", self.graph("vae_decoder"))

    def graph(self, suffix: str) -> Graph:
        """One of its graphs, loaded now."""
        if suffix == "text_encoder":
            return self.kind.text_graph(self.checkpoint)
        if suffix == "vae_decoder":
            return self._vae_graph()
        width, height = self._latent_size
        latents = torch.randn(2, vae_config(self.checkpoint)["latent_channels"], height, width)
        return self.kind.denoiser_graph(self.checkpoint, latents, self._free_axes(self._coarsest))

    def section(self, name: str) -> Painter:
        """See `Exportable`."""
        first, *further = self.kind.texts(self.checkpoint)
        vae = vae_config(self.checkpoint)
        fields = {
            "architecture": self.kind.architecture,
            "text_encoder": f"{name}_text_encoder",
            "denoiser": f"{name}_{self.kind.denoiser}",
            "vae_decoder": f"{name}_vae_decoder",
            **self._framing(name, first),
            "latent_channels": vae["latent_channels"],
            "vae_scale_factor": scale_factor(vae),
            "sizes": self.sizes,
            "scaling_factor": vae["scaling_factor"],
            "shift_factor": vae["shift_factor"] or 0.0,
            "schedule": self.kind.schedule(scheduler_config(self.checkpoint)),
            "conditions": self.kind.conditions,
            "further_text": [{"input": more.input, **self._framing(name, more)} for more in further],
            "empty_is_zero": bool(self.checkpoint.settings(INDEX).get("force_zeros_for_empty_prompt", False)),
            "defaults": {**self.kind.defaults, **self.checkpoint.own_settings().get("defaults", {})},
        }
        return checked(Painter, self.checkpoint.name, fields)

    def check(self, folders: Mapping[str, Path]) -> dict[str, Any]:
        """An image at a fixed seed, of the checkpoint and of the exported graphs, in up to three of the sizes."""
        return compare_images(self.section("checked"), self.kind.denoiser, self.graph, folders)

    def _framing(self, name: str, text: Text) -> dict[str, Any]:
        """How ids of a text are made: by a tokenizer beside the text encoder, filled up to one length."""
        return {
            "tokenizer": f"{name}_text_encoder/{text.tokenizer}.json",
            "max_tokens": text.max_tokens,
            "pad_id": pad_id(self.checkpoint.path / text.tokenizer),
        }

    def _vae_graph(self) -> Graph:
        from diffusers import AutoencoderKL

        vae = load(AutoencoderKL, self.checkpoint, "vae")
        factor = self.checkpoint.settings(VAE).get("pixel_shuffle_factor", 1)
        with torch.no_grad():  # latents as they occur: what overflows with these overflows in use
            folded = functional.pixel_unshuffle(made_up_images(2, *self.sizes[0]), factor)
            latents = vae.encode(folded).latent_dist.mode()
        axes = {"latent_sample": self._free_axes(1)}
        return Graph(VaeDecoderGraph(vae, factor), {"latent_sample": latents}, ["sample"], axes)

    def _free_axes(self, multiple: int) -> dict[int, Axis]:
        """Height and width of latents, where there are several sizes."""
        if len(self.sizes) == 1:
            return {}
        return {2: Axis("latent_height", multiple), 3: Axis("latent_width", multiple)}

    @property
    def _coarsest(self) -> int:
        """Latents a side of one position of the denoiser's coarsest level."""
        config = denoiser_config(self.checkpoint, self.kind)
        return int(config.get("patch_size") or 2 ** (len(config["block_out_channels"]) - 1))

    @property
    def _latent_size(self) -> Size:
        factor, (width, height) = scale_factor(vae_config(self.checkpoint)), self.sizes[0]
        return width // factor, height // factor


def open_painter(checkpoint: Checkpoint, kind: Kind, sizes: Sequence[Size]) -> LatentPainter:
    """The painter, of its own size where none is named. Raises `BadModel` for what the engine would get wrong."""
    vae = vae_config(checkpoint)
    shifts = vae["latents_mean"] is not None or vae["latents_std"] is not None
    refuse(checkpoint, {"an autoencoder that shifts its latents by channel": shifts})
    painter = LatentPainter(checkpoint, kind, tuple(sizes) or (_own_size(checkpoint, kind),))
    if len(painter.sizes) > 1 and not kind.any_size:
        raise BadModel("SIZES", f"Graphs of {kind.architecture} have one size; name one.")
    multiple = scale_factor(vae) * painter._coarsest
    wrong = [f"{width}x{height}" for width, height in painter.sizes if width % multiple or height % multiple]
    if wrong:
        raise BadModel("SIZES", f"Sizes must be multiples of {multiple} pixels: {', '.join(wrong)}.")
    return painter


def _own_size(checkpoint: Checkpoint, kind: Kind) -> Size:
    """What the denoiser was trained for. Raises `BadModel` where it does not say."""
    told = denoiser_config(checkpoint, kind)["sample_size"]
    height, width = told if isinstance(told, list) else (told, told)
    if not isinstance(height, int) or not isinstance(width, int):
        raise BadModel("SIZES", f"{checkpoint.name} does not tell the size of its images: name one with --sizes.")
    factor = scale_factor(vae_config(checkpoint))
    return width * factor, height * factor


def configuration(checkpoint: Checkpoint, file: str, kind: Any) -> dict[str, Any]:
    """The settings in a file, with the defaults of the class that they are of for what they leave out."""
    parameters = inspect.signature(kind.__init__).parameters.values()
    defaults = {one.name: one.default for one in parameters if one.default is not one.empty}
    return defaults | checkpoint.settings(file)


def vae_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The autoencoder's configuration."""
    from diffusers import AutoencoderKL

    return configuration(checkpoint, VAE, AutoencoderKL)


def denoiser_config(checkpoint: Checkpoint, kind: Kind) -> dict[str, Any]:
    """The denoiser's configuration."""
    import diffusers

    return configuration(checkpoint, f"{kind.denoiser}/config.json", getattr(diffusers, kind.denoiser_class))


def clip_config(checkpoint: Checkpoint, text_encoder: str) -> dict[str, Any]:
    """The configuration of one of its CLIP text encoders."""
    from transformers import CLIPTextConfig

    return configuration(checkpoint, f"{text_encoder}/config.json", CLIPTextConfig)


def scheduler_config(checkpoint: Checkpoint) -> dict[str, Any]:
    """The scheduler's configuration. Raises `BadModel` for one that diffusers does not have."""
    import diffusers

    name = str(checkpoint.settings(SCHEDULER).get("_class_name"))
    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, diffusers.SchedulerMixin):
        raise BadModel("SCHEDULE_UNSUPPORTED", f"The scheduler of {checkpoint.name}, {name}, is none of diffusers'.")
    return configuration(checkpoint, SCHEDULER, found)


def num_tokens(checkpoint: Checkpoint, text_encoder: str) -> int:
    """How many ids that CLIP text encoder takes."""
    return int(clip_config(checkpoint, text_encoder)["max_position_embeddings"])


def refuse_guided(checkpoint: Checkpoint) -> None:
    """Raise `BadModel` for a UNet that is told its guidance, as distilled ones are: nobody would tell it."""
    guided = checkpoint.settings("unet/config.json").get("time_cond_proj_dim") is not None
    refuse(checkpoint, {"a UNet that takes its guidance as an input": guided})


def scale_factor(vae: Mapping[str, Any]) -> int:
    """Pixels a side of one latent, by the autoencoder's configuration."""
    return int(2 ** (len(vae["block_out_channels"]) - 1) * vae.get("pixel_shuffle_factor", 1))


def diffusion_schedule(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """The family file's schedule of noise. Raises `BadModel` for one that the samplers do not know."""
    odd = [key for key in ("trained_betas", "rescale_betas_zero_snr") if scheduler.get(key)]
    if odd:
        raise BadModel("SCHEDULE_UNSUPPORTED", f"A scheduler with {' and '.join(odd)} is not supported.")
    kept = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type")
    return {key: scheduler[key] for key in kept if key in scheduler}
