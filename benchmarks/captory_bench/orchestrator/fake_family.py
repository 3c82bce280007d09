"""A whole family for the `fake` backend, built in a folder: real configurations, no models, microseconds a step."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from captory_engine.manifest import write_manifest

NO_TOKEN = 1000  # a caption that never ends early is never empty
SPECIAL = ("<|pad|>", "<|bos|>", "<|eos|>", "<|short|>", "<|long|>", "<|rewrite|>", "<|face|>")
VOCABULARY = 263
SIZE_PX = 64
SCALE = 8  # pixels a latent
MAX_POSITIONS = 48

WORDING = {
    "fake_vision": (
        'input [ { name: "pixel_values" data_type: TYPE_FP32 dims: [ 3, 64, 64 ] } ]',
        'output [ { name: "cross_keys" data_type: TYPE_FP32 dims: [ 1, 2, 5, 4 ] },'
        ' { name: "cross_values" data_type: TYPE_FP32 dims: [ 1, 2, 5, 4 ] } ]',
    ),
    "fake_captioner": (
        'input [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] },'
        ' { name: "position_ids" data_type: TYPE_INT64 dims: [ -1 ] },'
        ' { name: "past_mask" data_type: TYPE_FP32 dims: [ -1 ] },'
        ' { name: "past_keys" data_type: TYPE_FP32 dims: [ 1, 2, -1, 4 ] },'
        ' { name: "past_values" data_type: TYPE_FP32 dims: [ 1, 2, -1, 4 ] },'
        ' { name: "cross_keys" data_type: TYPE_FP32 dims: [ 1, 2, 5, 4 ] },'
        ' { name: "cross_values" data_type: TYPE_FP32 dims: [ 1, 2, 5, 4 ] } ]',
        f'output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ -1, {VOCABULARY} ] }},'
        ' { name: "new_keys" data_type: TYPE_FP32 dims: [ 1, 2, -1, 4 ] },'
        ' { name: "new_values" data_type: TYPE_FP32 dims: [ 1, 2, -1, 4 ] } ]',
    ),
    "fake_writer": (
        'input [ { name: "input_ids" data_type: TYPE_INT64 dims: [ -1 ] },'
        ' { name: "position_ids" data_type: TYPE_INT64 dims: [ -1 ] },'
        ' { name: "past_mask" data_type: TYPE_FP32 dims: [ -1 ] },'
        ' { name: "past_keys" data_type: TYPE_FP32 dims: [ 1, 2, -1, 4 ] },'
        ' { name: "past_values" data_type: TYPE_FP32 dims: [ 1, 2, -1, 4 ] } ]',
        f'output [ {{ name: "logits" data_type: TYPE_FP32 dims: [ -1, {VOCABULARY} ] }},'
        ' { name: "new_keys" data_type: TYPE_FP32 dims: [ 1, 2, -1, 4 ] },'
        ' { name: "new_values" data_type: TYPE_FP32 dims: [ 1, 2, -1, 4 ] } ]',
    ),
    "fake_text": (
        'input [ { name: "input_ids" data_type: TYPE_INT64 dims: [ 48 ] } ]',
        'output [ { name: "last_hidden_state" data_type: TYPE_FP32 dims: [ 48, 4 ] } ]',
    ),
}


def _painting(size_px: int) -> dict[str, tuple[str, str]]:
    """The graphs that know the image's size."""
    side = size_px // SCALE
    return {
        "fake_denoiser": (
            f'input [ {{ name: "sample" data_type: TYPE_FP32 dims: [ 4, {side}, {side} ] }},'
            ' { name: "timestep" data_type: TYPE_FP32 dims: [ 1 ] reshape: { shape: [ ] } },'
            ' { name: "encoder_hidden_states" data_type: TYPE_FP32 dims: [ 48, 4 ] } ]',
            f'output [ {{ name: "out_sample" data_type: TYPE_FP32 dims: [ 4, {side}, {side} ] }} ]',
        ),
        "fake_vae": (
            f'input [ {{ name: "latent_sample" data_type: TYPE_FP32 dims: [ 4, {side}, {side} ] }} ]',
            f'output [ {{ name: "sample" data_type: TYPE_FP32 dims: [ 3, {size_px}, {size_px} ] }} ]',
        ),
    }


def _family(size_px: int) -> str:
    return f"""
name: fake
description: Deterministic outputs without a model, for tests and for measuring the orchestrator.
in_world_only: false
captioner:
  architecture: blip
  vision: fake_vision
  decoder: fake_captioner
  tokenizer: fake_captioner/tokenizer.json
  image_size_px: 64
  image_mean: [0.5, 0.5, 0.5]
  image_std: [0.5, 0.5, 0.5]
  bos_id: 1
  eos_id: {NO_TOKEN}
  pad_id: 0
  prefixes: {{short: [1, 3], long: [1, 4]}}
  max_new_tokens: 8
  max_positions: {MAX_POSITIONS}
  num_layers: 1
  num_heads: 2
  head_dim: 4
writer:
  architecture: qwen2
  decoder: fake_writer
  tokenizer: fake_writer/tokenizer.json
  eos_id: 2
  templates: {{rewrite: "<|bos|><|rewrite|>{{text}}<|long|>"}}
  max_new_tokens: 8
  max_positions: {MAX_POSITIONS}
  num_layers: 1
  num_kv_heads: 2
  head_dim: 4
  temperature: 0.8
painter:
  architecture: stable-diffusion
  text_encoder: fake_text
  denoiser: fake_denoiser
  vae_decoder: fake_vae
  tokenizer: fake_text/tokenizer.json
  max_tokens: 48
  latent_channels: 4
  vae_scale_factor: {SCALE}
  sizes: [[{size_px}, {size_px}]]
  scaling_factor: 1.0
  schedule: {{num_train_timesteps: 1000, beta_schedule: scaled_linear, beta_start: 0.00085, beta_end: 0.012,
    prediction_type: epsilon}}
  defaults: {{steps: 4, guidance_scale: 2.0, sampler: dpmpp-2m}}
"""


def fake_repository(root: Path, size_px: int = SIZE_PX) -> Path:
    """Write the family `fake`, which paints squares of `size_px`, a multiple of 8, below `root`."""
    for name, (inputs, outputs) in (WORDING | _painting(size_px)).items():
        folder = root / name
        (folder / "1").mkdir(parents=True)
        (folder / "1" / "model.onnx").write_bytes(b"no graph: the fake backend reads the configuration only")
        config = f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: 64\n{inputs}\n{outputs}\n'
        (folder / "config.pbtxt").write_text(config)
        if name in ("fake_captioner", "fake_writer", "fake_text"):
            byte_tokenizer().save(str(folder / "tokenizer.json"))
        if name == "fake_denoiser":
            (folder / "family.yaml").write_text(_family(size_px))
        write_manifest(folder)
    return root


def byte_tokenizer() -> Tokenizer:
    """One token a byte, after the special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer
