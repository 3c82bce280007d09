"""BLIP-2 captioners over OPT (Li et al. 2023, arXiv 2301.12597) as two graphs: image encoder, and token decoder.

OPT reads the image as a prefix of embeddings. Its keys and values of that prefix do not depend on the words that
follow, so the image encoder computes them, once an image, and they travel as other captioners' cross keys and values
do; the decoder attends to them before its own past. Both graphs hold OPT's layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from captory_export.cached_attention import attend, split_heads, visible_positions
from captory_export.captioners.captioner import Captioner, cache_of, encode, pixels_of, words_of
from captory_export.checkpoints import Checkpoint
from captory_export.pretrained import read_config, refuse, special_ids

LEAD_IN = "a photo of"
POSITION_OFFSET = 2  # of OPT's learned positions


class Blip2VisionGraph(nn.Module):
    """pixel_values [B, 3, size, size] to cross_keys and cross_values, each [B, L, H, queries, Dh]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision, self.queries = model.vision_model, model.query_tokens
        self.qformer, self.project = model.qformer, model.language_projection
        self.language = OptLayers(model.language_model.model.decoder)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the images, ask the queries, and run the language model over the answers."""
        image = encode(self.vision, pixel_values)
        batch, length = image.shape[0], self.queries.shape[1]
        answers = self.qformer.layernorm(self.queries).expand(batch, -1, -1)
        for layer in self.qformer.encoder.layer:
            answers = layer(answers, encoder_hidden_states=image, query_length=length)
        order = torch.arange(length, device=image.device)
        visible = (order[:, None] >= order[None, :])[None, None].expand(batch, 1, -1, -1)
        _, keys, values = self.language(self.project(answers), order.expand(batch, -1), visible, [])
        return keys, values


class OptLayers(nn.Module):
    """The layers of OPT (Zhang et al. 2022, arXiv 2205.01068), of the kind that normalises before each block."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.positions = decoder.embed_positions
        self.layers, self.norm = decoder.layers, decoder.final_layer_norm

    def forward(
        self, states: Tensor, position_ids: Tensor, visible: Tensor, before: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """States [B, S, D] of the last layer, and the new keys and values [B, L, H, S, Dh].

        `before`: keys and values [B, L, H, T, Dh] that come before, in parts that follow one another; visible: bool
        [B, 1, S, T + S], T over all of them.
        """
        states = states + functional.embedding(position_ids + POSITION_OFFSET, self.positions.weight)
        new_keys, new_values = [], []
        for index, layer in enumerate(self.layers):
            attention = layer.self_attn
            normed = layer.self_attn_layer_norm(states)
            query, key, value = (
                split_heads(project(normed), attention.head_dim)
                for project in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            seen = [*((keys[:, index], values[:, index]) for keys, values in before), (key, value)]
            states = states + attention.out_proj(attend(query, seen, visible))
            states = states + layer.fc2(layer.activation_fn(layer.fc1(layer.final_layer_norm(states))))
            new_keys.append(key)
            new_values.append(value)
        return self.norm(states), torch.stack(new_keys, dim=1), torch.stack(new_values, dim=1)


class Blip2DecoderGraph(nn.Module):
    """One step of OPT behind an image over S new tokens and a cache of T positions.

    input_ids, position_ids: [B, S], counted behind the image; past_mask: [B, T]; past_keys, past_values:
    [B, L, H, T, Dh]; cross_keys, cross_values: [B, L, H, queries, Dh]. Returns logits [B, S, V], new_keys and
    new_values [B, L, H, S, Dh].
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        decoder = model.language_model.model.decoder
        self.words, self.language = decoder.embed_tokens, OptLayers(decoder)
        self.head = model.language_model.lm_head

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
        num_queries = cross_keys.shape[3]
        image = past_mask.new_ones(past_mask.shape[0], num_queries)
        visible = visible_positions(torch.cat([image, past_mask], dim=1), input_ids.shape[1])
        before = [(cross_keys, cross_values), (past_keys, past_values)]
        states, keys, values = self.language(self.words(input_ids), position_ids + num_queries, visible, before)
        return self.head(states), keys, values


def open_blip2(checkpoint: Checkpoint) -> Captioner:
    """A `Blip2ForConditionalGeneration` over OPT. Raises `BadModel`."""
    from transformers import Blip2ForConditionalGeneration
    from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    config = read_config(checkpoint)
    text, vision = config.text_config, config.vision_config
    refuse(checkpoint, {f"the language model {text.model_type}": text.model_type != "opt"})
    narrow, late = text.word_embed_proj_dim != text.hidden_size, not text.do_layer_norm_before
    refuse(checkpoint, {"projected embeddings": narrow, "other norms": late or text._remove_final_layer_norm})
    return Captioner(
        checkpoint=checkpoint,
        architecture="blip-2",
        model_class=Blip2ForConditionalGeneration,
        vision_graph=Blip2VisionGraph,
        decoder_graph=Blip2DecoderGraph,
        generating=_generating,
        pixels=pixels_of(checkpoint, vision.image_size, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, "bicubic"),
        words=words_of(
            checkpoint,
            bos_id=special_ids(checkpoint, "bos_token_id", text)[0],
            eos_id=special_ids(checkpoint, "eos_token_id", text)[0],
            pad_id=special_ids(checkpoint, "pad_token_id", text)[0],
            max_positions=text.max_position_embeddings - config.num_query_tokens,
            lead_in=LEAD_IN,
        ),
        cache=cache_of(text),
        num_crossed=config.num_query_tokens,
        vocab_size=text.vocab_size,
    )


def _generating(model: Any, pixel_values: Tensor, ids: Tensor) -> tuple[Any, dict[str, Tensor]]:
    """The language model behind the image's embeddings, as its `generate` does; that wants a token for the image."""
    image, words = model.get_image_features(pixel_values), model.get_input_embeddings()(ids)
    embeddings = torch.cat([image, words], dim=1)
    mask = torch.ones(embeddings.shape[:2], dtype=torch.int64)
    return model.language_model, {"inputs_embeds": embeddings, "attention_mask": mask}
