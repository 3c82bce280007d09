"""One run of MLCommons LoadGen, in a process of its own: `python -m captory_bench.load.loadgen_child RUN`.

RUN is a `LoadRun` as JSON. The system under test is a stub: it passes every query on over gRPC, from an event loop in a
thread of its own, and tells LoadGen when the image is there. LoadGen writes its logs into the run's folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import traceback
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from captory_bench.measuring.served import MAX_OPEN_LOOP_ITEMS, painting_item
from captory_bench.measuring.workload import Painting, paintings
from captory_client.client import Client
from captory_client.errors import ClientError
from captory_proto.v1 import captory_pb2 as pb

MODULE = "mlperf_loadgen"
NUM_PROMPTS = 1024  # of the query sample library
SCENES = 6000  # batch of scenes of the library
PERCENTILE = 0.99
NUM_KEPT = 8  # images that are kept to be checked
FAILURES = "failures.json"
OFFLINE, SERVER = "Offline", "Server"


@dataclass(frozen=True, slots=True)
class LoadRun:
    """What one run does. `rate_per_s` is the Poisson rate of Server, and for Offline a guess that sets its length."""

    scenario: str
    address: str
    folder: str
    steps: int
    rate_per_s: float
    seconds: float
    bound_s: float

    def to_json(self) -> str:
        """As the child takes it."""
        return json.dumps(asdict(self))


@lru_cache
def library(steps: int) -> tuple[Painting, ...]:
    """The prompts, all of equal steps."""
    return tuple(Painting(job.id, job.prompt, steps, job.seed) for job in paintings(NUM_PROMPTS, SCENES))


class Stub:
    """The system under test, as LoadGen sees it. `failures` are what was refused or failed, in words."""

    def __init__(self, run: LoadRun, complete: Any) -> None:
        self.failures: list[str] = []
        self._run = run
        self._jobs = library(run.steps)
        self._complete = complete
        self._kept = 0
        self._loop = asyncio.new_event_loop()
        self._client = Client(run.address, max_in_flight=MAX_OPEN_LOOP_ITEMS)
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._call(self._client.__aenter__()).result()

    def issue(self, queries: Sequence[Any]) -> None:
        """Take queries, from a thread of LoadGen's, and return at once."""
        if self._run.scenario == OFFLINE:
            self._call(self._stream([(query.id, query.index) for query in queries]))
        else:
            for query in queries:
                self._call(self._ask(query.id, query.index))

    def close(self) -> None:
        """Close the connection."""
        self._call(self._client.__aexit__()).result()

    def _call(self, coroutine: Any) -> Future[Any]:
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        future.add_done_callback(end_at_error)
        return future

    async def _ask(self, query_id: int, index: int) -> None:
        """One unary call, interactive."""
        job = self._jobs[index]
        try:
            [image] = await self._client.generate(job.prompt, steps=job.steps, seed=job.seed)
            self._keep(index, image)
        except ClientError as error:
            self.failures.append(f"{error.code}: {error}")
        self._complete(query_id)

    async def _stream(self, queries: Sequence[tuple[int, int]]) -> None:
        """All queries over one stream, as bulk work. An item's id is its place, since prompts come more than once."""
        async for response in self._client.synthesize(self._items(queries)):
            query_id, index = queries[int(response.item_id)]
            event = response.WhichOneof("event")
            if event == "image":
                self._keep(index, response.image)
            elif event == "failure":
                self.failures.append(response.failure.status.message)
            elif event == "done":
                if response.done.status.code:
                    self.failures.append(response.done.status.message)
                self._complete(query_id)

    async def _items(self, queries: Sequence[tuple[int, int]]) -> AsyncGenerator[pb.Item, None]:
        for place, (_, index) in enumerate(queries):
            item = painting_item(self._jobs[index], pb.WORK_CLASS_BULK)
            item.id = str(place)
            yield item

    def _keep(self, index: int, image: pb.ImageResult) -> None:
        """The first images, named by the place of their prompt and the seed that they were painted with."""
        if self._kept < NUM_KEPT:
            self._kept += 1
            name = f"{index}-{image.provenance.seed}.png"
            (Path(self._run.folder) / name).write_bytes(image.data)


def end_at_error(future: Future[Any]) -> None:
    """End the process with the words of what nobody foresaw: LoadGen would wait for ever for the query's answer."""
    if error := future.exception():
        traceback.print_exception(error)
        sys.stderr.flush()
        os._exit(1)


def main(run: LoadRun) -> None:
    """Run LoadGen to its end."""
    lg: Any = import_module(MODULE)

    def complete(query_id: int) -> None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(query_id, 0, 0)])

    stub = Stub(run, complete)
    system = lg.ConstructSUT(stub.issue, lambda: None)
    samples = lg.ConstructQSL(NUM_PROMPTS, NUM_PROMPTS, lambda _: None, lambda _: None)
    lg.StartTestWithLogSettings(system, samples, _test_settings(lg, run), _log_settings(lg, run))
    lg.DestroyQSL(samples)
    lg.DestroySUT(system)
    stub.close()
    (Path(run.folder) / FAILURES).write_text(json.dumps(stub.failures))


def _test_settings(lg: Any, run: LoadRun) -> Any:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, run.scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = int(run.seconds * 1000)
    settings.min_query_count = 1
    settings.offline_expected_qps = run.rate_per_s
    settings.server_target_qps = run.rate_per_s
    settings.server_target_latency_ns = int(run.bound_s * 1e9)
    settings.server_target_latency_percentile = PERCENTILE
    return settings


def _log_settings(lg: Any, run: LoadRun) -> Any:
    settings = lg.LogSettings()
    settings.log_output.outdir = run.folder
    settings.log_output.copy_summary_to_stdout = False
    settings.enable_trace = False
    return settings


if __name__ == "__main__":
    main(LoadRun(**json.loads(sys.argv[1])))
