"""Solutions that somebody else graded, as groups for the viewer and the locators.

No model is needed, only a tokenizer.

Each line of the JSON-lines file is one question: ``question``, ``ground_truth`` (a right solution),
and under any other names the solutions, each an object with ``solution`` and ``is_correct``. That
is the form of the model solutions published with GSM8K (openai/grade-school-math).
"""

from __future__ import annotations

from pathlib import Path

from workbench.core import Group, Problem, Rollout, Verdict, refuse_if
from workbench.model.policy import Policy
from workbench.tasks import loading
from workbench.tasks.base import chat
from workbench.tasks.loading import Row, has_text
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
    return [_group(reader, path.stem, row) for row in loading.local(path)]


def _group(reader: Policy, file_name: str, row: Row) -> Group:
    solutions = dict(row.columns)
    question, ground_truth = solutions.pop("question", None), solutions.pop("ground_truth", None)
    refuse_if(
        not has_text(question) or not has_text(ground_truth),
        f'{row.where} needs a "question" and a "ground_truth" with text in them',
    )
    for name, value in solutions.items():
        refuse_if(
            not _is_graded(value),
            f'{row.where}: {name!r} needs a "solution" (text) and "is_correct" (true or false)',
        )
    refuse_if(not solutions, f"{row.where} has no solutions")
    problem = Problem(
        f"{file_name}:{row.number}",
        chat(question),
        final_answer(ground_truth),
        (ground_truth,),
        {"authors": list(solutions)},
    )
    prompt_ids = reader.prompt_ids(problem.messages)
    return Group(problem, tuple(_rollout(reader, prompt_ids, s) for s in solutions.values()))


def _is_graded(value) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("solution"), str)
        and isinstance(value.get("is_correct"), bool)
    )


def _rollout(reader: Policy, prompt_ids: tuple[int, ...], solution: dict) -> Rollout:
    ids = reader.completion_ids(solution["solution"])
    correct = solution["is_correct"]
    return Rollout(
        prompt_ids,
        ids,
        (float("nan"),) * len(ids),
        solution["solution"],
        Verdict(float(correct), correct),
        borrowed=len(ids),
    )
