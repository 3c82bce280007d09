"""What a vLLM of our own says: kept in a file that does not grow for ever, and printable where it is shown."""

from __future__ import annotations

import os
from pathlib import Path

from captory_engine.vllm.log import LAST_WORDS_BYTES, ChildLog

MAX_BYTES = 4096


def say(said: ChildLog, words: bytes) -> None:
    with said.pipe() as pipe, os.fdopen(os.dup(pipe), "wb") as child:
        child.write(words)


async def test_the_file_is_bounded_and_its_last_lines_are_there(tmp_path: Path) -> None:
    path, before = tmp_path / "vllm.log", tmp_path / "vllm.log.1"
    said = ChildLog(path, max_bytes=MAX_BYTES)
    lines = [f"line {number}\n" for number in range(20_000)]
    say(said, "".join(lines).encode())
    await said.close()
    kept = before.read_text() + path.read_text()
    assert set(os.listdir(tmp_path)) == {path.name, before.name}
    assert MAX_BYTES / 2 < len(kept) <= 2 * MAX_BYTES
    assert "".join(lines).endswith(kept)


async def test_an_earlier_log_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "vllm.log"
    path.write_text("earlier\n")
    for words in (b"first\n", b"second"):
        said = ChildLog(path)
        say(said, words)
        await said.close()
    assert path.read_text() == "earlier\nfirst\nsecond\n"


async def test_last_words_are_the_last_child_s_and_printable() -> None:
    said = ChildLog(None)
    say(said, b"of the child before\n")
    say(said, b"x" * 100_000 + b"\n\x1b[31mred\x1b[0m\xff\rno newline")
    words = await said.last_words()
    await said.close()
    assert words.endswith("x\n\\x1b[31mred\\x1b[0m\N{REPLACEMENT CHARACTER}\nno newline")
    assert len(words) < LAST_WORDS_BYTES + 100
    assert "before" not in words


async def test_a_full_disk_stops_nobody() -> None:
    said = ChildLog(Path("/dev/full"))
    say(said, b"a line that cannot be kept\n" * 10_000 + b"the end\n")  # more than the pipe holds
    assert (await said.last_words()).endswith("the end")
    await said.close()
