"""The record as a table for people: plain text, since no more may be needed than torch, NumPy and diffusers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

NO_GPU = "NO GPU FIGURES: tiny models on a CPU, to see that everything runs"


def to_text(record: dict[str, Any]) -> str:
    """The whole record, one table a section."""
    return "\n".join(_lines(record)) + "\n"


def _lines(record: dict[str, Any]) -> Iterator[str]:
    if not record["is_gpu"]:
        yield NO_GPU
    machine = record["machine"]
    yield f"{machine['device']}, torch {machine['torch']}, diffusers {machine['diffusers']}, {record['dtype']}"
    if "matrix_rate" in record:
        yield f"matrix rate: {record['matrix_rate']['best'] / 1e12:.1f} TFLOP/s"
    for name, painting in record.get("models", {}).items():
        yield from ("", *_painting(name, painting))
    if "mixed" in record:
        yield from ("", *_mixed(record["mixed"]))
    if "picto" in record:
        yield from ("", *_picto(record["picto"]))
    yield from ("", *_ends(record))


def _painting(name: str, painting: dict[str, Any]) -> Iterator[str]:
    flops = painting["flops"]
    variant = painting.get("variant", "no way gave the right result")
    yield f"{name}, {painting['size_px']} px: {flops['unet_row_tflop']:.4g} TFLOP a row; engine: {variant}"
    rows: list[tuple[str, ...]] = [
        ("way", "batch", "ms/step", "img/s at 20", "img/s at 50", "TFLOP/s", "of matrix rate", "over eager")
    ]
    for way in ("eager", "engine"):
        for batch, figures in sorted(painting[way].items(), key=lambda item: int(item[0])):
            speed, share = list(figures["images_per_s"].values()), next(iter(figures["share_of_matrix_rate"].values()))
            numbers = f"{median(figures['step_s']) * 1000:.2f}", *(f"{one:.3g}" for one in speed)
            over = figures.get("step_over_eager")
            rates = f"{figures['unet_tflop_per_s']:.3g}", f"{median(share):.1%}", f"{over:.2f}" if over else ""
            rows.append((way, str(batch), *numbers, *rates))
    yield from _columns(rows)
    for entry in painting["variants"]:
        if "error" in entry:
            yield f"  {entry['name']}: not run: {entry['error']}"
        else:
            words = "" if entry["ok"] else ", WRONG RESULT, not used"
            yield (
                f"  {entry['name']}: {entry['step_s'] * 1000:.2f} ms a step at batch {entry['batch']}, "
                f"{entry['took_s']:.0f} s in all, latents differ by {entry['difference']:.2%}{words}"
            )
    if "full_image" in painting:
        image = painting["full_image"]
        promised = f" ({image['extrapolated_s']:.2f} s by its steps)" if image["extrapolated_s"] else ""
        verdict = "right" if image["ok"] else "WRONG"
        yield f"  one image, {image['steps']} steps: {image['seconds']:.2f} s{promised}, {verdict}"
    yield from (f"  skipped: {words}" for words in painting["skipped"])


def _mixed(mixed: dict[str, Any]) -> Iterator[str]:
    yield f"mixed steps {mixed['steps']}, half without guidance, {mixed['images']} images, {mixed['max_rows']} rows"
    rows = [("way", "img/s", "useful rows", "step level over it")]
    for name, arm in mixed["arms"].items():
        ratio = mixed["step_over"].get(name)
        over = f"{median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})" if ratio else ""
        rows.append((name, f"{arm['images_per_s']:.3g}", f"{arm['row_efficiency']:.1%}", over))
    yield from _columns(rows)
    yield f"  latents differ by {mixed['checks']['difference']:.2%} at most{'' if mixed['checks']['ok'] else ': WRONG'}"


def _picto(picto: dict[str, Any]) -> Iterator[str]:
    checks = picto["checks"]
    yield f"picto end to end: {median(picto['images_per_s']):.1f} images/s of {picto['photos']} photos"
    difference = "none alike" if checks["mean_difference"] is None else f"{checks['mean_difference']:.2f} grey levels"
    words = f"{checks['equal_captions']:.0%} of the captions equal, {difference} apart"
    yield f"  beside the CPU in fp32: {words}{'' if checks['ok'] else ': WRONG'}"


def _ends(record: dict[str, Any]) -> Iterator[str]:
    for target in record.get("targets", []):
        words = "met" if target["met"] else "MISSED"
        yield f"target {target['name']}: {target['value']:.3g}, at least {target['bound']:g}: {words}"
    yield from (f"not run: {name}: {why}" for name, why in record.get("not_run", {}).items())
    verdict = "hold" if record["checks"]["ok"] else "FAIL"
    yield f"{record['seconds']:.0f} s of {record['budget_s']:.0f} s; checks {verdict}"


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        yield "  " + "  ".join(cells)
