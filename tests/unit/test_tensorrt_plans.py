"""Engines on the disk: found again by what they were built for, and refused, by name, for anything else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from captory_engine.errors import BadModel, InvalidInput
from captory_engine.sessions.tensorrt_plans import (
    PLAN,
    RECORD,
    Key,
    Record,
    engine_folder,
    engines_root,
    load_plan,
    replacing,
    save_plan,
)

KEY = Key("unet", "d" * 64, "NVIDIA H200", "9.0", "10.13.3.9", "fp16")
PROFILES = [{"sample": ([1, 4, 8, 8], [8, 4, 8, 8], [16, 4, 8, 8])}]


def save(root: Path, key: Key = KEY, plan: bytes = b"a plan") -> None:
    save_plan(root, key, plan, PROFILES, build_s=1.5)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(tmp_path)
    plan, record = load_plan(tmp_path, KEY)
    assert plan == b"a plan"
    assert (record.key, record.num_bytes, record.build_s, record.profiles) == (KEY, 6, 1.5, PROFILES)


def test_a_second_engine_takes_the_first_one_s_place(tmp_path: Path) -> None:
    save(tmp_path)
    save(tmp_path, plan=b"another")
    assert load_plan(tmp_path, KEY)[0] == b"another"
    assert sorted(path.name for path in engine_folder(tmp_path, KEY).iterdir()) == [RECORD, PLAN]


@pytest.mark.parametrize(
    "other",
    [
        {"gpu": "NVIDIA L4"},
        {"compute_capability": "8.9"},
        {"tensorrt": "11.4.1"},
        {"precision": "bf16"},
        {"digest": "e" * 64},
    ],
)
def test_an_engine_for_something_else_is_named(tmp_path: Path, other: dict[str, str]) -> None:
    save(tmp_path, replace(KEY, **other))
    ((field, value),) = other.items()
    with pytest.raises(BadModel, match=f"{field} '{value}', not '{getattr(KEY, field)}'") as refused:
        load_plan(tmp_path, KEY)
    assert refused.value.reason == "ENGINE_MISSING"
    assert "captory export --tensorrt" in refused.value.message


def test_the_nearest_of_several_is_named(tmp_path: Path) -> None:
    save(tmp_path, replace(KEY, gpu="NVIDIA L4", compute_capability="8.9"))
    save(tmp_path, replace(KEY, precision="bf16"))
    with pytest.raises(BadModel, match="precision 'bf16'") as refused:
        load_plan(tmp_path, KEY)
    assert "L4" not in refused.value.message


def test_no_engine_at_all_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match=r"no engine for this machine\. Build it .*captory export --tensorrt"):
        load_plan(tmp_path, KEY)


def test_an_engine_that_was_moved_is_refused(tmp_path: Path) -> None:
    other = replace(KEY, gpu="NVIDIA L4")
    save(tmp_path, other)
    target = engine_folder(tmp_path, KEY)
    target.parent.mkdir(parents=True)
    engine_folder(tmp_path, other).rename(target)
    with pytest.raises(BadModel, match="gpu 'NVIDIA L4', not 'NVIDIA H200'") as refused:
        load_plan(tmp_path, KEY)
    assert refused.value.reason == "ENGINE_MISMATCH"


@pytest.mark.parametrize("content", [b"another plan", None])
def test_a_plan_that_is_not_the_recorded_one_is_refused(tmp_path: Path, content: bytes | None) -> None:
    save(tmp_path)
    path = engine_folder(tmp_path, KEY) / PLAN
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(BadModel, match=r"is not what its engine\.json says") as refused:
        load_plan(tmp_path, KEY)
    assert refused.value.reason == "ENGINE_CHANGED"


def test_a_record_that_nobody_here_wrote_is_none(tmp_path: Path) -> None:
    save(tmp_path)
    (engine_folder(tmp_path, KEY) / RECORD).write_text('{"key": {}}')
    with pytest.raises(BadModel, match="no engine for this machine") as refused:
        load_plan(tmp_path, KEY)
    assert refused.value.reason == "ENGINE_MISSING"


def test_what_fails_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "engines" / "file"
    with replacing(path) as draft:
        draft.write_bytes(b"old")

    def fail() -> None:
        with replacing(path) as draft:
            draft.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_engines_lie_in_the_user_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert engines_root() == tmp_path / "captory" / "engines"
    assert engines_root(tmp_path / "own") == tmp_path / "own"
    assert engine_folder(Path("r"), KEY) == Path("r/nvidia-h200-sm9.0/tensorrt-10.13.3.9/fp16") / f"unet-{'d' * 12}"


def test_an_engine_s_first_profile_that_takes_the_shapes_is_chosen() -> None:
    one = {"x": ([1, 1, 3], [1, 1, 3], [1, 1, 3]), "scale": ([1], [1], [1])}
    more = {"x": ([1, 1, 3], [2, 2, 3], [4, 8, 3]), "scale": ([1], [2], [4])}
    record = Record(KEY, "", 0, 0.0, [one, more])
    assert record.profile_of({"x": (1, 1, 3), "scale": (1,)}) == 0
    assert record.profile_of({"x": (4, 8, 3), "scale": (4,)}) == 1
    with pytest.raises(InvalidInput, match="unet: the engine was not built for the shapes"):
        record.profile_of({"x": (4, 9, 3), "scale": (4,)})


def test_an_engine_takes_as_many_rows_as_all_of_its_profiles() -> None:
    narrow = {"x": ([1, 1], [2, 8], [4, 16])}
    assert Record(KEY, "", 0, 0.0, [{"x": ([1, 1], [2, 1], [8, 1])}, narrow]).max_rows == 4
