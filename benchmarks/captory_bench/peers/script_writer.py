"""The writer as a script calls it: transformers' `generate`, sampled, a batch of captions at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from captory_engine.prompts import accept_rewrite, clean_model_text

MAX_ATTEMPTS = 4  # as many as Captory makes; then the caption stands as it is


class ScriptWriter:
    """The language model of a checkpoint folder, in float32."""

    def __init__(self, folder: Path) -> None:
        self._spec = json.loads((folder / "captory.json").read_text())
        self._tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
        self._model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def rewrite(self, captions: Sequence[str]) -> list[str]:
        """Rewritten captions; those that are refused are tried again together."""
        texts, refused = list(captions), list(range(len(captions)))
        for _ in range(MAX_ATTEMPTS):
            found = self._generate([captions[place] for place in refused])
            texts_by_place = dict(zip(refused, found, strict=True))
            refused = [place for place, text in texts_by_place.items() if not accept_rewrite(text)]
            for place in texts_by_place.keys() - set(refused):
                texts[place] = texts_by_place[place]
            if not refused:
                break
        return texts

    def _generate(self, captions: Sequence[str]) -> list[str]:
        template = self._spec["templates"]["rewrite"]
        asked = [template.replace("{text}", caption) for caption in captions]
        inputs = self._tokenizer(asked, return_tensors="pt", padding=True, add_special_tokens=False)
        tokens = self._model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=self._spec["max_new_tokens"],
            do_sample=True,
            temperature=self._spec["temperature"],
            top_k=self._spec["top_k"],
        )
        written = self._tokenizer.batch_decode(tokens[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        return [clean_model_text(text) for text in written]
