"""BLIP captioners (Li et al. 2022) as two graphs: an image encoder and a token decoder with an explicit cache.

The image encoder also projects the cross-attention keys and values, so they are computed once an image.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import onnxruntime
import torch
import typer
import yaml
from torch import Tensor, nn

from captory_export.cached_attention import attend, split_heads, visible_positions
from captory_export.graphs import CACHE_OUTPUTS, PAST_AXES, TOKEN_AXES, export_graph, read_ports
from captory_export.parity import Decoded, Report, compare, decode_greedily, joined, until_eos
from captory_export.repository import to_json, write_model

CROSS_AXES = {"cross_keys": {0: "batch"}, "cross_values": {0: "batch"}}


class BlipVisionGraph(nn.Module):
    """pixel_values [B, 3, size, size] to cross_keys and cross_values, each [B, L, H, patches + 1, Dh]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision = model.vision_model
        self.layers = model.text_decoder.bert.encoder.layer

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the images and project what the decoder will attend to."""
        states = self.vision.embeddings(pixel_values)
        for layer in self.vision.encoder.layers:
            states = layer(states, attention_mask=None)
        states = self.vision.post_layernorm(states)
        cross = [layer.crossattention.self for layer in self.layers]
        keys = [split_heads(attention.key(states), attention.attention_head_size) for attention in cross]
        values = [split_heads(attention.value(states), attention.attention_head_size) for attention in cross]
        return torch.stack(keys, dim=1), torch.stack(values, dim=1)


class BlipDecoderGraph(nn.Module):
    """One step of the text decoder over S new tokens and a cache of T positions.

    input_ids, position_ids: [B, S]; past_mask: [B, T]; past_keys, past_values: [B, L, H, T, Dh];
    cross_keys, cross_values: [B, L, H, patches + 1, Dh]. Returns logits [B, S, V], new_keys and new_values
    [B, L, H, S, Dh]. Prefill is S > 1 with nothing valid in the past, decoding is S = 1.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embeddings = model.text_decoder.bert.embeddings
        self.layers = model.text_decoder.bert.encoder.layer
        self.head = model.text_decoder.cls

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        past_mask: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        cross_keys: Tensor,
        cross_values: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the new tokens; see the class for the shapes."""
        words, positions = self.embeddings.word_embeddings, self.embeddings.position_embeddings
        states = self.embeddings.LayerNorm(words(input_ids) + positions(position_ids))  # [B, S, D]
        visible = visible_positions(past_mask, input_ids.shape[1])
        new_keys, new_values = [], []
        for index, layer in enumerate(self.layers):
            attention = layer.attention.self
            query, key, value = (
                split_heads(project(states), attention.attention_head_size)
                for project in (attention.query, attention.key, attention.value)
            )
            seen = [(past_keys[:, index], past_values[:, index]), (key, value)]
            states = layer.attention.output(attend(query, seen, visible), states)
            query = split_heads(layer.crossattention.self.query(states), attention.attention_head_size)
            crossed = attend(query, [(cross_keys[:, index], cross_values[:, index])], None)
            states = layer.crossattention.output(crossed, states)
            states = layer.feed_forward_chunk(states)
            new_keys.append(key)
            new_values.append(value)
        return self.head(states), torch.stack(new_keys, dim=1), torch.stack(new_values, dim=1)


def export_vision(model: Any, path: Path) -> None:
    """Write the graph of a `BlipForConditionalGeneration`'s image encoder to `path`, batch dynamic."""
    vision = model.config.vision_config
    pixel_values = torch.zeros(2, 3, vision.image_size, vision.image_size)
    axes = {"pixel_values": {0: "batch"}}
    export_graph(BlipVisionGraph(model), {"pixel_values": pixel_values}, ["cross_keys", "cross_values"], axes, path)


def export_decoder(model: Any, path: Path) -> None:
    """Write the graph of a `BlipForConditionalGeneration`'s text decoder to `path`; batch, S and T dynamic."""
    text, vision = model.config.text_config, model.config.vision_config
    heads, num_layers = text.num_attention_heads, text.num_hidden_layers
    head_dim = text.hidden_size // heads
    num_visual = (vision.image_size // vision.patch_size) ** 2 + 1
    inputs = {
        "input_ids": torch.zeros(2, 3, dtype=torch.int64),
        "position_ids": torch.arange(3).expand(2, 3).contiguous(),
        "past_mask": torch.zeros(2, 5),
        "past_keys": torch.zeros(2, num_layers, heads, 5, head_dim),
        "past_values": torch.zeros(2, num_layers, heads, 5, head_dim),
        "cross_keys": torch.zeros(2, num_layers, heads, num_visual, head_dim),
        "cross_values": torch.zeros(2, num_layers, heads, num_visual, head_dim),
    }
    export_graph(BlipDecoderGraph(model), inputs, CACHE_OUTPUTS, {**TOKEN_AXES, **PAST_AXES, **CROSS_AXES}, path)


def decode_reference(model: Any, pixel_values: Tensor, prefix: Sequence[int], max_new_tokens: int) -> Decoded:
    """Caption images greedily with the checkpoint itself; returns the new ids, eos included, and their logits."""
    eos_id = model.config.text_config.sep_token_id
    prompt = torch.tensor([[*prefix, eos_id]]).expand(len(pixel_values), -1).clone()  # generate drops the last id
    output = model.generate(
        pixel_values=pixel_values,
        input_ids=prompt,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    new_ids, logits = output.sequences[:, len(prefix) :], torch.stack(output.logits, dim=1)
    return until_eos(new_ids.numpy(), logits.numpy(), eos_id)


def check(model: Any, vision: Path, decoder: Path, prefixes: Sequence[Sequence[int]], num_images: int) -> Report:
    """Compare the two graphs with the checkpoint: greedy captions of made-up images behind each prefix."""
    text = model.config.text_config
    pixel_values = made_up_images(num_images, model.config.vision_config.image_size)
    encoder, decoding = (
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]) for path in (vision, decoder)
    )
    encoded: Any = encoder.run(["cross_keys", "cross_values"], {"pixel_values": pixel_values.numpy()})
    keys, values = encoded
    max_new_tokens = text.max_position_embeddings - max(map(len, prefixes))
    wanted = joined(decode_reference(model, pixel_values, prefix, max_new_tokens) for prefix in prefixes)
    got = joined(
        decode_greedily(
            decoding,
            [prefix] * num_images,
            max_new_tokens=max_new_tokens,
            max_positions=text.max_position_embeddings,
            eos_id=text.sep_token_id,
            cross={"cross_keys": keys, "cross_values": values},
        )
        for prefix in prefixes
    )
    return compare(wanted, got)


def made_up_images(num_images: int, size_px: int) -> Tensor:
    """Return smooth noise, [B, 3, size, size] in -1..1."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(num_images, 3, 4, 4, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, size=(size_px, size_px), mode="bilinear")


def family_section(model: Any, name: str, settings: dict[str, Any], image: dict[str, Any]) -> dict[str, Any]:
    """Return the family file's captioner section; `image` is the checkpoint's image processor configuration."""
    text = model.config.text_config
    return {
        "architecture": "blip",
        "vision": f"{name}_vision",
        "decoder": f"{name}_decoder",
        "tokenizer": f"{name}_decoder/tokenizer.json",
        "image_size_px": model.config.vision_config.image_size,
        "image_mean": image["image_mean"],
        "image_std": image["image_std"],
        "bos_id": text.bos_token_id,
        "eos_id": text.sep_token_id,
        "pad_id": text.pad_token_id,
        "prefixes": settings["prefixes"],
        "max_new_tokens": settings["max_new_tokens"],
        "max_positions": text.max_position_embeddings,
        "num_layers": text.num_hidden_layers,
        "num_heads": text.num_attention_heads,
        "head_dim": text.hidden_size // text.num_attention_heads,
    }


def export_captioner(checkpoint: Path, repository: Path, name: str) -> tuple[Report, dict[str, Any]]:
    """Write both model folders of a checkpoint; returns the parity report and the family file's section.

    Beside transformers' files the checkpoint's folder holds `captory.json`: prefixes by length, and max_new_tokens.
    """
    from transformers import BlipForConditionalGeneration

    model = BlipForConditionalGeneration.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    settings = json.loads((checkpoint / "captory.json").read_text())
    image = json.loads((checkpoint / "preprocessor_config.json").read_text())
    vision, decoder = (repository / f"{name}_{part}" / "1" / "model.onnx" for part in ("vision", "decoder"))
    export_vision(model, vision)
    export_decoder(model, decoder)
    report = check(model, vision, decoder, list(settings["prefixes"].values()), num_images=64)
    tokenizer = {"tokenizer.json": (checkpoint / "tokenizer.json").read_bytes()}
    for graph, files in ((vision, {}), (decoder, tokenizer)):
        inputs, outputs = read_ports(graph)
        write_model(graph.parents[1], graph, inputs, outputs, files={**files, "parity.json": to_json(report)})
    return report, family_section(model, name, settings, image)


def main(
    checkpoint: Annotated[Path, typer.Argument(help="a BLIP checkpoint's folder")],
    out: Annotated[Path, typer.Option(help="the model repository to write to")],
    section: Annotated[Path, typer.Option(help="the family file's section to write")],
    name: str = "picto_captioner",
) -> None:
    """Export a BLIP captioner; exit code 1 when the graphs do not do what the checkpoint does."""
    report, captioner = export_captioner(checkpoint, out, name)
    section.write_text(yaml.safe_dump({"captioner": captioner}, sort_keys=False, default_flow_style=None))
    typer.echo(json.dumps(report))
    raise typer.Exit(0 if report["passed"] else 1)


if __name__ == "__main__":
    typer.run(main)
