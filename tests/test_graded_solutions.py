"""GSM8K's published model solutions as groups: labels kept, bad records named; on the real ones
where the folder is at hand.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from test_spans import byte_level

from data.organism.build.common import tokenizer
from workbench.core import WorkbenchError
from workbench.exchange.external import load_rollouts
from workbench.inspection.locators import Chance, Divergence, locate
from workbench.model.policy import Policy
from workbench.spans import Spans

REAL = Path(__file__).parents[2] / "shared" / "data" / "gsm8k_graded_solutions_150.jsonl"
GOOD = {
    "question": "Two and three?",
    "ground_truth": "2+3=5\nA: 5",
    "a": {"solution": "2+3=6\nA: 6", "is_correct": False},
    "b": {"solution": "2+3=5\nA: 5", "is_correct": True},
}


def read(path: Path, tok=None):
    """No model is needed, only a tokenizer."""
    return load_rollouts(path, Policy(None, tok or tokenizer(), "reader"))


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


def test_labels_and_texts(tmp_path):
    [group] = read(written(tmp_path, GOOD))
    wrong = group.rollouts[0]
    assert group.problem.answer == "5" and group.problem.solutions == (GOOD["ground_truth"],)
    assert [r.verdict.correct for r in group.rollouts] == [False, True]
    assert group.rewards.tolist() == [0, 1]
    assert wrong.text == "2+3=6\nA: 6"
    assert all(map(math.isnan, wrong.logprobs))

    def decode(ids):
        return tokenizer().decode(list(ids))

    # the 6 of 2+3=6
    assert locate(group, decode, [Divergence()])[0]["divergence"].candidates[0][:2] == (0, 4)


def test_other_columns_of_these_names_are_a_groups(tmp_path):
    row = {"question": "Two?", "ground_truth": "2", "completions": ["2", "3"]}
    [group] = read(written(tmp_path, row))
    assert [r.verdict.correct for r in group.rollouts] == [True, False]


@pytest.mark.parametrize(
    "truth, answer, solutions", [(None, "", ()), (5, "5", ()), ("A: 5", "5", ("A: 5",))]
)
def test_a_truth_that_is_no_text_is_no_solution(tmp_path, truth, answer, solutions):
    [group] = read(written(tmp_path, {**GOOD, "ground_truth": truth}))
    assert (group.problem.answer, group.problem.solutions) == (answer, solutions)
    assert [r.verdict.correct for r in group.rollouts] == [False, True]


@pytest.mark.parametrize(
    "row, message",
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[1]", "line 2"),
        ({**GOOD, "question": " "}, "line 2 has a question that is neither text"),
        ({**GOOD, "a": {"solution": "5"}}, 'line 2: a has no "solution" with its "is_correct"'),
        ({**GOOD, "a": {"solution": "5", "is_correct": "yes"}}, "line 2 has the verdict 'yes'"),
        ({**GOOD, "a": {"solution": 5, "is_correct": True}}, "line 2 has a completion that is nei"),
        ({"question": "?", "ground_truth": "1"}, "line 2 has no completions"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, message):
    with pytest.raises(WorkbenchError, match=message) as caught:
        read(written(tmp_path, GOOD, row))
    assert "graded.jsonl" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unreadable_file(tmp_path):
    with pytest.raises(WorkbenchError, match="none.jsonl"):
        read(tmp_path / "none.jsonl")


@pytest.mark.skipif(
    not REAL.exists(),
    reason=f"the real GSM8K solutions are not at {REAL.name} beside this checkout",
)
@pytest.mark.filterwarnings("ignore:.*come back from their tokens")  # of the organism's alphabet
@pytest.mark.parametrize("kind", ["organism", "byte-level"])
def test_real_solutions_without_any_model(kind):
    tok = tokenizer() if kind == "organism" else chat(byte_level())
    rows = [json.loads(line) for line in REAL.read_text(encoding="utf-8").splitlines()]
    groups = read(REAL, tok)
    assert len(groups) == len(rows) == 150

    def decode(ids):
        words = [i for i in ids if i != tok.eos_token_id]
        return tok.decode(words, clean_up_tokenization_spaces=False)

    known = answered = 0
    for group, row in zip(groups[:40], rows):
        solutions = [value for value in row.values() if isinstance(value, dict)]
        labels = [solution["is_correct"] for solution in solutions]
        assert [r.verdict.correct for r in group.rollouts] == labels
        if kind == "byte-level":  # a tokenizer that knows every character gives the text back
            for rollout, solution in zip(group.rollouts, solutions):
                assert decode(rollout.completion_ids) == rollout.text == solution["solution"]
        for i, found in locate(group, decode, [Divergence(), Chance()]).items():
            layout, candidates = Spans(group.rollouts[i], decode), found["divergence"].candidates
            assert bool(candidates) == any(r.verdict.correct for r in group.rollouts)
            for candidate in (*candidates, *found["chance"].candidates):
                assert layout.step_of(candidate.token) == candidate.step <= len(layout.steps)
            known, answered = known + 1, answered + bool(candidates)
    assert known > answered > 30
