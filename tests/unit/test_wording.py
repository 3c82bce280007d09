"""A writer's words: bounded attempts, none of them trusted, nothing asked twice."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from captory_engine.cache import LruCache, SingleFlight
from captory_engine.errors import BadOutput, Unavailable, Unsuited
from captory_engine.items import Mode, WorkClass
from captory_engine.modes import Instruction, read_modes
from captory_engine.stages import Share
from captory_engine.wording import Worded, Wording

PLAN = read_modes().plans[Mode.REWRITE]
assert PLAN.instruction is not None
INSTRUCTION = PLAN.instruction
STRUCTURED = INSTRUCTION.model_copy(update={"json_schema": {"properties": {"text": {"type": "string"}}}})
GIVEN = {"c": "kite", "caption": "a brown bird", "attributes": "a brown bird"}
SHARE = Share(WorkClass.BULK, exact=False)
GOOD = "high above us glides a brown bird"


class Scripted:
    """Says its answers in turn, the last one for ever; raises those that are errors."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.seeds: list[int] = []
        self.heard: list[Mapping[str, str]] = []

    async def attempt(self, instruction: Instruction, words: Mapping[str, str], seed: int, share: Share) -> str:
        self.seeds.append(seed)
        self.heard.append(words)
        await asyncio.sleep(0)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def wording(writer: Scripted) -> Wording:
    return Wording(writer, SingleFlight(LruCache[Worded](100, 1 << 20, lambda worded: len(worded.text or ""))))


async def words_of(writer: Scripted, seed: int = 7, instruction: Instruction = INSTRUCTION) -> str | None:
    return await wording(writer).words(instruction, PLAN.accept, GIVEN, seed, SHARE)


async def test_the_first_words_that_may_be_used_are() -> None:
    writer = Scripted("", "too short", GOOD, "never asked for this one, as the last was good")
    assert await words_of(writer) == GOOD
    assert writer.seeds == [7, 8, 9]
    assert writer.heard[0] == GIVEN


async def test_attempts_end() -> None:
    writer = Scripted("no")
    assert await words_of(writer) is None
    assert writer.seeds == [7, 8, 9, 10]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        " \n\t ",
        "\x00\x1b[31m\u202e\u200b",
        "ein schöner brauner Vogel über dem stillen See",
        "一只棕色的鸟 在 天空 中 飞翔 着 呢",
        "\ud800 a b c",
        "word " * 1_000_000,
        "x" * 10_000_000,
        "{" * 100_000,
    ],
    ids=["empty", "blank", "control", "umlauts", "chinese", "surrogate", "endless", "10 MB", "braces"],
)
@pytest.mark.parametrize("instruction", [INSTRUCTION, STRUCTURED], ids=["plain", "structured"])
async def test_what_cannot_be_used_is_refused(answer: str, instruction: Instruction) -> None:
    writer = Scripted(answer)
    assert await words_of(writer, instruction=instruction) is None
    assert len(writer.seeds) == instruction.max_attempts


async def test_good_words_lose_what_no_prompt_may_have() -> None:
    assert await words_of(Scripted("  high above\x00 us\nglides\u202e a brown bird \x1b")) == GOOD


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (f"<think>\nthe user wants a bird\n</think>\n{GOOD}", GOOD),
        ("<think> Okay, the user wants me to reword this caption", None),
        ("high above us — it’s a “brown” bird…", 'high above us - it\'s a "brown" bird...'),
    ],
    ids=["thoughts", "only thoughts", "typeset"],
)
async def test_thoughts_are_no_words_and_typesetting_is_made_plain(answer: str, words: str | None) -> None:
    assert await words_of(Scripted(answer)) == words


async def test_what_does_not_suit_the_writer_is_asked_once() -> None:
    writer = Scripted(Unsuited("VLLM_REFUSED", "too long"), GOOD)
    assert await words_of(writer) is None
    assert writer.seeds == [7]


async def test_an_answer_that_is_no_text_is_a_refused_attempt() -> None:
    writer = Scripted(BadOutput("ANSWER_TOO_LONG", "too long"), GOOD)
    assert await words_of(writer) == GOOD
    assert writer.seeds == [7, 8]


async def test_a_writer_that_is_away_is_the_caller_s_to_know_and_is_not_remembered() -> None:
    told = wording(Scripted(Unavailable("WRITER_DOWN", "nobody answers"), GOOD))
    with pytest.raises(Unavailable):
        await told.words(INSTRUCTION, PLAN.accept, GIVEN, 7, SHARE)
    assert await told.words(INSTRUCTION, PLAN.accept, GIVEN, 7, SHARE) == GOOD


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (f'{{"text": "{GOOD}"}}', GOOD),
        (f' {{"why": 1, "text": "{GOOD}"}} ', GOOD),
        (GOOD, GOOD),
        ('{"text": 7}', None),
        (f'{{"caption": "{GOOD}"}}', None),
        (f'{{"text": "{GOOD}', None),
        ('{"a":' * 50_000, None),
    ],
    ids=["object", "more", "plain", "number", "other", "cut", "deep"],
)
async def test_a_structured_answer_is_read_from_its_object(answer: str, words: str | None) -> None:
    assert await words_of(Scripted(answer), instruction=STRUCTURED) == words


async def test_nothing_is_asked_twice() -> None:
    writer = Scripted(GOOD)
    told = wording(writer)
    same = (told.words(INSTRUCTION, PLAN.accept, GIVEN, 7, SHARE) for _ in range(5))
    assert set(await asyncio.gather(*same)) == {GOOD}
    assert writer.seeds == [7]
    await told.words(INSTRUCTION, PLAN.accept, GIVEN, 8, SHARE)
    await told.words(INSTRUCTION, PLAN.accept, {**GIVEN, "caption": "another"}, 7, SHARE)
    await told.words(STRUCTURED, PLAN.accept, GIVEN, 7, SHARE)
    await told.words(INSTRUCTION, PLAN.accept, GIVEN, 7, Share(WorkClass.BULK, exact=True))
    assert writer.seeds == [7, 8, 7, 7, 7]


async def test_refused_words_are_remembered_too() -> None:
    writer = Scripted("no")
    told = wording(writer)
    for _ in range(2):
        assert await told.words(INSTRUCTION, PLAN.accept, GIVEN, 7, SHARE) is None
    assert len(writer.seeds) == INSTRUCTION.max_attempts
