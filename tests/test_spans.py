"""Steps and tokens as places in a text: the steps cover it, and every token is where its characters
are, whatever the tokenizer.
"""

from __future__ import annotations

import pytest

from data.organism.build.common import tokenizer
from workbench.core import Rollout, Verdict
from workbench.spans import Spans, common_prefix, split_steps, thought_steps, token_starts
from workbench.tasks.base import line_spans


def byte_level():
    """A small byte-level BPE, as of large models: tokens hold parts of characters, and words with
    the space before them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|end|>"],
    )
    made.train_from_iterator(["the dog and the cat and the dog, so 12 and 13\n" * 4], trainer)
    return made


def layout(text: str, finished: bool = True) -> Spans:
    tok = tokenizer()
    ids = tok(text, add_special_tokens=False)["input_ids"] + [tok.eos_token_id] * finished
    return Spans(
        Rollout((1,), tuple(ids), (0.0,) * len(ids), text, Verdict(0, False), finished=finished),
        lambda ids: tok.decode(list(ids)),
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", []),
        ("a", ["a"]),
        ("a\n", ["a\n"]),
        ("a\nb", ["a\n", "b"]),
        ("a\n\n\nb\n", ["a\n\n\n", "b\n"]),
        ("\n\na\nb", ["\n\na\n", "b"]),
        ("\n\n", ["\n\n"]),
        ("a\r\nb\u2028c", ["a\r\n", "b\u2028c"]),
    ],
)
def test_steps_are_lines_that_cover_the_text(text, expected):
    assert [text[s.start : s.end] for s in split_steps(text)] == expected
    assert "".join(expected) == text and [s.index for s in split_steps(text)] == list(
        range(len(expected))
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("He has 3. She has 4.", ["He has 3. ", "She has 4."]),
        ("Mr. Bo pays $3.50. Then 2 more! Why?", ["Mr. Bo pays $3.50. ", "Then 2 more! ", "Why?"]),
        ("1. First we add. 2. Then we stop.", ["1. First we add. ", "2. Then we stop."]),
        ('He said "no." Then e.g. nothing', ['He said "no." ', "Then e.g. nothing"]),
        ("One. Two.\nThree. Four.", ["One. Two.\n", "Three. Four."]),  # lines, where there are some
        ("", []),
        ("\n\n", ["\n\n"]),
    ],
)
def test_one_line_is_as_many_steps_as_sentences(text, expected):
    assert [text[s.start : s.end] for s in thought_steps(text)] == expected
    assert "".join(expected) == text


def test_steps_are_those_of_the_arithmetic_checker():
    text = "47+85=122\n122-29=93\nAnswer 93"
    assert split_steps(text) == line_spans(text)


@pytest.mark.parametrize(
    "text", ["the dog and the cat", "dog\u2019s é 🐕 and\nthe 日本 12", "", "‮abc\x00"]
)
def test_tokens_begin_where_their_characters_begin(text):
    tok = byte_level()

    def decode(ids):
        return tok.decode(list(ids), skip_special_tokens=False)

    encoding = tok.encode(text)
    # The tokenizer's own offsets: a token of a part of a character begins where the character does.
    assert token_starts(decode, encoding.ids) == [start for start, _ in encoding.offsets]


def test_places_by_hand():
    # characters 0..7 | 8..16; tokens: 8 for the first line, then "Answer ", "1", "5", the end
    found = layout("12+3=15\nAnswer 15")
    assert found.starts == [*range(8), 8, 15, 16, 17] and found.written == 11
    assert found.lines == ["12+3=15\n", "Answer 15"]
    # the end-of-turn token is at the step that was not written
    assert [found.step_of(t) for t in (0, 7, 8, 10, 11)] == [0, 0, 1, 1, 2]
    assert [found.token_at(c) for c in (0, 7, 8, 12, 15, 17)] == [0, 7, 8, 8, 9, 11]
    assert [found.first_token(s) for s in (0, 1, 2)] == [0, 8, 11]
    assert [found.tokens_through(s) for s in (0, 1)] == [8, 11]


def test_a_completion_that_was_cut_off_or_empty():
    cut = layout("12+3=15\nAns", finished=False)
    assert (
        cut.written == 11
        and cut.tokens_through(1) == 11
        and cut.token_at(11) == 10 == cut.first_token(2)
    )
    empty = layout("")
    assert empty.steps == [] and empty.starts == [0] and empty.step_of(0) == 0


def test_common_prefix():
    assert [
        common_prefix(*pair)
        for pair in (("abc", "abd"), ("ab", "abc"), ("", "x"), ("x", "y"), ("ab", "ab"))
    ] == [2, 2, 0, 0, 2]
