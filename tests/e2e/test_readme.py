"""What README.md and docs/ say is so: commands, flags, targets, links, code, and the names of modes and the like."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from captory_data.spec import CHOICES
from captory_engine.diffusion.samplers import SAMPLERS
from captory_engine.items import Mode
from captory_engine.modes import read_modes

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
METHODS = (ROOT / "docs" / "methods.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CAPTORY = Path(sys.executable).with_name("captory")


def blocks(language: str) -> list[str]:
    """The fenced blocks in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def prose() -> str:
    """All but the fenced blocks."""
    return re.sub(r"^```.*?^```", "", README, flags=re.DOTALL | re.MULTILINE)


def commands(program: str) -> list[list[str]]:
    """Every command line of this program, in bash blocks and between backticks."""
    lines = [line for block in blocks("bash") for line in block.replace("\\\n", "").splitlines()]
    split = [shlex.split(line, comments=True) for line in [*lines, *re.findall(r"`([^`\n]+)`", prose())]]
    return [words[1:] for words in split if len(words) > 1 and Path(words[0]).name == program]


@cache
def usage(*names: str) -> str:
    """What `captory NAMES --help` says; it fails for a command that is none."""
    wide = {**os.environ, "COLUMNS": "240", "TERM": "dumb"}
    ran = subprocess.run([CAPTORY, *names, "--help"], capture_output=True, text=True, env=wide, check=False)
    assert ran.returncode == 0, f"captory {' '.join(names)}: {ran.stderr}"
    return ran.stdout


def help_for(words: list[str]) -> str:
    """The help of the command that these words call."""
    text = usage(words[0])
    return usage(*words[:2]) if "COMMAND [ARGS]" in text else text


def lacks(text: str, flags: list[str]) -> list[str]:
    """The flags that a help text does not have."""
    return [flag for flag in flags if not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text)]


@pytest.mark.parametrize("words", commands("captory"), ids=" ".join)
def test_every_command_exists_with_its_flags(words: list[str]) -> None:
    assert lacks(help_for(words), [word.partition("=")[0] for word in words if word.startswith("--")]) == []


def test_the_commands_are_found() -> None:
    assert {words[0] for words in commands("captory")} >= {"run", "serve", "models", "verify", "reproduce", "bench"}
    assert {words[0] for words in commands("make")} >= {"demo", "test"}


def table() -> dict[str, list[str]]:
    """The table of flags: each flag with the values that it lists."""
    cells = [cell for line in prose().splitlines() if line.startswith("|") for cell in re.findall(r"`(--[^`]+)`", line)]
    flags = [part.split() for cell in cells for part in re.findall(r"--[^-\s]\S*(?: [^-\s]\S*)?", cell)]
    return {words[0]: words[1].split("｜") if words[1:] else [] for words in flags}


def test_every_flag_of_the_table_is_one_of_run() -> None:
    assert len(table()) >= 10
    assert lacks(usage("run"), list(table())) == []


def test_the_table_lists_what_there_is() -> None:
    assert table()["--mode"] == list(CHOICES["mode"])
    assert sorted(table()["--sampler"]) == sorted(SAMPLERS)
    assert {"webdataset", *table()["--format"]} == set(CHOICES["output_format"])
    assert set(table()["--determinism"]) <= set(CHOICES["determinism"])


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {word for words in commands("make") for word in words if not word.startswith("-") and "=" not in word}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("block", blocks("python"))
def test_every_python_block_compiles(block: str) -> None:
    assert ast.parse(block).body


def test_the_table_of_modes_has_the_shipped_templates() -> None:
    rows = dict(re.findall(r"^\| `([a-z-]+)`[^|]*\| [^`|]*`([^`]+)`", METHODS, re.MULTILINE))
    plans = read_modes().plans
    assert {name for name in rows if name in set(Mode)} == set(Mode)
    same = {mode: "cip" if mode in ("shuffled", "cross-class") else plan.template for mode, plan in plans.items()}
    assert {mode: rows[mode] for mode in Mode} == same


def test_the_instruction_file_of_the_page_is_one(tmp_path: Path) -> None:
    [block] = re.findall(r"^```yaml\n(.*?)^```", METHODS, re.DOTALL | re.MULTILINE)
    (tmp_path / "rewrite.yaml").write_text(block)
    own, shipped = read_modes(tmp_path), read_modes()
    assert own.plans[Mode.REWRITE].policy == "split"
    assert own.digests[Mode.REWRITE] != shipped.digests[Mode.REWRITE]
    assert own.plans[Mode.CIP] == shipped.plans[Mode.CIP]
