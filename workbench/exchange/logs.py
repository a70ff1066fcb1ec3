"""Records of rollouts, whoever wrote them, as ``Entry``: ``entry_of``.

Read as they are, recognised by their columns (the versions that were looked at):

    TRL 1.16        GRPO's and RLOO's ``log_completions``: step, prompt, completion, a column a
                    reward function, advantage. The reward is the sum of the functions' (the log
                    does not hold their weights); where some are called "...reward..." only those
    verl 0.4-0.10   ``trainer.rollout_data_dir``: input, output, score, step, and gts since 0.7
    prime-rl 0.8    ``enable_token_export``, schema 1: token_ids, loss_mask, inference_logprobs,
                    advantages. There is no reward in it
    ProcessBench    problem, steps, label (first wrong step, -1: none), final_answer_correct
    TRL's steps     prompt, completions (the steps of one solution), labels (true or false for each)
    PRM800K         question.problem, label.steps with a rating for each, finish_reason
    GSM8K's         the model solutions published with it: question, ground_truth, and a column a
                    model with its solution and is_correct
    any other       by the names of its columns (formats.py)
"""

from __future__ import annotations

import math

from workbench.core import Message, WorkbenchError, refuse_if
from workbench.exchange.formats import (
    QUESTIONS,
    REWARDS,
    VERDICTS,
    Attempt,
    Entry,
    answer_of,
    by_columns,
    first_of,
    ids_in,
    is_number,
    question_of,
    reward_of,
    solutions_of,
    span_of,
    step_of,
    text_of,
    verdict_of,
)
from workbench.tasks.loading import Row, check_text, has_text
from workbench.tasks.verify import final_answer


def entry_of(row: Row) -> Entry:
    """Raises WorkbenchError, naming the record, for one that does not hold rollouts."""
    readers = (reader for needed, reader in FORMS if set(needed.split()) <= row.columns.keys())
    entry = next(readers, by_columns)(row)
    texts = [attempt.text or "" for attempt in entry.attempts]
    of_problem = (entry.id, entry.answer, *entry.solutions, *_texts(entry.question))
    check_text(row.where, *texts, *of_problem)
    return entry


def _texts(question: str | tuple[Message, ...]) -> list[str]:
    return [question] if isinstance(question, str) else [m["content"] for m in question]


# ---- the logs of other libraries -----------------------------------------------------------------


def _trl(row: Row) -> Entry:
    names = list(row.columns)
    between = names[names.index("completion") + 1 : names.index("advantage")]
    numbers = {n: row.columns[n] for n in between if is_number(row.columns[n])}
    named = {n: value for n, value in numbers.items() if "reward" in n.lower()} or numbers
    parts = {n: float(value) for n, value in named.items() if math.isfinite(value)}
    text = text_of(row, row.columns["completion"])
    reward = sum(parts.values()) if parts else None
    advantage = row.columns["advantage"]
    if is_number(advantage) and math.isfinite(advantage):
        parts["advantage"] = float(advantage)
    attempt = Attempt(text, reward=reward, parts=parts)
    return Entry(
        row.where,
        question_of(row, row.columns["prompt"]),
        (attempt,),
        step=step_of(row),
        answer=answer_of(row),
        written="verbatim",
    )


def _verl(row: Row) -> Entry:
    accuracy = row.columns.get("acc")  # of a reward function that gives one; it may be a share
    attempt = Attempt(
        text_of(row, row.columns["output"]),
        reward=reward_of(row, first_of(row, ("score", "reward"))[1]),
        correct=bool(accuracy) if accuracy in (0, 1) else None,
    )
    question = question_of(row, row.columns["input"])
    return Entry(
        row.where,
        question,
        (attempt,),
        step=step_of(row),
        answer=answer_of(row),
        written="stripped",
    )


def _prime_rl(row: Row) -> Entry:
    """The prompt ends where the loss begins.

    A tool's words among the model's have no log-probs.
    """
    columns = row.columns
    ids = ids_in(row, "token_ids", columns["token_ids"])
    numbers = [columns[name] for name in ("loss_mask", "inference_logprobs", "advantages")]
    refuse_if(
        not all(isinstance(column, list) and len(column) == len(ids) for column in numbers),
        f"{row.where} has columns that do not fit its {len(ids)} tokens",
    )
    mask, logprobs, advantages = numbers
    refuse_if(not any(mask), f"{row.where} has no token that is trained on")
    refuse_if(
        not all(known is None or is_number(known) for known in (*logprobs, *advantages)),
        f"{row.where} has log-probabilities or advantages that are no numbers",
    )
    begin = mask.index(True)
    end = len(mask) - mask[::-1].index(True)
    refuse_if(not begin, f"{row.where} has no prompt: its first token is trained on")
    known = [
        logp if own and logp is not None else math.nan
        for logp, own in zip(logprobs[begin:end], mask[begin:end])
    ]
    advantage = {"advantage": float(advantages[begin])} if advantages[begin] is not None else {}
    attempt = Attempt(None, ids[begin:end], tuple(known), parts=advantage)
    question = ""
    return Entry(row.where, question, (attempt,), step=step_of(row), prompt_ids=ids[:begin])


# ---- people's labels of steps --------------------------------------------------------------------


def _processbench(row: Row) -> Entry:
    steps, label = row.columns["steps"], row.columns["label"]
    refuse_if(
        not isinstance(steps, list) or not steps or not all(map(has_text, steps)),
        f'{row.where}: "steps" is no list of texts',
    )
    name, question = first_of(row, QUESTIONS)
    refuse_if(
        not name,
        f"{row.where} has no question ({', '.join(QUESTIONS)}); its columns are {row.column_names}",
    )
    text = "\n\n".join(steps)
    attempt = Attempt(
        text,
        reward=reward_of(row, first_of(row, REWARDS)[1]),
        correct=verdict_of(row, first_of(row, VERDICTS)[1]),
        wrong=span_of(row, steps, label, text),
        labelled=True,
    )
    answer, solutions = answer_of(row), solutions_of(row)
    return Entry(row.where, question_of(row, question), (attempt,), "", None, answer, solutions)


def _stepwise(row: Row) -> Entry:
    """TRL's form of step labels. Other columns of these names are a group's."""
    steps, labels = row.columns["completions"], row.columns["labels"]
    plain = isinstance(labels, list) and isinstance(steps, list) and len(labels) == len(steps)
    if not plain or not all(isinstance(label, bool) for label in labels):
        return by_columns(row)
    label = labels.index(False) if False in labels else -1
    columns = {**row.columns, "steps": steps, "label": label}
    return _processbench(row._replace(record=columns))


def _prm800k(row: Row) -> Entry:
    """The solution that was labelled: up to the first step that nobody chose.

    Where the whole of it is there ("pre_generated_steps"), the whole.
    """
    question, label = row.columns["question"], row.columns["label"]
    try:
        chosen = list(map(_chosen, label["steps"]))
        steps = question.get("pre_generated_steps") or [text for text, _ in chosen]
        ratings = [rating for _, rating in chosen]
        wrong = ratings.index(-1) if -1 in ratings else -1
        text = "\n".join(steps)
        right = {"solution": True, "found_error": False}.get(label["finish_reason"])
        span = span_of(row, steps, wrong, text)
        attempt = Attempt(text, correct=right, wrong=span, labelled=True)
        answer, solution = question["ground_truth_answer"], question.get("ground_truth_solution")
        solutions = (solution,) if has_text(solution) else ()
        asked = question_of(row, question["problem"])
        return Entry(row.where, asked, (attempt,), "", None, str(answer or ""), solutions)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise WorkbenchError(f"{row.where} is not of PRM800K's form: {error!r}") from error


def _chosen(step: dict) -> tuple[str, int]:
    """(text, rating) of the step that the solution went on with; the first where none was."""
    number = step["chosen_completion"]
    if number is None and step.get("human_completion"):
        human = step["human_completion"]
        return human["text"] if isinstance(human, dict) else human, 1
    completion = step["completions"][number or 0]
    return completion["text"], completion["rating"]


_GRADED = {"solution", "is_correct"}


def _gsm8k(row: Row) -> Entry:
    """A right solution, and one of each model with its label. Other columns of these names are a
    group's.
    """
    by_model = {name: value for name, value in row.columns.items() if isinstance(value, dict)}
    if not any(map(_GRADED.issubset, by_model.values())):
        return by_columns(row)
    attempts = []
    for name, value in by_model.items():
        refuse_if(
            not _GRADED.issubset(value),
            f'{row.where}: {name} has no "solution" with its "is_correct"',
        )
        attempts.append(
            Attempt(
                text_of(row, value["solution"]),
                correct=verdict_of(row, value["is_correct"]),
            )
        )
    solutions = tuple(filter(has_text, [row.columns["ground_truth"]]))
    return Entry(
        row.where,
        question_of(row, row.columns["question"]),
        tuple(attempts),
        answer=final_answer(answer_of(row)),
        solutions=solutions,
    )


FORMS = (
    ("token_ids loss_mask inference_logprobs advantages", _prime_rl),
    ("steps label", _processbench),
    ("prompt completions labels", _stepwise),
    ("label question labeler", _prm800k),
    ("question ground_truth", _gsm8k),
    ("input output", _verl),
    ("step prompt completion advantage", _trl),
)
