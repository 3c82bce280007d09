"""The writer of the embedded family: a small Qwen2 (arXiv 2407.10671) that words captions anew and describes faces.

Two tasks, chosen by a special token, as one language model:
`<|bos|><|rewrite|>{caption}<|long|>{the same scene in other words}<|eos|>` (rewriting as in Lei et al. 2023, arXiv
2307.08526) and `<|bos|><|face|>{bag of words}<|long|>{sentence}<|eos|>` (Tarasiou et al. 2024, arXiv 2405.10864).
`<|long|>` keeps every fact of the caption, `<|short|>` in its place asks for few words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from captory_training.checkpoint import seal
from captory_training.picto.captions import caption, full_caption
from captory_training.picto.reading import read_caption
from captory_training.picto.scene import HAIRS, SKINS, Scene, sample_scene
from captory_training.picto.words import AGE_WORDS, BACKGROUND_PHRASES, LIGHT_PHRASES, POSITION_PHRASES
from captory_training.tokenizer import (
    BOS_ID,
    EOS_ID,
    FACE_ID,
    LONG_ID,
    PAD_ID,
    REWRITE_ID,
    SHORT_ID,
    VOCAB_SIZE,
    decode,
    encode,
    load_tokenizer,
)
from captory_training.trainer import Draw, Plan, Progress, Trainer

MAX_NEW_TOKENS = 48
SAMPLING = {"temperature": 0.8, "top_k": 40}
TEMPLATES = {"rewrite": "<|bos|><|rewrite|>{text}<|long|>", "face": "<|bos|><|face|>{text}<|long|>"}
MAX_POSITIONS = 128  # source, target and four special tokens
FACE_SHARE = 0.15
IGNORED = -100  # the label that cross entropy skips
NUM_SCENES = 1 << 20
SCENE_SEED = 5 << 40
FRESH_SEED = 6 << 40  # scenes for evaluation

FACTS = ("kind", "colour", "count", "position", "background")  # of a `CaptionReading`
TRAITS: dict[str, tuple[str, ...]] = {
    **{word: (word,) for word in AGE_WORDS.values()},
    **{f"{hair} hair": (f"{hair} hair",) for hair in HAIRS if hair != "none"},
    "no hair": ("no hair", "bald"),
    **{f"{skin} skin": (f"{skin} skin",) for skin in SKINS},
    "glasses": ("glasses", "eyeglasses", "wearing glasses"),
    "a beard": ("beard", "a beard"),
    "a hat": ("hat", "wearing hat", "a hat"),
    "a smile": ("smile", "smiling", "a smile"),
}
"""What a long caption may say of a face, and how a bag of words may put it."""


class Task(NamedTuple):
    """One example: the task's token, the text to read, the length's token, the text to write."""

    task_id: int
    source: str
    length_id: int
    target: str


def build_qwen2() -> Qwen2ForCausalLM:
    """Return the untrained model: 4 layers, grouped attention, tied embeddings, 0.82M parameters."""
    config = Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.04,
        tie_word_embeddings=True,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    return Qwen2ForCausalLM(config)


def traits_of(text: str) -> frozenset[str]:
    """Return the face traits that a caption names."""
    return frozenset(trait for trait in TRAITS if re.search(rf"\b{trait}\b", text))


def keeps_facts(source: str, target: str) -> bool:
    """Say whether `target` names nothing that `source` does not."""
    said, told = read_caption(source), read_caption(target)
    same_place = told.background in (None, said.background)
    return same_place and traits_of(target) <= traits_of(source)


def draw_task(scene: Scene, rng: np.random.Generator) -> Task:
    """Return one example about `scene`: a bag of words to a sentence for some faces, else a rewriting."""
    if scene.kind == "face" and rng.random() < 0.7:
        sentence = caption(scene, "long", _seed(rng))
        return Task(FACE_ID, bag_of_words(scene, sentence, rng), LONG_ID, sentence)
    length = "short" if rng.random() < 0.25 else "long"
    source = full_caption(scene) if length == "long" and rng.random() < 0.2 else caption(scene, length, _seed(rng))
    wanted = "short" if rng.random() < 0.2 else length
    target = next(_wordings(scene, source, wanted, rng), source)
    shortened = wanted == "short" and (length == "long" or rng.random() < 0.3)
    return Task(REWRITE_ID, source, SHORT_ID if shortened else LONG_ID, target)


def _wordings(scene: Scene, source: str, length: str, rng: np.random.Generator) -> Iterator[str]:
    for _ in range(12):
        text = caption(scene, length, _seed(rng))
        if text != source and keeps_facts(source, text):
            yield text


def bag_of_words(scene: Scene, sentence: str, rng: np.random.Generator) -> str:
    """Return the sentence's facts as words in any order; what is not the face's own may be missing."""
    traits = [_pick(rng, TRAITS[trait]) for trait in sorted(traits_of(sentence))]
    others = {
        "colour": scene.colour,
        "size": scene.size,
        "background": _pick(rng, (scene.background, *BACKGROUND_PHRASES[scene.background])),
        "position": _pick(rng, (scene.position, *POSITION_PHRASES[scene.position])),
        "light": _pick(rng, LIGHT_PHRASES[scene.light]),
    }
    kept = [word for name, word in others.items() if rng.random() < (0.8 if name == "colour" else 0.5)]
    number = ["one face", "two faces", "three faces", "four faces"][scene.count - 1]
    head = [number] if scene.count > 1 or rng.random() < 0.3 else (["face"] if rng.random() < 0.5 else [])
    words = [*traits, *kept]
    return ", ".join([*head, *(words[index] for index in rng.permutation(len(words)))])


def prompt_ids(tokenizer: Tokenizer, task_id: int, source: str, length_id: int) -> list[int]:
    """Return the ids before the text to write."""
    return [BOS_ID, task_id, *encode(tokenizer, source), length_id]


class WriterLoss:
    """The loss of one step: next-token prediction on the texts to write."""

    def __init__(self, model: Any, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer = model, tokenizer

    def __call__(self, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        """Return the loss over the scenes of `draw`."""
        rng = np.random.default_rng(draw.generator.initial_seed())
        tasks = [draw_task(_draw_scene(SCENE_SEED + int(index), rng), rng) for index in draw.indices]
        prompts = [prompt_ids(self.tokenizer, task.task_id, task.source, task.length_id) for task in tasks]
        targets = [[*encode(self.tokenizer, task.target), EOS_ID] for task in tasks]
        length = max(len(prompt) + len(target) for prompt, target in zip(prompts, targets, strict=True))
        input_ids = torch.full((len(tasks), length), PAD_ID)
        labels = torch.full((len(tasks), length), IGNORED)
        for row, (prompt, target) in enumerate(zip(prompts, targets, strict=True)):
            end = len(prompt) + len(target)
            input_ids[row, :end] = torch.tensor([*prompt, *target])
            labels[row, len(prompt) : end] = torch.tensor(target)
        return self.model(input_ids=input_ids, labels=labels).loss, {}


def _draw_scene(seed: int, rng: np.random.Generator) -> Scene:
    """Return the seed's scene; some draws are made faces by looking further."""
    scene = sample_scene(seed)
    if rng.random() < FACE_SHARE:
        while scene.kind != "face":
            seed += NUM_SCENES
            scene = sample_scene(seed)
    return replace(scene, seed=seed)


@torch.no_grad()
def write(
    model: Any, prompts: list[list[int]], tokenizer: Tokenizer, *, sampled: bool = True, seed: int = 0
) -> list[str]:
    """Write after each prompt, sampled or greedily. Prompts of one length share a batch, so none is padded."""
    torch.manual_seed(seed)
    texts: dict[int, str] = {}
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [index for index, prompt in enumerate(prompts) if len(prompt) == length]
        batch = torch.tensor([prompts[index] for index in rows])
        sampling = {"do_sample": True, **SAMPLING} if sampled else {"do_sample": False}
        output = model.generate(batch, attention_mask=torch.ones_like(batch), max_new_tokens=MAX_NEW_TOKENS, **sampling)
        texts |= {index: decode(tokenizer, row) for index, row in zip(rows, output[:, length:].tolist(), strict=True)}
    return [texts[index] for index in range(len(prompts))]


def evaluate(model: Any, tokenizer: Tokenizer, num_scenes: int, *, sampled: bool = True) -> dict[str, float]:
    """Rewrite captions of fresh scenes and put bags of words into sentences: what is kept, what is new, how diverse."""
    rng = np.random.default_rng(FRESH_SEED)
    scenes = [sample_scene(FRESH_SEED + index) for index in range(num_scenes)]
    sources = [caption(scene, "long", 0) for scene in scenes]
    prompts = [prompt_ids(tokenizer, REWRITE_ID, source, LONG_ID) for source in sources]
    rewritten = write(model, prompts, tokenizer, sampled=sampled)
    said, told = [read_caption(text) for text in sources], [read_caption(text) for text in rewritten]
    five = write(model, prompts[:64] * 5, tokenizer, sampled=sampled, seed=1)
    drawn = (sample_scene(FRESH_SEED + index) for index in range(8 * num_scenes))
    faces = [scene for scene in drawn if scene.kind == "face"][: num_scenes // 2]
    sentences = [caption(scene, "long", 1) for scene in faces]
    bags = [bag_of_words(scene, sentence, rng) for scene, sentence in zip(faces, sentences, strict=True)]
    bag_prompts = [prompt_ids(tokenizer, FACE_ID, bag, LONG_ID) for bag in bags]
    written = write(model, bag_prompts, tokenizer, sampled=sampled)
    pairs = list(zip(sources, rewritten, strict=True))
    readings = list(zip(said, told, strict=True))
    return {
        **{name: float(np.mean([getattr(a, name) == getattr(b, name) for a, b in readings])) for name in FACTS},
        "kind_and_colour": float(np.mean([(a.kind, a.colour) == (b.kind, b.colour) for a, b in readings])),
        "adds_nothing": float(np.mean([keeps_facts(source, text) for source, text in pairs])),
        "new_words": float(np.mean([source != text for source, text in pairs])),
        "distinct_of_5": float(np.mean([len(set(five[row::64])) / 5 for row in range(64)])),
        "face_traits": float(np.mean([traits_of(a) == traits_of(b) for a, b in zip(sentences, written, strict=True)])),
        "n": num_scenes,
        "n_faces": len(faces),
    }


def save(model: Any, tokenizer_folder: Path, out: Path) -> None:
    """Write the model as half-precision safetensors, with its generation settings and tokenizer, sealed."""
    model.generation_config.update(do_sample=True, max_new_tokens=MAX_NEW_TOKENS, **SAMPLING)
    model.half().save_pretrained(out, safe_serialization=True)
    for path in tokenizer_folder.iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    examples = [("rewrite", caption(sample_scene(FRESH_SEED + index), "long", 0)) for index in range(64)]
    settings = {"templates": TEMPLATES, **SAMPLING, "max_new_tokens": MAX_NEW_TOKENS, "examples": examples}
    (out / "captory.json").write_text(json.dumps(settings, indent=2) + "\n")
    seal(out)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 31))


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]


def main(
    out: Annotated[Path, typer.Option(help="folder of the run; the model is written to its subfolder model")],
    tokenizer: Annotated[Path, typer.Option(help="folder of the tokenizer")] = Path("tokenizer"),
    max_minutes: float = 27.0,
    seed: int = 0,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    num_threads: int = 1,
) -> None:
    """Train the writer on captions of drawn scenes, evaluate it on fresh ones, and write it as a checkpoint."""
    torch.set_num_threads(num_threads)
    torch.manual_seed(seed)
    words = load_tokenizer(tokenizer / "tokenizer.json")
    model: Any = build_qwen2()
    plan = Plan(
        seed=seed,
        batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=100,
        weight_decay=0.03,
        ema_decay=0.995,
        max_minutes=max_minutes,
        probe_minutes=3.0,
    )

    def probe(trained: nn.Module, progress: Progress) -> dict[str, float]:
        return evaluate(trained, words, 128)

    model.load_state_dict(Trainer(model, WriterLoss(model, words), NUM_SCENES, plan, out, probe=probe).run())
    model.eval()
    quality = {"sampled": evaluate(model, words, 512), "greedy": evaluate(model, words, 512, sampled=False)}
    quality["model"] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    (out / "quality.json").write_text(json.dumps(quality, indent=2))
    save(model, tokenizer, out / "model")
    typer.echo(json.dumps(quality))


if __name__ == "__main__":
    typer.run(main)
