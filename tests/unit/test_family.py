"""The family file: read whole, refused with words, found by name or path."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from captory_engine.errors import BadModel
from captory_engine.family import Family, find_family, read_family

FAMILY: dict[str, Any] = {
    "name": "picto",
    "description": "small",
    "in_world_only": True,
    "captioner": {
        "architecture": "blip",
        "vision": "picto_vision",
        "decoder": "picto_decoder",
        "tokenizer": "picto_decoder/tokenizer.json",
        "image_size_px": 64,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": 0,
        "prefixes": {"short": [1, 3], "long": [1, 4]},
        "max_new_tokens": 48,
        "max_positions": 64,
        "num_layers": 3,
        "num_heads": 4,
        "head_dim": 32,
    },
    "writer": {
        "architecture": "qwen2",
        "decoder": "picto_writer",
        "tokenizer": "picto_writer/tokenizer.json",
        "eos_id": 2,
        "templates": {"rewrite": "<|bos|><|rewrite|>{text}<|long|>"},
        "max_new_tokens": 48,
        "max_positions": 128,
        "num_layers": 4,
        "num_kv_heads": 2,
        "head_dim": 32,
        "temperature": 0.8,
        "top_k": 40,
    },
    "painter": {
        "architecture": "stable-diffusion",
        "text_encoder": "picto_text",
        "denoiser": "picto_unet",
        "vae_decoder": "picto_vae",
        "tokenizer": "picto_text/tokenizer.json",
        "max_tokens": 64,
        "latent_channels": 8,
        "vae_scale_factor": 8,
        "sizes": [[64, 64]],
        "scaling_factor": 1.0,
        "schedule": {
            "num_train_timesteps": 1000,
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "prediction_type": "v_prediction",
        },
        "defaults": {"steps": 16, "guidance_scale": 2.0, "sampler": "dpmpp-2m"},
    },
}


def changed(path: str, value: object) -> dict[str, Any]:
    family = copy.deepcopy(FAMILY)
    *parents, last = path.split(".")
    section = family
    for parent in parents:
        section = section[parent]
    if value is None:
        del section[last]
    else:
        section[last] = value
    return family


def write_family(root: Path, folder: str, family: object) -> Path:
    (root / folder).mkdir(parents=True)
    path = root / folder / "family.yaml"
    path.write_text(yaml.safe_dump(family))
    return path


def test_reads_every_section(tmp_path: Path) -> None:
    family = read_family(write_family(tmp_path, "picto_unet", FAMILY))
    assert family.captioner is not None
    assert family.captioner.prefixes["long"] == (1, 4)
    assert family.painter.sizes == ((64, 64),)
    assert family.writer is not None
    assert family.writer.pad_id == 0
    assert family.models == (
        "picto_vision",
        "picto_decoder",
        "picto_writer",
        "picto_text",
        "picto_unet",
        "picto_vae",
    )


def test_the_writer_is_optional(tmp_path: Path) -> None:
    family = read_family(write_family(tmp_path, "picto_unet", changed("writer", None)))
    assert family.writer is None
    assert "picto_writer" not in family.models


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("painter.guidance", 1, "painter.guidance: Extra inputs"),
        ("captioner.vision", None, "captioner.vision: Field required"),
        ("captioner.vision", "../escape", "captioner.vision"),
        ("captioner.tokenizer", "model/../../etc/passwd", "captioner.tokenizer"),
        ("captioner.tokenizer", "/etc/passwd", "captioner.tokenizer"),
        ("captioner.prefixes", {"short": [1]}, "both short and long"),
        ("captioner.image_std", [0.5, 0.0, 0.5], "image_std"),
        ("writer.templates", {"rewrite": "no place"}, "rewrite"),
        ("painter.sizes", [], "painter.sizes"),
        ("painter.sizes", [[60, 64]], "no multiples"),
        ("painter.scaling_factor", float("nan"), "painter.scaling_factor"),
        ("painter.schedule.prediction_type", "sample", "prediction_type"),
        ("painter.architecture", "flux", "painter.architecture"),
        ("painter.max_tokens", 0, "painter.max_tokens"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, path: str, value: object, words: str) -> None:
    with pytest.raises(BadModel, match=words):
        read_family(write_family(tmp_path, "picto_unet", changed(path, value)))


@pytest.mark.parametrize("text", ["[", "a: b: c", "- 1", "", "!!python/object/apply:os.getcwd []", "\x00"])
def test_what_is_no_family_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(text)
    with pytest.raises(BadModel) as error:
        read_family(path)
    assert error.value.reason == "FAMILY_INVALID"


def test_found_as_the_only_one_by_name_and_by_path(tmp_path: Path) -> None:
    write_family(tmp_path / "one", "any_unet", changed("name", "mine"))
    for name in ("", "mine"):
        assert find_family(tmp_path / "one", name).family.name == "mine"
    located = find_family(tmp_path, str(tmp_path / "one"))
    assert (located.root, located.family.name) == (tmp_path / "one", "mine")


def test_picto_among_several_unless_named(tmp_path: Path) -> None:
    write_family(tmp_path, "a_unet", changed("name", "another"))
    write_family(tmp_path, "picto_unet", FAMILY)
    assert find_family(tmp_path).family.name == "picto"
    assert find_family(tmp_path, "another").family.name == "another"
    with pytest.raises(BadModel, match="there: another, picto"):
        find_family(tmp_path, "third")


@pytest.mark.parametrize("where", ["", "absent"])
def test_a_repository_without_families_says_so(tmp_path: Path, where: str) -> None:
    with pytest.raises(BadModel, match="There is no"):
        find_family(tmp_path / where)


def test_families_are_frozen() -> None:
    family = Family.model_validate(FAMILY)
    with pytest.raises(ValueError, match="frozen"):
        family.name = "other"  # type: ignore[misc]
