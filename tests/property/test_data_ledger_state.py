"""The ledger against a dictionary (reliability.md F16): published is for ever, failures count, nothing else changes."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from captory_data.errors import LedgerError
from captory_data.ledger import LEDGER_NAME, Ledger
from captory_data.rows import FailureRow, ImageRow, Shard, State

NUMBERS = st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=6)


def image_id(number: int) -> str:
    return f"{number:032x}"


class LedgerMachine(RuleBasedStateMachine):
    """Publishes, fails, crashes and reopens at random."""

    def __init__(self) -> None:
        super().__init__()
        self.fast = patch("captory_data.database.SYNCHRONOUS", "OFF")
        self.fast.start()
        self.folder = Path(tempfile.mkdtemp())
        self.ledger = Ledger(self.folder / LEDGER_NAME)
        self.published: dict[int, int] = {}
        self.failed: dict[int, tuple[str, bool]] = {}
        self.shards = 0

    def teardown(self) -> None:
        self.ledger.close()
        shutil.rmtree(self.folder)
        self.fast.stop()

    @rule(numbers=NUMBERS)
    def publish(self, numbers: list[int]) -> None:
        shard = (self.ledger.next_shard(), Shard(f"shard-{self.shards}", "00", len(numbers)))
        rows = [ImageRow(image_id(n), f"{n}", -1, "00", "{}") for n in numbers]
        try:
            self.ledger.publish(shard, rows, [])
        except LedgerError:
            assert set(numbers) & self.published.keys()
            return
        assert not set(numbers) & self.published.keys()
        self.published |= dict.fromkeys(numbers, self.shards)
        self.shards += 1
        for number in numbers:
            self.failed.pop(number, None)

    @rule(numbers=NUMBERS, reason=st.sampled_from("ab"), dropped=st.booleans())
    def fail(self, numbers: list[int], reason: str, dropped: bool) -> None:
        new = [n for n in numbers if n not in self.published]
        self.ledger.publish(None, [], [FailureRow(image_id(n), f"{n}", 0, 0, reason, "", dropped) for n in new])
        self.failed |= dict.fromkeys(new, (reason, dropped))

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.folder / LEDGER_NAME)

    @precondition(lambda self: self.shards > 0)
    @rule(data=st.data())
    def read_a_shard(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, self.shards - 1))
        found = {row.id for row in self.ledger.images_of(number)}
        assert found == {image_id(n) for n, shard in self.published.items() if shard == number}

    @invariant()
    def agrees(self) -> None:
        expected = {image_id(n): State(False, *state) for n, state in self.failed.items()}
        expected |= {image_id(n): State(True) for n in self.published}
        assert self.ledger.states([image_id(n) for n in range(31)]) == expected
        counts = self.ledger.counts()
        assert (counts.images, counts.failed + counts.dropped) == (len(self.published), len(self.failed))
        assert self.ledger.next_shard() == self.shards


TestLedger = LedgerMachine.TestCase
TestLedger.settings = settings(max_examples=15, stateful_step_count=20)
