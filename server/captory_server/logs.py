"""One line an event: `time level event name=value …`. Values are JSON, so no control character gets through."""

from __future__ import annotations

import hashlib
import json
import logging
import time
import traceback
from pathlib import Path

from captory_server.config import LogLevel


def event(logger: logging.Logger, level: int, name: str, **fields: object) -> None:
    """Log one event. Text from a caller goes through `text_hash`, never as it is."""
    if logger.isEnabledFor(level):
        logger.log(level, "%s", " ".join([name, *(f"{key}={_value(value)}" for key, value in fields.items())]))


def text_hash(text: str) -> str:
    """Stands for a prompt or a caption in the log."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def where(error: BaseException) -> str:
    """The places in the code that an error came through; its message may quote a caller's text and is left out."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}:{frame.name}" for frame in reversed(frames))


class OneLine(logging.Formatter):
    """Time in UTC, level, event; anything that is not printable is escaped, tracebacks included."""

    converter = staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """Format one record as one line."""
        line = super().format(record)
        if line.isprintable():
            return line
        return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def configure(level: LogLevel, file: Path | None) -> None:
    """Send this process's log to `file`, or to stderr."""
    handler = logging.FileHandler(file, encoding="utf-8") if file else logging.StreamHandler()
    handler.setFormatter(OneLine())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _value(value: object) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)
