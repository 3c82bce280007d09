"""The oracle of the picture world as it ships: an ONNX graph that reads a picture's attributes back.

It is a model folder `picto_reader` of the repository, read with ONNX Runtime directly, since training stands beside the
engine and not on it. The digests of the folder are not checked here: `captory models verify` does that.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

MODEL = "picto_reader"
INPUT = "pixel_values"
SIZE_PX = 64
BATCH_SIZE = 64

Reading = dict[str, str]


class Oracle:
    """Reads kind, colour, count, position and background; the names of the values come from the folder."""

    def __init__(self, repository: Path) -> None:
        """Load the oracle of a repository. Raises `FileNotFoundError` where there is none."""
        folder = repository / MODEL
        self.labels: dict[str, list[str]] = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
        self._session: Any = ort.InferenceSession(str(_graph(folder)), providers=["CPUExecutionProvider"])

    def read(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Reading]:
        """What each picture [H, W, 3] shows; one of another size is scaled to the oracle's."""
        readings: list[Reading] = []
        for start in range(0, len(pictures), BATCH_SIZE):
            readings += self._read_batch(pictures[start : start + BATCH_SIZE])
        return readings

    def _read_batch(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Reading]:
        pixels = np.stack([_fitted(picture) for picture in pictures])  # [B, H, W, 3]
        values = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - np.float32(1)
        logits = self._session.run(list(self.labels), {INPUT: values})
        best = {name: rows.argmax(-1) for name, rows in zip(self.labels, logits, strict=True)}
        return [{name: self.labels[name][best[name][row]] for name in self.labels} for row in range(len(pictures))]


def _graph(folder: Path) -> Path:
    """The graph of the highest version."""
    versions = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
    if not versions:
        raise FileNotFoundError(f"{folder} has no numbered version")
    return folder / str(max(versions)) / "model.onnx"


def _fitted(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if picture.shape[:2] == (SIZE_PX, SIZE_PX):
        return picture
    return np.asarray(Image.fromarray(picture).resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS))
