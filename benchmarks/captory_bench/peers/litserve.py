"""LitServe with its own batching, as a child process behind its HTTP."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from captory_bench.peers.contenders import Conditions, PerRequest
from captory_bench.peers.hosting import open_hosted


def open_litserve(conditions: Conditions) -> AbstractAsyncContextManager[PerRequest]:
    """LitServe with the best of a few settings. Raises `PeerUnavailable`."""
    return open_hosted("litserve", "captory_bench.peers.litserve_host", conditions)
