"""The painter's training parts: the autoencoder's normalisation, timesteps, captions and the memory of text states."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from captory_training import autoencoder, painter, painter_text, reader  # noqa: E402
from captory_training.corpus import ATTRIBUTES, Recipe  # noqa: E402
from captory_training.picto.scene import sample_scene  # noqa: E402

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tiny_autoencoder() -> autoencoder.Autoencoder:
    torch.manual_seed(0)
    return autoencoder.build(widths=(16, 16)).eval()


def test_pixels_survive_the_way_to_tensors_and_back() -> None:
    assert np.array_equal(autoencoder.to_images(autoencoder.to_tensor(IMAGES)), IMAGES)


def test_normalising_the_latents_changes_no_picture(tiny_autoencoder: autoencoder.Autoencoder) -> None:
    images = autoencoder.to_tensor(IMAGES)
    with torch.no_grad():
        before = tiny_autoencoder.decode(tiny_autoencoder.encode(images))
        autoencoder.normalise(tiny_autoencoder, IMAGES)
        latents = tiny_autoencoder.encode(images)
        after = tiny_autoencoder.decode(latents)
    assert latents.shape == (6, 8, 8, 8)
    assert torch.allclose(before, after, atol=1e-4)
    assert torch.allclose(latents.mean(dim=(0, 2, 3)), torch.zeros(8), atol=1e-2)
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(8), atol=1e-2)


def test_an_autoencoder_is_read_back_from_its_folder(tiny_autoencoder: autoencoder.Autoencoder, tmp_path: Path) -> None:
    tiny_autoencoder.vae.save_pretrained(tmp_path)
    again = autoencoder.load(tmp_path)
    images = autoencoder.to_tensor(IMAGES)
    with torch.no_grad():
        assert torch.equal(again.decode(again.encode(images)), tiny_autoencoder.decode(tiny_autoencoder.encode(images)))


def test_timesteps_cover_the_range_and_favour_the_middle() -> None:
    timesteps = torch.cat([painter.sample_timesteps(64, torch.Generator().manual_seed(seed)) for seed in range(50)])
    assert timesteps.min() < 30
    assert timesteps.max() > 970
    middle = ((timesteps > 250) & (timesteps < 750)).float().mean()
    assert 0.6 < middle < 0.75


def test_a_tenth_of_the_captions_is_empty_and_most_are_full() -> None:
    rng = np.random.default_rng(0)
    captions = [painter_text.sample_caption(sample_scene(seed), rng) for seed in range(2000)]
    assert 0.08 < sum(not caption for caption in captions) / 2000 < 0.12
    assert sum(len(caption.split()) > 8 for caption in captions) / 2000 > 0.4


def test_every_scene_has_a_truth_for_its_text() -> None:
    sizes = painter_text.Namer().sizes
    for seed in range(50):
        labels = painter_text.truth(sample_scene(seed))
        assert len(labels) == len(sizes)
        assert all(
            label == painter_text.NO_LABEL or 0 <= label < size for label, size in zip(labels, sizes, strict=True)
        )


def test_the_reader_reads_every_attribute_and_augmenting_keeps_the_shape(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fresh, images = reader.Reader().eval(), autoencoder.to_tensor(IMAGES)
    augmented = reader.augment(images, torch.Generator().manual_seed(0))
    assert augmented.shape == images.shape
    assert float(augmented.abs().max()) <= 1
    reader.save(fresh, tmp_path)
    found = reader.read(reader.load(tmp_path), images)
    assert {name: values.shape for name, values in found.items()} == dict.fromkeys(ATTRIBUTES, (6,))


def test_fresh_scenes_are_no_corpus_scenes() -> None:
    captions, labels = painter.fresh_scenes(4)
    assert captions != [painter.full_caption(Recipe(0).scene(index)) for index in range(4)]
    assert all(values.shape == (4,) for values in labels.values())
