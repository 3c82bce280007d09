"""The orchestrator's benchmark: it refuses wrong answers, and says what it measured."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from captory_bench.commands import bench
from captory_bench.measuring.served import ArmFailed
from captory_bench.orchestrator.callers import Heard, hear
from captory_bench.orchestrator.fake_family import fake_repository
from captory_bench.orchestrator.measure import Account
from captory_bench.orchestrator.probe import IDLE, REST, cpu_by_role
from captory_bench.orchestrator.report import rss_slope, wire_share
from captory_engine.images import encode_image, pixel_sha256
from captory_engine.items import ImageFormat
from captory_proto.v1 import captory_pb2 as pb

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def image(item_id: str, digest: str = "") -> pb.SynthesizeResponse:
    made = pb.Provenance(pixel_sha256=digest or pixel_sha256(PIXELS))
    return pb.SynthesizeResponse(
        item_id=item_id, image=pb.ImageResult(data=encode_image(PIXELS, ImageFormat.PNG), provenance=made)
    )


def end(item_id: str, code: int = 0) -> pb.SynthesizeResponse:
    response = pb.SynthesizeResponse(item_id=item_id, done=pb.ItemDone())
    response.done.status.code = code
    return response


async def heard(*responses: pb.SynthesizeResponse) -> Heard:
    async def told() -> AsyncIterator[pb.SynthesizeResponse]:
        for response in responses:
            yield response

    return await hear(told(), lambda _: None)


async def test_right_answers_pass() -> None:
    (await heard(image("a"), end("a"), image("b"), end("b"))).check(2, painted=True)
    (await heard(end("a"))).check(1, painted=False)


@pytest.mark.parametrize(
    "wrong",
    [
        [image("a"), end("a")],
        [image("a"), end("a"), end("b")],
        [image("a"), end("a"), image("b"), end("b"), end("b")],
        [image("a"), image("a"), end("a"), image("b"), end("b")],
        [image("a"), end("a"), image("b", "0" * 64), end("b")],
    ],
)
async def test_wrong_answers_do_not(wrong: list[pb.SynthesizeResponse]) -> None:
    found = await heard(*wrong)
    with pytest.raises(ArmFailed):
        found.check(2, painted=True)


async def test_a_failed_item_ends_the_run() -> None:
    with pytest.raises(ArmFailed):
        await heard(end("a", code=13))


def test_the_slope_is_that_of_the_settled_samples() -> None:
    rising = [(done, 1_000_000 + 7 * done) for done in range(0, 1000, 100)]
    assert rss_slope([(0, 5), (50, 10), *rising[2:]]) == pytest.approx(7)


def test_the_wire_s_share_leaves_out_graphs_and_the_scheduler() -> None:
    cpu_s = {"event loop": 2.0, "lanes": 90.0, "image codecs": 3.0, "gRPC": 1.0, "other": 0.0, "probe": 50.0}
    layers = {IDLE: 900, REST: 20, "messages": 30, "device loop and scheduler": 30}
    share = wire_share(Account(10, cpu_s, layers, 4.0))
    assert share["share"] == pytest.approx((4 + 3 + 1 + 50 / 80 * 2) / 100)
    assert share["all_but_graphs_share"] == pytest.approx(0.1)


def test_threads_that_there_were_none_of_have_spent_nothing() -> None:
    share = wire_share(Account(10, {"event loop": 2.0}, {"messages": 1}, 2.0))
    assert share["share"] == pytest.approx(1)
    assert share["all_but_graphs_share"] == pytest.approx(1)


def test_this_process_s_time_is_its_threads() -> None:
    before = cpu_by_role()["event loop"]
    while cpu_by_role()["event loop"] <= before:
        pass


def test_the_command_measures_and_checks(tmp_path: Path) -> None:
    repository, out = fake_repository(tmp_path / "repository"), tmp_path / "figures.json"
    options = ["--items", "128", "--rounds", "1", "--photos", "4", "--backend", "fake", "--repository", str(repository)]
    result = CliRunner().invoke(bench, ["orchestrator", *options, "--json", "--out", str(out)])
    assert result.exit_code == 0, result.output
    figures = json.loads(out.read_text())
    assert figures["checks"]["ok"]
    assert figures["checks"]["items"] > 128 * 4
    assert all(arm["items_per_s"] > 0 and arm["first_result_ms"] > 0 for arm in figures["arms"].values())
    assert len(figures["targets"]) == 4
    for account in figures["us_per_item"].values():
        assert account["event loop"] > 0
    for layers in figures["event_loop"].values():
        assert layers == {} or sum(layers.values()) == pytest.approx(1)
