"""A server that speaks vLLM's API, for the tests of its client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_vllm import Peer, serving


@pytest.fixture
def peer() -> Peer:
    return Peer()


@pytest.fixture
def address(peer: Peer) -> Iterator[str]:
    """The peer's."""
    with serving(peer) as address:
        yield address
