"""Multiple choice, graded by the letter.

    --task mcq:sciknoweval,domain=Chemistry      (SciKnowEval, level L3)
    --task mcq:FILE                              (or a hub id)

Two forms of records. *Prepared*, as in the files of lasgroup/SDPO
(``datasets/sciknoweval/*/train.json``, which are JSON lines): ``prompt``, ``system``, ``answer`` (a
letter). *Published*, as in hicai-zju/SciKnowEval: ``question``, ``choices`` {text, label},
``answerKey``, ``domain``, ``type``, ``details`` {level}; of these the questions with two or four
choices of level L3 are taken and put into the same words.

The answer is what the last <answer>...</answer> holds (or what follows the last <answer>, or
everything where there is none), as in the authors' grader (arXiv 2601.20802). Differs from it:
brackets, stars, a full stop or a colon around the letter are forgiven.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from workbench.core import Problem, Verdict, WorkbenchError, refuse_if
from workbench.tasks.base import Listed, chat, named_split, split_of
from workbench.tasks.loading import Row, checked, has_text, read
from workbench.thoughts import spoken

# one split, test; the id and the columns are those that SDPO's own code reads
SETS = {"sciknoweval": "hicai-zju/SciKnowEval"}
TYPES = ("mcq-4-choices", "mcq-2-choices")
LEVEL = "L3"

# The authors' prompt, to the letter: their prepared records hold it.
SYSTEM = """
Given a question and four options, please select the right answer. Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option (A, B, C, or D), and \
nothing else. Do not restate the answer text. \
For example, if the answer is "A", just output:
<answer>
A
</answer>
"""
ASK = "Please reason step by step."
_CHOICE = re.compile(r"^\s*\(?([A-Z])[:.)]\s", re.MULTILINE)
_LETTER = re.compile(r"[\s(*\[]*([A-Z])[\s)*\].:]*")


def letter(text: str) -> str:
    """The letter of the last answer, "" where there is none."""
    inside = spoken(text, SYSTEM).rpartition("<answer>")[2].partition("</answer>")[0].strip()
    match = _LETTER.fullmatch(inside) if len(inside) < 20 else None
    return match[1] if match else ""


@dataclass(frozen=True)
class Mcq(Listed):
    """``domain``: only the published records of it (Biology, Chemistry, Material, Physics)."""

    domain: str = ""
    max_new: int = 2048

    name = "mcq"
    sets = tuple(SETS)

    @cached_property
    def _problems(self) -> tuple[Problem, ...]:
        rows = [row for row in read(SETS.get(self.source, self.source)) if self._takes(row)]
        refuse_if(
            not rows,
            f"{self.source} has no multiple-choice questions of level {LEVEL}"
            + (f" and domain {self.domain}" if self.domain else ""),
        )
        by_prompt: dict[str, Problem] = {}
        for number, row in enumerate(rows, 1):
            problem = _problem(f"{self.source}:{number}", row, self.split)
            first = by_prompt.setdefault(problem.messages[-1]["content"], problem)
            refuse_if(
                first.answer != problem.answer,
                f"{row.where} asks the question of {first.id} and has another answer: "
                f"{problem.answer}, not {first.answer}",
            )
        return tuple(by_prompt.values())

    def _takes(self, row: Row) -> bool:
        """All prepared records; of the published ones those of the level, types and domain."""
        record = row.columns
        if "choices" not in record:
            return True
        details = record.get("details")
        return (
            isinstance(details, dict)
            and details.get("level") == LEVEL
            and record.get("type") in TYPES
            and self.domain in ("", record.get("domain"))
        )

    def grade(self, problem: Problem, text: str) -> Verdict:
        choice = letter(text)
        if choice == problem.answer:
            return Verdict(1.0, True)
        if not choice:
            return Verdict(0.0, False, "There is no letter in <answer>...</answer>.")
        return Verdict(0.0, False, f"Your answer {choice} is not right.")


def _problem(name: str, row: Row, split: str) -> Problem:
    record = _prepared(row) if "choices" in row.columns else row.columns
    prompt, system, answer = map(record.get, ("prompt", "system", "answer"))
    is_letter = isinstance(answer, str) and re.fullmatch("[A-Z]", answer.strip())
    refuse_if(
        not has_text(prompt) or not is_letter or not isinstance(system, (str, type(None))),
        f"{row.where} needs a prompt (or question and choices) and an answer that is one "
        f"letter; its columns are {row.column_names}",
    )
    answer, letters = answer.strip(), _CHOICE.findall(prompt)
    refuse_if(
        len(set(letters)) > 1 and answer not in letters,
        f"{row.where} has the answer {answer}, which is none of {', '.join(letters)}",
    )
    system = system or ("" if "<answer>" in prompt else SYSTEM)
    meta = {"split": split or named_split(row.where, row.columns) or split_of(prompt)}
    return checked(row.where, Problem(name, chat(prompt, system), answer, (), meta))


def _prepared(row: Row) -> dict:
    """A published record in the words of the prepared ones."""
    record = row.columns
    try:
        labels, texts = record["choices"]["label"], record["choices"]["text"]
        question, answer = record["question"], record["answerKey"]
        whole = all(map(has_text, (question, answer, *labels, *texts))) and labels != "".join(
            labels
        )
        refuse_if(
            not whole or len(set(labels)) < max(len(labels), 2) or answer.strip() not in labels,
            "an empty question or choice, a label twice, or another answer",
        )
        choices = "\n".join(f"{label}: {text}" for label, text in zip(labels, texts, strict=True))
        return {"prompt": f"{question}\n\n{choices}\n{ASK}", "system": SYSTEM, "answer": answer}
    except (KeyError, TypeError, ValueError, WorkbenchError) as error:
        raise WorkbenchError(
            f"{row.where} needs a question, choices with text and label, and an answerKey that is "
            "one of the labels"
        ) from error
