"""BLIP captioners (Li et al. 2022, arXiv 2201.12086) as two graphs: image encoder, and token decoder.

The image encoder also projects the cross-attention keys and values, so they are computed once an image.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from captory_export.cached_attention import attend, split_heads, visible_positions
from captory_export.captioners.captioner import Captioner, cache_of, encode, num_states, pixels_of, words_of
from captory_export.checkpoints import Checkpoint
from captory_export.pretrained import read_config, refuse, special_ids

LEAD_IN = "a detailed photo of"  # behind bos, and the caption goes on from there


class BlipVisionGraph(nn.Module):
    """pixel_values [B, 3, size, size] to cross_keys and cross_values, each [B, L, H, patches + 1, Dh]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        crossing = [layer.crossattention.self for layer in model.text_decoder.bert.encoder.layer]
        self.vision = model.vision_model
        self.keys = nn.ModuleList(attention.key for attention in crossing)
        self.values = nn.ModuleList(attention.value for attention in crossing)
        self.head_dim = crossing[0].attention_head_size

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the images and project what the decoder will attend to."""
        states = encode(self.vision, pixel_values)
        keys = [split_heads(project(states), self.head_dim) for project in self.keys]
        values = [split_heads(project(states), self.head_dim) for project in self.values]
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


def open_blip(checkpoint: Checkpoint) -> Captioner:
    """A `BlipForConditionalGeneration`. Raises `BadModel`."""
    from transformers import BlipForConditionalGeneration
    from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    config = read_config(checkpoint)
    text, vision = config.text_config, config.vision_config
    refuse(checkpoint, {"relative positions": getattr(text, "position_embedding_type", "absolute") != "absolute"})
    return Captioner(
        checkpoint=checkpoint,
        architecture="blip",
        model_class=BlipForConditionalGeneration,
        vision_graph=BlipVisionGraph,
        decoder_graph=BlipDecoderGraph,
        generating=_generating,
        pixels=pixels_of(checkpoint, vision.image_size, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, "bicubic"),
        words=words_of(
            checkpoint,
            bos_id=special_ids(checkpoint, "bos_token_id", text)[0],
            eos_id=special_ids(checkpoint, "sep_token_id", text)[0],
            pad_id=special_ids(checkpoint, "pad_token_id", text)[0],
            max_positions=text.max_position_embeddings,
            lead_in=LEAD_IN,
        ),
        cache=cache_of(text),
        num_crossed=num_states(vision),
        vocab_size=text.vocab_size,
    )


def _generating(model: Any, pixel_values: Tensor, ids: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """Its `generate` drops the last id, which the tokenizer's end of a text would be."""
    return model, {"pixel_values": pixel_values, "input_ids": torch.cat([ids, ids[:, -1:]], dim=1)}
