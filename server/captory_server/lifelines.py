"""Two inherited pipes between a server and the process that started it: its address goes up, its life hangs on one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


def tell_address(fd: int, address: str) -> None:
    """Write the bound address and a line break to the pipe `fd`, and close it."""
    with os.fdopen(fd, "w", encoding="utf-8") as pipe:
        pipe.write(f"{address}\n")


def watch_parent(fd: int, orphaned: Callable[[], None]) -> None:
    """Call `orphaned` when the pipe `fd` reaches its end, that is, when the parent is gone however it went."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)

    def readable() -> None:
        if not os.read(fd, 4096):
            loop.remove_reader(fd)
            orphaned()

    loop.add_reader(fd, readable)
