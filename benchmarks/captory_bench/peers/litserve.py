"""LitServe with its own batching, as a child process behind its HTTP."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from captory_bench.peers.contenders import Conditions, PerRequest
from captory_bench.peers.hosting import open_hosted

_HOST = "captory_bench.peers.litserve_host"


def open_litserve(conditions: Conditions) -> AbstractAsyncContextManager[PerRequest]:
    """LitServe with the best of a few settings. Raises `PeerUnavailable`."""
    return open_hosted("litserve", _HOST, conditions)


def open_litserve_together(conditions: Conditions) -> AbstractAsyncContextManager[PerRequest]:
    """The same with a denoising loop of its own, that paints a batch of mixed steps together."""
    return open_hosted("litserve", _HOST, conditions, name="litserve-together", together=True)
