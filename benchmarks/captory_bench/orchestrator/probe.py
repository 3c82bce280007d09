"""`python -m captory_bench.orchestrator.probe`: the server as it is, with an account of where its CPU time goes.

SIGUSR1 begins an account, SIGUSR2 ends it; all of them are written as JSON to the file that PROBE_FILE names when the
server has stopped. Without signals nothing is measured. Needs Linux's /proc.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections import Counter, defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

PROBE_FILE = "ORCHESTRATOR_PROBE_FILE"
INTERVAL_S = 0.002
SWITCH_S = 0.0001  # else the sampler mostly gets its turn when the event loop has nothing to do
GRPC_THREADS = ("grpc_", "event_engine", "lifeguard")
# Python threads by the beginning of their name.
ROLES = {
    "MainThread": "event loop",
    "captory-lane": "lanes",
    "captory-codec": "image codecs",
    "Thread-": "gRPC",
    "probe": "probe",
}
# Of the event loop: the innermost frame that belongs to one of these files says whose time it is.
LAYERS = {
    "captory_server/interceptors.py": "gRPC",
    "grpc/": "gRPC",
    "captory_server/outbox.py": "messages",
    "captory_server/results.py": "messages",
    "captory_server/codec.py": "messages",
    "captory_server/": "stream and admission",
    "captory_engine/device.py": "device loop and scheduler",
    "captory_engine/scheduler.py": "device loop and scheduler",
    "captory_engine/": "pipeline and stages",
}
BOTTOM = "asyncio/base_events.py"
REST, IDLE = "asyncio, and gRPC's callbacks in it", "idle"


class Account:
    """CPU seconds by the role of the thread, and samples of what the event loop was at."""

    def __init__(self) -> None:
        self._before = cpu_by_role()
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        self._samples: Counter[str] = Counter()
        self._ended = threading.Event()
        self._loop = threading.main_thread().ident
        self._sampler = threading.Thread(target=self._sample, name="probe", daemon=True)
        self._sampler.start()

    def end(self) -> dict[str, Any]:
        """What was counted since the beginning."""
        after = cpu_by_role()
        self._ended.set()
        sys.setswitchinterval(self._switch_s)
        seconds = {role: max(0.0, after[role] - self._before.get(role, 0.0)) for role in after}
        return {"cpu_s": seconds, "event_loop_samples": dict(self._samples)}

    def _sample(self) -> None:
        while not self._ended.wait(INTERVAL_S):
            frame = sys._current_frames().get(self._loop or 0)
            self._samples[layer(frame)] += 1


def layer(frame: FrameType | None) -> str:
    """Whose time it is that a frame spends."""
    if frame is not None and frame.f_code.co_filename.endswith("selectors.py"):
        return IDLE
    while frame is not None and not frame.f_code.co_filename.endswith(BOTTOM):
        found = next((owner for part, owner in LAYERS.items() if part in frame.f_code.co_filename), None)
        if found:
            return found
        frame = frame.f_back
    return REST


def cpu_by_role() -> dict[str, float]:
    """CPU seconds of this process's threads since their start; threads that have ended count as no role's."""
    roles = {thread.native_id: _role(thread.name) for thread in threading.enumerate()}
    seconds: defaultdict[str, float] = defaultdict(float)
    for task in Path("/proc/self/task").iterdir():
        try:
            name, spent = (task / "comm").read_text(), (task / "schedstat").read_text()
        except OSError:  # it has just ended
            continue
        native = "gRPC" if name.startswith(GRPC_THREADS) else "other"
        seconds[roles.get(int(task.name), native)] += int(spent.split()[0]) / 1e9
    return dict(seconds)


def _role(name: str) -> str:
    return next((role for start, role in ROLES.items() if name.startswith(start)), "other")


def main() -> None:
    """Serve, and write the accounts in the end."""
    from captory_server.__main__ import app

    accounts: list[Account] = []
    ended: list[dict[str, Any]] = []
    signal.signal(signal.SIGUSR1, lambda *_: accounts.append(Account()))
    signal.signal(signal.SIGUSR2, lambda *_: ended.append(accounts.pop().end()))
    try:
        app()
    finally:
        Path(os.environ[PROBE_FILE]).write_text(json.dumps(ended))


if __name__ == "__main__":
    main()
