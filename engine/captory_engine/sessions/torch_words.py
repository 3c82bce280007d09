"""Text encoder, captioner and writer in plain torch over Hugging Face checkpoints: no transformers is needed.

Shapes: B batch, S new tokens, T cached positions, L layers, H heads, Dh their width, D the model's width, V words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

QUICK_GELU = 1.702


class Weights(nn.Module):
    """A checkpoint's config and tensors by their names, and the layers that are no more than those."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for name, value in load_file(folder / "model.safetensors").items():
            self.register_buffer(_mangled(name), value.float() if value.is_floating_point() else value)

    def __getitem__(self, name: str) -> Tensor:
        return self.get_buffer(_mangled(name))

    def linear(self, name: str, states: Tensor, *, bias: bool = True) -> Tensor:
        """states @ weight.T + bias."""
        return functional.linear(states, self[f"{name}.weight"], self[f"{name}.bias"] if bias else None)

    def norm(self, name: str, states: Tensor, epsilon: float) -> Tensor:
        """Layer normalisation over the last axis."""
        return functional.layer_norm(states, states.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], epsilon)


class TextEncoder(Weights):
    """CLIP's text encoder (Radford et al. 2021): input_ids [B, S] to last_hidden_state [B, S, D]."""

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        """See the class."""
        epsilon, heads = self.config["layer_norm_eps"], self.config["num_attention_heads"]
        embedding = "text_model.embeddings"
        states = self[f"{embedding}.token_embedding.weight"][input_ids]
        states = states + self[f"{embedding}.position_embedding.weight"][: input_ids.shape[1]]
        for index in range(self.config["num_hidden_layers"]):
            layer = f"text_model.encoder.layers.{index}"
            normed = self.norm(f"{layer}.layer_norm1", states, epsilon)
            query, key, value = (_split(self.linear(f"{layer}.self_attn.{kind}_proj", normed), heads) for kind in "qkv")
            seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            states = states + self.linear(f"{layer}.self_attn.out_proj", _joined(seen))
            hidden = self.linear(f"{layer}.mlp.fc1", self.norm(f"{layer}.layer_norm2", states, epsilon))
            states = states + self.linear(f"{layer}.mlp.fc2", _activate(hidden, self.config["hidden_act"]))
        return (self.norm("text_model.final_layer_norm", states, epsilon).float(),)


class BlipVision(Weights):
    """BLIP's image encoder (Li et al. 2022, arXiv 2201.12086) with the decoder's cross-attention projections.

    pixel_values [B, 3, P, P] to cross_keys and cross_values, each [B, L, H, patches + 1, Dh].
    """

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        vision = self.config["vision_config"]
        states = self._embed(pixel_values, vision["patch_size"])
        for index in range(vision["num_hidden_layers"]):
            layer = f"vision_model.encoder.layers.{index}"
            normed = self.norm(f"{layer}.layer_norm1", states, vision["layer_norm_eps"])
            parts = self.linear(f"{layer}.self_attn.qkv", normed).chunk(3, dim=-1)
            query, key, value = (_split(part, vision["num_attention_heads"]) for part in parts)
            seen = functional.scaled_dot_product_attention(query, key, value)
            states = states + self.linear(f"{layer}.self_attn.projection", _joined(seen))
            normed = self.norm(f"{layer}.layer_norm2", states, vision["layer_norm_eps"])
            hidden = _activate(self.linear(f"{layer}.mlp.fc1", normed), vision["hidden_act"])
            states = states + self.linear(f"{layer}.mlp.fc2", hidden)
        states = self.norm("vision_model.post_layernorm", states, vision["layer_norm_eps"])
        return self._project("key", states), self._project("value", states)

    def _embed(self, pixel_values: Tensor, patch_size: int) -> Tensor:
        embedding = "vision_model.embeddings"
        kernel, bias = self[f"{embedding}.patch_embedding.weight"], self[f"{embedding}.patch_embedding.bias"]
        patches = functional.conv2d(pixel_values.to(kernel.dtype), kernel, bias, stride=patch_size)
        first = self[f"{embedding}.class_embedding"].expand(len(patches), -1, -1)
        states = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        return states + self[f"{embedding}.position_embedding"]

    def _project(self, kind: str, states: Tensor) -> Tensor:
        text = self.config["text_config"]
        layers = [f"text_decoder.bert.encoder.layer.{index}" for index in range(text["num_hidden_layers"])]
        heads = text["num_attention_heads"]
        rows = [_split(self.linear(f"{layer}.crossattention.self.{kind}", states), heads) for layer in layers]
        return torch.stack(rows, dim=1).float()


class BlipDecoder(Weights):
    """One step of BLIP's text decoder over S new tokens and a cache of T positions.

    input_ids, position_ids [B, S]; past_mask [B, T]; past_keys, past_values [B, L, H, T, Dh]; cross_keys, cross_values
    as `BlipVision` gives them. Returns logits [B, S, V], new_keys and new_values [B, L, H, S, Dh].
    """

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
        """See the class."""
        text, cache = self.config["text_config"], _Cache(past_keys, past_values, past_mask, input_ids.shape[1])
        epsilon, heads = text["layer_norm_eps"], text["num_attention_heads"]
        embedding = "text_decoder.bert.embeddings"
        words = self[f"{embedding}.word_embeddings.weight"][input_ids]
        words = words + self[f"{embedding}.position_embeddings.weight"][position_ids]
        states = self.norm(f"{embedding}.LayerNorm", words, epsilon)
        for index in range(text["num_hidden_layers"]):
            layer = f"text_decoder.bert.encoder.layer.{index}"
            names = (f"{layer}.attention.self.{kind}" for kind in ("query", "key", "value"))
            query, key, value = (_split(self.linear(name, states), heads) for name in names)
            states = self._out(f"{layer}.attention.output", _joined(cache.attend(index, query, key, value)), states)
            query = _split(self.linear(f"{layer}.crossattention.self.query", states), heads)
            keys, values = cross_keys[:, index].to(query.dtype), cross_values[:, index].to(query.dtype)
            seen = functional.scaled_dot_product_attention(query, keys, values)
            states = self._out(f"{layer}.crossattention.output", _joined(seen), states)
            hidden = _activate(self.linear(f"{layer}.intermediate.dense", states), text["hidden_act"])
            states = self._out(f"{layer}.output", hidden, states)
        return self._logits(states).float(), *cache.new()

    def _out(self, name: str, seen: Tensor, states: Tensor) -> Tensor:
        added = self.linear(f"{name}.dense", seen) + states
        return self.norm(f"{name}.LayerNorm", added, self.config["text_config"]["layer_norm_eps"])

    def _logits(self, states: Tensor) -> Tensor:
        text, head = self.config["text_config"], "text_decoder.cls.predictions"
        hidden = _activate(self.linear(f"{head}.transform.dense", states), text["hidden_act"])
        hidden = self.norm(f"{head}.transform.LayerNorm", hidden, text["layer_norm_eps"])
        words = self["text_decoder.bert.embeddings.word_embeddings.weight"]  # tied
        return functional.linear(hidden, words, self[f"{head}.bias"])


class Qwen2Decoder(Weights):
    """One step of a Qwen2 language model (Yang et al. 2024) over S new tokens and a cache whose keys are rotated.

    Inputs and outputs are `BlipDecoder`'s without the cross-attention.
    """

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, past_mask: Tensor, past_keys: Tensor, past_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        config, cache = self.config, _Cache(past_keys, past_values, past_mask, input_ids.shape[1])
        heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        states = self["model.embed_tokens.weight"][input_ids]
        cos, sin = _angles(position_ids, config["hidden_size"] // heads, config["rope_theta"], states.dtype)
        for index in range(config["num_hidden_layers"]):
            layer = f"model.layers.{index}"
            normed = self._rms(f"{layer}.input_layernorm", states)
            query = _rotate(_split(self.linear(f"{layer}.self_attn.q_proj", normed), heads), cos, sin)
            key = _rotate(_split(self.linear(f"{layer}.self_attn.k_proj", normed), kv_heads), cos, sin)
            value = _split(self.linear(f"{layer}.self_attn.v_proj", normed), kv_heads)
            seen = _joined(cache.attend(index, query, key, value))
            states = states + self.linear(f"{layer}.self_attn.o_proj", seen, bias=False)
            normed = self._rms(f"{layer}.post_attention_layernorm", states)
            gate = functional.silu(self.linear(f"{layer}.mlp.gate_proj", normed, bias=False))
            hidden = gate * self.linear(f"{layer}.mlp.up_proj", normed, bias=False)
            states = states + self.linear(f"{layer}.mlp.down_proj", hidden, bias=False)
        head = "model.embed_tokens" if config["tie_word_embeddings"] else "lm_head"
        logits = self.linear(head, self._rms("model.norm", states), bias=False)
        return logits.float(), *cache.new()

    def _rms(self, name: str, states: Tensor) -> Tensor:
        return functional.rms_norm(states, states.shape[-1:], self[f"{name}.weight"], self.config["rms_norm_eps"])


class _Cache:
    """What a step's layers see of the positions before it, and the keys and values that it adds."""

    def __init__(self, keys: Tensor, values: Tensor, mask: Tensor, num_new: int) -> None:
        self._keys, self._values = keys, values
        self._new_keys: list[Tensor] = []
        self._new_values: list[Tensor] = []
        past = (mask > 0.5)[:, None, None, :].expand(-1, 1, num_new, -1)
        causal = torch.ones(num_new, num_new, dtype=torch.bool, device=mask.device).tril()
        self._visible = torch.cat([past, causal.expand(len(mask), 1, -1, -1)], dim=-1)  # [B, 1, S, T + S]

    def attend(self, index: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[B, H, S, Dh]: layer `index` over the cache and the new tokens; heads may be grouped."""
        self._new_keys.append(key)
        self._new_values.append(value)
        keys = torch.cat([self._keys[:, index].to(key.dtype), key], dim=2)
        values = torch.cat([self._values[:, index].to(value.dtype), value], dim=2)
        grouped = query.shape[1] != key.shape[1]
        return functional.scaled_dot_product_attention(query, keys, values, attn_mask=self._visible, enable_gqa=grouped)

    def new(self) -> tuple[Tensor, Tensor]:
        """What to add to the cache, [B, L, H, S, Dh] each."""
        return torch.stack(self._new_keys, dim=1).float(), torch.stack(self._new_values, dim=1).float()


def _mangled(name: str) -> str:
    return name.replace(".", "/")


def _split(states: Tensor, heads: int) -> Tensor:
    """[B, S, H * Dh] to [B, H, S, Dh]."""
    return states.reshape(*states.shape[:-1], heads, -1).transpose(1, 2)


def _joined(states: Tensor) -> Tensor:
    """[B, H, S, Dh] to [B, S, H * Dh]."""
    return states.transpose(1, 2).flatten(2)


def _activate(states: Tensor, name: str) -> Tensor:
    return states * torch.sigmoid(QUICK_GELU * states) if name == "quick_gelu" else functional.gelu(states)


def _angles(positions: Tensor, width: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions (Su et al. 2021), [B, 1, S, Dh] each."""
    steps = torch.arange(0, width, 2, device=positions.device, dtype=torch.float32)
    angles: Tensor = positions[:, None, :, None].float() * torch.pow(theta, -steps / width)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = states.chunk(2, dim=-1)
    return states * cos + torch.cat([-second, first], dim=-1) * sin
