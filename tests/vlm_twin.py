"""A twin of SmolVLM: the classes of Idefics 3, small, with random weights, and what it says depends on the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

PICTURE = "<image>"
SPECIAL = [PICTURE, "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
SIDE_PX, PATCH_PX, SHUFFLED = 32, 4, 2
NUM_IMAGE_TOKENS = (SIDE_PX // PATCH_PX // SHUFFLED) ** 2
NUM_AROUND = 3  # one before and one after, and that it is the whole picture
MAX_POSITIONS = 512
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
CHAT = (
    "<|bos|>{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text if part.type == 'text' else '<image>' }}{% endfor %}"
    "{% endif %}<end_of_utterance>{% endfor %}{% if add_generation_prompt %}<|long|>{% endif %}"
)


def save(folder: Path, words: Path) -> Path:
    """Write the checkpoint. Its tokenizer is that of the folder `words`, with what stands around and for a picture."""
    settings = {"chat_template": CHAT, "model_max_length": MAX_POSITIONS}
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(words, **settings)
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    tokenizer.save_pretrained(folder)
    _model(tokenizer).save_pretrained(folder, safe_serialization=True)
    _write_processor(folder)
    return folder


def _model(tokenizer: Any) -> Any:
    config = transformers.Idefics3Config(
        vision_config={**SHAPE, "image_size": SIDE_PX, "patch_size": PATCH_PX},
        text_config={
            **SHAPE, "model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": MAX_POSITIONS,
        },
        scale_factor=SHUFFLED, image_token_id=tokenizer.convert_tokens_to_ids(PICTURE),
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(1)  # by which no picture of the sample is told in no words
    model = transformers.Idefics3ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # so wide that what is attended to outweighs the last token
                parameter.copy_(0.4 * torch.randn_like(parameter))
        # A patch on the border of two positions is of the lower one in transformers 4, and of the upper one in vLLM.
        model.model.vision_model.embeddings.position_embedding.weight.zero_()
        head = model.lm_head.weight
        head[~_are_words(tokenizer)] = 0.0  # of hundreds of words one always scores more than nothing
        head[tokenizer.eos_token_id] = 0.65 * torch.randn(head.shape[1])  # the best of all now and then
    return model


def _are_words(tokenizer: Any) -> torch.Tensor:
    """Which ids begin a word; [vocabulary]."""
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    return torch.tensor([piece.startswith("Ġ") and piece[1:].isalpha() for piece in pieces])


def _write_processor(folder: Path) -> None:
    side = {"longest_edge": SIDE_PX}
    image = {"image_processor_type": "Idefics3ImageProcessor", "do_image_splitting": False}
    (folder / "preprocessor_config.json").write_text(json.dumps({**image, "size": side, "max_image_size": side}))
    words = {"processor_class": "Idefics3Processor", "image_seq_len": NUM_IMAGE_TOKENS}
    (folder / "processor_config.json").write_text(json.dumps(words))


class Reference:
    """What transformers makes of the same checkpoint."""

    def __init__(self, folder: Path) -> None:
        self._processor = transformers.Idefics3Processor.from_pretrained(folder, use_fast=False)
        self._model = transformers.Idefics3ForConditionalGeneration.from_pretrained(folder).eval()

    def answer(self, picture: Image.Image, instruction: str, max_tokens: int) -> str:
        """Its greedy answer to a picture and then an instruction."""
        content = [{"type": "image"}, {"type": "text", "text": instruction}]
        asked = [{"role": "user", "content": content}]
        prompt = self._processor.apply_chat_template(asked, chat_template=CHAT, add_generation_prompt=True)
        inputs = self._processor(images=[picture], text=prompt, add_special_tokens=False, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        tokens = self._model.generate(**inputs, do_sample=False, max_new_tokens=max_tokens)
        answered = tokens[0, inputs["input_ids"].shape[1] :]
        return str(self._processor.tokenizer.decode(answered, skip_special_tokens=True))
