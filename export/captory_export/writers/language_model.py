"""Language models of the kinds of Qwen2 (Yang et al. 2024, arXiv 2407.10671) and Llama (Touvron et al. 2023, arXiv
2302.13971) as one token decoder graph with an explicit cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from torch import Tensor, nn

from captory_engine.errors import BadModel
from captory_engine.family import Writer
from captory_export.cached_attention import attend, split_heads, visible_positions
from captory_export.checkpoints import Checkpoint
from captory_export.decoder_graph import step_graph
from captory_export.decoding import CacheShape, Decoded, compare_texts, decode_greedily, joined, open_graph
from captory_export.exportable import Part
from captory_export.pretrained import decode_reference, generation_settings, load, read_config, refuse, special_ids
from captory_export.sections import checked
from captory_export.token_files import encoder, fast_tokenizer, tokenizer_json

MAX_POSITIONS = 1024  # what the engine keeps room for, in every slot
MAX_NEW_TOKENS = 96
TEMPERATURE, TOP_K = 0.7, 40
FIXED_ROPES = ("default", "linear", "dynamic", "yarn", "llama3")  # the same at every length that a slot has room for
DATE = datetime(2024, 7, 26)  # what chats are told where a template asks; templates of Llama 3 have it as their own
REQUEST = (
    "Rewrite this description of an image in other words: one English sentence of 10 to 50 words that keeps every fact"
    " and adds none. Answer with the sentence alone.\n\n{text}"
)
COMPLETION = "A description of an image:\n{text}\nThe same image, described in other words:\n"
EXAMPLES = (
    ("rewrite", "a brown dog running on a beach"),
    ("rewrite", "two people riding bicycles down a city street at night"),
    ("rewrite", "a bowl of fruit on a wooden table next to a window with white curtains"),
    ("rewrite", "an old red tractor parked in a snowy field, with a barn and bare trees in the background"),
)


class LanguageModelGraph(nn.Module):
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
        self.scale = float(model.model.rotary_emb.attention_scaling)
        self.head_dim = model.model.layers[0].self_attn.head_dim

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, past_mask: Tensor, past_keys: Tensor, past_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the new tokens; see the class for the shapes."""
        cos, sin = self._rotation(position_ids)
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

    def _rotation(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions [B, S], each [B, 1, S, Dh]."""
        angles = position_ids[:, None, :, None].float() * self.inv_freq  # [B, 1, S, Dh / 2]
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos(), angles.sin()
        return (cos, sin) if self.scale == 1.0 else (cos * self.scale, sin * self.scale)


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021) on halves; states: [B, H, S, Dh], cos and sin: [B, 1, S, Dh]."""
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A checkpoint as an `Exportable`. `examples` are tasks, by template, and texts for the check."""

    checkpoint: Checkpoint
    architecture: str
    tokenizer: bytes
    eos_id: int
    pad_id: int
    templates: Mapping[str, str]
    examples: Sequence[tuple[str, str]]
    max_new_tokens: int
    max_positions: int
    cache: CacheShape
    vocab_size: int
    temperature: float
    top_k: int | None

    def parts(self) -> Iterator[Part]:
        """The token decoder."""
        module = LanguageModelGraph(self._load())
        graph = step_graph(module, self.cache, vocab_size=self.vocab_size, max_positions=self.max_positions)
        yield Part("decoder", graph, {"tokenizer.json": self.tokenizer})

    def section(self, name: str) -> Writer:
        """See `Exportable`."""
        fields = {
            "architecture": self.architecture,
            "decoder": f"{name}_decoder",
            "tokenizer": f"{name}_decoder/tokenizer.json",
            "eos_id": self.eos_id,
            "pad_id": self.pad_id,
            "templates": dict(self.templates),
            "max_new_tokens": self.max_new_tokens,
            "max_positions": self.max_positions,
            "num_layers": self.cache.num_layers,
            "num_kv_heads": self.cache.num_kv_heads,
            "head_dim": self.cache.head_dim,
            "temperature": self.temperature,
            "top_k": self.top_k,
        }
        return checked(Writer, self.checkpoint.name, fields)

    def check(self, folders: Mapping[str, Path]) -> dict[str, Any]:
        """Greedy texts behind prompts of several lengths, by the checkpoint one by one, by the model as one batch."""
        prompts = self._prompts()
        longest = max(map(len, prompts))
        max_new_tokens = min(self.max_new_tokens, self.max_positions - longest)
        wanted = self._written_by_checkpoint(prompts, max_new_tokens)
        got = decode_greedily(
            open_graph(folders["decoder"]),
            prompts,
            max_new_tokens=max_new_tokens,
            max_positions=longest + max_new_tokens,
            eos_id=self.eos_id,
        )
        return compare_texts(wanted, got)

    @torch.no_grad()
    def _written_by_checkpoint(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Decoded:
        model, ends = self._load(), {"eos_id": self.eos_id, "pad_id": self.pad_id}

        def write(prompt: Sequence[int]) -> Decoded:
            row = torch.tensor([list(prompt)])
            inputs = {"input_ids": row, "attention_mask": torch.ones_like(row)}
            return decode_reference(model, inputs, bos_id=prompt[0], max_new_tokens=max_new_tokens, **ends)

        return joined(map(write, prompts))

    def _prompts(self) -> list[list[int]]:
        """The examples as the engine puts them: the template's two sides and the text are encoded apart."""
        encode = encoder(self.tokenizer)
        sides = [(self.templates[task].partition("{text}"), text) for task, text in self.examples]
        return [[*encode(before), *encode(text), *encode(after)] for (before, _, after), text in sides]

    def _load(self) -> Any:
        from transformers import AutoModelForCausalLM

        return load(AutoModelForCausalLM, self.checkpoint)


def open_language_model(checkpoint: Checkpoint) -> LanguageModel:
    """A `Qwen2ForCausalLM` or `LlamaForCausalLM`. Raises `BadModel`."""
    config, own, tokenizer = read_config(checkpoint), checkpoint.own_settings(), fast_tokenizer(checkpoint.path)
    rope = (config.rope_scaling or {}).get("rope_type", "default")
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    refuse(
        checkpoint, {"sliding-window attention": slides, f"rotary positions of type {rope}": rope not in FIXED_ROPES}
    )
    told = {key: value for key, value in generation_settings(checkpoint).items() if value is not None}
    sampling = {"temperature": TEMPERATURE, "top_k": TOP_K, **told, **own}
    eos_id = _end(special_ids(checkpoint, "eos_token_id", config), tokenizer.eos_token_id)
    pad_id = eos_id if config.pad_token_id is None or config.pad_token_id < 0 else config.pad_token_id
    max_positions = min(config.max_position_embeddings, MAX_POSITIONS)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return LanguageModel(
        checkpoint=checkpoint,
        architecture=config.model_type,
        tokenizer=tokenizer_json(checkpoint.path),
        eos_id=eos_id,
        pad_id=pad_id,
        templates=own.get("templates") or {"rewrite": _rewriting(checkpoint, tokenizer)},
        examples=own.get("examples", EXAMPLES),
        max_new_tokens=own.get("max_new_tokens", min(MAX_NEW_TOKENS, max_positions // 2)),
        max_positions=max_positions,
        cache=CacheShape(config.num_hidden_layers, config.num_key_value_heads, head_dim),
        vocab_size=config.vocab_size,
        temperature=sampling["temperature"],
        top_k=sampling["top_k"] or None,
    )


def _end(ids: Sequence[int], preferred: int | None) -> int:
    """Of several ends the one that the tokenizer calls so, which in a chat ends a turn; else the first."""
    return preferred if preferred is not None and preferred in ids else ids[0]


def _rewriting(checkpoint: Checkpoint, tokenizer: Any) -> str:
    """The prompt of a rewrite around `{text}`: a chat's turn where the model was made for chats. Raises `BadModel`."""
    if not tokenizer.chat_template:
        return f"{tokenizer.bos_token or ''}{COMPLETION}"
    turn = [{"role": "user", "content": REQUEST}]
    dated = {"strftime_now": DATE.strftime}  # stands before the one that would tell today's
    try:
        template: str = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **dated)
    except (TemplateError, TypeError, ValueError) as error:
        raise BadModel("CHAT_TEMPLATE", f"The chat template of {checkpoint.name} does not hold: {error}") from error
    if template.count("{text}") != 1:
        raise BadModel("CHAT_TEMPLATE", f"The chat template of {checkpoint.name} does not repeat what a user says.")
    return template
