"""Twins of public painters: the same classes with random weights, saved as diffusers saves them. Needs torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from captory_engine.diffusion.noise import gaussian_noise

WORDS = ["a", "photo", "of", "red", "blue", "green", "mug", "cup", "dog", "on", "the", "table", "black", "white"]
NUM_TOKENS = 12
TEXT_WIDTH = 16
SIZE_PX, LATENTS = 32, (4, 4, 4)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def stable_diffusion(folder: Path, *, prediction_type: str = "epsilon", scaling_factor: float = 0.18215) -> Path:
    """`StableDiffusionPipeline`: a UNet of two levels."""
    torch.manual_seed(0)
    _text_encoder().save_pretrained(folder / "text_encoder")
    _unet(cross_attention_dim=TEXT_WIDTH).save_pretrained(folder / "unet")
    _vae(scaling_factor=scaling_factor).save_pretrained(folder / "vae")
    _clip_tokenizer(folder / "tokenizer")
    EulerDiscreteScheduler(**BETAS, prediction_type=prediction_type).save_pretrained(folder / "scheduler")
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    return _index(folder, "StableDiffusionPipeline", parts, {"safety_checker": [None, None]})


def stable_diffusion_xl(folder: Path) -> Path:
    """`StableDiffusionXLPipeline`: an empty negative prompt is zeros, and the second tokenizer pads with its own."""
    torch.manual_seed(0)
    _text_encoder().save_pretrained(folder / "text_encoder")
    _text_encoder(projected=True, width=24).save_pretrained(folder / "text_encoder_2")
    _unet(
        cross_attention_dim=TEXT_WIDTH + 24,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
    ).save_pretrained(folder / "unet")
    _vae(scaling_factor=0.13025).save_pretrained(folder / "vae")
    _clip_tokenizer(folder / "tokenizer")
    _clip_tokenizer(folder / "tokenizer_2", pad="!")
    EulerDiscreteScheduler(**BETAS).save_pretrained(folder / "scheduler")
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    parts["text_encoder_2"] = "CLIPTextModelWithProjection"
    return _index(folder, "StableDiffusionXLPipeline", parts, {"force_zeros_for_empty_prompt": True})


def stable_diffusion_3(folder: Path, *, with_t5: bool = True) -> Path:
    """`StableDiffusion3Pipeline`: two transformer blocks, latents that are shifted."""
    torch.manual_seed(0)
    width = 40
    for name in ("text_encoder", "text_encoder_2"):
        _text_encoder(projected=True).save_pretrained(folder / name)
    SD3Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=width, caption_projection_dim=32,
        pooled_projection_dim=2 * TEXT_WIDTH, pos_embed_max_size=8,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    vae = _vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False)
    vae.save_pretrained(folder / "vae")
    for name in ("tokenizer", "tokenizer_2"):
        _clip_tokenizer(folder / name)
    parts = {"transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL"}
    parts |= dict.fromkeys(("text_encoder", "text_encoder_2"), "CLIPTextModelWithProjection")
    if with_t5:
        config = T5Config(vocab_size=60, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        T5EncoderModel(config).eval().save_pretrained(folder / "text_encoder_3")
        _t5_tokenizer(folder / "tokenizer_3")
        parts["text_encoder_3"] = "T5EncoderModel"
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    absent = {} if with_t5 else {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    return _index(folder, "StableDiffusion3Pipeline", parts, absent)


def stable_diffusion_15(folder: Path, size_px: int) -> Path:
    """Stable Diffusion 1.5 at full size, but for the pixels; its random weights take 4 GB."""
    torch.manual_seed(0)
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, eos_token_id=1)
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    UNet2DConditionModel(
        sample_size=size_px // 8, cross_attention_dim=768, attention_head_dim=8
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2, latent_channels=4, sample_size=size_px,
    ).save_pretrained(folder / "vae")  # fmt: skip
    _clip_tokenizer(folder / "tokenizer")
    EulerDiscreteScheduler(**BETAS).save_pretrained(folder / "scheduler")
    parts = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
    return _index(folder, "StableDiffusionPipeline", parts, {"safety_checker": [None, None]})


def pipeline_image(
    folder: Path, prompt: str, negative_prompt: str = "", *, seed: int, num_steps: int, guidance_scale: float
) -> Any:
    """What diffusers' own pipeline paints from the engine's noise, [3, H, W] in -1..1."""
    index = json.loads((folder / "model_index.json").read_text())
    absent = {part: None for part, kind in index.items() if kind == [None, None]}
    pipeline = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, **absent)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        prompt,
        negative_prompt=negative_prompt or None,  # an empty one is text to SDXL, where none at all is zeros
        num_inference_steps=num_steps,
        guidance_scale=guidance_scale,
        latents=torch.from_numpy(gaussian_noise(seed, LATENTS)[None]),
        height=SIZE_PX,
        width=SIZE_PX,
        output_type="pt",
        **({"max_sequence_length": 256} if index["_class_name"] == "StableDiffusion3Pipeline" else {}),
    ).images
    return images[0].numpy() * 2 - 1


def _text_encoder(*, projected: bool = False, width: int = TEXT_WIDTH) -> Any:
    config = CLIPTextConfig(
        vocab_size=60, hidden_size=width, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=NUM_TOKENS, projection_dim=TEXT_WIDTH, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _unet(**further: Any) -> Any:
    return UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"), attention_head_dim=2, **further,
    ).eval()  # fmt: skip


def _vae(**further: Any) -> Any:
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4, **further,
    ).eval()  # fmt: skip


def _clip_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> None:
    special = ["<|startoftext|>", "<|endoftext|>", "!"]
    _save_tokenizer(folder, special, bos_token=special[0], eos_token=special[1], pad_token=pad, unk_token=special[1])


def _t5_tokenizer(folder: Path) -> None:
    _save_tokenizer(folder, ["<pad>", "</s>", "<unk>"], eos_token="</s>", pad_token="<pad>", unk_token="<unk>")


def _save_tokenizer(folder: Path, special: list[str], *, unk_token: str, **tokens: str) -> None:
    """Words are tokens. Like CLIP's and T5's, it puts its marks around a text by itself."""
    from tokenizers.processors import TemplateProcessing

    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unk_token))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = [token for token in (tokens.get("bos_token"), tokens["eos_token"]) if token]
    framed = f"{tokens['bos_token']} $A {tokens['eos_token']}" if "bos_token" in tokens else f"$A {tokens['eos_token']}"
    pairs = [(mark, vocabulary[mark]) for mark in marks]
    tokenizer.post_processor = TemplateProcessing(single=framed, special_tokens=pairs)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=NUM_TOKENS, unk_token=unk_token, **tokens
    )
    fast.save_pretrained(folder)


def _index(folder: Path, pipeline: str, parts: Mapping[str, str], further: Mapping[str, Any]) -> Path:
    """`model_index.json` as diffusers writes it."""
    texts = [name for name in parts if name.startswith("text_encoder")]
    ours = ("UNet2DConditionModel", "AutoencoderKL", "SD3Transformer2DModel")
    flow = pipeline == "StableDiffusion3Pipeline"
    index = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler" if flow else "EulerDiscreteScheduler"],
        **{name: ["diffusers" if kind in ours else "transformers", kind] for name, kind in parts.items()},
        **{name.replace("text_encoder", "tokenizer"): ["transformers", "PreTrainedTokenizerFast"] for name in texts},
        **further,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder
