"""Painters become models that the engine opens, and that paint what their pipeline paints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import painter_twins as twins  # noqa: E402
from safetensors.numpy import load_file, save_file  # noqa: E402

from captory_engine.diffusion.noise import gaussian_noise  # noqa: E402
from captory_engine.errors import BadModel  # noqa: E402
from captory_engine.family import Painter  # noqa: E402
from captory_engine.repository import open_model  # noqa: E402
from captory_export import model_folders  # noqa: E402
from captory_export.architectures import find_architecture  # noqa: E402
from captory_export.checkpoints import find  # noqa: E402
from captory_export.conversions import to_fp16  # noqa: E402
from captory_export.exportable import Part  # noqa: E402
from captory_export.families import export_role  # noqa: E402
from captory_export.model_folders import export_part  # noqa: E402
from captory_export.painters import full_image  # noqa: E402
from captory_export.precision import BOUNDS, Bounds, Precision  # noqa: E402

SIZE_PX = 32
TWINS: dict[str, Callable[[Path], Path]] = {
    "stable-diffusion": twins.stable_diffusion,
    "stable-diffusion-2": lambda folder: twins.stable_diffusion(folder, prediction_type="v_prediction"),
    "stable-diffusion-xl": twins.stable_diffusion_xl,
    "stable-diffusion-3": twins.stable_diffusion_3,
    "stable-diffusion-3-without-t5": lambda folder: twins.stable_diffusion_3(folder, with_t5=False),
}


def open_twin(folder: Path, name: str = "stable-diffusion", sizes: tuple[tuple[int, int], ...] = ()) -> Any:
    checkpoint = find(str(TWINS[name](folder)))
    return find_architecture("painter", checkpoint)(checkpoint, sizes)


def folders_of(painter: Any, root: Path) -> dict[str, Path]:
    return {part.suffix: root / f"twin_{part.suffix}" for part in painter.parts()}


@pytest.mark.parametrize("name", TWINS)
def test_every_painter_passes_parity_and_the_engine_opens_it(name: str, tmp_path: Path) -> None:
    painter = open_twin(tmp_path / "checkpoint", name)
    _, report = export_role(painter, tmp_path / "out", "twin", Precision.FP32, lambda _: None)
    assert report["end_to_end"]["psnr_db"] >= BOUNDS[Precision.FP32].psnr_db
    section = Painter.model_validate(painter.section("twin"))
    assert section.sizes == ((SIZE_PX, SIZE_PX),)
    assert section.vae_scale_factor == 8
    denoiser = open_model(tmp_path / "out", section.denoiser)
    assert {spec.name: tuple(spec.shape) for spec in denoiser.inputs}["timestep"] == ()
    assert {*section.conditions} <= {spec.name for spec in denoiser.inputs}
    texts = open_model(tmp_path / "out", section.text_encoder)
    assert {spec.name for spec in texts.inputs} == {"input_ids", *(text.input for text in section.further_text)}
    assert set(section.conditions.values()) == {spec.name for spec in texts.outputs}


@pytest.mark.parametrize("name", ["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3"])
def test_the_checkpoints_modules_paint_what_its_pipeline_paints(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The graphs agree with our modules; that those are put together as the pipeline does it is told here alone."""
    painter = open_twin(tmp_path / "checkpoint", name)
    for part in painter.parts():
        for file, content in part.files.items():
            (tmp_path / file).write_bytes(content)
    section = painter.section("twin")
    section["defaults"] |= {"sampler": "flow-euler" if name.endswith("3") else "euler", "guidance_scale": 3.0}
    model = Painter.model_validate(section)
    ids = full_image._ids(model, tmp_path)
    run = full_image.OneAtATime(lambda suffix: full_image._torch(painter.graph(suffix)))
    found = full_image.paint(run, model, painter.kind.denoiser, ids)
    assert np.abs(found - pipeline_image(tmp_path / "checkpoint")).max() < 1e-3


def pipeline_image(folder: Path) -> Any:
    """What diffusers itself paints, [3, H, W] in -1..1."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.from_numpy(gaussian_noise(full_image.SEED, (4, 4, 4))[None])
    further = {"max_sequence_length": 256} if "StableDiffusion3" in type(pipeline).__name__ else {}
    image = pipeline(
        full_image.PROMPTS[0],
        num_inference_steps=full_image.NUM_STEPS,
        guidance_scale=3.0,
        latents=noise,
        height=SIZE_PX,
        width=SIZE_PX,
        output_type="pt",
        **further,
    ).images[0]
    return image.numpy() * 2 - 1


def test_several_sizes_leave_height_and_width_free(tmp_path: Path) -> None:
    painter = open_twin(tmp_path / "checkpoint", sizes=((32, 32), (64, 48)))
    export_role(painter, tmp_path / "out", "twin", Precision.FP32, lambda _: None)
    for model in ("twin_unet", "twin_vae_decoder"):
        (spec, *_) = open_model(tmp_path / "out", model).inputs
        assert tuple(spec.shape) == (4, -1, -1)
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "twin_vae_decoder" / "1" / "model.onnx"))
    (pixels,) = session.run(None, {"latent_sample": np.zeros((3, 4, 6, 8), np.float32)})
    assert pixels.shape == (3, 3, 48, 64)


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="multiples of 16 pixels: 40x32"):
        open_twin(tmp_path / "one", sizes=((40, 32),))
    with pytest.raises(BadModel, match="have one size"):
        open_twin(tmp_path / "two", "stable-diffusion-3", sizes=((32, 32), (64, 64)))


def test_schedulers_that_the_samplers_do_not_know_are_refused(tmp_path: Path) -> None:
    painter = open_twin(tmp_path)
    file = tmp_path / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "rescale_betas_zero_snr": True}))
    with pytest.raises(BadModel, match="rescale_betas_zero_snr"):
        painter.section("twin")


def test_weights_that_are_missing_are_told(tmp_path: Path) -> None:
    painter = open_twin(tmp_path)
    file = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["conv_out.bias"]
    save_file(weights, file)
    with pytest.raises(BadModel, match=r"lacks 1 of its weights: conv_out\.bias"):
        painter.graph("unet")
    file.unlink()
    with pytest.raises(BadModel, match="are not there"):
        painter.graph("unet")


def test_half_precision_keeps_its_inputs_and_stays_close(tmp_path: Path) -> None:
    painter = open_twin(tmp_path / "checkpoint")
    _, report = export_role(painter, tmp_path / "out", "twin", Precision.FP16, lambda _: None)
    assert {part: report[part]["precision"] for part in ("text_encoder", "unet", "vae_decoder")} == dict.fromkeys(
        ("text_encoder", "unet", "vae_decoder"), "fp16"
    )
    model = open_model(tmp_path / "out", "twin_unet")
    assert {str(np.dtype(spec.dtype)) for spec in (*model.inputs, *model.outputs)} == {"float32"}
    full = sum(file.stat().st_size for file in (tmp_path / "checkpoint" / "unet").rglob("*.safetensors"))
    weights = pytest.importorskip("onnx").load(model.model_path).graph.initializer
    assert sum(len(weight.raw_data) for weight in weights) < 0.6 * full


def test_an_autoencoder_that_would_overflow_stays_single(tmp_path: Path) -> None:
    painter = open_twin(tmp_path / "checkpoint")
    graph = painter.graph("vae_decoder")
    with torch.no_grad():
        graph.module.decoder.conv_in.weight *= 1e6
        graph.module.decoder.conv_norm_out.weight *= 1e-3
    report = export_part(Part("vae_decoder", graph), tmp_path / "vae", Precision.FP16)
    assert report["precision"] == "fp32"


def test_times_are_not_rounded_on_their_way_to_an_angle(tmp_path: Path) -> None:
    graph = open_twin(tmp_path / "checkpoint").graph("unet")
    model_folders.export_graph(graph, tmp_path / "unet.onnx", for_cpu=False)
    to_fp16(tmp_path / "unet.onnx")
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tmp_path / "unet.onnx")
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


def test_a_graph_that_drifts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BOUNDS, Precision.FP32, Bounds(difference=-1.0, cosine=0, psnr_db=0, same_texts=0))
    part = Part("vae_decoder", open_twin(tmp_path / "checkpoint").graph("vae_decoder"))
    with pytest.raises(BadModel, match="is not what the checkpoint is: difference"):
        export_part(part, tmp_path / "vae", Precision.FP32)


def test_a_graph_with_other_weights_is_told(tmp_path: Path) -> None:
    painter = open_twin(tmp_path / "checkpoint")
    export_role(painter, tmp_path / "out", "twin", Precision.FP32, lambda _: None)
    other = painter.graph("unet")
    with torch.no_grad():
        other.module.unet.conv_out.weight += 0.5
    folders = folders_of(painter, tmp_path / "out")
    model_folders.export_graph(other, folders["unet"] / "1" / "model.onnx")
    assert painter.check(folders)["psnr_db"] < BOUNDS[Precision.FP16].psnr_db


def test_pixels_are_unfolded_inside_the_graph() -> None:
    from captory_export.painters.latent_diffusion import VaeDecoderGraph

    vae = diffusers.AutoencoderKL(
        in_channels=12, out_channels=12, block_out_channels=(8,), latent_channels=4, norm_num_groups=4,
        mid_block_add_attention=False,
    )  # fmt: skip
    with torch.no_grad():
        pixels = VaeDecoderGraph(vae.eval(), 2)(torch.randn(3, 4, 4, 4))
    assert pixels.shape == (3, 3, 8, 8)
