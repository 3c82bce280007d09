"""Triton gives this module to the models that it runs; no package index has it."""

from typing import Any

def __getattr__(name: str) -> Any: ...
