"""Twins of public captioners and writers: the same classes, small, with random weights. Needs torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers

PAD_ID, BOS_ID, EOS_ID = range(3)
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
WORDS = [*SPECIAL.values(), "a", "detailed", "photo", "of", "red", "dog", "on", "grass", "in", "other", "words"]
VOCAB, MAX_POSITIONS = 50, 24
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
SQUARE = {"image_size": 16, "patch_size": 8}
ENDS = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "pad_token_id": PAD_ID}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip


def blip() -> Any:
    text = {
        **SHAPE, **ENDS, "vocab_size": VOCAB, "max_position_embeddings": MAX_POSITIONS, "sep_token_id": EOS_ID,
        "encoder_hidden_size": 32, "projection_dim": 32,
    }  # fmt: skip
    vision = {**SHAPE, **SQUARE, "projection_dim": 32}
    config = transformers.BlipConfig(
        text_config=text, vision_config=vision, projection_dim=32, image_text_hidden_size=32
    )
    return transformers.BlipForConditionalGeneration(config)


def blip2() -> Any:
    text = {
        **SHAPE, **ENDS, "model_type": "opt", "vocab_size": VOCAB, "ffn_dim": 48,
        "max_position_embeddings": MAX_POSITIONS,
    }  # fmt: skip
    qformer = {**SHAPE, "hidden_size": 24, "vocab_size": 8, "max_position_embeddings": 8}
    config = transformers.Blip2Config(
        text_config=text, vision_config={**SHAPE, **SQUARE}, qformer_config=qformer, num_query_tokens=4,
        image_token_index=VOCAB - 1,
    )  # fmt: skip
    return transformers.Blip2ForConditionalGeneration(config)


def vit_gpt2() -> Any:
    vision = transformers.ViTConfig(**{**SHAPE, **SQUARE, "hidden_size": 24})
    text = transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=MAX_POSITIONS, bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
    )  # fmt: skip
    join = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs
    config = join(vision, text, decoder_start_token_id=BOS_ID, eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    return transformers.VisionEncoderDecoderModel(config=config)


def qwen2(**settings: Any) -> Any:
    config = transformers.Qwen2Config(
        **{**SHAPE, **ENDS, "vocab_size": VOCAB, "num_key_value_heads": 2, "max_position_embeddings": 64, **settings}
    )
    return transformers.Qwen2ForCausalLM(config)


def llama() -> Any:
    config = transformers.LlamaConfig(
        **SHAPE, **ENDS, vocab_size=VOCAB, num_key_value_heads=2, head_dim=16, max_position_embeddings=64,
        rope_theta=100.0, rope_scaling=dict(LLAMA3), attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


MAKERS: dict[str, Callable[[], Any]] = {
    "blip": blip,
    "blip-2": blip2,
    "vit-gpt2": vit_gpt2,
    "qwen2": qwen2,
    "llama": llama,
}
CAPTIONERS = {
    "blip": (transformers.BlipForConditionalGeneration, transformers.BlipImageProcessor),
    "blip-2": (transformers.Blip2ForConditionalGeneration, transformers.BlipImageProcessor),
    "vit-gpt2": (transformers.VisionEncoderDecoderModel, transformers.ViTImageProcessor),
}
OWN_SETTINGS = {  # what a writer says that was made for Captory
    "templates": {"rewrite": "<bos>{text} in other words"},
    "examples": [["rewrite", "a red dog"], ["rewrite", "a"], ["rewrite", "a detailed photo of a red dog on grass"]],
    "max_new_tokens": 12,
    "temperature": 0.8,
    "top_k": 20,
}


def save(name: str, folder: Path) -> Path:
    """Write a checkpoint of that name in `MAKERS`."""
    torch.manual_seed(0)
    model = MAKERS[name]()
    with torch.no_grad():  # as wide as trained ones, and no bias is nothing
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(parameter + 0.1 * noise if parameter.ndim == 1 else 0.4 * noise)
    return write(name, model, folder)


def write(name: str, model: Any, folder: Path, *, size_px: int = 16, num_words: int = VOCAB) -> Path:
    """Write a model with a tokenizer that has a word for every id, and what is told of images."""
    model.save_pretrained(folder, safe_serialization=True)
    words = [*WORDS, *(f"w{index}" for index in range(len(WORDS), num_words))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)
    if name in CAPTIONERS:
        size: Any = size_px if name == "vit-gpt2" else {"height": size_px, "width": size_px}
        (folder / "preprocessor_config.json").write_text(json.dumps({"size": size}))
    if name == "qwen2":
        (folder / "captory.json").write_text(json.dumps(OWN_SETTINGS))
    return folder


def caption(name: str, folder: Path, photo: Image.Image, max_new_tokens: int) -> str:
    """What transformers itself says of a photograph: by its image processor, its `generate` and its tokenizer."""
    model, processor = (kind.from_pretrained(folder) for kind in CAPTIONERS[name])
    pixel_values = processor(photo, return_tensors="pt").pixel_values
    [row] = model.generate(pixel_values=pixel_values, max_new_tokens=max_new_tokens, do_sample=False).tolist()
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer.decode(row[row.index(BOS_ID) + 1 :], skip_special_tokens=True)
