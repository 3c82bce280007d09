"""Whether there is a real Triton for the tests that need one."""

from __future__ import annotations

import pytest

from captory_engine.errors import Unavailable
from captory_export.triton.host import Installation, find_triton


def installed() -> Installation | None:
    try:
        return find_triton()
    except Unavailable:
        return None


NEEDS_TRITON = [
    pytest.mark.triton,
    pytest.mark.skipif(installed() is None, reason="no Triton: `make triton-env` sets it up, or CAPTORY_TRITON_PYTHON"),
]
