"""How a server is told of vLLM: flags, environment, file; and what it does not tell."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from captory_engine import assembly
from captory_engine.assembly import EngineConfig
from captory_engine.vllm.options import VllmOptions
from captory_server import process
from captory_server.commands import serve
from captory_server.config import explain, load


def test_file_environment_and_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (load().writer, load().captioner, load().vllm) == ("", "", VllmOptions())
    file = tmp_path / "captory.yaml"
    file.write_text("writer: vllm:org/name@abc\nvllm: {arguments: [--enforce-eager], patience_s: 5, timeout_s: 7}\n")
    monkeypatch.setenv("CAPTORY_CAPTIONER", "vllm://127.0.0.1:8000/eyes")
    monkeypatch.setenv("CAPTORY_VLLM__PATIENCE_S", "9")
    settings = load(file, vllm={"max_concurrent": 8})
    assert (settings.writer, settings.captioner) == ("vllm:org/name@abc", "vllm://127.0.0.1:8000/eyes")
    assert settings.vllm == VllmOptions(8, 9.0, 7.0, arguments=("--enforce-eager",))


def test_the_key_is_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTORY_VLLM_API_KEY", "secret")
    monkeypatch.setenv("CAPTORY_VLLM_PYTHON", "/somewhere/python")
    assert "secret" not in str(load().model_dump(mode="json"))
    assert load().vllm == VllmOptions()


@pytest.mark.parametrize(
    "flags",
    [
        {"writer": "http://host:1"},
        {"captioner": "vllm://host"},
        {"writer": "vllm://a..b:80"},
        {"writer": "vllm://é..:1"},
        {"captioner": f"vllm://{'a' * 64}:80"},
        {"captioner": "vllm://999.0.0.1:80"},
    ],
)
def test_a_wrong_address_is_named(flags: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as refused:
        load(**flags)
    assert [line.partition(":")[0] for line in explain(refused.value)] == list(flags)


@pytest.mark.parametrize("value", ["vllm://localhost:1", "vllm://10.0.0.1:1", "vllm://[::1]:1", "vllm://bücher.de:1/a"])
def test_an_address_that_can_be_asked_for_is_taken(value: str) -> None:
    assert load(writer=value).writer == value


@pytest.mark.parametrize(
    "argument",
    [
        "--trust-remote-code",
        "--model=/other",
        "--tokenizer=/other",
        "--hf-overrides={}",
        "--hf-overrides.architectures+=Other",
        "--hf_config_path",
        "--load-format=pt",
        "--revision=main",
        "--tokenizer-rev",
        "--code-revision=main",
    ],
)
def test_wrong_options_are_named(argument: str) -> None:
    with pytest.raises(ValidationError) as refused:
        load(vllm={"arguments": ["--max-model-len=512", argument, "--tokenizer-mode=slow"]})
    name = argument.partition("=")[0]
    assert explain(refused.value)[0].endswith(f"arguments may not have {name}")


def test_the_flags_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    configs: list[EngineConfig] = []

    async def open_nothing(config: EngineConfig) -> None:
        configs.append(config)

    monkeypatch.setattr(assembly, "open_pipeline", open_nothing)
    monkeypatch.setattr(process, "run_server", lambda settings, **_: asyncio.run(process.open_engine(settings)) or 0)
    app = typer.Typer()
    app.command()(serve)
    flags = ["--writer", "vllm:/models/writer", "--captioner", "vllm://127.0.0.1:8001", "--vllm-gpu-memory", "0.3"]
    flags += ["--vllm-python", "/env/bin/python", "--vllm-max-concurrent", "32", "--vllm-log", "vllm.log"]
    done = CliRunner().invoke(app, [*flags, "--vllm-argument=--enforce-eager", "--vllm-argument=--max-model-len=512"])
    assert done.exit_code == 0, done.output
    [config] = configs
    assert (config.writer, config.captioner) == ("vllm:/models/writer", "vllm://127.0.0.1:8001")
    assert config.vllm == VllmOptions(
        max_concurrent=32,
        python=Path("/env/bin/python"),
        gpu_memory=0.3,
        arguments=("--enforce-eager", "--max-model-len=512"),
        log_file=Path("vllm.log"),
    )
