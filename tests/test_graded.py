"""Graded text as groups: labels kept, bad lines named; on the real GSM8K solutions where the folder
is at hand.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from test_spans import byte_level

from data.organism.build.common import tokenizer
from workbench.core import WorkbenchError
from workbench.inspection.graded import read_graded
from workbench.inspection.locators import Chance, Divergence, locate
from workbench.spans import Spans

REAL = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_graded_solutions_150.jsonl"
GOOD = {
    "question": "Two and three?",
    "ground_truth": "2+3=5\nA: 5",
    "a": {"solution": "2+3=6\nA: 6", "is_correct": False},
    "b": {"solution": "2+3=5\nA: 5", "is_correct": True},
}


def written(folder: Path, *rows) -> Path:
    path = folder / "graded.jsonl"
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows),
        encoding="utf-8",
    )
    return path


def chat(core):
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", clean_up_tokenization_spaces=False
    )
    made.chat_template = "{% for m in messages %}{{ m['content'] }}<|end|>{% endfor %}"
    return made


def test_labels_texts_and_authors(tmp_path):
    [group] = read_graded(written(tmp_path, GOOD), tokenizer())
    wrong = group.rollouts[0]
    assert (
        group.problem.answer == "5"
        and group.problem.meta["authors"] == ["a", "b"]
        and group.problem.solutions == ("2+3=5\nA: 5",)
    )
    assert [r.verdict.correct for r in group.rollouts] == [
        False,
        True,
    ] and group.rewards.tolist() == [0, 1]
    assert (
        wrong.text == "2+3=6\nA: 6"
        and wrong.borrowed == len(wrong.completion_ids)
        and all(map(math.isnan, wrong.logprobs))
    )

    def decode(ids):
        return tokenizer().decode(list(ids))

    # the 6 of 2+3=6
    assert locate(group, decode, [Divergence()])[0]["divergence"].candidates[0][:2] == (0, 4)


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", "line 2 is not JSON"),
        ("[1]", 'line 2 needs a "question"'),
        ({**GOOD, "question": " "}, 'line 2 needs a "question"'),
        ({**GOOD, "ground_truth": 5}, 'line 2 needs a "question" and a "ground_truth"'),
        ({**GOOD, "a": "text"}, "line 2: 'a' needs"),
        ({**GOOD, "a": {"solution": "5"}}, "line 2: 'a' needs"),
        ({**GOOD, "a": {"solution": "5", "is_correct": 1}}, "line 2: 'a' needs"),
        ({"question": "?", "ground_truth": "1"}, "line 2 has no solutions"),
        ("[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
    with pytest.raises(WorkbenchError, match=message) as caught:
        read_graded(written(tmp_path, GOOD, row), tokenizer())
    assert "graded.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unreadable_file(tmp_path):
    with pytest.raises(WorkbenchError, match="could not read"):
        read_graded(tmp_path / "none.jsonl", tokenizer())


@pytest.mark.skipif(
    not REAL.exists(),
    reason=f"the real GSM8K solutions are not at {REAL.name} beside this checkout",
)
@pytest.mark.parametrize("kind", ["organism", "byte-level"])
def test_real_solutions_without_any_model(kind):
    tok = tokenizer() if kind == "organism" else chat(byte_level())
    rows = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()]
    groups = read_graded(REAL, tok)
    assert len(groups) == len(rows) == 150

    def decode(ids):
        words = [i for i in ids if i != tok.eos_token_id]
        return tok.decode(words, clean_up_tokenization_spaces=False)

    known = answered = 0
    for group, row in zip(groups[:40], rows):
        names = group.problem.meta["authors"]
        assert [r.verdict.correct for r in group.rollouts] == [
            row[name]["is_correct"] for name in names
        ]
        if kind == "byte-level":  # a tokenizer that knows every character gives the text back
            assert all(
                decode(r.completion_ids) == r.text == row[name]["solution"]
                for r, name in zip(group.rollouts, names)
            )
        for i, found in locate(group, decode, [Divergence(), Chance()]).items():
            layout, candidates = Spans(group.rollouts[i], decode), found["divergence"].candidates
            assert bool(candidates) == any(r.verdict.correct for r in group.rollouts)
            for candidate in (*candidates, *found["chance"].candidates):
                assert layout.step_of(candidate.token) == candidate.step <= len(layout.steps)
            known, answered = known + 1, answered + bool(candidates)
    assert known > answered > 30
