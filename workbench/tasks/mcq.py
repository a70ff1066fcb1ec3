"""Multiple choice, graded by the letter:

``mcq:sciknoweval,domain=Chemistry`` (SciKnowEval, level L3), a file, or a hub id.

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

from workbench.core import Problem, Verdict, WorkbenchError
from workbench.tasks import prompts
from workbench.tasks.loading import Row, check_dials, draw, read, split_of

# one split, test; the id and the columns are those that SDPO's own code reads
SETS = {"sciknoweval": "hicai-zju/SciKnowEval"}
TYPES, LEVEL = ("mcq-4-choices", "mcq-2-choices"), "L3"

# The authors' prompt, to the letter: their prepared records hold it.
SYSTEM = """
Given a question and four options, please select the right answer. Respond in the following format:
<reasoning>
...
</reasoning>
<answer>
...
</answer>

For the answer, only output the letter corresponding to the correct option (A, B, C, or D), and nothing else. Do not restate the answer text. \
For example, if the answer is "A", just output:
<answer>
A
</answer>
"""
ASK = "Please reason step by step."
_LETTER = re.compile(r"[\s(*\[]*([A-Z])[\s)*\].:]*")


def letter(text: str) -> str:
    """The letter of the last answer, "" where there is none."""
    inside = text.rpartition("<answer>")[2].partition("</answer>")[0].strip()
    found = _LETTER.fullmatch(inside) if len(inside) < 20 else None
    return found[1] if found else ""


@dataclass(frozen=True)
class Mcq(prompts.FreeText):
    """``source``: a name in ``SETS``, a file or a hub id.

    ``domain``: only the published records of it (Biology, Chemistry, Material, Physics). A tenth
    each is held out for validation and test, by the prompt's hash, unless ``split`` puts all into
    one.
    """

    source: str = ""
    domain: str = ""
    split: str = ""
    max_new: int = 2048  # longest completion, in tokens

    name = "mcq"

    def __post_init__(self):
        if not self.source:
            raise WorkbenchError(
                f"the task mcq needs {', '.join(SETS)}, a file or a hub id: mcq:FILE"
            )
        check_dials(self.name, self.split, self.max_new)
        self._problems  # a bad record is said now, not after the model is loaded

    @cached_property
    def _problems(self) -> tuple[Problem, ...]:
        rows = [row for row in read(SETS.get(self.source, self.source)) if self._wanted(row)]
        if not rows:
            raise WorkbenchError(
                f"{self.source} has no multiple-choice questions of level {LEVEL}"
                + (f" and domain {self.domain}" if self.domain else "")
            )
        found = {}
        for number, row in enumerate(rows, 1):
            problem = _problem(f"{self.source}:{number}", row, self.split)
            found.setdefault(problem.messages[-1]["content"], problem)
        return tuple(found.values())

    def _wanted(self, row: Row) -> bool:
        record = row.record
        if not isinstance(record, dict) or "choices" not in record:
            return True
        level = (record.get("details") or {}).get("level")
        return (
            level == LEVEL
            and record.get("type") in TYPES
            and self.domain in ("", record.get("domain"))
        )

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split``, drawn with ``seed``."""
        return draw(self._problems, split, n, seed, self.source)

    def grade(self, problem: Problem, text: str) -> Verdict:
        given = letter(text)
        if given == problem.answer:
            return Verdict(1.0, True)
        return Verdict(
            0.0,
            False,
            f"Your answer {given} is not right."
            if given
            else "There is no letter in <answer>...</answer>.",
        )


def _problem(name: str, row: Row, split: str) -> Problem:
    where, record = row.where, row.record if isinstance(row.record, dict) else {}
    if "choices" in record:
        try:
            choices = "\n".join(
                f"{label}: {text}"
                for label, text in zip(
                    record["choices"]["label"], record["choices"]["text"], strict=True
                )
            )
            prompt, system, answer = (
                f"{record['question']}\n\n{choices}\n{ASK}",
                SYSTEM,
                record["answerKey"],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WorkbenchError(
                f"{where} needs a question, choices with text and label, and an answerKey"
            ) from error
    else:
        prompt, system, answer = record.get("prompt"), record.get("system"), record.get("answer")
    if (
        not isinstance(prompt, str)
        or not prompt.strip()
        or not isinstance(answer, str)
        or not re.fullmatch("[A-Z]", answer.strip())
    ):
        raise WorkbenchError(
            f"{where} needs a prompt (or question and choices) and an answer that is one "
            "letter; "
            f"its columns are {', '.join(map(str, record)) or 'none'}"
        )
    system = system or ("" if "<answer>" in prompt else SYSTEM)
    messages = (
        *([{"role": "system", "content": system}] if system else []),
        {"role": "user", "content": prompt},
    )
    return Problem(name, messages, answer.strip(), (), {"split": split or split_of(prompt)})
