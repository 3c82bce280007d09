"""Instruction files: what ships, what may take its place, and what is refused at the start, by its field."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from captory_engine.errors import BadModel
from captory_engine.items import Mode
from captory_engine.modes import MAX_FILE_BYTES, SHIPPED, Acceptance, TokenPolicy, WriterKind, fill, read_modes
from captory_server.commands import serve
from captory_server.config import load
from captory_server.process import run_server

MODEL_FILE = """
captions: [long]
template: "{words}"
classless: "{words}"
writer: model
instruction: {task: rewrite, text: "{caption}", user: "Reword: {caption}", max_tokens: 64}
fallback: {template: "{c}, {caption}", classless: "{caption}"}
"""


def test_every_mode_ships_its_file_and_is_known_by_its_digest() -> None:
    shipped = read_modes()
    assert set(shipped.plans) == set(Mode)
    assert shipped.digests == {
        mode: hashlib.sha256((SHIPPED / f"{mode}.yaml").read_bytes()).hexdigest() for mode in Mode
    }
    assert {path.stem for path in SHIPPED.iterdir()} == set(Mode)


def test_the_modes_are_those_of_the_papers() -> None:
    plans = read_modes().plans
    recap = {Mode.RECAP_SHORT, Mode.RECAP_LONG, Mode.RECAP_MIX}
    assert {mode for mode in Mode if plans[mode].policy is TokenPolicy.DROP} == recap
    assert {mode for mode in Mode if plans[mode].policy is TokenPolicy.SPLIT} == set()
    assert {mode for mode in Mode if plans[mode].writer is WriterKind.MODEL} == {Mode.REWRITE, Mode.FACE}
    assert {mode for mode in Mode if plans[mode].rounds == 2} == {Mode.CLOSED_LOOP}
    assert {mode for mode in Mode if not plans[mode].captions} == {Mode.BASIC}
    assert plans[Mode.SHUFFLED] == plans[Mode.CROSS_CLASS] == plans[Mode.CIP]
    assert plans[Mode.REWRITE].accept == Acceptance(ascii=True, min_words=6, max_words=64)
    assert (plans[Mode.RECAP_MIX].captions, plans[Mode.RECAP_MIX].long_share) == (("short", "long"), 0.5)
    assert plans[Mode.FACE].needed == {"attributes"}


def test_a_folder_of_one_s_own_replaces_single_files(tmp_path: Path) -> None:
    (tmp_path / "cip.yaml").write_text(
        'captions: [long]\ntemplate: "{caption}, {c}"\nclassless: "{caption}"\npolicy: split'
    )
    (tmp_path / "notes.txt").write_text("no instruction file")
    shipped, own = read_modes(), read_modes(tmp_path)
    assert (own.plans[Mode.CIP].captions, own.plans[Mode.CIP].policy) == (("long",), TokenPolicy.SPLIT)
    assert {mode for mode in Mode if own.digests[mode] != shipped.digests[mode]} == {Mode.CIP}
    assert list(own.plans) == list(Mode)


def test_a_whole_model_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "rewrite.yaml").write_text(MODEL_FILE)
    plan = read_modes(tmp_path).plans[Mode.REWRITE]
    assert plan.instruction is not None
    assert (plan.instruction.temperature, plan.instruction.max_attempts, plan.instruction.stop) == (None, 4, ())


BAD_FILES = {
    "template: 'a {colour} {c}'\nclassless: a": r"template: .*\{colour\}",
    "template: '{c.__class__}'\nclassless: a": r"template: .*\{c\.__class__\}",
    "template: '{0}'\nclassless: a": r"template: .*\{0\}",
    "template: '{c!r}'\nclassless: a": r"template: .*\{c!r\}",
    "template: '{}'\nclassless: a": r"template: .*\{\}",
    "template: 'a {c'\nclassless: a": "template: .*brace",
    "template: a\nclassless: '{c}'": "classless",
    "template: a": "classless: Field required",
    "template: a\nclassless: a\npolcy: drop": "polcy",
    "template: a\nclassless: a\npolicy: cut": "policy",
    "template: a\nclassless: a\nrounds: 0": "rounds",
    "template: a\nclassless: a\nrounds: 2": "rounds",
    "template: a\nclassless: a\nlong_share: 1.5": "long_share",
    "template: a\nclassless: a\ncaptions: [medium]": "captions",
    "template: '{caption}'\nclassless: '{caption}'\ncaptions: [short, short]": "captions",
    "template: '{caption}'\nclassless: '{caption}'": "captions",
    "template: '{words}'\nclassless: '{words}'": "writer",
    "template: a\nclassless: a\nwriter: model": "writer",
    "template: a\nclassless: a\naccept: {min_words: 9, max_words: 8}": "accept: .*min_words",
    "template: a\nclassless: a\nfallback: {template: b, classless: b}": "writer",
    "template: a\nclassless: a\nfallback: {template: b}": "fallback.classless",
    MODEL_FILE.replace("max_tokens: 64", "max_tokens: 0"): "instruction.max_tokens",
    MODEL_FILE.replace("max_tokens: 64", "max_tokens: 64, max_attempts: 1000"): "instruction.max_attempts",
    MODEL_FILE.replace("max_tokens: 64", "max_tokens: 64, stop: ['']"): "instruction.stop",
    MODEL_FILE.replace("max_tokens: 64", "max_tokens: 64, json_schema: {properties: 3}"): "instruction: .*json_schema",
    MODEL_FILE.replace("max_tokens: 64", "max_tokens: 64, sytem: be brief"): "instruction.sytem",
    MODEL_FILE.replace("Reword: {caption}", "Reword: {words}"): "instruction: .*words",
    MODEL_FILE.replace("Reword: {caption}", "Reword: {text}"): r"instruction\.user: .*\{text\}",
    MODEL_FILE.replace('"{c}, {caption}"', '"{words}"'): "fallback",
    "template: a\nclassless: ' '": "classless",
    MODEL_FILE.replace('classless: "{words}"', "classless: a photo", 1): "writer: .*both",
    MODEL_FILE.replace(
        "max_tokens: 64", "max_tokens: 64, json_schema: {properties: {text: 2026-01-01}}"
    ): "json_schema",
    "- a list": "the whole",
    "": "the whole",
    "template: [": "YAML",
    "template: \x01": "YAML",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_a_bad_file_is_refused_by_its_field(tmp_path: Path, text: str) -> None:
    (tmp_path / "cip.yaml").write_text(text)
    with pytest.raises(BadModel, match=BAD_FILES[text]) as refused:
        read_modes(tmp_path)
    assert refused.value.reason == "MODE_INVALID"
    assert "cip.yaml" in refused.value.message


@pytest.mark.parametrize("name", ["poem.yaml", "cip.yml", "CIP.yaml"])
def test_a_file_that_no_mode_is_named_by_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("template: a\nclassless: a")
    with pytest.raises(BadModel, match=name):
        read_modes(tmp_path)


def test_what_is_no_plain_small_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cip.yaml"
    file.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(BadModel, match="no instruction file"):
        read_modes(tmp_path)
    file.unlink()
    file.symlink_to(SHIPPED / "cip.yaml")
    with pytest.raises(BadModel, match="no instruction file"):
        read_modes(tmp_path)
    file.unlink()
    file.write_bytes(b"template: \xff")
    with pytest.raises(BadModel, match="YAML"):
        read_modes(tmp_path)


def test_a_server_does_not_start_with_a_folder_or_a_file_that_is_wrong(tmp_path: Path) -> None:
    assert run_server(load(address="127.0.0.1:0", modes=tmp_path / "absent")) == 2
    (tmp_path / "cip.yaml").write_text("template: '{colour}'\nclassless: a")
    assert run_server(load(address="127.0.0.1:0", modes=tmp_path)) == 2


def test_the_folder_comes_by_flag_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPTORY_MODES", str(tmp_path))
    assert load().modes == tmp_path
    app = typer.Typer()
    app.command()(serve)
    refused = CliRunner().invoke(app, ["--modes", str(tmp_path / "absent"), "--address", "127.0.0.1:0"])
    assert refused.exit_code == 2


def test_a_value_that_spells_a_field_stays_as_it_is() -> None:
    values = {"c": "{caption}", "caption": "{c} {words} {", "attributes": "", "words": "never"}
    assert fill("{c}: {caption}", values) == "{caption}: {c} {words} {"
