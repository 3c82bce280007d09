"""Painters become models that the engine opens, and that paint what their pipeline paints.

Exports are slow, so each is made once: those of whole families are in `tests/e2e/test_export_family.py`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import onnx  # noqa: E402
import painter_twins as twins  # noqa: E402
from painter_twins import SIZE_PX  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from captory_engine.errors import BadModel  # noqa: E402
from captory_engine.family import PainterDefaults, Schedule  # noqa: E402
from captory_engine.repository import open_model  # noqa: E402
from captory_engine.sessions.torch_checkpoints import default_checkpoints  # noqa: E402
from captory_export.activations import largest_narrowed  # noqa: E402
from captory_export.architectures import find_architecture  # noqa: E402
from captory_export.checkpoints import find  # noqa: E402
from captory_export.exportable import Graph, Part  # noqa: E402
from captory_export.families import export_role  # noqa: E402
from captory_export.graphs import example, export_graph  # noqa: E402
from captory_export.model_folders import Example, compare_outputs, export_part  # noqa: E402
from captory_export.painters import full_image  # noqa: E402
from captory_export.precision import BOUNDS, Precision, faults  # noqa: E402

pytestmark = pytest.mark.export

SUFFIXES = ("text_encoder", "unet", "vae_decoder")
UNET_WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
TWINS: dict[str, Callable[[Path], Path]] = {
    "stable-diffusion": twins.stable_diffusion,
    "stable-diffusion-2": lambda folder: twins.stable_diffusion(folder, prediction_type="v_prediction"),
    "stable-diffusion-xl": twins.stable_diffusion_xl,
    "stable-diffusion-3": twins.stable_diffusion_3,
    "stable-diffusion-3-without-t5": lambda folder: twins.stable_diffusion_3(folder, with_t5=False),
}


class Half(NamedTuple):
    """A painter exported in half precision."""

    checkpoint: Path
    folders: dict[str, Path]
    report: dict[str, Any]


class Scores(nn.Module):
    """Attention's weights, of which no module but this whole gives its scores."""

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """states: [B, S, D], mask: [B, S]; returns [B, S, S]."""
        scores = states @ states.transpose(1, 2)
        return torch.where(mask[:, None] > 0.5, scores * 1e-4, -1e30).softmax(dim=-1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion's twin, to be copied before it is changed."""
    return twins.stable_diffusion(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def half(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Half:
    root = tmp_path_factory.mktemp("half")
    report = export_role(open_folder(checkpoint), root, "twin", Precision.FP16, lambda _: None)
    return Half(checkpoint, {suffix: root / f"twin_{suffix}" for suffix in SUFFIXES}, report)


def open_folder(folder: Path, sizes: tuple[tuple[int, int], ...] = ()) -> Any:
    found = find(str(folder))
    return find_architecture("painter", found)(found, sizes)


def reweighted(folder: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a checkpoint with other weights of its UNet."""
    shutil.copytree(folder, target)
    weights = load_file(target / UNET_WEIGHTS)
    change(weights)
    save_file(weights, target / UNET_WEIGHTS)
    return target


@pytest.mark.parametrize("name", TWINS)
def test_the_checkpoints_modules_paint_what_its_pipeline_paints(name: str, tmp_path: Path) -> None:
    """The graphs agree with our modules; that those are put together as the pipeline does it is told here alone."""
    folder = TWINS[name](tmp_path / "checkpoint")
    painter = open_folder(folder)
    for file, content in next(painter.parts()).files.items():
        (tmp_path / file).write_bytes(content)
    section = painter.section("twin")
    sampler = "flow-euler" if section.schedule.prediction_type == "flow" else "euler"
    defaults = PainterDefaults(steps=full_image.NUM_STEPS, guidance_scale=3.0, sampler=sampler)
    model = section.model_copy(update={"defaults": defaults})
    assert (model.sizes, model.vae_scale_factor) == (((SIZE_PX, SIZE_PX),), 8)
    ids = full_image.prompt_ids(model, tmp_path)
    run = full_image.OneAtATime(lambda suffix: full_image.run_module(painter.graph(suffix)))
    found = full_image.paint(run, model, painter.kind.denoiser, ids, (SIZE_PX, SIZE_PX))
    (prompt, _), num_steps = full_image.PROMPTS, full_image.NUM_STEPS
    wanted = twins.pipeline_image(folder, prompt, seed=full_image.SEED, num_steps=num_steps, guidance_scale=3.0)
    assert np.abs(found - wanted).max() < 1e-3


def test_texts_without_t5_are_filled_up(tmp_path: Path) -> None:
    painter = open_folder(twins.stable_diffusion_3(tmp_path / "checkpoint", with_t5=False))
    export_part(next(painter.parts()), tmp_path / "twin_text_encoder", Precision.FP32)
    model = open_model(tmp_path, "twin_text_encoder")
    assert [spec.name for spec in model.inputs] == ["input_ids", "input_ids_2"]
    shapes = {spec.name: tuple(spec.shape) for spec in model.outputs}
    assert shapes == {"last_hidden_state": (twins.NUM_TOKENS + 256, 40), "pooled": (2 * twins.TEXT_WIDTH,)}


def test_several_sizes_leave_height_and_width_free_and_are_painted(checkpoint: Path, tmp_path: Path) -> None:
    painter = open_folder(checkpoint, sizes=((48, 32), (32, 32), (64, 48)))
    report = export_role(painter, tmp_path, "twin", Precision.FP32, lambda _: None)
    for suffix, name in {"unet": "sample", "vae_decoder": "latent_sample"}.items():
        (spec, *_) = open_model(tmp_path, f"twin_{suffix}").inputs
        assert (spec.name, tuple(spec.shape)) == (name, (4, -1, -1))
    assert report["end_to_end"]["sizes"] == "48x32, 32x32, 64x48"
    assert report["end_to_end"]["psnr_db"] >= BOUNDS[Precision.FP32].psnr_db


def test_the_worst_of_the_sizes_is_told(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ((64, 48), (32, 32), (48, 48), (96, 64))
    painter = open_folder(checkpoint, sizes=sizes)
    painted: list[tuple[int, int]] = []

    def paint(run: Any, model: Any, denoiser: str, ids: Any, size: tuple[int, int]) -> Any:
        painted.append(size)
        return np.full((3, 2, 2), 0.5 if size == (96, 64) and len(painted) % 2 else 0.0, np.float32)

    monkeypatch.setattr(full_image, "paint", paint)
    monkeypatch.setattr(full_image, "prompt_ids", lambda *_: {})
    figures = painter.check({"text_encoder": checkpoint})
    assert painted == [size for size in ((64, 48), (32, 32), (96, 64)) for _ in range(2)]
    assert figures["image"].startswith("96x64")
    assert figures["max_abs_difference"] == 0.5


def test_sizes_that_cannot_be_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="multiples of 16 pixels: 40x32"):
        open_folder(checkpoint, sizes=((40, 32),))
    with pytest.raises(BadModel, match="have one size"):
        open_folder(twins.stable_diffusion_3(tmp_path), sizes=((32, 32), (64, 64)))


def test_a_checkpoint_that_tells_no_size_is_asked_for_one(checkpoint: Path, tmp_path: Path) -> None:
    folder = edited(checkpoint, tmp_path / "other", "unet/config.json", sample_size=None)
    with pytest.raises(BadModel, match="name one with --sizes"):
        open_folder(folder)
    assert open_folder(folder, sizes=((64, 32),)).section("twin").sizes == ((64, 32),)
    assert open_folder(edited(folder, tmp_path / "wide", "unet/config.json", sample_size=[4, 8])).sizes == ((64, 32),)


def edited(folder: Path, target: Path, file: str, without: Iterable[str] = (), **changes: Any) -> Path:
    """A copy of a checkpoint with other settings in one of its JSON files."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    settings = {**json.loads((target / file).read_text()), **changes}
    (target / file).write_text(json.dumps({key: value for key, value in settings.items() if key not in without}))
    return target


def test_what_configurations_leave_out_is_what_diffusers_takes(checkpoint: Path, tmp_path: Path) -> None:
    left_out = {
        "vae/config.json": ("scaling_factor", "latent_channels", "shift_factor", "latents_mean", "latents_std"),
        "unet/config.json": ("block_out_channels",),
        "text_encoder/config.json": ("max_position_embeddings",),
        "scheduler/scheduler_config.json": ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule"),
    }
    folder = checkpoint
    for file, keys in left_out.items():
        folder = edited(folder, tmp_path / file.partition("/")[0], file, keys)
    section = open_folder(folder, sizes=((64, 64),)).section("twin")
    assert (section.scaling_factor, section.latent_channels, section.max_tokens) == (0.18215, 4, 77)
    assert section.schedule == Schedule(
        num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type="epsilon"
    )
    with pytest.raises(BadModel, match="multiples of 64 pixels"):
        open_folder(folder, sizes=((32, 32),))


def test_widths_that_configurations_leave_out(tmp_path: Path) -> None:
    folder = twins.stable_diffusion_xl(tmp_path / "xl")
    (folder / "text_encoder_2" / "config.json").write_text("{}")
    assert open_folder(folder).graph("unet").inputs["text_embeds"].shape == (2, 512)
    folder = twins.stable_diffusion_3(tmp_path / "three", with_t5=False)
    folder = edited(folder, tmp_path / "narrower", "transformer/config.json", ("joint_attention_dim",))
    assert open_folder(folder).graph("text_encoder").module.width == 4096


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr"),
        ("scheduler/scheduler_config.json", {"_class_name": "OwnScheduler"}, "OwnScheduler, is none of diffusers'"),
        ("scheduler/scheduler_config.json", {"_class_name": "UNet2DModel"}, "UNet2DModel, is none of diffusers'"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "can serve: schedule: .*'sample'"),
        ("vae/config.json", {"scaling_factor": None}, "can serve: scaling_factor: "),
        ("vae/config.json", {"latents_mean": [0.0] * 4}, "shifts its latents by channel"),
        ("unet/config.json", {"time_cond_proj_dim": 8}, "takes its guidance as an input"),
        ("text_encoder/config.json", {"use_attention_mask": True}, "takes an attention mask"),
    ],
)
def test_what_the_engine_would_get_wrong_is_refused(
    checkpoint: Path, file: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = edited(checkpoint, tmp_path / "other", file, **changes)
    with pytest.raises(BadModel, match=words):
        open_folder(folder).section("twin")


def test_weights_that_are_missing_are_told(checkpoint: Path, tmp_path: Path) -> None:
    painter = open_folder(reweighted(checkpoint, tmp_path / "other", lambda weights: weights.pop("conv_out.bias")))
    with pytest.raises(BadModel, match=r"lacks 1 of its weights: conv_out\.bias"):
        painter.graph("unet")
    (tmp_path / "other" / UNET_WEIGHTS).unlink()
    with pytest.raises(BadModel, match="are not there"):
        painter.graph("unet")


def test_half_precision_keeps_its_inputs_and_stays_close(half: Half) -> None:
    assert {suffix: half.report[suffix]["precision"] for suffix in SUFFIXES} == dict.fromkeys(SUFFIXES, "fp16")
    assert half.report["end_to_end"]["psnr_db"] >= BOUNDS[Precision.FP16].psnr_db
    model = open_model(half.folders["unet"].parent, "twin_unet")
    assert {str(np.dtype(spec.dtype)) for spec in (*model.inputs, *model.outputs)} == {"float32"}
    weights = onnx.load(model.model_path).graph.initializer
    assert sum(len(weight.raw_data) for weight in weights) < 0.6 * (half.checkpoint / UNET_WEIGHTS).stat().st_size


def test_times_are_not_rounded_on_their_way_to_an_angle(half: Half) -> None:
    model = onnx.load(half.folders["unet"] / "1" / "model.onnx")
    users = [node for node in model.graph.node if "timestep" in node.input]
    makers = {output: node for node in model.graph.node for output in node.output}
    halves = {node.output[0] for node in users if node.op_type == "Cast" and node.attribute[0].i == 10}
    upstream, waiting = set(), [node for node in model.graph.node if node.op_type in ("Sin", "Cos")]
    assert waiting
    while waiting:
        node = waiting.pop()
        upstream |= set(node.input)
        waiting += [makers[name] for name in node.input if name in makers]
    assert not upstream & halves


def test_other_weights_are_told_by_the_image(half: Half, tmp_path: Path) -> None:
    def change(weights: dict[str, Any]) -> None:
        weights["conv_out.weight"] += 0.5

    other = open_folder(reweighted(half.checkpoint, tmp_path / "other", change))
    assert open_folder(half.checkpoint).check(half.folders)["psnr_db"] >= BOUNDS[Precision.FP16].psnr_db
    assert other.check(half.folders)["psnr_db"] < BOUNDS[Precision.FP16].psnr_db


@pytest.mark.parametrize(("size", "precision"), [(1.0, "fp16"), (100.0, "fp32")])
def test_what_would_overflow_between_two_nodes_stays_single(size: float, precision: str, tmp_path: Path) -> None:
    inputs = {"states": torch.full((2, 3, 16), size), "mask": torch.tensor([[1.0, 1.0, 0.0]] * 2)}
    graph = Graph(Scores(), inputs, ["weights"])
    export_graph(graph, tmp_path / "scores.onnx", for_cpu=False)
    arrays = {name: value.numpy() for name, value in inputs.items()}
    assert largest_narrowed(tmp_path / "scores.onnx", arrays) == pytest.approx(16 * size**2)
    report = export_part(Part("vae_decoder", graph), tmp_path / "vae", Precision.FP16)
    assert report["precision"] == precision
    assert [path.name for path in (tmp_path / "vae" / "1").iterdir()] == ["model.onnx"]


class Two(nn.Module):
    """A large output, and a small one beside it."""

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return states * 1000, states * 1e-3


def test_a_small_output_that_is_wrong_does_not_hide_behind_a_large_one(tmp_path: Path) -> None:
    graph = Graph(Two(), {"states": torch.randn(2, 64)}, ["large", "small"])
    path = tmp_path / "two.onnx"
    export_graph(graph, path)
    states = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    right = {"large": states * 1000, "small": states * np.float32(1e-3)}
    assert not faults(compare_outputs([Example({"states": states}, right)], path), Precision.FP32)
    found = compare_outputs([Example({"states": states}, {**right, "small": -right["small"]})], path)
    assert (found["worst_output"], found["cosine"]) == ("small", pytest.approx(-1.0))
    assert found["outputs"]["large"]["cosine"] == pytest.approx(1.0)
    assert faults(found, Precision.FP32)


def test_examples_are_spread_as_what_occurs() -> None:
    torch.manual_seed(0)
    drawn = example(torch.randn(4, 500) * 7 + 100, 8)
    assert drawn.shape == (8, 500)
    assert float(drawn.mean()) == pytest.approx(100, abs=1)
    assert float(drawn.std()) == pytest.approx(7, rel=0.1)
    assert example(torch.full((2, 6), 512.0), 3).unique().tolist() == [512.0]


def test_picto_trained_again_says_what_it_says_now(checkpoint: Path, tmp_path: Path) -> None:
    from transformers import CLIPTextModel

    from captory_training import painter

    models = (
        diffusers.UNet2DConditionModel.from_pretrained(checkpoint / "unet"),
        CLIPTextModel.from_pretrained(checkpoint / "text_encoder"),
        diffusers.AutoencoderKL.from_pretrained(checkpoint / "vae"),
    )
    painter.save_pipeline(tmp_path, *models, checkpoint / "tokenizer")
    assert find(str(tmp_path)).own_settings() == find(str(default_checkpoints() / "picto" / "painter")).own_settings()


def test_pixels_are_unfolded_inside_the_graph() -> None:
    from captory_export.painters.latent_diffusion import VaeDecoderGraph

    vae = diffusers.AutoencoderKL(
        in_channels=12, out_channels=12, block_out_channels=(8,), latent_channels=4, norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    with torch.no_grad():
        pixels = VaeDecoderGraph(vae.eval(), 2)(torch.randn(3, 4, 4, 4))
    assert pixels.shape == (3, 3, 8, 8)
