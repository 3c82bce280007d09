"""transformers gives its classes their methods at run time, where no type checker sees them: Any is the honest type."""

from typing import Any

def __getattr__(name: str) -> Any: ...
