"""One run of the main job, from its options to its summary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from captory_client.errors import ClientError
from captory_client.progress import Display
from captory_client.settle import check, settle
from captory_client.synthesizer import Synthesizer
from captory_client.workshop import Workshop
from captory_data.dataset import stored_job
from captory_data.errors import SpecError, TransportError
from captory_data.planning import Plan, plan_job
from captory_data.runner import run_job
from captory_data.source import Source, open_source
from captory_data.spec import JobSpec
from captory_data.summary import JobSummary

WINDOW = 64  # items in flight
PASSING = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}  # the same command may go through later


@dataclass(frozen=True, slots=True)
class Run:
    """What to run. `asked` holds the parameters that were given, by the names of a `JobSpec`; None is not given.

    `own_server` are options of the server that is started for the run: modes, writer, captioner; likewise.
    """

    input: Path
    out: Path
    asked: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""
    classes: Path | None = None
    retry_failed: bool | str = False
    server: str | None = None
    limit: int | None = None
    recaption: bool = False
    class_names: str = "raw"
    own_server: Mapping[str, object] = field(default_factory=dict)


async def execute(run: Run, stop: asyncio.Event, display: Display) -> JobSummary:
    """Make what is missing of the dataset. Raises `DataError` for a run that cannot begin."""
    with closing(await asyncio.to_thread(_open_source, run)) as source:
        async with open_workshop(run, stop, display.note) as workshop:
            spec = await settle_run(run, workshop)
            with display:
                return await run_job(
                    source,
                    spec,
                    run.out,
                    Synthesizer(workshop, spec, display.note),
                    window=WINDOW,
                    limit=run.limit,
                    retry_failed=run.retry_failed,
                    stop=stop,
                    progress=display,
                )


async def plan(run: Run) -> tuple[JobSpec, Plan]:
    """What `execute` would do."""
    with closing(await asyncio.to_thread(_open_source, run)) as source:
        async with open_workshop(run) as workshop:
            spec = await settle_run(run, workshop)
            return spec, plan_job(source, spec, run.out, limit=run.limit, retry=run.retry_failed)


def open_workshop(run: Run, stop: asyncio.Event | None = None, notify: Callable[[str], None] | None = None) -> Workshop:
    """The run's server, not started yet. Raises `SpecError` for options that a running server cannot be given."""
    own = {name: str(value) for name, value in run.own_server.items() if value is not None}
    if run.server is not None and own:
        raise SpecError(f"{', '.join(own)}: for a server that is started here; the one at {run.server} has its own")
    options = own | ({"family": run.family} if run.family else {})
    return Workshop(run.server, [f"--{name}={value}" for name, value in options.items()], stop=stop, notify=notify)


async def settle_run(run: Run, workshop: Workshop) -> JobSpec:
    """The run's parameters. Only a new output asks the server, for its defaults and whether it can do what is asked."""
    stored = stored_job(run.out)
    asked = dict(run.asked) | _family_name(run.family)
    if stored is not None:
        return settle(asked, stored.spec, None)
    try:
        info = await workshop.info()
    except ClientError as error:
        raise (TransportError if error.code in PASSING else SpecError)(str(error)) from error
    spec = settle(asked, None, info)
    check(spec, info)
    return spec


def _family_name(family: str) -> dict[str, str]:
    """A family given by path has a name that only the server knows."""
    return {} if not family or "/" in family or family in (".", "..") else {"family": family}


def _open_source(run: Run) -> Source:
    return open_source(
        run.input, classes=run.classes, class_names=run.class_names, recaption=run.recaption, exclude=run.out
    )
