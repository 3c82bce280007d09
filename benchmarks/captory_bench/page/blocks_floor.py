"""The blocks of the performance page on the floor: graphs alone, their arithmetic, and all that is around them."""

from __future__ import annotations

from collections.abc import Mapping

from captory_bench.page.markdown import Figures, machine_words, markdown_table


def stages(figures: Mapping[str, Figures]) -> str:
    """Each stage during bulk jobs against its graph alone, in the best batch; both in milliseconds of one lane."""
    curves = figures["profile"]["curves"]
    rows = []
    for name, stage in figures["sharing"]["stages"].items():
        floor = _lane_ms(curves[name]) if name in curves else float("nan")
        served = stage["ms_per_row"]
        over = f"{served / floor:.2f}" if served else ""
        rows.append((name, f"{stage['share']:.1%}", f"{stage['mean_rows']:.1f}", f"{served:.2f}", f"{floor:.2f}", over))
    return markdown_table(("stage", "busy time", "rows a batch", "lane ms a row", "graph alone", "over it"), rows)


def _lane_ms(curve: Figures) -> float:
    """Milliseconds of one lane for a row in the best batch. A curve's are of the clock, with all its lanes busy."""
    return float(min(curve["ms_per_row"].values()) * curve["num_lanes"])


def profile(figures: Mapping[str, Figures]) -> str:
    """Milliseconds a row of each graph, by rows a batch."""
    curves = figures["profile"]["curves"]
    sizes = sorted({int(rows) for curve in curves.values() for rows in curve["ms_per_row"]})
    rows = [(name, *(_ms(curve["ms_per_row"], size) for size in sizes)) for name, curve in curves.items()]
    table = markdown_table(("ms a row, by rows a batch", *map(str, sizes)), rows)
    return "\n\n".join([table, machine_words(figures["profile"]["machine"])])


def _ms(curve: Mapping[str, float], rows: int) -> str:
    return f"{curve[str(rows)]:.2f}" if str(rows) in curve else ""


def kernels(figures: Mapping[str, Figures]) -> str:
    """Arithmetic reached against the matrix-multiply peak, and int8 beside fp32."""
    found = figures["kernels"]
    peak = found["matmul_peak_gflops"]
    words = (
        f"Batches of {found['rows']} rows. Matrix multiplication reaches {peak['one_thread']:.0f} GFLOP/s on one "
        f"thread, {peak['all_cpus']:.0f} on {peak['cpus']}."
    )
    rows = [
        (name, lanes, f"{one['ms_per_row']:.2f}", f"{one['gflops']:.0f}", f"{one['share_of_peak']:.0%}")
        for name, graph in found["graphs"].items()
        for lanes, one in graph["lanes"].items()
    ]
    reached = markdown_table(("graph", "lanes", "ms a row", "GFLOP/s", "of the peak"), rows)
    return "\n\n".join([words, reached, _int8(found["int8"]), machine_words(found["machine"])])


def _int8(int8: Figures) -> str:
    if "missing" in int8:
        return f"int8 was not measured: {int8['missing']}."
    rows = [
        (
            f"{name}: {one['how']}",
            f"{one['time_over_fp32']:.2f}",
            f"{one['same_texts']:.1%}",
            f"{one['right']['int8']:.1%}",
            f"{one['right']['fp32']:.1%}",
        )
        for name, one in int8["graphs"].items()
    ]
    header = (f"int8, on {int8['num_scenes']} scenes", "time over fp32", "same texts", "attributes right", "in fp32")
    return markdown_table(header, rows)


def orchestrator(figures: Mapping[str, Figures]) -> str:
    """Items a second without graphs, and what an item costs as there are more."""
    found = figures["orchestrator"]
    arms = [
        (
            name,
            f"{arm['items_per_s']:.0f}",
            f"{arm['spread'][0]:.0f} – {arm['spread'][1]:.0f}",
            f"{arm['first_result_ms']:.1f}",
            f"{arm['server_cpu_us']:.0f}",
            f"{arm['caller_cpu_us']:.0f}",
        )
        for name, arm in found["arms"].items()
    ]
    header = ("one stream of", "items/s", "spread", "first result, ms", "server CPU, µs", "caller CPU, µs")
    costs = [(num, f"{cost:.0f}") for num, cost in found["cost_by_items"].items()]
    growth = markdown_table(("items in the stream", "CPU an item, µs"), costs)
    slope = f"The server's memory grows by {found['rss_slope_bytes_per_item']:.1f} bytes an item."
    return "\n\n".join([markdown_table(header, arms), growth, slope, machine_words(found["machine"])])
