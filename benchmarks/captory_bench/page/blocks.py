"""The blocks of the performance page: figures as Markdown tables, with the words that only figures can give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import median
from typing import NamedTuple

from captory_bench.page import blocks_floor, blocks_writer
from captory_bench.page.markdown import Figures, machine_words, markdown_table

COUNTS = ("sent", "refused", "late", "failed")  # of calls under load


def _targets(figures: Mapping[str, Figures]) -> str:
    """All targets of all benchmarks."""
    rows = [
        (
            name,
            target["name"].replace("_", " "),
            f"**{target['value']:.3g}**",
            f"{target['low']:.3g} – {target['high']:.3g}",
            f"{'≥' if target['at_least'] else '≤'} {target['bound']:g} {target['unit']}".rstrip(),
            "met" if target["met"] else "**missed**",
        )
        for name, one in figures.items()
        if name != "all"
        for target in one.get("targets", [])
    ]
    return markdown_table(("benchmark", "figure", "median", "spread", "target", ""), rows)


def _serve(figures: Mapping[str, Figures]) -> str:
    """What the arms are, what they reach, the ratios of images/s within a round, and the tail."""
    serve = figures["serve"]
    arms = [
        (
            name.replace("_", " "),
            f"{arm['images_per_s']:.2f}",
            f"{min(arm['images_per_s_by_round']):.2f} – {max(arm['images_per_s_by_round']):.2f}",
            f"{arm['cpu_s_per_image']:.3f}",
            f"{arm['mean_rows']:.1f}",
            f"{arm['row_efficiency']:.0%}",
        )
        for name, arm in serve["arms"].items()
    ]
    header = ("arm", "images/s", "spread", "CPU s an image", "rows a batch", "useful rows")
    tables = markdown_table(header, arms), _ratios(serve), _tail(serve)
    return "\n\n".join([_arm_words(serve), *tables, machine_words(serve["machine"])])


def _arm_words(serve: Figures) -> str:
    lines = [
        f"- **{name.replace('_', ' ')}**: {arm['stages']}; steps {arm['steps']}; guidance {arm['guidance']}; "
        f"{arm['batch']}; transport {arm['transport']}."
        for name, arm in serve["arms"].items()
    ]
    return "\n".join(lines)


def _ratios(serve: Figures) -> str:
    rows = [
        (name.replace("_", " "), f"{serve[name]:.2f}", f"{low:.2f} – {high:.2f}")
        for name, (low, high) in serve["spread"].items()
    ]
    return markdown_table(("ratio of images/s, same round and items", "median", "spread"), rows)


def _tail(serve: Figures) -> str:
    latency = serve["latency"]
    rows = [
        (name.replace("_", " "), *(f"{tail[key]:.2f}" for key in ("p50_s", "p95_s", "short_p50_s", "short_p95_s")))
        for name, tail in latency.items()
        if isinstance(tail, dict)
    ]
    header = (f"s, at {latency['arrivals_per_s']:.2f} images/s", "p50", "p95", "p50 of 8 steps", "p95 of 8 steps")
    return markdown_table(header, rows)


def _sharing(figures: Mapping[str, Figures]) -> str:
    """Classes of work, by round."""
    sharing = figures["sharing"]
    keys = ("solo_p50_s", "solo_p95_s", "shared_p50_s", "shared_p95_s", "bulk_alone_per_s", "bulk_shared_per_s")
    rows = [
        (number, *(f"{one[key]:.2f}" for key in keys))
        for number, one in enumerate(sharing["classes"]["rounds"], start=1)
    ]
    header = ("round", "p50 alone", "p95 alone", "p50 shared", "p95 shared", "bulk alone", "bulk shared")
    batches = ", ".join(f"{size} rows: {num}" for size, num in sharing["classes"]["batch_rows"].items())
    probes = sharing["denoiser_batches_around_one_step"]
    words = (
        f"{sharing['lanes']} lanes; the denoiser's row cap is {sharing['row_caps']['denoise']}. Denoiser batches while "
        f"both classes were there, by rows: {batches}. While an interactive item of one step is in a server full of "
        f"bulk, {probes['median']:g} other denoiser batches end (median; at most {probes['max']:g})."
    )
    return "\n\n".join([markdown_table(header, rows), words, machine_words(sharing["machine"])])


def _guidance(figures: Mapping[str, Figures]) -> str:
    """Speed and quality of each interval."""
    guidance = figures["guidance"]
    attributes = list(guidance["intervals"][guidance["constant"]]["quality"])
    rows = [
        (
            name,
            f"{one['images_per_s']:.2f}",
            f"{one['over_constant']:.2f} ({one['spread'][0]:.2f} – {one['spread'][1]:.2f})",
            f"{one['rows_an_image']:.1f}",
            *(_share(one["quality"][attribute]) for attribute in attributes),
        )
        for name, one in guidance["intervals"].items()
    ]
    header = ("guidance in", "images/s", "over constant", "rows an image", *(f"right {name}" for name in attributes))
    words = (
        f"Scale {guidance['guidance_scale']:g}, {guidance['steps']} steps, "
        f"{guidance['images'] * guidance['rounds']} fresh scenes an interval; 95 % intervals in brackets."
    )
    return "\n\n".join([words, markdown_table(header, rows), machine_words(guidance["machine"])])


def _share(share: Figures) -> str:
    low, high = share["interval_95"]
    return f"{share['right']:.1%} ({low:.0%} – {high:.0%})"


def _load(figures: Mapping[str, Figures]) -> str:
    """Both scenarios, then goodput."""
    load = figures["load"]
    offline = load["offline"]
    words = (
        f"{load['loadgen']}; {load['steps']} steps; runs of {load['seconds']:g} s. Offline: "
        f"**{offline['samples_per_s']:.2f} images/s** (LoadGen says {offline['loadgen_says'] or 'nothing'}). "
        + _server(load)
    )
    rows = [
        (f"{multiple} x", f"{_middle(rounds, 'goodput_per_s'):.2f}", *(f"{_middle(rounds, key):g}" for key in COUNTS))
        for multiple, rounds in load["goodput"].items()
    ]
    table = markdown_table(("offered", "images/s in time", *COUNTS), rows)
    return "\n\n".join([words, table, machine_words(load["machine"])])


def _server(load: Figures) -> str:
    server = load["server"]
    if not server:
        return f"Server: no rate that was tried holds p99 within {load['bound_s']:g} s."
    return (
        f"Server: **{server['rate_per_s']:.2f} a second**, p99 {server['p99_s']:.2f} s, bound {load['bound_s']:g} s "
        f"(LoadGen says {server['loadgen_says'] or 'nothing'}). Goodput: the server holds at most {load['max_items']}."
    )


def _middle(rounds: Iterable[Figures], key: str) -> float:
    return float(median(one[key] for one in rounds))


def _growth(figures: Mapping[str, Figures]) -> str:
    """A table for each sweep."""
    growth = figures["growth"]
    tables = [
        markdown_table(
            (name, "images/s", "spread"),
            (
                (value, f"{point['images_per_s']:.2f}", f"{point['spread'][0]:.2f} – {point['spread'][1]:.2f}")
                for value, point in growth[name].items()
            ),
        )
        for name in ("images", "steps", "clients")
    ]
    return "\n\n".join([*tables, machine_words(growth["machine"])])


def _peers(figures: Mapping[str, Figures]) -> str:
    """Captory's images a second over each peer's, by work; who is missing, and how each was run."""
    peers = figures["peers"]
    rows = [
        (
            f"{name}, {work}",
            *(f"{one[side]['images_per_s']:.2f}" for side in ("captory", "peer")),
            f"**{one['ratio']:.2f}**",
            f"{one['spread'][0]:.2f} – {one['spread'][1]:.2f}",
            f"{one['peer']['mean_batch']:.1f}" if "mean_batch" in one["peer"] else "",
        )
        for name, works in peers["peers"].items()
        for work, one in works.items()
    ]
    header = ("against", "Captory, images/s", "peer, images/s", "ratio", "spread", "peer's mean batch")
    table = markdown_table(header, rows)
    words = [f"- **{name}**: {settings}." for name, settings in peers["settings"].items()]
    missing = [f"- **{name}** was not measured: {why}." for name, why in peers["not_measured"].items()]
    lists = "\n".join([*words, *missing])
    versions = ", ".join(f"{name} {number}" for name, number in peers["versions"].items())
    return "\n\n".join([table, lists, f"*{versions}.*", machine_words(peers["machine"])])


class Block(NamedTuple):
    """A block of the page: what it says, and the benchmarks whose figures it needs."""

    write: Callable[[Mapping[str, Figures]], str]
    needs: tuple[str, ...] = ()


BLOCKS = {
    "targets": Block(_targets),
    "serve": Block(_serve, ("serve",)),
    "sharing": Block(_sharing, ("sharing",)),
    "stages": Block(blocks_floor.stages, ("sharing", "profile")),
    "guidance": Block(_guidance, ("guidance",)),
    "load": Block(_load, ("load",)),
    "growth": Block(_growth, ("growth",)),
    "profile": Block(blocks_floor.profile, ("profile",)),
    "peers": Block(_peers, ("peers",)),
    "writer": Block(blocks_writer.writer, ("writer",)),
    "orchestrator": Block(blocks_floor.orchestrator, ("orchestrator",)),
    "kernels": Block(blocks_floor.kernels, ("kernels",)),
}
