"""The one tokenizer of the embedded family: byte-level BPE over lower-cased text, so nothing is ever unknown.

Sources: BPE for words, Sennrich et al. 2016; byte-level alphabet and splitting, Radford et al. 2019 (GPT-2);
lower-casing and the bos/eos frame, Radford et al. 2021 (CLIP).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from captory_training.picto.captions import caption, full_caption
from captory_training.picto.kinds import KINDS
from captory_training.picto.scene import sample_scene

VOCAB_SIZE = 1024
CONTEXT_LENGTH = 64  # tokens, bos and eos included: the painter's text encoder
SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|short|>", "<|long|>", "<|rewrite|>", "<|face|>")
PAD_ID, BOS_ID, EOS_ID, SHORT_ID, LONG_ID, REWRITE_ID, FACE_ID = range(len(SPECIAL_TOKENS))

NUM_SCENES = 6_000
PROMPTS = ("a photo of {name}, {caption}", "a photo of a {name}", "a picture of {caption}", "an image of {caption}")
COMMON_WEIGHT = 12  # occurrences of each common word; below the world's words, above chance fragments
COMMON_WORDS = """
airplane airplanes bass bonsai butterfly chandelier grand piano hawksbill turtle ketch starfish sunflower watch kite
person people man woman men women boy girl child children baby group player rider dog cat horse cow sheep bear elephant
zebra giraffe bird duck fish car bus truck train bicycle motorcycle street road sign light traffic building city house
tower clock bridge park bench field grass tree trees flower flowers garden forest mountain hill snow beach sand water
ocean river lake wave boat ship sky cloud sun table chair couch bed room kitchen bathroom window door wall floor
mirror lamp book laptop computer phone television screen keyboard desk plate bowl cup glass bottle fork knife spoon food
pizza sandwich cake fruit apple banana orange vegetables broccoli carrot bread cheese meat hot ball bat tennis baseball
soccer skateboard surfboard ski skis snowboard racket frisbee game hat shirt jacket dress suit tie shoe glasses hair
face eyes smile hand head body umbrella bag suitcase toy bear standing sitting walking riding holding wearing playing
eating looking flying running lying parked driving swimming jumping smiling next to near front back behind above below
under over inside outside top side left right middle between through around across along down with without and or of
in on at by for from the this that is are has have there it its some several many few two three four five six one other
large small big little tall long short old young new black white red green blue yellow orange brown gray grey pink
purple dark bright colorful colourful wooden metal stone brick open close full empty view scene background foreground
photo photograph picture image painting drawing close-up portrait shot day night morning evening sunny cloudy
while as being up out off into his her their very wide high
"""


def world_texts(num_scenes: int) -> Iterator[str]:
    """Yield captions of every quality and prompts made of them, for scenes drawn from seeds of the tokenizer's own."""
    for index in range(num_scenes):
        scene = sample_scene((1 << 40) + index, two_kind_share=0.1)
        short, long = caption(scene, "short", 0), caption(scene, "long", 0)
        yield from (short, long, full_caption(scene), caption(scene, "noisy", 0))
        name = KINDS[index % len(KINDS)].class_name
        yield PROMPTS[index % len(PROMPTS)].format(name=name, caption=short)


def training_texts(num_scenes: int) -> Iterator[str]:
    """Yield the world's texts, then the common words of English captions at their fixed weight.

    Digits are left out: file numbers in noisy captions would take a tenth of the vocabulary.
    """
    for text in world_texts(num_scenes):
        yield re.sub(r"[0-9]", "", text)
    words = sorted(set(COMMON_WORDS.split()))
    for number in range(COMMON_WEIGHT):
        random.Random(number).shuffle(words)
        yield " ".join(words)


def train_tokenizer(num_scenes: int = NUM_SCENES) -> Tokenizer:
    """Train the tokenizer; the special tokens hold ids 0 to 6 and `encode` frames a text as bos, text, eos."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL_TOKENS[BOS_ID]} $A {SPECIAL_TOKENS[EOS_ID]}",
        special_tokens=[(SPECIAL_TOKENS[BOS_ID], BOS_ID), (SPECIAL_TOKENS[EOS_ID], EOS_ID)],
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_texts(num_scenes), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # transformers sets it so when loading
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and the two configuration files that transformers' `from_pretrained` reads."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[PAD_ID],
        bos_token=SPECIAL_TOKENS[BOS_ID],
        eos_token=SPECIAL_TOKENS[EOS_ID],
        additional_special_tokens=list(SPECIAL_TOKENS[SHORT_ID:]),
        model_max_length=CONTEXT_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`; text that spells a special token is read as text, never as the token."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the ids of the bare text, without bos and eos."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def decode(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Return the text of `ids` without special tokens."""
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text.strip()


def main(out: Annotated[Path, typer.Option(help="folder of the tokenizer")]) -> None:
    """Train the tokenizer and write it, unless it is there: every model is tied to its ids."""
    if (out / "tokenizer.json").exists():
        raise typer.BadParameter(f"{out} already holds a tokenizer")
    save_tokenizer(train_tokenizer(), out)


if __name__ == "__main__":
    typer.run(main)
