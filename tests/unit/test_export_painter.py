"""The painter's graphs and the model folders that they are written to."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: E402
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402

from captory_engine.repository import open_model  # noqa: E402
from captory_export import stable_diffusion  # noqa: E402


@pytest.fixture(scope="module")
def graphs() -> dict[str, stable_diffusion.Graph]:
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(16,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=16,
        attention_head_dim=2, addition_embed_type="text", addition_embed_type_num_heads=2,
    )  # fmt: skip
    vae = AutoencoderKL(
        in_channels=12, out_channels=12, block_out_channels=(8,), latent_channels=4, norm_num_groups=4,
        mid_block_add_attention=False, scaling_factor=0.5,
    )  # fmt: skip
    return stable_diffusion.painter_graphs(CLIPTextModel(text).eval(), unet.eval(), vae.eval(), 2)


@pytest.mark.parametrize("role", ["text_encoder", "denoiser", "vae_decoder"])
def test_a_graph_agrees_with_torch_and_the_engine_opens_it(
    graphs: dict[str, stable_diffusion.Graph], role: str, tmp_path: Path
) -> None:
    report = stable_diffusion.export(graphs[role], tmp_path / role)
    assert report["max_abs_difference"] < stable_diffusion.TOLERANCE
    model = open_model(tmp_path, role)
    assert model.max_batch == 64
    assert [spec.name for spec in model.inputs] == list(graphs[role].inputs)
    assert [spec.name for spec in model.outputs] == list(graphs[role].outputs)


def test_each_row_has_a_timestep_of_its_own(graphs: dict[str, stable_diffusion.Graph], tmp_path: Path) -> None:
    stable_diffusion.export(graphs["denoiser"], tmp_path / "denoiser")
    timestep = open_model(tmp_path, "denoiser").inputs[1]
    assert (timestep.name, tuple(timestep.shape)) == ("timestep", ())


def test_pixels_are_unfolded_inside_the_graph(graphs: dict[str, stable_diffusion.Graph]) -> None:
    with torch.no_grad():
        pixels = graphs["vae_decoder"].module(torch.randn(3, 4, 4, 4))
    assert pixels.shape == (3, 3, 8, 8)


def test_a_graph_that_drifts_is_refused(
    graphs: dict[str, stable_diffusion.Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stable_diffusion, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match="differs from torch"):
        stable_diffusion.export(graphs["vae_decoder"], tmp_path / "vae_decoder")
