"""How full the device is kept and how classes share it: what is counted, when, and what comes of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from captory_bench.measuring.outcome import Agreement, Outcome, Times
from captory_bench.measuring.served import ArmFailed, Served
from captory_bench.measuring.stats import Stats, read_stats, total
from captory_bench.measuring.subject import Subject
from captory_bench.measuring.workload import paintings
from captory_bench.sharing.classes import Bulk, Plan, Shared, saturated
from captory_bench.sharing.coscheduling import Job, Look, window
from captory_bench.sharing.measure import Measured, Settings, measure, mixed_jobs
from captory_bench.sharing.report import sharing_tables, summarise
from captory_engine.device import StageCounts
from captory_engine.repository import default_repository
from captory_proto.v1 import captory_pb2 as pb

CAPS = {"vision": 8, "text": 4, "denoise": 16, "vae": 4}
SAME = Agreement(8, 0, 0.0, 0)


def stats(at_s: float, *, vae_batches: int, denoise_s: float) -> Stats:
    """A device of two lanes whose denoiser runs batches of 12 rows of 0.1 s."""
    batches = round(denoise_s * 10)
    stages = {
        "vision": StageCounts(1, 4, 8, 0.1),
        "text": StageCounts(1, 4, 4, 0.1),
        "denoise": StageCounts(batches, 12 * batches, 12 * batches, denoise_s, Counter({12: batches})),
        "vae": StageCounts(vae_batches, vae_batches, vae_batches, 0.1 * vae_batches),
    }
    return Stats(stages, CAPS, lanes=2, uptime_s=100 + at_s, busy_s=sum(one.seconds for one in stages.values()))


LOOKS = [
    Look(0.0, stats(0.0, vae_batches=0, denoise_s=0.0)),
    Look(1.0, stats(1.0, vae_batches=0, denoise_s=0.5)),  # ramp-up: no image yet
    Look(2.0, stats(2.0, vae_batches=1, denoise_s=1.0)),
    Look(3.0, stats(3.0, vae_batches=2, denoise_s=2.7)),
    Look(4.0, stats(4.0, vae_batches=3, denoise_s=4.5)),
    Look(5.0, stats(5.0, vae_batches=9, denoise_s=4.6)),  # tail: the source is dry
]


def test_the_window_leaves_out_ramp_up_and_tail() -> None:
    found = window(LOOKS, dry_at_s=4.5)
    assert found.uptime_s == pytest.approx(2.0)
    assert found.stages["denoise"].seconds == pytest.approx(3.5)
    assert found.stages["vae"].batches == 2
    assert found.busy_share == pytest.approx((3.5 + 0.2) / (2.0 * 2))
    assert found.share(("denoise", "vae")) == pytest.approx(1.0)
    assert found.share(("vae",)) == pytest.approx(0.2 / 3.7)
    assert found.fill("denoise") == pytest.approx(12 / 16)


@pytest.mark.parametrize("dry_at_s", [0.5, 2.5])
def test_a_job_that_is_over_at_once_is_refused(dry_at_s: float) -> None:
    with pytest.raises(ArmFailed, match="more images"):
        window(LOOKS, dry_at_s)


def test_counters_are_read_off_the_wire_and_added_up() -> None:
    stage = pb.StageStats(
        name="vae", batches=3, useful_rows=5, computed_rows=6, seconds=0.5, batch_rows={2: 3}, max_rows=2
    )
    read = read_stats(pb.Stats(stages=[stage], lanes=2, uptime_seconds=4.0, busy_seconds=0.5))
    assert read == Stats({"vae": StageCounts(3, 5, 6, 0.5, Counter({2: 3}))}, {"vae": 2}, 2, 4.0, 0.5)
    assert total([read.stages["vae"]] * 2) == StageCounts(6, 10, 12, 1.0, Counter({2: 6}))


def test_samplers_are_mixed_apart_from_steps_and_guidance() -> None:
    jobs = mixed_jobs(96, 1)
    assert Counter(job.sampler for job in jobs) == {"ddim": 32, "euler": 32, "dpmpp-2m": 32}
    assert len({(job.sampler, job.steps, job.guidance_scale) for job in jobs}) > 12
    assert [replace(job, sampler="") for job in jobs] == paintings(96, 1, mixed_guidance=True)


async def test_a_bulk_job_that_fails_is_told_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(self: Bulk) -> None:
        raise ArmFailed("bulk: an item failed")

    monkeypatch.setattr(Bulk, "run", fail)
    with pytest.raises(ArmFailed, match="an item failed"):
        async with saturated(Served("", 0, Mock()), [], Plan(1, 1, 1.0, 0.0, 0.0)):
            await asyncio.Event().wait()


@pytest.fixture
def measured() -> Measured:
    images = {"a": np.zeros((2, 2, 3), np.uint8)}
    mixed = Outcome(images, {}, {}, Times(1.0), StageCounts(10, 97, 100))
    alone = Outcome(images, {}, {str(ms): ms / 1000 for ms in range(101)}, Times(1.0))
    beside = replace(alone, latencies={str(ms): ms / 400 for ms in range(101)})
    beside.denoiser.batch_rows.update({4: 3, 16: 5})
    job = Job(replace(alone, denoiser=mixed.denoiser), window(LOOKS, 4.5))
    shared = Shared(paintings(1, 1), paintings(1, 2), alone, beside, 20.0, 18.0)
    options = ["--repository", "somewhere", "--threads", "0"]
    return Measured(options, 2, CAPS, [job], [shared], [mixed], [2, 3, 4], {"bulk job": SAME})


def test_figures_stand_beside_their_targets(measured: Measured) -> None:
    figures = summarise(measured)
    met = {target["name"]: target["met"] for target in figures["targets"]}
    assert met == {
        "device_busy_share": False,
        "painter_share_of_busy_time": True,
        "denoiser_batch_fill": False,
        "row_efficiency_mixed": True,
        "interactive_p95_over_solo": True,
        "bulk_rate_kept": True,
    }
    assert figures["interactive_p95_over_solo"] == pytest.approx(2.5)
    assert figures["bulk_rate_kept"] == pytest.approx(0.9)
    assert figures["classes"]["batch_rows"] == {"4": 3, "16": 5}
    assert figures["row_caps"] == CAPS
    assert "somewhere" not in str(figures)


def test_wrong_images_have_no_targets(measured: Measured) -> None:
    measured.agreement["bulk job"] = Agreement(8, 0, 5.0, 90)
    figures = summarise(measured)
    assert not figures["checks"]["ok"]
    assert figures["targets"] == []


async def test_a_tiny_run_on_the_embedded_family() -> None:
    if not any(default_repository().glob("*/family.yaml")):
        pytest.skip("there is no embedded family here")
    settings = Settings(
        Subject(default_repository()),
        num_images=160,
        num_mixed=12,
        num_interactive=2,
        num_probes=1,
        num_rounds=1,
        window_s=0.6,
        settle_s=0.6,
        steps=1,
    )
    figures = summarise(await measure(settings, lambda words: None))
    assert figures["checks"]["ok"]
    assert 0 < figures["device_busy_share"] < 1.2
    assert figures["row_efficiency_mixed"] > 0.9
    assert figures["lanes"] >= 1
    machine = {"cpu": "", "cpus": 2, "threads": 2, "memory_gib": 8, "system": "", "python": "3", "versions": {}}
    assert sharing_tables(figures | {"machine": machine | {"load_average": [0.0, 0.0, 0.0]}})
