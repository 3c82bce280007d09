"""Qwen2 language models (Yang et al. 2024) as one token decoder graph with an explicit cache."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import onnxruntime
import torch
import typer
import yaml
from tokenizers import Tokenizer
from torch import Tensor, nn

from captory_export.cached_attention import attend, split_heads, visible_positions
from captory_export.graphs import CACHE_OUTPUTS, PAST_AXES, TOKEN_AXES, export_graph, read_ports
from captory_export.parity import Decoded, Report, compare, decode_greedily, joined, until_eos
from captory_export.repository import to_json, write_model


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) on halves; states: [B, H, S, Dh], cos and sin: [B, 1, S, Dh]."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin


class Qwen2DecoderGraph(nn.Module):
    """One step over S new tokens and a cache of T positions, whose keys are kept rotated.

    input_ids, position_ids: [B, S]; past_mask: [B, T]; past_keys, past_values: [B, L, Hkv, T, Dh].
    Returns logits [B, S, V], new_keys and new_values [B, L, Hkv, S, Dh].
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embed = model.model.embed_tokens
        self.layers = model.model.layers
        self.norm = model.model.norm
        self.head = model.lm_head
        self.inv_freq: Tensor
        self.register_buffer("inv_freq", model.model.rotary_emb.inv_freq.clone())
        self.head_dim = model.model.layers[0].self_attn.head_dim

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, past_mask: Tensor, past_keys: Tensor, past_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the new tokens; see the class for the shapes."""
        angles = position_ids[:, None, :, None].float() * self.inv_freq  # [B, 1, S, Dh / 2]
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos(), angles.sin()
        visible = visible_positions(past_mask, input_ids.shape[1])
        states = self.embed(input_ids)  # [B, S, D]
        new_keys, new_values = [], []
        for index, layer in enumerate(self.layers):
            normed = layer.input_layernorm(states)
            attention = layer.self_attn
            query = rotate(split_heads(attention.q_proj(normed), self.head_dim), cos, sin)
            key = rotate(split_heads(attention.k_proj(normed), self.head_dim), cos, sin)
            value = split_heads(attention.v_proj(normed), self.head_dim)
            seen = [(past_keys[:, index], past_values[:, index]), (key, value)]
            states = states + attention.o_proj(attend(query, seen, visible))
            states = states + layer.mlp(layer.post_attention_layernorm(states))
            new_keys.append(key)
            new_values.append(value)
        return self.head(self.norm(states)), torch.stack(new_keys, dim=1), torch.stack(new_values, dim=1)


def export_decoder(model: Any, path: Path) -> None:
    """Write the graph of a `Qwen2ForCausalLM` to `path`; batch, S and T dynamic."""
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    past = (2, config.num_hidden_layers, config.num_key_value_heads, 5, head_dim)
    inputs = {
        "input_ids": torch.zeros(2, 3, dtype=torch.int64),
        "position_ids": torch.arange(3).expand(2, 3).contiguous(),
        "past_mask": torch.zeros(2, 5),
        "past_keys": torch.zeros(past),
        "past_values": torch.zeros(past),
    }
    export_graph(Qwen2DecoderGraph(model), inputs, CACHE_OUTPUTS, {**TOKEN_AXES, **PAST_AXES}, path)


def decode_reference(model: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Decoded:
    """Go on greedily from each prompt, one at a time, with the checkpoint itself; returns new ids and logits."""

    def go_on(prompt: Sequence[int]) -> Decoded:
        row = torch.tensor([prompt])
        output = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        new_ids, logits = output.sequences[:, len(prompt) :], torch.stack(output.logits, dim=1)
        return until_eos(new_ids.numpy(), logits.numpy(), model.config.eos_token_id)

    return joined(go_on(prompt) for prompt in prompts)


def check(model: Any, decoder: Path, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Report:
    """Compare the graph with the checkpoint: greedy texts after prompts of any lengths, decoded as one batch."""
    session = onnxruntime.InferenceSession(str(decoder), providers=["CPUExecutionProvider"])
    got = decode_greedily(
        session,
        prompts,
        max_new_tokens=max_new_tokens,
        max_positions=model.config.max_position_embeddings,
        eos_id=model.config.eos_token_id,
    )
    return compare(decode_reference(model, prompts, max_new_tokens), got)


def family_section(model: Any, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the family file's writer section."""
    config = model.config
    return {
        "architecture": "qwen2",
        "decoder": f"{name}_decoder",
        "tokenizer": f"{name}_decoder/tokenizer.json",
        "eos_id": config.eos_token_id,
        "pad_id": config.pad_token_id,
        "templates": settings["templates"],
        "max_new_tokens": settings["max_new_tokens"],
        "max_positions": config.max_position_embeddings,
        "num_layers": config.num_hidden_layers,
        "num_kv_heads": config.num_key_value_heads,
        "head_dim": config.hidden_size // config.num_attention_heads,
        "temperature": settings["temperature"],
        "top_k": settings["top_k"],
    }


def export_writer(checkpoint: Path, repository: Path, name: str) -> tuple[Report, dict[str, Any]]:
    """Write the model folder of a checkpoint; returns the parity report and the family file's section.

    Beside transformers' files the checkpoint's folder holds `captory.json`: templates, sampling settings, and example
    texts for the parity check.
    """
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float32).eval()
    settings = json.loads((checkpoint / "captory.json").read_text())
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    texts = [settings["templates"][task].format(text=text) for task, text in settings["examples"]]
    prompts = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    graph = repository / f"{name}_decoder" / "1" / "model.onnx"
    export_decoder(model, graph)
    report = check(model, graph, prompts, settings["max_new_tokens"])
    inputs, outputs = read_ports(graph)
    files = {"tokenizer.json": (checkpoint / "tokenizer.json").read_bytes(), "parity.json": to_json(report)}
    write_model(graph.parents[1], graph, inputs, outputs, files=files)
    return report, family_section(model, name, settings)


def main(
    checkpoint: Annotated[Path, typer.Argument(help="a Qwen2 checkpoint's folder")],
    out: Annotated[Path, typer.Option(help="the model repository to write to")],
    section: Annotated[Path, typer.Option(help="the family file's section to write")],
    name: str = "picto_writer",
) -> None:
    """Export a Qwen2 writer; exit code 1 when the graph does not do what the checkpoint does."""
    report, writer = export_writer(checkpoint, out, name)
    section.write_text(yaml.safe_dump({"writer": writer}, sort_keys=False, default_flow_style=None))
    typer.echo(json.dumps(report))
    raise typer.Exit(0 if report["passed"] else 1)


if __name__ == "__main__":
    typer.run(main)
