"""What several tests share: a real server in this process, around a fake pipeline."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fakes import FakePipeline, Running, serve


@pytest.fixture
async def serving() -> AsyncIterator[Running]:
    """A served fake pipeline without faults."""
    async with serve(FakePipeline()) as running:
        yield running
