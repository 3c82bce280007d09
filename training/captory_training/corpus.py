"""A corpus of drawn scenes on disk: rendered once, in parallel, and read through a memory map.

`images.npy` is uint8 [N, 64, 64, 3]; `scenes/*.jsonl` holds one scene a line, a file a block. A block's file is written
(atomically) after its pixels, so its presence means that the block is done, and a killed run goes on where it was.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from tqdm import tqdm

from captory_training.picto.kinds import KINDS
from captory_training.picto.render import render
from captory_training.picto.scene import BACKGROUNDS, COLOURS, COUNTS, POSITIONS, Scene, sample_scene

SIZE_PX = 64
BLOCK = 500  # scenes
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "kind": tuple(kind.key for kind in KINDS),
    "colour": tuple(COLOURS),
    "count": tuple(str(count) for count in COUNTS),
    "position": tuple(POSITIONS),
    "background": tuple(BACKGROUNDS),
}


@dataclass(frozen=True)
class Recipe:
    """What the corpus is drawn from; scene `i` is a pure function of it."""

    seed: int = 0
    two_kind_share: float = 0.0
    single_share: float = 0.55

    def scene(self, index: int) -> Scene:
        """Return scene number `index`."""
        seed = (self.seed << 32) + index
        return sample_scene(seed, two_kind_share=self.two_kind_share, single_share=self.single_share)


class Corpus:
    """Scenes with their pictures and labels."""

    def __init__(self, folder: Path, num_scenes: int, recipe: Recipe) -> None:
        """Name a rendered corpus; use `open` to render what is missing."""
        self.folder, self.num_scenes, self.recipe = folder, num_scenes, recipe

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.num_scenes

    @classmethod
    def open(
        cls,
        folder: Path,
        num_scenes: int,
        seed: int = 0,
        *,
        two_kind_share: float = 0.0,
        single_share: float = 0.55,
        num_workers: int = 2,
    ) -> Corpus:
        """Return the corpus in `folder`, drawing the blocks that are not there yet."""
        recipe = Recipe(seed, two_kind_share, single_share)
        _claim(folder, num_scenes, recipe)
        blocks = [block for block in range(_num_blocks(num_scenes)) if not _block_path(folder, block).exists()]
        jobs = [(folder, block, num_scenes, recipe) for block in blocks]
        if num_workers > 1 and len(jobs) > 1:
            with ProcessPoolExecutor(num_workers) as pool:
                list(tqdm(pool.map(_draw_block, jobs), total=len(jobs), desc="corpus"))
        else:
            for job in jobs:
                _draw_block(job)
        return cls(folder, num_scenes, recipe)

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        """The pictures, [N, 64, 64, 3], as a read-only memory map."""
        images: NDArray[np.uint8] = np.load(self.folder / "images.npy", mmap_mode="r")
        return images

    def scene(self, index: int) -> Scene:
        """Return scene number `index`."""
        return self.recipe.scene(index)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The scenes as they were written down, one dictionary each."""
        paths = [_block_path(self.folder, block) for block in range(_num_blocks(self.num_scenes))]
        return [json.loads(line) for path in paths for line in path.read_text().splitlines()]

    @cached_property
    def labels(self) -> dict[str, NDArray[np.int64]]:
        """For each attribute the index of its value, [N]."""
        return {
            name: np.array([values.index(str(record["labels"][name])) for record in self.records], dtype=np.int64)
            for name, values in ATTRIBUTES.items()
        }


def scene_labels(scene: Scene) -> dict[str, int]:
    """Return the index of each attribute's value for the scene's main group."""
    return {name: values.index(str(getattr(scene, name))) for name, values in ATTRIBUTES.items()}


def _claim(folder: Path, num_scenes: int, recipe: Recipe) -> None:
    """Make the folder this recipe's, or refuse when it is another's."""
    (folder / "scenes").mkdir(parents=True, exist_ok=True)
    claim = json.dumps({"num_scenes": num_scenes, **asdict(recipe)})
    path = folder / "corpus.json"
    if path.exists():
        if path.read_text() != claim:
            raise ValueError(f"{folder} holds another corpus: {path.read_text()}")
        return
    np.lib.format.open_memmap(
        folder / "images.npy", mode="w+", dtype=np.uint8, shape=(num_scenes, SIZE_PX, SIZE_PX, 3)
    ).flush()
    _write_atomically(path, claim)


def _draw_block(job: tuple[Path, int, int, Recipe]) -> None:
    folder, block, num_scenes, recipe = job
    images = np.load(folder / "images.npy", mmap_mode="r+")
    lines = []
    for index in range(block * BLOCK, min(num_scenes, (block + 1) * BLOCK)):
        scene = recipe.scene(index)
        images[index] = render(scene, SIZE_PX)
        lines.append(
            json.dumps({**scene.to_dict(), "labels": {name: str(getattr(scene, name)) for name in ATTRIBUTES}})
        )
    images.flush()
    _write_atomically(_block_path(folder, block), "\n".join(lines) + "\n")


def _num_blocks(num_scenes: int) -> int:
    return -(-num_scenes // BLOCK)


def _block_path(folder: Path, block: int) -> Path:
    return folder / "scenes" / f"{block:05d}.jsonl"


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def main(
    out: Annotated[Path, typer.Option(help="folder of the corpus")],
    num_scenes: int = 80_000,
    seed: int = 0,
    two_kind_share: float = 0.0,
    single_share: float = 0.55,
    num_workers: int = 2,
) -> None:
    """Draw a corpus of scenes."""
    corpus = Corpus.open(
        out, num_scenes, seed, two_kind_share=two_kind_share, single_share=single_share, num_workers=num_workers
    )
    typer.echo(f"{len(corpus)} scenes in {out}")


if __name__ == "__main__":
    typer.run(main)
