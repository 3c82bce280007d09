"""Ray Serve with its own batching, as a child process behind its HTTP.

All of it listens at the loopback address but a replica's own gRPC port, on a port that the system picks: Ray 2.60 binds
that to `[::]` and has no setting for it.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from captory_bench.peers.contenders import Conditions, PerRequest
from captory_bench.peers.hosting import open_hosted

# Nothing is reported to anybody, and nothing runs that the arm does not need.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # everywhere: a node of its own, at the loopback address
    "RAY_SERVE_ENABLE_HA_PROXY": "0",
    "RAY_enable_metrics_collection": "0",
}


def open_ray(conditions: Conditions) -> AbstractAsyncContextManager[PerRequest]:
    """Ray Serve with the best of a few settings. Raises `PeerUnavailable`."""
    return open_hosted("ray", "captory_bench.peers.ray_host", conditions, env=_QUIET)
