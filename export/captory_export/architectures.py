"""Which checkpoints can be exported: by role, and by what a checkpoint's own configuration calls itself.

All go through `torch.onnx.export`. Optimum knows some of them, but not the engine's contract: its UNets take one
timestep a batch and its decoders own their caches (docs/export.md).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

from captory_engine.errors import BadModel
from captory_export.checkpoints import INDEX, Checkpoint

Role = Literal["captioner", "writer", "painter"]
CONFIG: dict[Role, tuple[str, str]] = {  # the file that tells the architecture, and the key
    "captioner": ("config.json", "model_type"),
    "writer": ("config.json", "model_type"),
    "painter": (INDEX, "_class_name"),
}
ARCHITECTURES: dict[Role, dict[str, str]] = {
    "captioner": {
        "blip": "captory_export.captioners.blip:open_blip",
        "blip-2": "captory_export.captioners.blip2:open_blip2",
        "vision-encoder-decoder": "captory_export.captioners.vit_gpt2:open_vit_gpt2",
    },
    "writer": {
        "llama": "captory_export.writers.language_model:open_language_model",
        "qwen2": "captory_export.writers.language_model:open_language_model",
    },
    "painter": {
        "StableDiffusionPipeline": "captory_export.painters.stable_diffusion:open_stable_diffusion",
        "StableDiffusionXLPipeline": "captory_export.painters.stable_diffusion_xl:open_stable_diffusion_xl",
        "StableDiffusion3Pipeline": "captory_export.painters.stable_diffusion_3:open_stable_diffusion_3",
    },
}
HEADS = {  # the class of a checkpoint, where others with other heads call themselves the same
    "blip": "BlipForConditionalGeneration",
    "blip-2": "Blip2ForConditionalGeneration",
    "vision-encoder-decoder": "VisionEncoderDecoderModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}


def find_architecture(role: Role, checkpoint: Checkpoint) -> Callable[..., Any]:
    """What opens a checkpoint of that role as an `Exportable`. Raises `BadModel` for what the table lacks."""
    file, key = CONFIG[role]
    settings = checkpoint.settings(file)
    name = str(settings.get(key, ""))
    if name not in ARCHITECTURES[role]:
        known = ", ".join(ARCHITECTURES[role])
        raise BadModel("ARCHITECTURE", f"{checkpoint.name} is of architecture {name!r}; as {role}: {known}.")
    heads, wanted = settings.get("architectures"), HEADS.get(name)
    if heads and heads != [wanted]:
        told = heads[0] if isinstance(heads, list) else heads
        words = f"{checkpoint.name} is a {told}; as {role} of architecture {name!r} it must be a {wanted}"
        raise BadModel("ARCHITECTURE", f"{words}.")
    module, _, function = ARCHITECTURES[role][name].partition(":")
    opener: Callable[..., Any] = getattr(import_module(module), function)
    return opener
