"""What all captioners have in common: numbers, two graphs of one contract, and the check of what they write.

The image encoder gives cross_keys and cross_values once an image; the token decoder takes them every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captory_engine import family
from captory_engine.errors import BadModel
from captory_export.checkpoints import Checkpoint
from captory_export.decoder_graph import CROSS, step_graph
from captory_export.decoding import CacheShape, Decoded, compare_texts, decode_greedily, joined, open_graph
from captory_export.exportable import Graph, Part
from captory_export.made_up import made_up_images
from captory_export.pretrained import decode_reference, load
from captory_export.sections import checked
from captory_export.token_files import encoder, tokenizer_json

MAX_POSITIONS = 256  # what the engine keeps room for, in every slot
MAX_NEW_TOKENS = 48
NUM_CHECKED = 16  # images
RESAMPLING = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers, of which image processors write one
Channels = tuple[float, ...]


class Pixels(NamedTuple):
    """How an image goes in: a square, as (value in 0..1 - mean) / std by channel.

    One that is none is made one by stretching, or else by its centre.
    """

    size_px: int
    mean: Channels
    std: Channels
    stretch: bool
    resample: str


class Words(NamedTuple):
    """How a caption begins and ends. `prefixes` are what it is behind, by its length; `max_new_tokens` exclude them."""

    tokenizer: bytes
    bos_id: int
    eos_id: int
    pad_id: int
    prefixes: Mapping[str, Sequence[int]]
    max_new_tokens: int
    max_positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Captioner:
    """A checkpoint as an `Exportable`. `num_crossed` is how many cross keys an image has.

    `vision_graph` and `decoder_graph` make modules of the loaded model. `generating` says what generates captions of
    images [B, 3, S, S] that go on from ids [B, T]: transformers' model, and the inputs of its `generate`.
    """

    checkpoint: Checkpoint
    architecture: str
    model_class: Any
    vision_graph: Callable[[Any], nn.Module]
    decoder_graph: Callable[[Any], nn.Module]
    generating: Callable[[Any, Tensor, Tensor], tuple[Any, dict[str, Tensor]]]
    pixels: Pixels
    words: Words
    cache: CacheShape
    num_crossed: int
    vocab_size: int

    def parts(self) -> Iterator[Part]:
        """Image encoder, then token decoder. Each loads the checkpoint, so that neither holds what the other needs."""
        size_px = self.pixels.size_px
        images = {"pixel_values": made_up_images(2, size_px, size_px)}
        yield Part("vision", Graph(self.vision_graph(self._load()), images, CROSS))
        decoder = step_graph(
            self.decoder_graph(self._load()),
            self.cache,
            vocab_size=self.vocab_size,
            max_positions=self.words.max_positions,
            num_crossed=self.num_crossed,
        )
        yield Part("decoder", decoder, {"tokenizer.json": self.words.tokenizer})

    def section(self, name: str) -> family.Captioner:
        """See `Exportable`."""
        words = self.words
        fields = {
            "architecture": self.architecture,
            "vision": f"{name}_vision",
            "decoder": f"{name}_decoder",
            "tokenizer": f"{name}_decoder/tokenizer.json",
            "image_size_px": self.pixels.size_px,
            "image_mean": list(self.pixels.mean),
            "image_std": list(self.pixels.std),
            "stretch": self.pixels.stretch,
            "resample": self.pixels.resample,
            "bos_id": words.bos_id,
            "eos_id": words.eos_id,
            "pad_id": words.pad_id,
            "prefixes": {length: list(ids) for length, ids in words.prefixes.items()},
            "max_new_tokens": words.max_new_tokens,
            "max_positions": words.max_positions,
            "num_layers": self.cache.num_layers,
            "num_heads": self.cache.num_kv_heads,
            "head_dim": self.cache.head_dim,
        }
        return checked(family.Captioner, self.checkpoint.name, fields)

    def check(self, folders: Mapping[str, Path]) -> dict[str, Any]:
        """Greedy captions of made-up images behind each prefix, by the checkpoint and by the exported models."""
        images = made_up_images(NUM_CHECKED, self.pixels.size_px, self.pixels.size_px)
        prefixes = list(dict.fromkeys(map(tuple, self.words.prefixes.values())))
        wanted = self._captioned_by_checkpoint(images, prefixes)
        return compare_texts(wanted, self._captioned_by_models(images, prefixes, folders))

    @torch.no_grad()
    def _captioned_by_checkpoint(self, images: Tensor, prefixes: Sequence[Sequence[int]]) -> Decoded:
        words, model = self.words, self._load()

        def caption(prefix: Sequence[int]) -> Decoded:
            ids = torch.tensor([list(prefix)] * len(images))
            generator, inputs = self.generating(model, images, ids)
            return decode_reference(
                generator,
                inputs,
                bos_id=words.bos_id,
                eos_id=words.eos_id,
                pad_id=words.pad_id,
                max_new_tokens=words.max_new_tokens,
            )

        return joined(map(caption, prefixes))

    def _captioned_by_models(
        self, images: Tensor, prefixes: Sequence[Sequence[int]], folders: Mapping[str, Path]
    ) -> Decoded:
        crossed: Any = open_graph(folders["vision"]).run(list(CROSS), {"pixel_values": images.numpy()})
        decoder = open_graph(folders["decoder"])

        def caption(prefix: Sequence[int]) -> Decoded:
            return decode_greedily(
                decoder,
                [prefix] * len(images),
                max_new_tokens=self.words.max_new_tokens,
                max_positions=len(prefix) + self.words.max_new_tokens,
                eos_id=self.words.eos_id,
                cross=dict(zip(CROSS, crossed, strict=True)),
            )

        return joined(map(caption, prefixes))

    def _load(self) -> Any:
        return load(self.model_class, self.checkpoint)


def encode(vision: Any, pixel_values: Tensor) -> Tensor:
    """The states [B, patches + 1, D] of an image encoder of BLIP or BLIP-2."""
    states = vision.embeddings(pixel_values)
    for layer in vision.encoder.layers:
        states = layer(states, attention_mask=None)
    normed: Tensor = vision.post_layernorm(states)
    return normed


def cache_of(text: Any) -> CacheShape:
    """The cache of a language model without grouped heads, by its configuration."""
    return CacheShape(text.num_hidden_layers, text.num_attention_heads, text.hidden_size // text.num_attention_heads)


def num_states(vision: Any) -> int:
    """How many states an image encoder makes, the class's among them, by its configuration."""
    return int((vision.image_size // vision.patch_size) ** 2 + 1)


def pixels_of(
    checkpoint: Checkpoint, size_px: int, mean: Sequence[float], std: Sequence[float], resample: str
) -> Pixels:
    """How a model for squares of `size_px` takes images; the rest is what its image processor does where none is told.

    Raises `BadModel` when the image processor makes something else than such squares of values in 0..1.
    """
    settings = checkpoint.settings("preprocessor_config.json")
    _refuse_other_images(checkpoint.name, settings, size_px)
    crops = settings.get("do_center_crop", False) or "shortest_edge" in str(settings.get("size"))
    stretch = not crops and not checkpoint.own_settings()  # what was made for Captory takes the centre
    resample = RESAMPLING[settings["resample"]] if "resample" in settings else resample
    if not settings.get("do_normalize", True):
        return Pixels(size_px, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), stretch, resample)
    mean, std = (settings.get(key) or default for key, default in (("image_mean", mean), ("image_std", std)))
    return Pixels(size_px, tuple(mean), tuple(std), stretch, resample)


def _refuse_other_images(name: str, settings: Mapping[str, Any], size_px: int) -> None:
    """Raise `BadModel` unless an image processor makes squares of `size_px` and values in 0..1, in a way known here."""
    size = settings.get("size") or size_px
    sides = list(size.values()) if isinstance(size, dict) else [size]
    if not isinstance(size_px, int) or any(side != size_px for side in sides):
        words = f"{name} takes images of {size_px} pixels, but its image processor makes {size}"
        raise BadModel("IMAGE_SIZE", f"{words}; they must be the same square.")
    if not settings.get("do_rescale", True) or round(1 / settings.get("rescale_factor", 1 / 255)) != 255:
        raise BadModel("IMAGE_RANGE", f"The image processor of {name} does not scale values to 0..1.")
    if settings.get("resample", 3) not in RESAMPLING:
        known = ", ".join(f"{number} ({words})" for number, words in RESAMPLING.items())
        raise BadModel("IMAGE_RESAMPLE", f"The image processor of {name} resamples otherwise than by {known}.")


def words_of(
    checkpoint: Checkpoint, *, bos_id: int, eos_id: int, pad_id: int, max_positions: int, lead_in: str = ""
) -> Words:
    """Prefixes and length as a checkpoint that was made for Captory says; else bos, and for long captions `lead_in`.

    Raises `BadModel` when there is no tokenizer.
    """
    own, tokenizer = checkpoint.own_settings(), tokenizer_json(checkpoint.path)
    prefixes = own.get("prefixes", {"short": [bos_id], "long": [bos_id, *encoder(tokenizer)(lead_in)]})
    max_positions = min(max_positions, MAX_POSITIONS)
    room = max_positions - max(map(len, prefixes.values()))
    max_new_tokens = min(own.get("max_new_tokens", MAX_NEW_TOKENS), room)
    return Words(tokenizer, bos_id, eos_id, pad_id, prefixes, max_new_tokens, max_positions)
