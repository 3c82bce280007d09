"""The block of the performance page on the writer: prompts a second by who writes them, and their share of a job."""

from __future__ import annotations

from collections.abc import Mapping

from captory_bench.page.markdown import Figures, machine_words, markdown_table


def writer(figures: Mapping[str, Figures]) -> str:
    """Prompts a second by arm, which are worse, ratios within a round, a whole job, and why an arm is missing."""
    found = figures["writer"]
    ratios = [
        (name.replace("_", " "), f"**{ratio['median']:.2f}**", _spread(ratio["spread"]))
        for name, ratio in found["ratios"].items()
    ]
    missing = [f"**{name}** was not measured: {why}." for name, why in found["not_measured"].items()]
    worse = ", ".join(f"**{name}**" for name in found["checks"]["worse"])
    parts = [
        _arms(found),
        *([f"Prompts are worse than the embedded writer's: {worse}."] if worse else []),
        markdown_table(("ratio of prompts/s", "median", "spread"), ratios),
        _job(found["job"]),
        *([f"On vLLM: {found['vllm']}."] if found["vllm"] else []),
        *missing,
        machine_words(found["machine"]),
    ]
    return "\n\n".join(parts)


def _arms(found: Figures) -> str:
    rows = [
        (
            name,
            f"{arm['prompts_per_s']:.1f}",
            _spread(arm["spread"]),
            f"{arm['accepted']:.1%}",
            "" if arm["kept"] is None else f"{arm['kept']:.1%}",
        )
        for name, arm in found["arms"].items()
    ]
    return markdown_table(("writer", "prompts/s", "spread", "accepted", "attributes kept"), rows)


def _job(job: Figures) -> str:
    low, high = job["spread"]
    words = (
        f"In a job of {job['photos']} photographs with rewritten captions, the embedded writer takes "
        f"**{job['share']:.1%}** ({low:.1%} – {high:.1%}) of all stages' time."
    )
    rows = [(name, f"{one['median']:.2f}", _spread(one["spread"])) for name, one in job["images_per_s"].items()]
    return "\n\n".join([words, markdown_table(("that job, prompts by", "images/s", "spread"), rows)])


def _spread(spread: tuple[float, float]) -> str:
    return f"{spread[0]:.2f} – {spread[1]:.2f}"
