"""The job runner: accounting, resuming, stopping, and results that misbehave."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from data_fakes import MODELS, Maker, failing, finished, job_spec, photo_folder, picture, requested, run
from oracle import judge

from captory_data.batching import BatchLimits
from captory_data.dataset import find_image, stored_job
from captory_data.errors import DataError, SpecError, TransportError
from captory_data.outcomes import Failure, Finished, ItemDone, Outcome, Started, WorkItem
from captory_data.planning import Plan, Planned, plan_items, plan_job
from captory_data.runner import run_job
from captory_data.source import open_source
from captory_data.summary import JobSummary, Progress


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photo_folder(tmp_path / "in")


def failures(out: Path) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(out / "ledger.sqlite")
    rows = connection.execute(
        "SELECT source, reason, message, attempts, dropped FROM failures ORDER BY source"
    ).fetchall()
    connection.close()
    return rows


def test_a_whole_run(tmp_path: Path, photos: Path) -> None:
    maker, out, spec = Maker(), tmp_path / "out", job_spec(per_image=2)
    news: list[tuple[int, int]] = []
    summary = run(photos, out, maker, spec, progress=lambda now: news.append((now.items, now.images)))
    assert (summary.items, summary.images, summary.failed, summary.skipped) == (6, 12, 0, 0)
    assert summary.exit_code == 0
    assert news[-1] == (6, 12)
    assert summary.stage_seconds == {"caption": 0.5, "image": 1.0}
    assert judge(out, requested(photos, spec)).clean
    assert [item.key for item in maker.seen] == [f"{name}/{k}.png" for name in ("bird", "cat") for k in range(3)]
    first = maker.seen[0]
    record, image = find_image(out, first.wanted[1].id)
    assert image == finished(first, first.wanted[1].id).image
    assert (record.source, record.class_id, record.seed) == ("bird/0.png", "bird", first.wanted[1].seed)
    assert (record.models, record.writer) == (MODELS, "template")
    with pytest.raises(DataError, match="no image"):
        find_image(out, "0" * 32)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"] == {"images": 12, "failed": 0, "dropped": 0}
    assert manifest["classes"] == [{"index": 0, "id": "bird", "name": "bird"}, {"index": 1, "id": "cat", "name": "cat"}]
    assert (manifest["notice"], manifest["models"]) == ("drawn, not photographed", MODELS)


def test_the_second_run_makes_nothing(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file() and path.suffix != ".sqlite"}
    maker = Maker()
    summary = run(photos, out, maker)
    assert (summary.images, summary.skipped, summary.exit_code, maker.calls) == (0, 6, 0, 0)
    after = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file() and path.suffix != ".sqlite"}
    assert after == before


def test_limit_takes_the_first_and_grows(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"
    assert run(photos, out, limit=2).images == 2
    maker = Maker()
    summary = run(photos, out, maker, limit=5)
    assert (summary.images, summary.skipped, summary.items) == (3, 2, 5)
    assert [item.key for item in maker.seen] == ["bird/2.png", "cat/0.png", "cat/1.png"]


def test_one_bad_item_is_a_row(tmp_path: Path, photos: Path) -> None:
    (photos / "bird" / "empty.png").touch()
    out, spec = tmp_path / "out", job_spec(per_image=2)
    maker = Maker(spoil=lambda item: failing(item) if item.key == "cat/1.png" else None)
    summary = run(photos, out, maker, spec)
    assert (summary.images, summary.failed, summary.exit_code) == (10, 4, 3)
    assert [row[:2] for row in failures(out)] == [("bird/empty.png", "EMPTY_FILE")] * 2 + [
        ("cat/1.png", "invalid_image")
    ] * 2
    assert judge(out, requested(photos, spec)).clean
    again = Maker()
    summary = run(photos, out, again, spec)
    assert (summary.images, summary.skipped, summary.failed, summary.failed_before) == (0, 10, 4, 4)
    assert (summary.exit_code, again.calls) == (3, 0)


def test_failures_are_retried_by_reason(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"
    spoiled = {"bird/0.png": "invalid_image", "cat/0.png": "not_finite"}
    run(photos, out, Maker(spoil=lambda item: failing(item, spoiled[item.key]) if item.key in spoiled else None))
    still = Maker(spoil=failing)
    summary = run(photos, out, still, retry_failed="not_finite")
    assert [item.key for item in still.seen] == ["cat/0.png"]
    assert (summary.failed, summary.failed_before) == (2, 1)
    assert [row[3] for row in failures(out)] == [1, 2]
    summary = run(photos, out, retry_failed=True)
    assert (summary.images, summary.failed, summary.exit_code) == (2, 0, 0)
    assert failures(out) == []
    assert judge(out, requested(photos, job_spec())).clean


def test_dropped_is_not_failed(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"
    drop = Maker(spoil=lambda item: failing(item, "over_budget", dropped=True) if item.class_id == "cat" else None)
    summary = run(photos, out, drop)
    assert (summary.images, summary.failed, summary.dropped, summary.exit_code) == (3, 0, 3, 0)
    again = Maker()
    assert run(photos, out, again, retry_failed=True).dropped == 3
    assert again.calls == 0
    assert run(photos, out, retry_failed="over_budget").images == 3


def test_results_that_misbehave(tmp_path: Path, photos: Path) -> None:
    def spoil(item: WorkItem) -> list[Outcome]:
        good = finished(item, item.wanted[0].id)
        match item.key:
            case "bird/0.png":  # twice, for an unknown image, for an unknown item, and after the end
                strangers: list[Outcome] = [
                    Finished("x", "y", b"", "", "", {}, ""),
                    Failure(item.key, "0" * 32, "r", "m"),
                ]
                return [good, good, *strangers, ItemDone(item.key), good, ItemDone(item.key)]
            case "bird/1.png":
                return [ItemDone(item.key)]
            case "bird/2.png":
                return [Finished(item.key, good.id, b"<html>", "", "", {}, ""), ItemDone(item.key)]
            case "cat/0.png":
                return [Finished(item.key, good.id, good.image, "\ud800", "", {}, ""), ItemDone(item.key)]
            case _:
                return [Failure(item.key, None, "r", "esc\x1b[2Japed " * 200), good, ItemDone(item.key)]

    out = tmp_path / "out"
    summary = run(photos, out, Maker(spoil=spoil))
    assert (summary.items, summary.images, summary.failed) == (6, 1, 5)
    rows = failures(out)
    assert [row[1] for row in rows] == ["INCOMPLETE", "BAD_RESULT", "BAD_RESULT", "r", "r"]
    assert all("\x1b" not in row[2] and len(row[2]) <= 500 for row in rows)
    assert judge(out, requested(photos, job_spec())).clean


def test_other_parameters_are_refused(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, limit=1)
    with pytest.raises(SpecError, match="steps: 4 there, 5 now") as caught:
        run(photos, out, spec=job_spec(steps=5))
    assert caught.value.exit_code == 2
    stored = stored_job(out)
    assert stored is not None
    assert stored.spec.difference(job_spec()) == {}
    assert stored_job(tmp_path / "none") is None
    names = tmp_path / "names.csv"
    names.write_text("bird,crane bird\ncat,cat\n")
    with pytest.raises(SpecError, match="bird: 'bird' there, 'crane bird' now"):
        run(photos, out, classes=names)


def test_other_models_are_refused(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, limit=1)

    async def other(items: AsyncIterator[WorkItem]) -> AsyncGenerator[Outcome, None]:
        yield Started({"painter": "cd" * 32})
        async for item in items:
            yield ItemDone(item.key)

    source = open_source(photos)
    with pytest.raises(SpecError, match="other models: painter"):
        asyncio.run(run_job(source, job_spec(), out, other))
    assert judge(out, requested(photos, job_spec()), complete=False).clean


def test_another_instruction_file_is_refused_and_a_folder_of_before_there_were_any_goes_on(
    tmp_path: Path, photos: Path
) -> None:
    out, digest = tmp_path / "out", {"mode_sha256": "ab" * 32}
    run(photos, out, limit=1)
    assert run(photos, out, Maker(versions=digest), limit=2).images == 1
    assert run(photos, out, Maker(versions=digest), limit=3).images == 1
    assert json.loads((out / "manifest.json").read_text())["versions"]["mode_sha256"] == "ab" * 32
    for other in ({"mode_sha256": "cd" * 32}, None):
        with pytest.raises(SpecError, match="another instruction file of mode cip") as refused:
            run(photos, out, Maker(versions=other))
        assert refused.value.exit_code == 2
    assert judge(out, requested(photos, job_spec()), complete=False).clean


@pytest.mark.parametrize("how", ["raises", "ends"])
def test_a_server_that_goes_away(tmp_path: Path, photos: Path, how: str) -> None:
    async def leaving(items: AsyncIterator[WorkItem]) -> AsyncGenerator[Outcome, None]:
        yield Started(MODELS)
        count = 0
        async for item in items:
            count += 1
            if count == 5:
                if how == "raises":
                    raise TransportError("the server is down")
                return
            yield finished(item, item.wanted[0].id)
            yield ItemDone(item.key)

    out = tmp_path / "out"
    source = open_source(photos)
    summary = asyncio.run(run_job(source, job_spec(), out, leaving))
    assert (summary.images, summary.exit_code) == (4, 1)
    assert "down" in str(summary.error) if how == "raises" else "1 items open" in str(summary.error)
    assert judge(out, requested(photos, job_spec()), complete=False).clean
    assert run(photos, out).images == 2


def test_a_bug_in_the_maker_loses_nothing(tmp_path: Path, photos: Path) -> None:
    def at_item(count: int) -> None:
        if count == 4:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(photos, tmp_path / "out", Maker(at_item=at_item))
    assert len(judge(tmp_path / "out", requested(photos, job_spec()), complete=False).published) == 4


def test_stop_drains(tmp_path: Path, photos: Path) -> None:
    async def job() -> JobSummary:
        stop = asyncio.Event()
        maker = Maker(at_item=lambda count: stop.set() if count == 1 else None)
        return await run_job(open_source(photos), job_spec(), tmp_path / "out", maker, window=2, stop=stop)

    summary = asyncio.run(job())
    assert summary.interrupted
    assert summary.exit_code == 130
    assert summary.images == 2
    assert run(photos, tmp_path / "out").images == 4


@pytest.mark.parametrize("when", [1, 20, 30])
def test_a_stop_while_skipping_is_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    photos, out, stop = photo_folder(tmp_path / "in", per_class=20), tmp_path / "out", asyncio.Event()
    assert run(photos, out, limit=30).images == 30

    def planned(*arguments: Any, **options: Any) -> Iterator[Planned]:
        for number, item in enumerate(plan_items(*arguments, **options), 1):
            if number == when:
                stop.set()
            yield item

    with monkeypatch.context() as patch:
        patch.setattr("captory_data.runner.plan_items", planned)
        summary = run(photos, out, stop=stop)
    assert (summary.interrupted, summary.exit_code, summary.images) == (True, 130, 0)
    assert run(photos, out).images == 10


def test_cancelling_publishes_what_is_finished(tmp_path: Path, photos: Path) -> None:
    async def job() -> None:
        reached, never = asyncio.Event(), asyncio.Event()

        async def stuck(items: AsyncIterator[WorkItem]) -> AsyncGenerator[Outcome, None]:
            yield Started(MODELS)
            async for item in items:
                yield finished(item, item.wanted[0].id)
                if item.key == "cat/0.png":
                    reached.set()
                    await never.wait()
                yield ItemDone(item.key)

        task = asyncio.create_task(run_job(open_source(photos), job_spec(), tmp_path / "out", stuck))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(job())
    verdict = judge(tmp_path / "out", requested(photos, job_spec()), complete=False)
    assert verdict.clean
    assert len(verdict.published) == 4


@pytest.mark.parametrize("window", [1, 2, 5])
def test_never_more_in_flight_than_the_window(tmp_path: Path, photos: Path, window: int) -> None:
    async def hoarding(items: AsyncIterator[WorkItem]) -> AsyncGenerator[Outcome, None]:
        """Holds as many items as it gets, asks for one more in vain, and gives up on that one."""
        yield Started(MODELS)
        for left in range(6, 0, -window):
            held = [await anext(items) for _ in range(min(window, left))]
            if left > window:
                one_more = asyncio.create_task(_next(items))
                for _ in range(50):
                    await asyncio.sleep(0)
                assert not one_more.done()
                one_more.cancel()
            for item in reversed(held):
                yield finished(item, item.wanted[0].id)
                yield ItemDone(item.key)
        assert await anext(items, None) is None

    summary = asyncio.run(run_job(open_source(photos), job_spec(), tmp_path / "out", hoarding, window=window))
    assert (summary.images, summary.exit_code) == (6, 0)


async def _next(items: AsyncIterator[WorkItem]) -> WorkItem:
    return await anext(items)


def test_a_maker_that_leaves_items_unread_is_no_success(tmp_path: Path, photos: Path) -> None:
    async def lazy(items: AsyncIterator[WorkItem]) -> AsyncGenerator[Outcome, None]:
        yield Started(MODELS)
        item = await anext(items)
        yield finished(item, item.wanted[0].id)
        yield ItemDone(item.key)

    summary = asyncio.run(run_job(open_source(photos), job_spec(), tmp_path / "out", lazy))
    assert (summary.images, summary.exit_code) == (1, 1)


def test_batches_close_by_number_bytes_and_age(tmp_path: Path, photos: Path) -> None:
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 1.0
        return now_s

    for name, limits, options in (
        ("number", BatchLimits(max_images=4, max_age_s=1e9), {}),
        ("bytes", BatchLimits(max_bytes=1, max_age_s=1e9), {}),
        ("age", BatchLimits(max_age_s=0.5), {"clock": clock}),
    ):
        run(photos, tmp_path / name, batch_limits=limits, **options)
        counts = [shard["count"] for shard in json.loads((tmp_path / name / "manifest.json").read_text())["shards"]]
        assert counts == ([4, 2] if name == "number" else [1] * 6)


def test_dry_run(tmp_path: Path, photos: Path) -> None:
    source, out, spec = open_source(photos), tmp_path / "out", job_spec(per_image=2)
    assert plan_job(source, spec, out) == Plan(items=6, to_make=12)
    assert not out.exists()
    run(photos, out, Maker(spoil=lambda item: failing(item) if item.key == "bird/0.png" else None), spec, limit=2)
    assert plan_job(source, spec, out) == Plan(items=6, to_make=8, published=2, failed=2)
    assert plan_job(source, spec, out, retry=True, limit=2) == Plan(items=2, to_make=2, published=2)
    with pytest.raises(SpecError, match="seed"):
        plan_job(source, job_spec(seed=8), out)


def test_words_enter_later(tmp_path: Path) -> None:
    root = tmp_path / "in"
    root.mkdir()
    rows = [
        {"file_name": "a.png"},
        {"file_name": "b.png", "caption": "two cats"},
        {"file_name": "c", "prompt": "a dog"},
    ]
    (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "a.png").write_bytes(picture())
    maker = Maker()
    assert run(root, tmp_path / "out", maker).images == 3
    assert [(item.image, item.caption, item.prompt) for item in maker.seen] == [
        (picture(), None, None),
        (None, "two cats", None),
        (None, None, "a dog"),
    ]


def test_classes_keep_their_position_when_more_come(tmp_path: Path, photos: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    photo_folder(tmp_path / "more", classes=("ape",))
    (tmp_path / "more" / "ape").rename(photos / "ape")
    assert run(photos, out).images == 3
    classes = json.loads((out / "manifest.json").read_text())["classes"]
    assert [(row["index"], row["id"]) for row in classes] == [(0, "bird"), (1, "cat"), (2, "ape")]


def test_class_names_need_not_be_given_again(tmp_path: Path, photos: Path) -> None:
    names, out, maker = tmp_path / "names.csv", tmp_path / "out", Maker()
    names.write_text("bird,crane bird\ncat,tabby cat\n")
    run(photos, out, classes=names, limit=1)
    manifest = json.loads((out / "manifest.json").read_text())
    photo_folder(tmp_path / "more", classes=("dog",), per_class=1)
    (tmp_path / "more" / "dog").rename(photos / "dog")
    summary = run(photos, out, maker)
    assert (summary.images, summary.failed) == (5, 1)
    assert {item.class_name for item in maker.seen} == {"crane bird", "tabby cat"}
    assert [row[1] for row in failures(out)] == ["UNKNOWN_CLASS"]
    assert json.loads((out / "manifest.json").read_text())["classes"] == manifest["classes"]


def test_progress_counts_stages(tmp_path: Path, photos: Path) -> None:
    last: list[Progress] = []
    run(photos, tmp_path / "out", progress=last.append)
    assert last[-1].stages == {"caption": 6}
    assert last[-1].in_flight == 0
    assert last[-1].total_items == 6
