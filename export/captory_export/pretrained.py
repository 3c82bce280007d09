"""A checkpoint's model as transformers has it, in single precision, and its own greedy decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from captory_engine.errors import BadModel
from captory_export.checkpoints import Checkpoint
from captory_export.decoding import Decoded, until_eos

UNUSED = ".pooler."  # of weights that no caption or text depends on
CONFIG, GENERATION = "config.json", "generation_config.json"


def read_config(checkpoint: Checkpoint) -> Any:
    """The configuration object, its defaults filled in. Raises `BadModel`."""
    from transformers import AutoConfig

    if "quantization_config" in checkpoint.settings(CONFIG):
        raise BadModel("QUANTISED", f"{checkpoint.name} has quantised weights; export the checkpoint that it is of.")
    try:
        return AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise BadModel("CHECKPOINT_CORRUPT", f"The {CONFIG} of {checkpoint.name} does not hold: {error}") from error


def generation_settings(checkpoint: Checkpoint) -> dict[str, Any]:
    """How the checkpoint wants to be decoded; empty where it does not say."""
    return checkpoint.settings(GENERATION) if (checkpoint.path / GENERATION).is_file() else {}


def special_ids(checkpoint: Checkpoint, name: str, *configs: Any) -> list[int]:
    """The ids of a special token, of which a model may have several: from the configurations, then how to generate.

    Raises `BadModel` where none is told.
    """
    told = [settings.get(name) for settings in (*map(vars, configs), generation_settings(checkpoint))]
    flat = [one for ids in told for one in (ids if isinstance(ids, list) else [ids])]
    known = [one for one in flat if isinstance(one, int) and one >= 0]
    if not known:
        raise BadModel("TOKEN_UNKNOWN", f"{checkpoint.name} tells no {name}: add it to {CONFIG} or {GENERATION}.")
    return known


def refuse(checkpoint: Checkpoint, found: Mapping[str, bool]) -> None:
    """Raise `BadModel` when anything is found that the graphs would compute wrongly; the keys are words for it."""
    words = [name for name, is_there in found.items() if is_there]
    if words:
        raise BadModel("UNSUPPORTED", f"{checkpoint.name} has {' and '.join(words)}, which cannot be exported yet.")


def load(model_class: Any, checkpoint: Checkpoint, folder: str = "") -> Any:
    """A model of transformers or diffusers, ready to infer; of a pipeline, the one in `folder`.

    Raises `BadModel` when weights are missing or do not fit the configuration.
    """
    whose = f"{folder!r} of {checkpoint.name}" if folder else checkpoint.name
    own: dict[str, Any] = {"torch_dtype": torch.float32}  # transformers calls it otherwise
    if model_class.__module__.startswith("transformers."):
        own = {"dtype": torch.float32, "trust_remote_code": False}
    try:
        model, told = model_class.from_pretrained(
            checkpoint.path / folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **own
        )
    except (OSError, RuntimeError, ValueError) as error:
        words = f"The weights of {whose} are not there, or do not fit its {CONFIG}."
        raise BadModel("CHECKPOINT_CORRUPT", words) from error
    missing = sorted(name for name in told["missing_keys"] if UNUSED not in name)
    if missing:
        words = f"{whose} lacks {len(missing)} of its weights: {', '.join(missing[:3])}."
        raise BadModel("CHECKPOINT_INCOMPLETE", words)
    return model.eval()


def decode_reference(
    model: Any, inputs: Mapping[str, Tensor], *, bos_id: int, eos_id: int, pad_id: int, max_new_tokens: int
) -> Decoded:
    """Let transformers decode the most likely tokens, whatever the checkpoint's generation_config.json would do."""
    from transformers import GenerationConfig

    plain = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        bos_token_id=bos_id,
        decoder_start_token_id=bos_id,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
        output_logits=True,
        return_dict_in_generate=True,
    )
    output = model.generate(**inputs, generation_config=plain, use_model_defaults=False)
    logits = torch.stack(output.logits, dim=1)  # [B, steps, V]
    new_ids = output.sequences[:, -logits.shape[1] :]
    return until_eos(new_ids.numpy(), logits.numpy(), eos_id)
