"""Solutions that somebody else graded, as groups for the viewer and the locators: no model is
needed, only a tokenizer.

Each line of the JSON-lines file is one question: ``question``, ``ground_truth`` (a right solution),
and under any other names the solutions, each an object with ``solution`` and ``is_correct``. That
is the form of the model solutions published with GSM8K (openai/grade-school-math).
"""

from __future__ import annotations

from pathlib import Path

from workbench.core import Group, Problem, Rollout, Verdict, WorkbenchError
from workbench.model.policy import Policy
from workbench.tasks import loading
from workbench.tasks.verify import final_answer


def read_graded(path: str | Path, tokenizer) -> list[Group]:
    """One group a question, its rollouts in the order of the file; ``problem.meta["authors"]``
    names them.

    Their log-probs are NaN and all their tokens borrowed: no policy of ours wrote them. The verdict
    is the file's label. A tokenizer that does not know a character puts its unknown token there.
    Raises WorkbenchError, naming the line, for one that is not of this form.
    """
    path = Path(path)
    reader = Policy(None, tokenizer, path.stem)  # only its tokenizer is used
    return [_group(reader, path, *found) for found in loading.local(path)]


def _group(reader: Policy, path: Path, where: str, row, _: str) -> Group:
    if (
        not isinstance(row, dict)
        or not _text(row.get("question"))
        or not _text(row.get("ground_truth"))
    ):
        raise WorkbenchError(f'{where} needs a "question" and a "ground_truth" with text in them')
    solutions = {
        name: value for name, value in row.items() if name not in ("question", "ground_truth")
    }
    for name, value in solutions.items():
        if (
            not isinstance(value, dict)
            or not isinstance(value.get("solution"), str)
            or not isinstance(value.get("is_correct"), bool)
        ):
            raise WorkbenchError(
                f'{where}: {name!r} needs a "solution" (text) and "is_correct" (true or false)'
            )
    if not solutions:
        raise WorkbenchError(f"{where} has no solutions")
    problem = Problem(
        f"{path.stem}:{where.rsplit(' ', 1)[1]}",
        ({"role": "user", "content": row["question"]},),
        final_answer(row["ground_truth"]),
        (row["ground_truth"],),
        {"authors": list(solutions)},
    )
    return Group(problem, tuple(_rollout(reader, problem, **value) for value in solutions.values()))


def _text(value) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _rollout(reader: Policy, problem: Problem, solution: str, is_correct: bool, **_) -> Rollout:
    ids = reader.completion_ids(solution)
    return Rollout(
        reader.prompt_ids(problem.messages),
        ids,
        (float("nan"),) * len(ids),
        solution,
        Verdict(float(is_correct), is_correct),
        borrowed=len(ids),
    )
