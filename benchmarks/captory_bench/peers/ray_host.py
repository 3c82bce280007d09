"""The child process of the Ray Serve arm: `python -m captory_bench.peers.ray_host HOSTING`."""

from __future__ import annotations

import asyncio
import signal
import sys
import tempfile
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from captory_bench.peers.hosting import Hosting
from captory_bench.peers.painter import Painter
from captory_bench.peers.wire import KEEP_ALIVE_S, MEDIA_TYPE, PATH, Painted, Wanted, read_body

OBJECT_STORE_BYTES = 80 << 20  # about the least that Ray takes; images do not go through it
MAX_ONGOING_REQUESTS = 1024  # a replica: waiting requests are there to be batched


class PaintService:
    """One replica. Batches of whatever requests come together."""

    def __init__(self, argument: str) -> None:
        hosting = Hosting.from_argument(argument)
        self._painter = Painter(hosting.conditions)
        self._paint.set_max_batch_size(hosting.setting.batch_size)
        self._paint.set_batch_wait_timeout_s(hosting.setting.wait_s)

    @serve.batch  # type: ignore[untyped-decorator]  # Any
    async def _paint(self, batch: list[Wanted]) -> list[Painted]:
        return await asyncio.to_thread(self._painter.paint, batch)

    async def __call__(self, request: Request) -> Response:
        """An image."""
        painted: Painted = await self._paint(read_body(await request.json()))
        return Response(painted.png, media_type=MEDIA_TYPE, headers=painted.headers)


def main() -> None:
    """Serve until it is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        _start(Hosting.from_argument(sys.argv[1]), folder)
        try:
            signal.pause()
        finally:
            ray.shutdown()


def _start(hosting: Hosting, folder: str) -> None:
    setting = hosting.setting
    threads = setting.threads_a_worker
    ray.init(
        num_cpus=setting.num_workers * threads,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=folder,
    )
    serve.start(http_options={"host": "127.0.0.1", "port": hosting.port, "keep_alive_timeout_s": KEEP_ALIVE_S})
    options: dict[str, Any] = {"num_cpus": threads, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(threads)}}}
    deployment = serve.deployment(PaintService).options(
        num_replicas=setting.num_workers, max_ongoing_requests=MAX_ONGOING_REQUESTS, ray_actor_options=options
    )
    serve.run(deployment.bind(hosting.to_argument()), route_prefix=PATH)


if __name__ == "__main__":
    main()
