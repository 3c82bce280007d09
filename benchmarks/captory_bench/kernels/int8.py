"""int8 beside fp32 for captioner and writer of the picture world: time, texts and what the texts get right.

Only what leaves a row independent of its mates is tried: 8-bit weights for the token decoders, and static scales, one a
tensor, for the image encoder. Dynamic scales take one a tensor over the whole batch.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from captory_bench.kernels.measure import plausible_inputs
from captory_engine.family import Captioner, Family, find_family
from captory_engine.repository import ModelFolder, open_model
from captory_engine.sessions.base import Array
from captory_engine.tokenizer import Tokenizer

NUM_CALIBRATION = 128
BATCH = 64
ATTRIBUTES = ("kind", "colour", "count", "position")
CALIBRATION_SEED, SCENES_SEED = 99, 1
WEIGHTS, STATIC = "8-bit weights in blocks of 32", "8-bit weights and activations, static scales"


@dataclass(frozen=True, slots=True)
class Scenes:
    """Scenes with their pictures as the captioner takes them, [N, 3, S, S], and short captions for the writer."""

    truths: list[Any]
    pixel_values: Array
    captions: list[str]


def compare(repository: Path, name: str, *, num_scenes: int, num_rows: int, num_rounds: int) -> dict[str, Any]:
    """Time of int8 over fp32 on one thread, share of same texts, share of attributes right, by graph."""
    try:
        import onnx  # noqa: F401  # ONNX Runtime's quantiser needs it
    except ImportError:
        return {"missing": "onnx is not installed; the extra `bench` brings it"}
    root, family = find_family(repository, name)
    captioner = family.captioner
    if captioner is None:
        return {"missing": "the family has no captioner of its own"}
    scenes = _scenes(num_scenes, SCENES_SEED)
    vision, decoder = (open_model(root, model) for model in (captioner.vision, captioner.decoder))
    graphs: dict[str, Any] = {}
    logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)
    with TemporaryDirectory() as folder:
        quantised = {stage: Path(folder) / f"{stage}.onnx" for stage in ("vision", "caption", "write")}
        _quantise_static(vision.model_path, quantised["vision"], _scenes(NUM_CALIBRATION, CALIBRATION_SEED))
        _quantise_weights(decoder.model_path, quantised["caption"])
        base = _captions(captioner, vision.model_path, decoder.model_path, scenes)
        for stage, how, paths, model, positions in (
            ("vision", STATIC, (quantised["vision"], decoder.model_path), vision, 0),
            ("caption", WEIGHTS, (vision.model_path, quantised["caption"]), decoder, captioner.max_positions),
        ):
            texts = _captions(captioner, *paths, scenes)
            ratio = _time_ratio(model, quantised[stage], positions, num_rows, num_rounds)
            graphs[stage] = _figures(how, ratio, base, texts, Tokenizer(root / captioner.tokenizer), scenes)
        if writer := family.writer:
            model = open_model(root, writer.decoder)
            _quantise_weights(model.model_path, quantised["write"])
            words = Tokenizer(root / writer.tokenizer)
            base, texts = (_written(family, words, path, scenes) for path in (model.model_path, quantised["write"]))
            ratio = _time_ratio(model, quantised["write"], writer.max_positions, num_rows, num_rounds)
            graphs["write"] = _figures(WEIGHTS, ratio, base, texts, words, scenes)
    return {"num_scenes": num_scenes, "graphs": graphs}


def _figures(
    how: str, ratio: float, base: list[list[int]], found: list[list[int]], words: Tokenizer, scenes: Scenes
) -> dict[str, Any]:
    same = sum(a == b for a, b in zip(base, found, strict=True)) / len(base)
    right = {name: _share_right(ids, words, scenes) for name, ids in (("fp32", base), ("int8", found))}
    return {"how": how, "time_over_fp32": ratio, "same_texts": same, "right": right}


def _share_right(texts: list[list[int]], words: Tokenizer, scenes: Scenes) -> float:
    """The share of attributes of the scenes that the texts name rightly."""
    from captory_training.picto.reading import read_caption

    pairs = list(zip(map(read_caption, map(words.decode, texts)), scenes.truths, strict=True))
    return float(np.mean([getattr(read, name) == getattr(true, name) for read, true in pairs for name in ATTRIBUTES]))


def _scenes(num: int, seed: int) -> Scenes:
    from captory_training.evaluation import fresh_scenes
    from captory_training.picto.captions import full_caption
    from captory_training.picto.render import render

    truths = fresh_scenes(num, seed)
    pixels = np.stack([render(scene) for scene in truths]).astype(np.float32)
    return Scenes(truths, pixels.transpose(0, 3, 1, 2) / 127.5 - 1, [full_caption(scene) for scene in truths])


def _captions(spec: Captioner, vision: Path, decoder: Path, scenes: Scenes) -> list[list[int]]:
    """New ids of greedy long captions."""
    encoder = _runtime(vision)
    ids: list[list[int]] = []
    for start in range(0, len(scenes.truths), BATCH):
        pixel_values = scenes.pixel_values[start : start + BATCH]
        keys, values = encoder.run(["cross_keys", "cross_values"], {"pixel_values": pixel_values})
        prompts = [spec.prefixes["long"]] * len(pixel_values)
        ids += _decoded(spec, decoder, prompts, {"cross_keys": keys, "cross_values": values})
    return ids


def _written(family: Family, words: Tokenizer, decoder: Path, scenes: Scenes) -> list[list[int]]:
    """New ids of greedy rewritten captions."""
    spec = family.writer
    assert spec is not None
    before, after = map(words.template_ids, spec.templates["rewrite"].split("{text}"))
    prompts = [[*before, *words.encode(text), *after] for text in scenes.captions]
    batches = (prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH))
    return [ids for batch in batches for ids in _decoded(spec, decoder, batch, None)]


def _decoded(spec: Any, decoder: Path, prompts: Sequence[Sequence[int]], cross: Any) -> list[list[int]]:
    from captory_export.decoding import decode_greedily

    limits = {"max_new_tokens": spec.max_new_tokens, "max_positions": spec.max_positions, "eos_id": spec.eos_id}
    return decode_greedily(_runtime(decoder), prompts, cross=cross, **limits).ids


def _time_ratio(model: ModelFolder, quantised: Path, positions: int, num_rows: int, num_rounds: int) -> float:
    """Time of the quantised graph over that of the shipped one, runs in turn, in CPU time of this thread."""
    inputs = plausible_inputs(model.inputs, num_rows, positions)
    runtimes = [_runtime(path) for path in (model.model_path, quantised)]
    ratios = []
    for _ in range(10 * num_rounds):
        plain_s, int8_s = (_timed(runtime, inputs) for runtime in runtimes)
        ratios.append(int8_s / plain_s)
    return median(ratios)


def _timed(runtime: Any, inputs: Mapping[str, Array]) -> float:
    started = time.thread_time()
    runtime.run(None, inputs)
    return time.thread_time() - started


def _quantise_weights(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=8, accuracy_level=4)
    quantiser = MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
    quantiser.process()
    quantised: Any = quantiser.model  # it starts as a model and ends as a wrapper of one
    onnx.save(quantised.model, target)


def _quantise_static(source: Path, target: Path, scenes: Scenes) -> None:
    """Seven bits for weights: eight would overflow the 16-bit sums of CPUs without VNNI."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):  # type: ignore[misc]  # untyped
        def __init__(self) -> None:
            self.batches: Iterator[Array] = iter(np.split(scenes.pixel_values, NUM_CALIBRATION // 16))

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {"pixel_values": batch}

    quantize_static(
        source,
        target,
        Pictures(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm"],
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,
        extra_options={"MatMulConstBOnly": True},
    )


def _runtime(path: Path) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
