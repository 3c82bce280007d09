"""The child process of the LitServe arm: `python -m captory_bench.peers.litserve_host HOSTING`.

LitServe reads the annotation of `decode_request` at run time: annotations stay what they are here.
"""

import sys
from typing import Any

import litserve
from starlette.responses import Response

from captory_bench.peers.hosting import Hosting
from captory_bench.peers.painter import Painter
from captory_bench.peers.wire import KEEP_ALIVE_S, MEDIA_TYPE, PATH, Painted, Wanted, read_body


class PaintApi(litserve.LitAPI):  # type: ignore[misc]  # Any
    """Batches of whatever requests come together."""

    def __init__(self, hosting: Hosting) -> None:
        setting = hosting.setting
        super().__init__(max_batch_size=setting.batch_size, batch_timeout=setting.wait_s, api_path=PATH)
        self._conditions, self._together = hosting.conditions, setting.together

    def setup(self, device: str) -> None:
        """Open the graphs, once a worker."""
        self._painter = Painter(self._conditions, together=self._together)

    def decode_request(self, request: dict[str, Any]) -> Wanted:
        """Read the JSON body."""
        return read_body(request)

    def batch(self, inputs: list[Wanted]) -> list[Wanted]:
        """Leave the requests as they are: the painter groups them."""
        return inputs

    def predict(self, batch: list[Wanted]) -> list[Painted]:
        """Paint a batch."""
        return self._painter.paint(batch)

    def unbatch(self, output: list[Painted]) -> list[Painted]:
        """One reply a request."""
        return output

    def encode_response(self, output: Painted) -> Response:
        """An image."""
        return Response(output.png, media_type=MEDIA_TYPE, headers=output.headers)


def main() -> None:
    """Serve until it is ended."""
    hosting = Hosting.from_argument(sys.argv[1])
    server = litserve.LitServer(
        PaintApi(hosting),
        accelerator="cpu",
        devices=1,
        workers_per_device=hosting.setting.num_workers,
        timeout=False,
    )
    server.run(
        host="127.0.0.1",
        port=hosting.port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        timeout_keep_alive=KEEP_ALIVE_S,
    )


if __name__ == "__main__":
    main()
