"""Settings: file < environment < flag; and only addresses that no other machine can reach."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from captory_engine import assembly
from captory_engine.assembly import EngineConfig
from captory_engine.family import Family
from captory_engine.sessions.options import SessionOptions, TorchOptions
from captory_server import process
from captory_server.address import check_address, with_port
from captory_server.commands import serve
from captory_server.config import explain, load


def test_the_later_wins_over_the_earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "captory.yaml"
    file.write_text("grace_s: 1\nthreads: 1\nmax_calls: 1\nlimits: {max_steps: 7}\n")
    monkeypatch.setenv("CAPTORY_THREADS", "2")
    monkeypatch.setenv("CAPTORY_MAX_CALLS", "2")
    monkeypatch.setenv("CAPTORY_LIMITS__MAX_ITEMS", "5")
    settings = load(file, max_calls=3, threads=None)
    assert (settings.grace_s, settings.threads, settings.max_calls) == (1, 2, 3)
    assert (settings.limits.max_steps, settings.limits.max_items) == (7, 5)


def test_torch_is_set_up_from_file_environment_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().torch == TorchOptions()
    file = tmp_path / "captory.yaml"
    file.write_text("torch: {buckets: [2, 8], dtype: fp32, device: cpu}\n")
    monkeypatch.setenv("CAPTORY_TORCH__DTYPE", "fp16")
    monkeypatch.setenv("CAPTORY_TORCH__GRAPHS", "false")
    monkeypatch.setenv("CAPTORY_TORCH__CHECKPOINTS", "/weights")
    settings = load(file, torch={"device": "cuda:1", "compile_mode": "default"})
    assert settings.torch == TorchOptions(
        "cuda:1", "fp16", "default", graphs=False, buckets=(2, 8), checkpoints=Path("/weights")
    )
    assert settings.model_dump(mode="json")["torch"]["dtype"] == "fp16"
    monkeypatch.setenv("CAPTORY_TORCH", '{"buckets": [4], "dtype": "fp32"}')  # all of a group: what a list needs
    assert (load().torch.buckets, load().torch.dtype) == ((4,), "fp16")


@pytest.mark.parametrize("wrong", [{"dtype": "int4"}, {"compile_mode": "fast"}, {"buckets": [0]}, {"graphs": "some"}])
def test_what_torch_cannot_do_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as refused:
        load(torch=wrong)
    assert explain(refused.value)[0].startswith("torch")
    assert str(next(iter(wrong))) in explain(refused.value)[0]


def test_the_flags_reach_the_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[EngineConfig] = []

    async def open_nothing(config: EngineConfig) -> None:
        configs.append(config)

    monkeypatch.setattr(assembly, "open_pipeline", open_nothing)
    monkeypatch.setattr(process, "run_server", lambda settings, **_: asyncio.run(process.open_engine(settings)) or 0)
    app = typer.Typer()
    app.command()(serve)
    flags = ["--torch-device", "cpu", "--torch-dtype", "bf16", "--torch-compile", "default", "--torch-graphs"]
    done = CliRunner().invoke(app, [*flags, "--torch-checkpoints", "/weights"])
    assert done.exit_code == 0, done.output
    torch = TorchOptions("cpu", "bf16", "default", graphs=True, checkpoints=Path("/weights"))
    assert [config.torch for config in configs] == [torch]

    told: list[SessionOptions] = []
    models = SimpleNamespace(models=("unet",))
    monkeypatch.setattr(assembly, "open_model", lambda root, name: name)

    def open_none(backend: str, model: str, options: SessionOptions) -> SimpleNamespace:
        told.append(options)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr(assembly, "open_session", open_none)
    assembly.open_sessions(Path(), cast(Family, models), configs[0])
    assert [options.torch for options in told] == [torch]


def test_each_wrong_setting_is_named(tmp_path: Path) -> None:
    file = tmp_path / "captory.yaml"
    file.write_text("adress: unix:/x\n")
    with pytest.raises(ValidationError) as refused:
        load(file, threads=-1)
    assert {line.partition(":")[0] for line in explain(refused.value)} == {"adress", "threads"}


def test_a_file_that_is_not_there_is_no_empty_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.yaml")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load().threads = 3


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "127.8.9.1:1", "localhost:65535", "[::1]:50061", "unix:/run/x.sock"]
)
def test_this_machine_s_own_addresses_are_taken(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:80",
        "[::]:80",
        "192.168.1.1:80",
        "example.com:80",
        ":80",
        "localhost",
        "localhost:70000",
        "localhost:-1",
        "127.0.0.1:8a",
        "127.0.0.1:٣",
        "unix:",
        "unix:" + "x" * 108,
        "",
    ],
)
def test_any_other_is_refused(address: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its words differ
        check_address(address)


def test_port_0_becomes_the_port_that_was_bound() -> None:
    assert with_port("[::1]:0", 77) == "[::1]:77"
    assert with_port("unix:/x", 1) == "unix:/x"
