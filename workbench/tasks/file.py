"""Problems from a JSON-lines file, graded by their final answer (``workbench.tasks.verify``).

Each line is an object with ``question`` and ``answer`` (and, if you like, ``solution`` and
``split``). A GSM8K answer (``... #### 18``) is read as solution and answer. The question is the
whole prompt. Files with other columns, and the hub: ``math:FILE``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from workbench.core import Problem, Verdict, WorkbenchError
from workbench.tasks import loading as rows
from workbench.tasks import prompts
from workbench.tasks.verify import check_gold, grade


@dataclass(frozen=True)
class File(prompts.FreeText):
    """Problems read from ``path``.

    A tenth each is held out for validation and test, by the question's hash, unless lines name a
    split.
    """

    path: str
    rows: tuple[Problem, ...]
    max_new: int = 512  # longest completion, in tokens

    name = "file"

    @classmethod
    def read(cls, path: Path) -> File:
        made = tuple(_problem(path, row) for row in rows.local(path))
        if not made:
            raise WorkbenchError(f"the problem file {path} is empty")
        return cls(str(path), made)

    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """``n`` different problems of ``split``, drawn with ``seed``."""
        return rows.draw(self.rows, split, n, seed, self.path)

    def grade(self, problem: Problem, text: str) -> Verdict:
        return grade(problem.answer, text)


def _problem(path: Path, row: rows.Row) -> Problem:
    where, record = row.where, row.record
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("question"), str)
        or not record["question"].strip()
    ):
        raise WorkbenchError(f'{where} needs a "question" with text in it')
    if not isinstance(record.get("answer"), (str, int, float)) or not str(record["answer"]).strip():
        raise WorkbenchError(f'{where} needs an "answer"')
    question, answer, solution = (
        record["question"],
        str(record["answer"]),
        str(record.get("solution") or ""),
    )
    if any("\ud800" <= c <= "\udfff" for c in question + answer + solution):
        raise WorkbenchError(
            f"{where} holds half of a surrogate pair (\\ud800 to \\udfff alone), which is no text"
        )
    if "####" in answer:
        solution, answer = solution or answer, answer.rsplit("####", 1)[1].strip()
        if not answer:
            raise WorkbenchError(f'{where} has no answer after its "####"')
    # words are compared as they stand; a formula that cannot be read would equal no other writing
    # of itself
    if "\\" in answer:
        check_gold(where, answer)
    split = record.get("split") or rows.split_of(question)
    if split not in rows.SPLITS:
        raise WorkbenchError(
            f"{where} has the split {split!r}; it must be one of {', '.join(rows.SPLITS)}"
        )
    return Problem(
        f"{path.stem}:{row.where.rsplit(' ', 1)[1]}",
        ({"role": "user", "content": question},),
        answer,
        (solution,) if solution else (),
        {"split": split},
    )
