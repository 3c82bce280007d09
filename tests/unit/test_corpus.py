"""The corpus on disk: the same scenes and pictures whatever killed or split the drawing."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tqdm")

from captory_training import corpus as corpora
from captory_training.corpus import ATTRIBUTES, Corpus, scene_labels


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "BLOCK", 4)


def test_it_is_deterministic(tmp_path: Path) -> None:
    first = Corpus.open(tmp_path / "a", 6, seed=3, num_workers=1)
    second = Corpus.open(tmp_path / "b", 6, seed=3, num_workers=1)
    other = Corpus.open(tmp_path / "c", 6, seed=4, num_workers=1)
    assert np.array_equal(first.images, second.images)
    assert first.records == second.records
    assert not np.array_equal(first.images, other.images)


def test_it_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    whole = Corpus.open(tmp_path / "whole", 10, num_workers=1)
    expected, blocks = np.array(whole.images), sorted((whole.folder / "scenes").iterdir())
    images = np.load(whole.folder / "images.npy", mmap_mode="r+")
    images[4:8] = 0
    images.flush()
    blocks[1].unlink()
    again = Corpus.open(tmp_path / "whole", 10, num_workers=1)
    assert np.array_equal(again.images, expected)
    assert len(again.records) == 10


def test_labels_are_the_scenes(tmp_path: Path) -> None:
    corpus = Corpus.open(tmp_path, 5, num_workers=1)
    for index in range(5):
        found = {name: int(corpus.labels[name][index]) for name in ATTRIBUTES}
        assert found == scene_labels(corpus.scene(index))


def test_a_folder_keeps_one_recipe(tmp_path: Path) -> None:
    Corpus.open(tmp_path, 5, num_workers=1)
    with pytest.raises(ValueError, match="another corpus"):
        Corpus.open(tmp_path, 5, seed=1, num_workers=1)
