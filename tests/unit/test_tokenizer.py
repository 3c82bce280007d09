"""Tokenizers as the engine uses them, on a small one made here."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors

from captory_engine.errors import BadModel
from captory_engine.modes import TokenPolicy
from captory_engine.tokenizer import PromptTokenizer, Tokenizer

SPECIAL = ["<|pad|>", "<|bos|>", "<|eos|>", "<|rewrite|>"]
CLIP_SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def write_tokenizer(path: Path, special: list[str]) -> Path:
    """One token a byte; the file frames, pads and truncates by itself, none of which must show."""
    vocab = {char: number + len(special) for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = RustTokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    first = (special[0], tokenizer.token_to_id(special[0]))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first[0]} $A", special_tokens=[first])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=20)
    tokenizer.save(str(path))
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    return Tokenizer(write_tokenizer(tmp_path / "tokenizer.json", SPECIAL))


def test_bare_ids_there_and_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a red crane")
    assert len(ids) == tokenizer.count("a red crane") == 11
    assert tokenizer.decode(ids) == "a red crane"
    assert tokenizer.decode([tokenizer.special_id("<|bos|>"), *ids]) == "a red crane"


def test_special_tokens_in_text_stay_text(tokenizer: Tokenizer) -> None:
    special = {tokenizer.special_id(token) for token in SPECIAL}
    assert not special & set(tokenizer.encode("a <|eos|> b <|bos|>"))
    assert tokenizer.decode(tokenizer.encode("a <|eos|> b")) == "a <|eos|> b"


def test_special_tokens_in_a_template_count(tokenizer: Tokenizer) -> None:
    bos, rewrite = tokenizer.special_id("<|bos|>"), tokenizer.special_id("<|rewrite|>")
    assert tokenizer.template_ids("<|bos|><|rewrite|>so") == [bos, rewrite, *tokenizer.encode("so")]


def test_a_prompt_is_framed_and_padded(tokenizer: Tokenizer) -> None:
    tokens = PromptTokenizer(tokenizer, 8).encode("abc")
    bos, eos, pad = (tokenizer.special_id(token) for token in ("<|bos|>", "<|eos|>", "<|pad|>"))
    assert tokens.ids.tolist() == [bos, *tokenizer.encode("abc"), eos, pad, pad, pad]
    assert (tokens.ids.dtype, tokens.token_count) == ("int64", 5)
    assert not tokens.truncated
    assert not tokens.dropped


@pytest.mark.parametrize(("text", "too_long"), [("abcdef", False), ("abcdefg", True), ("x" * 500, True)])
@pytest.mark.parametrize("policy", list(TokenPolicy))
def test_what_is_too_long_is_cut_or_marked(
    tokenizer: Tokenizer, text: str, too_long: bool, policy: TokenPolicy
) -> None:
    tokens = PromptTokenizer(tokenizer, 8).encode(text, policy)
    assert tokens.token_count == len(text) + 2
    assert tokens.truncated is (too_long and policy is not TokenPolicy.DROP)
    assert tokens.dropped is (too_long and policy is TokenPolicy.DROP)
    assert tokens.ids.shape == (8,)
    assert tokens.ids[-1] == tokenizer.special_id("<|eos|>")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("",)),
        ("abc", ("abc",)),
        ("ab, cd", ("ab, cd",)),
        ("ab, cd ef", ("ab,", "cd ef")),
        ("ab; cd. ef", ("ab;", "cd. ef")),
        ("abc def gh", ("abc", "def gh")),
        ("a, bcdefghijkl m", ("a,", "bcdefg", "hijkl", "m")),
        ("1,500 x y z", ("1,500", "x y z")),
    ],
)
def test_a_prompt_is_split_at_clauses_else_words_else_anywhere(
    tokenizer: Tokenizer, text: str, parts: tuple[str, ...]
) -> None:
    framing = PromptTokenizer(tokenizer, 8)
    assert framing.split(text) == parts
    assert not any(framing.encode(part, TokenPolicy.SPLIT).truncated for part in parts)


def test_splitting_ends_where_not_even_a_letter_fits(tokenizer: Tokenizer) -> None:
    assert PromptTokenizer(tokenizer, 2).split("abc d") == ("a", "b", "c", "d")


def test_clips_own_special_tokens_are_known(tmp_path: Path) -> None:
    clip = Tokenizer(write_tokenizer(tmp_path / "tokenizer.json", CLIP_SPECIAL))
    start, end = (clip.special_id(token) for token in CLIP_SPECIAL)
    ids = PromptTokenizer(clip, 6).encode("a").ids
    assert ids.tolist() == [start, *clip.encode("a"), end, end, end, end]


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    for path in (tmp_path / "tokenizer.json", tmp_path / "absent.json"):
        with pytest.raises(BadModel, match="no tokenizer"):
            Tokenizer(path)


def test_a_tokenizer_without_frame_tokens_is_refused(tmp_path: Path) -> None:
    plain = Tokenizer(write_tokenizer(tmp_path / "tokenizer.json", ["<unk>"]))
    with pytest.raises(BadModel, match="knows no token"):
        PromptTokenizer(plain, 8)
