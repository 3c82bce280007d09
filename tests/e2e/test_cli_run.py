"""`captory run` and its relatives, as a person types them, on a server that paints from the seed alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from fakes import FAKE_SERVER, png
from typer.testing import CliRunner

from captory_client import cli, jobs, local_server, progress
from captory_client.backoff import Backoff

ROOT = Path(__file__).parents[2]


class Result:
    """What a command left behind."""

    def __init__(self, invoked: Any) -> None:
        self.code: int = invoked.exit_code
        self.out: str = invoked.stdout
        self.err: str = invoked.stderr
        if invoked.exception and not isinstance(invoked.exception, SystemExit):
            raise invoked.exception

    @property
    def json(self) -> dict[str, Any]:
        return dict(json.loads(self.out))


Captory = Callable[..., Result]


@pytest.fixture
def captory(monkeypatch: pytest.MonkeyPatch) -> Captory:
    """The command, with the entry points of this tree whether or not it is installed."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][cli.GROUP]
    points = [EntryPoint(name, value, cli.GROUP) for name, value in declared.items()]

    def find(group: str, name: str = "") -> list[EntryPoint]:
        return [point for point in points if group == cli.GROUP and name in ("", point.name)]

    monkeypatch.setattr(cli, "entry_points", find)
    monkeypatch.setattr(local_server, "SERVER_COMMAND", FAKE_SERVER)
    return lambda *words: Result(CliRunner().invoke(cli.app, [str(word) for word in words]))


@pytest.fixture
def quick(captory: Captory, fake_address: str) -> Captory:
    """The command on a server that runs already."""
    return lambda command, *words: captory(command, *words, "--server", fake_address)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve images in two classes."""
    folder = tmp_path / "photos"
    for k in range(12):
        image = folder / ("crane" if k % 2 else "bat") / f"{k}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(png(k + 1))
    return folder


def published(out: Path) -> list[dict[str, Any]]:
    """Every record of a dataset."""
    records = []
    for shard in sorted((out / "shards").glob("*.tar")):
        with tarfile.open(shard) as tar:
            records += [json.load(tar.extractfile(name)) for name in tar.getnames() if name.endswith(".json")]  # type: ignore[arg-type]
    return records


def test_a_folder_becomes_a_dataset_and_again_there_is_nothing_to_do(
    captory: Captory, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = captory("run", photos, "--out", out, "--per-image", 2, "--json")
    assert first.code == 0
    assert (first.json["items"], first.json["images"], first.json["failed"], first.json["skipped"]) == (12, 24, 0, 0)
    assert {"seconds", "images_per_s"} <= first.json.keys()
    assert "outside of that world" in first.err
    records = published(out)
    assert len({record["id"] for record in records}) == len({record["seed"] for record in records}) == 24
    assert (out / "report.html").is_file()
    assert captory("verify", out).code == 0

    monkeypatch.setattr(local_server, "SERVER_COMMAND", ("/no/server/is/started",))
    second = captory("run", photos, "--out", out, "--per-image", 2, "--json")
    assert second.code == 0
    assert (second.json["images"], second.json["skipped"]) == (0, 24)
    assert len(published(out)) == 24


def test_results_are_told_on_stdout_and_the_rest_on_stderr(quick: Captory, photos: Path, tmp_path: Path) -> None:
    told = quick("run", photos, "--out", tmp_path / "out", "--limit", 3)
    assert told.code == 0
    assert told.out.startswith("3 images from 3 items")
    assert str(tmp_path / "out" / "report.html") in told.out
    assert "--retry-failed" not in told.out
    quiet = quick("run", photos, "--out", tmp_path / "out", "--limit", 6, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")
    more = quick("run", photos, "--out", tmp_path / "out", "--limit", 8)
    assert more.out.startswith("2 images from 8 items")
    assert "(8 images in all)" in more.out
    other = quick("run", photos, "--out", tmp_path / "out", "--format", "parquet")
    assert (other.code, "'webdataset' there, 'parquet' now" in other.err) == (2, True)


def test_parameters_that_are_not_given_are_those_of_the_output(quick: Captory, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ("--mode", "basic", "--steps", 7, "--guidance", 1, "--size", "32x16", "--sampler", "euler", "--seed", 5)
    assert quick("run", photos, "--out", out, "--limit", 2, *given).code == 0
    assert quick("run", photos, "--out", out, "--limit", 4).code == 0
    records = published(out)
    assert len(records) == 4
    assert {(one["mode"], one["steps"], one["width"], one["sampler"]) for one in records} == {("basic", 7, 32, "euler")}
    assert records[0]["prompt"].startswith("a photo of ")


@pytest.mark.parametrize("mode", ["face", "closed-loop", "shuffled", "cross-class"])
def test_every_mode_leaves_its_records(
    captory: Captory, quick: Captory, photos: Path, tmp_path: Path, mode: str
) -> None:
    out = tmp_path / "out"
    assert quick("run", photos, "--out", out, "--mode", mode, "--quiet").code == 0
    records = published(out)
    assert len(records) == 12
    digest = hashlib.sha256(mode.encode()).hexdigest()
    assert {(record["mode"], record["mode_sha256"]) for record in records} == {(mode, digest)}
    lenders = {record["source"]: record["caption_source"] for record in records if record["caption_source"]}
    assert bool(lenders) is (mode in ("shuffled", "cross-class"))
    for source, lender in lenders.items():
        assert source != lender
        assert (Path(source).parent == Path(lender).parent) is (mode == "shuffled")
    assert captory("verify", out).code == 0


def test_prompts_have_raw_or_curated_class_names(quick: Captory, photos: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text("id,name,curated\nbat,bat,bat (animal)\ncrane,crane,crane (bird)\n")
    given = ("run", photos, "--classes", names, "--limit", 1, "--quiet")
    assert quick(*given, "--out", tmp_path / "raw").code == 0
    assert quick(*given, "--out", tmp_path / "curated", "--class-names", "curated").code == 0
    [raw], [curated] = published(tmp_path / "raw"), published(tmp_path / "curated")
    assert (raw["class_name"], curated["class_name"]) == ("bat", "bat (animal)")
    assert (raw["id"], raw["seed"], raw["class_id"]) == (curated["id"], curated["seed"], curated["class_id"])
    mixed = quick(*given, "--out", tmp_path / "curated")
    assert mixed.code == 2
    assert "other class names" in mixed.err
    without = quick("run", photos, "--out", tmp_path / "none", "--class-names", "curated")
    assert without.code == 2
    assert "classes file" in without.err


def test_other_parameters_on_the_same_output_are_refused_by_name(quick: Captory, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert quick("run", photos, "--out", out, "--limit", 1).code == 0
    refused = quick("run", photos, "--out", out, "--limit", 1, "--steps", 9)
    assert refused.code == 2
    assert "steps: 4 there, 9 now" in refused.err


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("--sampler", "nope"), 2, "ddim, euler"),
        (("--size", "17"), 2, "16x16, 32x16"),
        (("--size", "big"), 2, "WIDTHxHEIGHT"),
        (("--steps", "51"), 2, "from 1 to 50"),
        (("--seed", 2**53), 2, "seed"),
        (("--family", "nope"), 2, "no family nope"),
        (("--mode", "nope"), 2, "nope"),
        (("--per-image", "0"), 2, "per-image"),
        (("--classes", "/nope"), 2, "nope"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    captory: Captory, photos: Path, tmp_path: Path, words: tuple[object, ...], code: int, why: str
) -> None:
    refused = captory("run", photos, "--out", tmp_path / "out", *words)
    assert refused.code == code
    assert why in refused.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["modes", "writer", "captioner"])
def test_a_server_that_runs_keeps_its_own_models_and_modes(
    quick: Captory, photos: Path, tmp_path: Path, name: str
) -> None:
    refused = quick("run", photos, "--out", tmp_path / "out", f"--{name}", "vllm://127.0.0.1:1")
    assert refused.code == 2
    assert f"captory run: {name}: for a server that is started here" in refused.err
    assert not (tmp_path / "out").exists()


def test_an_input_that_is_not_there_or_empty_is_refused(captory: Captory, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("none", "empty"):
        refused = captory("run", tmp_path / name, "--out", tmp_path / "out")
        assert refused.code == 2
        assert name in refused.err


def test_some_bad_files_fail_alone_and_can_be_tried_again(quick: Captory, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (photos / "bat" / "text.jpg").write_text("no image")
    (photos / "bat" / "empty.png").touch()
    some = quick("run", photos, "--out", out, "--json")
    assert (some.code, some.json["images"], some.json["failed"]) == (3, 12, 2)
    with sqlite3.connect(out / "ledger.sqlite") as ledger:
        reasons = dict(ledger.execute("select source, reason from failures").fetchall())
    assert len(reasons) == 2
    assert reasons["bat/text.jpg"] == "BAD_IMAGE"
    told = quick("run", photos, "--out", out)
    assert told.code == 3
    assert "2 of them in earlier runs" in told.out
    assert "--retry-failed" in told.out
    (photos / "bat" / "text.jpg").write_bytes(png(3))
    again = quick("run", photos, "--out", out, "--json", "--retry-failed")
    assert (again.code, again.json["images"], again.json["failed"], again.json["skipped"]) == (3, 1, 1, 12)


def test_a_dry_run_makes_nothing(quick: Captory, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dry = quick("run", photos, "--out", out, "--dry-run", "--per-image", 3, "--json")
    assert (dry.code, dry.json["items"], dry.json["to_make"], dry.json["job"]["steps"]) == (0, 12, 36, 4)
    assert "12 items: 36 images" in quick("run", photos, "--out", out, "--dry-run", "--per-image", 3).out
    assert not out.exists()


@pytest.mark.parametrize(("layout", "pattern"), [("imagefolder", "**/*.webp"), ("parquet", "**/*.parquet")])
def test_other_formats(
    captory: Captory, quick: Captory, photos: Path, tmp_path: Path, layout: str, pattern: str
) -> None:
    out = tmp_path / "out"
    assert quick("run", photos, "--out", out, "--format", layout, "--image-format", "webp").code == 0
    assert list((out / "data").glob(pattern))
    assert captory("verify", out, "--json").json["images"] == 12


def test_a_server_killed_in_mid_run_is_started_again(
    captory: Captory, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = tmp_path / "crash"
    crash.touch()
    monkeypatch.setenv("FAKE_CRASH_FILE", str(crash))
    done = captory("run", photos, "--out", tmp_path / "out", "--per-image", 8, "--json")
    assert not crash.exists()
    assert (done.code, done.json["images"]) == (0, 96)
    assert captory("verify", tmp_path / "out").code == 0


def test_a_server_that_is_down_ends_the_run_but_not_the_job(
    captory: Captory, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr("captory_client.client.Backoff", lambda: Backoff(0.01, 0.01, 0.02))
    down = captory("run", photos, "--out", out, "--server", f"unix:{tmp_path}/none.sock")
    assert down.code == 1
    assert captory("run", photos, "--out", out, "--limit", 2).code == 0
    down = captory("run", photos, "--out", out, "--server", f"unix:{tmp_path}/none.sock", "--json")
    assert (down.code, down.json["skipped"]) == (1, 2)
    assert "run the same command again" in down.err
    assert captory("run", photos, "--out", out, "--json").json["images"] == 10


class Saboteur(progress.Silent):
    """Does something when so many images are there."""

    def __init__(self, images: int, deed: Callable[[], object]) -> None:
        self._images = images
        self._deed = deed
        self._done = False

    def __call__(self, counts: progress.Progress) -> None:
        if counts.images >= self._images and not self._done:
            self._done = True
            self._deed()


def test_ctrl_c_drains_and_the_next_run_does_the_rest(
    captory: Captory, quick: Captory, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        saboteur = Saboteur(3, lambda: os.kill(os.getpid(), signal.SIGINT))
        patch.setattr(progress, "open_display", lambda **_: saboteur)
        patch.setattr(jobs, "WINDOW", 1)  # so that something is left to do
        first = quick("run", photos, "--out", out, "--json")
    assert (first.code, first.json["interrupted"]) == (130, True)
    assert "press Ctrl-C again" in first.err
    assert 0 < first.json["images"] < 12
    assert captory("verify", out).code == 0
    rest = quick("run", photos, "--out", out, "--json")
    assert (rest.code, rest.json["skipped"]) == (0, first.json["images"])
    assert len(published(out)) == 12


def test_ctrl_c_twice_stops_at_once(
    quick: Captory, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "open_display", lambda **_: Saboteur(1, twice))
        patch.setattr(jobs, "WINDOW", 1)  # so that something is left to do
        stopped = quick("run", photos, "--out", tmp_path / "out")
    assert stopped.code == 130
    assert quick("run", photos, "--out", tmp_path / "out").code == 0
    assert len(published(tmp_path / "out")) == 12


KILLED = """
import os, signal, sys
from captory_client import local_server, progress
from captory_client.commands.run import work
from captory_client.jobs import Run
from fakes import FAKE_SERVER
from pathlib import Path

class Killer(progress.Silent):
    def __call__(self, counts):
        if counts.images >= 30:
            os.kill(os.getpid(), signal.SIGKILL)

local_server.SERVER_COMMAND = FAKE_SERVER
progress.open_display = lambda **_: Killer()
work(Run(Path(sys.argv[1]), Path(sys.argv[2]), {"per_image": 8}), quiet=True, as_json=False)
"""


def test_a_run_killed_in_mid_work_goes_on_and_publishes_each_image_once(
    captory: Captory, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), *sys.path])}
    command = [sys.executable, "-c", KILLED, str(photos), str(out)]
    assert subprocess.run(command, env=environment, check=False, timeout=60).returncode == -signal.SIGKILL
    rest = captory("run", photos, "--out", out, "--json")
    assert rest.code == 0
    records = published(out)
    assert len(records) == len({record["id"] for record in records}) == 96 == rest.json["images"] + rest.json["skipped"]
    assert captory("verify", out).code == 0


def test_an_image_is_painted_again_from_its_record(quick: Captory, photos: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again.png"
    assert quick("run", photos, "--out", out, "--limit", 2, "--determinism", "exact").code == 0
    [record, _] = published(out)
    told = quick("reproduce", out, record["id"], "--to", again, "--json")
    assert (told.code, told.json["same_bytes"], told.json["determinism"]) == (0, True, "exact")
    assert again.read_bytes().startswith(b"\x89PNG")
    assert quick("reproduce", out, record["id"]).out == "identical: the same bytes\n"
    unknown = quick("reproduce", out, "0" * 32)
    assert unknown.code == 1
    assert "no image" in unknown.err


def test_a_dataset_that_was_touched_does_not_verify(
    captory: Captory, quick: Captory, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert quick("run", photos, "--out", out, "--limit", 2).code == 0
    [shard] = (out / "shards").glob("*.tar")
    shard.write_bytes(shard.read_bytes()[:-1])
    told = captory("verify", out)
    assert told.code == 1
    assert shard.name in told.out
    assert captory("verify", tmp_path / "none").code == 1


def test_help_lists_every_command_without_loading_one(captory: Captory, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_load(self: EntryPoint) -> None:
        raise AssertionError(f"{self.name} was loaded")

    monkeypatch.setattr(EntryPoint, "load", no_load)
    told = captory("--help")
    assert told.code == 0
    for line in ("run        Turn a folder of images", "models     Look after", "reproduce  Paint one image again"):
        assert line in told.out


@pytest.mark.parametrize("command", ["run", "demo", "reproduce", "verify", "serve", "models"])
def test_each_command_explains_itself(captory: Captory, command: str) -> None:
    told = captory(command, "--help")
    assert told.code == 0
    assert "Usage:" in told.out


def test_a_command_that_is_not_there_is_a_usage_error(captory: Captory) -> None:
    assert captory("nope").code == 2


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """The command hands its log options to its server through the environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_log_options_reach_the_server(captory: Captory, photos: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ("--log-level", "info", "--log-file", log)
    assert captory(*options, "run", photos, "--out", tmp_path / "out", "--limit", 1).code == 0
    assert os.environ["CAPTORY_LOG_FILE"] == str(log)
    assert os.environ["CAPTORY_LOG_LEVEL"] == "info"
