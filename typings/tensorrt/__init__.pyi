"""Only machines with an NVIDIA GPU have it: Any, so that types are checked without it."""

from typing import Any

def __getattr__(name: str) -> Any: ...
