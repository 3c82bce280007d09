"""What several tests share: a real server in this process, around a fake pipeline."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator

import pytest
from fakes import FAKE_SERVER, FakePipeline, Running, serve
from hypothesis import settings


def pytest_configure(config: pytest.Config) -> None:
    """Batch sizes are the shipped ones, whatever this machine measured before; nothing is measured or timed now."""
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")
    os.environ["CAPTORY_MEASURE"] = "false"
    cache = tempfile.TemporaryDirectory(prefix="captory-tests-")
    config.add_cleanup(cache.cleanup)
    os.environ["XDG_CACHE_HOME"] = cache.name


@pytest.fixture
async def serving() -> AsyncIterator[Running]:
    """A served fake pipeline without faults."""
    async with serve(FakePipeline()) as running:
        yield running


@pytest.fixture(scope="session")
def fake_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one fake server in a process of its own, for all tests that do not hurt it."""
    socket = tmp_path_factory.mktemp("fake") / "s.sock"
    hears, tells = os.pipe()
    command = [*FAKE_SERVER, "--address", f"unix:{socket}", "--address-fd", str(tells)]
    server = subprocess.Popen(command, pass_fds=(tells,), stderr=subprocess.DEVNULL)
    os.close(tells)
    with os.fdopen(hears) as pipe:
        address = pipe.readline().strip()
    yield address
    server.terminate()
    server.wait()
