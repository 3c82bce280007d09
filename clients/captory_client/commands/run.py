"""`captory run`: the main job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from captory_client.commands.exits import explained, say

if TYPE_CHECKING:
    from captory_client.jobs import Run
    from captory_data.summary import JobSummary

Mode = Literal[
    "basic",
    "cip",
    "caption-only",
    "recap-short",
    "recap-long",
    "recap-mix",
    "rewrite",
    "face",
    "closed-loop",
    "shuffled",
    "cross-class",
]
ClassNames = Literal["raw", "curated"]
Determinism = Literal["stable", "exact"]
Format = Literal["webdataset", "imagefolder", "parquet"]
ImageFormat = Literal["png", "webp"]


def run(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="Folder of images or class folders, or .tar shards.")],
    out: Annotated[Path, typer.Option("--out", help="Output folder; one that holds part of the job is continued.")],
    mode: Annotated[Mode | None, typer.Option(help="How prompts are made.  [default: cip]")] = None,
    per_image: Annotated[int | None, typer.Option(min=1, help="Images for each input.  [default: 1]")] = None,
    family: Annotated[str, typer.Option(metavar="NAME|PATH", help="Model family, or a repository of one.")] = "",
    modes: Annotated[Path | None, typer.Option(help="Folder of your own instruction files for prompt modes.")] = None,
    writer: Annotated[
        str | None, typer.Option(help="Language model on vLLM: vllm://HOST:PORT, or vllm:REF to run one.")
    ] = None,
    captioner: Annotated[
        str | None, typer.Option(help="Vision-language model on vLLM: vllm://HOST:PORT, or vllm:REF to run one.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to stay away from.")] = None,
    sampler: Annotated[str | None, typer.Option(help="ddim, euler or dpmpp-2m; of a flow, flow-euler.")] = None,
    size: Annotated[str | None, typer.Option(metavar="PIXELS|WxH", help="Image size.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the whole job.  [default: 0]")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="File of class ids and names: columns id, name, curated.")
    ] = None,
    class_names: Annotated[ClassNames | None, typer.Option(help="Which names of that file.  [default: raw]")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed images again.")] = False,
    retry_reason: Annotated[str | None, typer.Option(help="Try images again that failed for this reason.")] = None,
    recaption: Annotated[bool, typer.Option("--recaption", help="Caption images that come with captions.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False,
    determinism: Annotated[Determinism | None, typer.Option(help="exact: the same bytes in any company.")] = None,
    format_: Annotated[Format | None, typer.Option("--format", help="Of the dataset.  [default: webdataset]")] = None,
    image_format: Annotated[ImageFormat | None, typer.Option(help="Of the images.  [default: png]")] = None,
    server: Annotated[str | None, typer.Option(metavar="ADDR", help="A running server; else one is started.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first inputs, by key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Turn a folder of images into a synthetic dataset.

    Each image is captioned, prompts are written from the captions, images are painted from the prompts. Run again on
    the same OUT, it goes on where it stopped. Parameters that are not given are those of OUT, or the family's.

    Exit codes: 0 all done; 1 cut short, run again; 2 refused; 3 some images failed; 130 interrupted.
    """
    with explained("run"):
        from captory_client.jobs import Run
        from captory_client.settle import parse_size

        asked: dict[str, Any] = {
            "mode": mode,
            "per_image": per_image,
            "steps": steps,
            "guidance_scale": guidance,
            "negative_prompt": negative_prompt,
            "sampler": sampler,
            "seed": seed,
            "determinism": determinism,
            "output_format": format_,
            "image_format": image_format,
            **parse_size(size),
        }
        retry, names = retry_reason or retry_failed, class_names or "raw"
        own = {"modes": modes, "writer": writer, "captioner": captioner}
        job = Run(source, out, asked, family, classes, retry, server, limit, recaption, names, own)
        raise typer.Exit(dry(job, as_json=as_json) if dry_run else work(job, quiet=quiet, as_json=as_json))


def work(job: Run, *, quiet: bool, as_json: bool) -> int:
    """Do the job, say how it went, and return the exit code."""
    from captory_client.interrupts import run_interruptible
    from captory_client.jobs import execute
    from captory_client.progress import open_display

    def draining() -> None:
        say("finishing what is in flight; press Ctrl-C again to stop at once")

    summary = run_interruptible(lambda stop: execute(job, stop, open_display(quiet=quiet)), draining)
    if summary.error:
        say(f"captory run: {summary.error}\nWhat is finished is kept; run the same command again to go on.")
    if as_json:
        typer.echo(json.dumps(summary.to_json()))
    elif not quiet:
        typer.echo(_describe(job.out, summary))
    return summary.exit_code


def dry(job: Run, *, as_json: bool) -> int:
    """Say what would be done."""
    import asyncio
    from dataclasses import asdict

    from captory_client.jobs import plan

    spec, planned = asyncio.run(plan(job))
    if as_json:
        typer.echo(json.dumps({"dry_run": True, **asdict(planned), "job": spec.canonical()}))
    else:
        typer.echo(
            f"{planned.items} items: {planned.to_make} images to make, {planned.published} published already, "
            f"{planned.failed} failed before, {planned.dropped} dropped before"
        )
        typer.echo(" ".join(f"{name}={value}" for name, value in spec.canonical().items()))
    return 0


def _describe(out: Path, summary: JobSummary) -> str:
    counts = f"{summary.images} images from {summary.items} items in {summary.seconds:.1f} s"
    rest = {"skipped": summary.skipped, "failed": summary.failed, "dropped": summary.dropped}
    others = "".join(f", {count} {word}" for word, count in rest.items() if count)
    return "\n".join(
        [
            f"{counts} ({summary.images_per_s:.1f} images/s){others}",
            *_failures(summary),
            f"dataset: {out} ({summary.images_in_all} images in all)",
            f"report:  {out / 'report.html'}",
        ]
    )


def _failures(summary: JobSummary) -> list[str]:
    if not summary.failed:
        return []
    before = f"{summary.failed_before} of them in earlier runs; " if summary.failed_before else ""
    return [f"failed:  {before}the report says why, --retry-failed tries again"]
