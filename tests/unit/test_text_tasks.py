"""What the captioner and the writer learn from is true of the scene."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from captory_training.captioner import GRID, augment, grid_positions, patch_labels  # noqa: E402
from captory_training.picto.render import render  # noqa: E402
from captory_training.picto.scene import sample_scene  # noqa: E402
from captory_training.tokenizer import FACE_ID, REWRITE_ID, SHORT_ID  # noqa: E402
from captory_training.writer import TRAITS, draw_task, keeps_facts, traits_of  # noqa: E402


def test_a_rewriting_adds_no_fact() -> None:
    rng = np.random.default_rng(0)
    tasks = [draw_task(sample_scene(seed), rng) for seed in range(300)]
    rewritings = [task for task in tasks if task.task_id == REWRITE_ID]
    assert len(rewritings) > 200
    assert all(keeps_facts(task.source, task.target) for task in rewritings)
    assert sum(task.source == task.target for task in rewritings) < 0.02 * len(rewritings)


def test_short_is_asked_for_by_its_token() -> None:
    rng = np.random.default_rng(1)
    tasks = [draw_task(sample_scene(seed), rng) for seed in range(300)]
    shortened = [task for task in tasks if task.length_id == SHORT_ID]
    assert shortened
    assert all(", lit " not in task.target for task in shortened)


def test_a_bag_of_words_holds_the_sentences_traits() -> None:
    rng = np.random.default_rng(2)
    faces = [scene for scene in map(sample_scene, range(400)) if scene.kind == "face"]
    for task in (draw_task(scene, rng) for scene in faces):
        if task.task_id == FACE_ID:
            words = set(task.source.split(", "))
            assert {trait for trait in TRAITS if words & set(TRAITS[trait])} == traits_of(task.target)


def test_light_skin_is_no_light() -> None:
    assert traits_of("a large face in red with light skin at sea, with light from the left") == {"light skin"}


def test_patch_labels_lie_on_the_object() -> None:
    scene = next(s for s in map(sample_scene, range(500)) if (s.count, s.size, s.position) == (1, "small", "left"))
    covered = patch_labels(scene).reshape(GRID, GRID)
    assert covered[GRID // 2, 1]
    assert not covered[:, GRID // 2 + 1 :].any()


def test_augmentation_keeps_the_picture() -> None:
    images = np.stack([render(sample_scene(seed), 64) for seed in range(4)])
    pixels = augment(images, np.random.default_rng(0))
    assert pixels.shape == (4, 3, 64, 64)
    assert float(pixels.abs().max()) <= 1
    plain = torch.from_numpy(images.transpose(0, 3, 1, 2) / 127.5 - 1)
    assert float((pixels - plain).abs().mean()) < 0.35


def test_grid_positions_differ() -> None:
    positions = grid_positions(8, 32)
    assert positions.shape == (64, 32)
    assert len(torch.unique(positions, dim=0)) == 64
