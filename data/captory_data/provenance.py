"""What is written down of each image: where a finished one came from, why another did not come."""

from __future__ import annotations

from captory_data.identity import Wanted
from captory_data.keys import safe_key
from captory_data.outcomes import Finished
from captory_data.planning import Planned
from captory_data.records import Record
from captory_data.rows import FailureRow
from captory_data.source import SourceItem
from captory_data.spec import WHOLE_SCHEDULE, JobSpec

MAX_MESSAGE_CHARACTERS = 500


def make_record(spec: JobSpec, item: SourceItem, wanted: Wanted, finished: Finished) -> Record:
    """Everything about one image: the job's parameters, the item's place, the maker's words."""
    return Record(
        id=wanted.id,
        source=item.key,
        class_id=item.class_id,
        class_name=item.class_name,
        caption=finished.caption,
        prompt=finished.prompt,
        caption_source=item.caption_source,
        writer=finished.writer,
        mode_sha256=finished.mode_sha256,
        attributes=finished.attributes,
        synthetic_captions=finished.synthetic_captions,
        negative_prompt=spec.negative_prompt,
        mode=spec.mode,
        prompt_index=wanted.prompt_index,
        sample_index=wanted.sample_index,
        seed=wanted.seed,
        steps=spec.steps,
        guidance_scale=float(spec.guidance_scale),
        guidance_interval=spec.guidance_interval or WHOLE_SCHEDULE,
        sampler=spec.sampler,
        width=spec.width,
        height=spec.height,
        determinism=spec.determinism,
        family=spec.family,
        models=dict(finished.models),
        token_count=finished.token_count,
        token_policy=finished.token_policy,
        backend=finished.backend,
        pixel_sha256=finished.pixel_sha256,
    )


def failure_row(planned: Planned, wanted: Wanted, reason: str, message: str, *, dropped: bool = False) -> FailureRow:
    """Why an image did not come, as the ledger keeps it. The message is untrusted: bounded, and safe to print."""
    text = safe_key(message)[:MAX_MESSAGE_CHARACTERS]
    key = planned.item.key
    return FailureRow(wanted.id, key, wanted.prompt_index, wanted.sample_index, str(reason), text, dropped)
