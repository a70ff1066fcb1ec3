"""What a record of rollouts says, whoever wrote it, in one form: an ``Entry``.

Read as they are, recognised by their columns (the versions that were looked at):

    TRL 1.16        GRPO's and RLOO's ``log_completions``: step, prompt, completion, a column a
                    reward function, advantage. The reward is the sum of the functions' (the log
                    does not hold their weights); where some are called "...reward..." only those
    verl 0.4-0.10   ``trainer.rollout_data_dir``: input, output, score, step, and gts since 0.7
    prime-rl 0.8    ``enable_token_export``, schema 1: token_ids, loss_mask, inference_logprobs,
                    advantages. There is no reward in it
    ProcessBench    problem, steps, label (first wrong step, -1: none), final_answer_correct
    PRM800K         question.problem, label.steps with a rating for each, finish_reason
    any other       the columns below, by name
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.core import Message, WorkbenchError
from workbench.tasks.loading import Row, check_text, has_text

# Looked for in this order. The dotted one is the form of verl's data files.
QUESTIONS = ("question", "problem", "prompt", "messages")
ANSWERS = ("answer", "final_answer", "ground_truth", "gts", "reward_model.ground_truth")
TEXTS = ("completions", "completion", "responses", "response", "outputs", "output", "texts")
IDS = ("completion_ids", "completions_ids", "response_ids")
LOGPROBS = ("logprobs", "completion_logprobs", "sampler_logprobs")
REWARDS = ("rewards", "reward", "scores", "score")
VERDICTS = ("correct", "is_correct", "verdicts", "final_answer_correct", "acc")
LABELS = ("first_wrong_step", "labels", "label")
UNFINISHED = ("truncated", "is_truncated")

# How a prompt's text was written: as a question, as the very characters that the model read, or as
# those without the special tokens.
Written = Literal["question", "verbatim", "stripped"]


@dataclass(frozen=True)
class Attempt:
    """One completion. What is None is not in the record.

    ``wrong``: characters of the first wrong step, where somebody labelled the steps and found one;
    ``labelled``: did they?
    """

    text: str | None = None
    ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    reward: float | bool | None = None
    correct: bool | None = None
    wrong: tuple[int, int] | None = None
    labelled: bool = False
    finished: bool | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One record: a question and attempts at it."""

    where: str
    question: str | tuple[Message, ...]
    attempts: tuple[Attempt, ...]
    id: str = ""
    step: int | None = None
    answer: str = ""
    solutions: tuple[str, ...] = ()
    prompt_ids: tuple[int, ...] | None = None
    written: Written = "question"

    @property
    def key(self) -> tuple:
        """Records with the same are of one group."""
        messages = self.question if isinstance(self.question, str) else map(_items, self.question)
        asked = messages if isinstance(messages, str) else tuple(messages)
        return self.id, self.step, self.prompt_ids or asked, self.answer


def _items(message: Message) -> tuple:
    return tuple(message.items())


def entry_of(row: Row) -> Entry:
    """Raises WorkbenchError, naming the record, for one that does not hold rollouts."""
    columns = row.columns
    for needed, reader in FORMS:
        if needed <= columns.keys():
            entry = reader(row)
            break
    check_text(row.where, *(a.text or "" for a in entry.attempts), *_texts(entry.question))
    return entry


def _texts(question: str | tuple[Message, ...]) -> list[str]:
    return [question] if isinstance(question, str) else [m["content"] for m in question]


# ---- columns by name -----------------------------------------------------------------------------


def _first(row: Row, names: Sequence[str]) -> tuple[str, Any]:
    """(name, value) of the first of the columns that is there; ``a.b`` is b inside a."""
    for name in names:
        value: Any = row.columns
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return name, value
    return "", None


def _any(row: Row) -> Entry:
    question, texts, ids = _what_is_there(row)
    count = len(ids if texts is None else texts)
    columns = {
        "text": texts,
        "ids": ids,
        "logprobs": _logprobs_of(row),
        "reward": _spread(row, REWARDS, count),
        "correct": _spread(row, VERDICTS, count),
        "label": _spread(row, LABELS, count),
        "truncated": _spread(row, UNFINISHED, count),
    }
    for name, values in columns.items():
        if values is not None and len(values) != count:
            raise WorkbenchError(
                f"{row.where} has {count} completions, and the column of {name} has {len(values)}"
            )
    attempts = [
        _attempt(row, {name: values and values[i] for name, values in columns.items()})
        for i in range(count)
    ]
    prompt_ids = row.columns.get("prompt_ids")
    return Entry(
        row.where,
        question,
        tuple(attempts),
        str(row.columns.get("id") or ""),
        _step(row),
        _answer(row),
        _solutions(row),
        None if prompt_ids is None else _ids(row, "prompt_ids", prompt_ids),
    )


def _what_is_there(row: Row) -> tuple:
    """(question, texts or None, ids or None): one of the two is there."""
    question_name, question = _first(row, QUESTIONS)
    texts_name, texts = _first(row, TEXTS)
    ids_name, ids = _first(row, IDS)
    if isinstance(texts, list) and texts and all(map(_is_ids, texts)):
        ids_name, ids, texts = texts_name, texts, None
    if texts is None and ids is None and question_name == "messages":
        question, texts = _split_conversation(row, question)
    missing = "question" if question is None else "completions"
    if question is None or (texts is None and ids is None):
        raise WorkbenchError(
            f"{row.where} has no {missing}; its columns are {row.column_names}; needed are a "
            f"question ({', '.join(QUESTIONS)}) and completions ({', '.join((*TEXTS, *IDS))})"
        )
    ids = _ids_of(row, ids_name, [ids] if _is_ids(ids) else ids)
    return _question(row, question), _texts_of(row, texts_name, texts), ids


def _attempt(row: Row, columns: dict[str, Any]) -> Attempt:
    label, truncated = columns["label"], columns["truncated"]
    return Attempt(
        columns["text"],
        columns["ids"],
        columns["logprobs"],
        _reward(row, columns["reward"]),
        _verdict(row, columns["correct"]),
        None if label is None else _wrong_line(row, columns["text"], label),
        label is not None,
        None if truncated is None else not truncated,
    )


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, int) for item in value)


def _split_conversation(row: Row, messages: Any) -> tuple[Any, Any]:
    """A conversation that ends with a reply: its question and the reply."""
    if not isinstance(messages, list) or len(messages) < 2:
        return messages, None
    last = messages[-1]
    is_reply = isinstance(last, dict) and last.get("role") == "assistant"
    return (messages[:-1], [last.get("content")]) if is_reply else (messages, None)


def _question(row: Row, value: Any) -> str | tuple[Message, ...]:
    """Text, or messages with text."""
    if has_text(value):
        return value
    if isinstance(value, list) and value and all(map(_is_message, value)):
        return tuple({"role": m["role"], "content": m["content"]} for m in value)
    raise WorkbenchError(f"{row.where} has a question that is neither text nor a list of messages")


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(k), str) for k in ROLE_AND_CONTENT)


ROLE_AND_CONTENT = ("role", "content")


def _texts_of(row: Row, name: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    # one completion as messages is a list, too
    many = isinstance(value, list) and not (value and _is_message(value[0]))
    texts = [_text(row, item) for item in (value if many else [value])]
    if not texts:
        raise WorkbenchError(f"{row.where} has no completion in {name!r}")
    return texts


def _text(row: Row, value: Any) -> str:
    """A completion: text, or one message of the assistant."""
    if isinstance(value, list) and len(value) == 1 and _is_message(value[0]):
        value = value[0]["content"]
    if not isinstance(value, str):
        raise WorkbenchError(
            f"{row.where} has a completion that is neither text, one message, nor a list of token "
            f"ids: {str(value)[:60]!r}"
        )
    return value


def _ids_of(row: Row, name: str, value: Any) -> list[tuple[int, ...]] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise WorkbenchError(f"{row.where}: {name!r} is no list of token ids")
    return [_ids(row, name, ids) for ids in value]


def _ids(row: Row, name: str, value: Any) -> tuple[int, ...]:
    plain = isinstance(value, list) and all(type(item) is int for item in value)
    if not plain or not value:
        raise WorkbenchError(f"{row.where}: {name!r} is no list of token ids (whole numbers)")
    return tuple(value)


def _logprobs_of(row: Row) -> list[tuple[float, ...]] | None:
    name, value = _first(row, LOGPROBS)
    if value is None:
        return None
    many = isinstance(value, list) and bool(value) and isinstance(value[0], (list, type(None)))
    return [_logprobs(row, name, item) for item in (value if many else [value])]


def _logprobs(row: Row, name: str, value: Any) -> tuple[float, ...] | None:
    """null, for one token or for all of a completion, is a log-prob that is not known."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(v is None or _is_number(v) for v in value):
        raise WorkbenchError(f"{row.where}: {name!r} is no list of log-probabilities")
    return tuple(math.nan if v is None else float(v) for v in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _spread(row: Row, names: Sequence[str], count: int) -> list | None:
    """A column that has one value for each completion, or one for the only completion."""
    value = _first(row, names)[1]
    if value is None:
        return None
    if not isinstance(value, list) and count > 1:
        raise WorkbenchError(
            f"{row.where} has {count} completions and one {_first(row, names)[0]!r} for all of them"
        )
    return value if isinstance(value, list) else [value]


def _reward(row: Row, value: Any) -> float | bool | None:
    if isinstance(value, bool):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not _is_number(value) or not math.isfinite(value):
        raise WorkbenchError(
            f"{row.where} has the reward {str(value)[:60]!r}; rewards are numbers, or true and "
            "false"
        )
    return float(value)


def _verdict(row: Row, value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    if value in (0, 1):
        return bool(value)
    raise WorkbenchError(
        f"{row.where} has the verdict {str(value)[:60]!r}; verdicts are true, false, 1 or 0"
    )


def _wrong_line(row: Row, text: str | None, label: Any) -> tuple[int, int] | None:
    """The characters of the line (blank ones not counted) that the label names."""
    lines = [line for line in (text or "").splitlines(keepends=True) if line.strip()]
    return _span(row, lines, label, text)


def _span(row: Row, steps: Sequence[str], label: Any, text: str | None) -> tuple[int, int] | None:
    """Where the step that a label names is; None for -1."""
    if type(label) is not int or not -1 <= label < len(steps) or text is None:
        raise WorkbenchError(
            f"{row.where} has the label {label!r}: it is the number of the first wrong step, 0 to "
            f"{len(steps) - 1}, or -1 where none is wrong"
        )
    if label == -1:
        return None
    start = 0
    for step in steps[:label]:
        start = text.index(step, start) + len(step)
    start = text.index(steps[label], start)
    return start, start + len(steps[label])


def _step(row: Row) -> int | None:
    step = row.columns.get("step")
    return step if type(step) is int else None


def _answer(row: Row) -> str:
    value = _first(row, ANSWERS)[1]
    return str(value).strip() if isinstance(value, (str, int, float)) else ""


def _solutions(row: Row) -> tuple[str, ...]:
    value = _first(row, ("solutions", "solution"))[1]
    return tuple(filter(has_text, value if isinstance(value, list) else [value]))


# ---- the logs of other libraries -----------------------------------------------------------------


def _trl(row: Row) -> Entry:
    names = list(row.columns)
    between = names[names.index("completion") + 1 : names.index("advantage")]
    numbers = {n: row.columns[n] for n in between if _is_number(row.columns[n])}
    named = {n: value for n, value in numbers.items() if "reward" in n.lower()} or numbers
    parts = {n: float(value) for n, value in named.items() if math.isfinite(value)}
    text = _text(row, row.columns["completion"])
    reward = sum(parts.values()) if parts else None
    more = {"advantage": float(row.columns["advantage"])}
    attempt = Attempt(text, reward=reward, parts={**parts, **more})
    return Entry(
        row.where,
        _question(row, row.columns["prompt"]),
        (attempt,),
        step=_step(row),
        answer=_answer(row),
        written="verbatim",
    )


def _verl(row: Row) -> Entry:
    attempt = Attempt(
        _text(row, row.columns["output"]),
        reward=_reward(row, _first(row, REWARDS)[1]),
        correct=_verdict(row, _first(row, VERDICTS)[1]),
    )
    question = _question(row, row.columns["input"])
    return Entry(
        row.where,
        question,
        (attempt,),
        step=_step(row),
        answer=_answer(row),
        written="stripped",
    )


def _prime_rl(row: Row) -> Entry:
    """The prompt ends where the loss begins.

    A tool's words among the model's have no log-probs.
    """
    columns = row.columns
    ids = _ids(row, "token_ids", columns["token_ids"])
    mask, logprobs = columns["loss_mask"], columns["inference_logprobs"]
    advantages = columns["advantages"]
    if not len(ids) == len(mask) == len(logprobs) == len(advantages) or not any(mask):
        raise WorkbenchError(f"{row.where} has columns of several lengths, or no token to learn")
    begin = mask.index(True)
    end = len(mask) - mask[::-1].index(True)
    if not begin:
        raise WorkbenchError(f"{row.where} has no prompt: its first token is trained on")
    known = [
        logp if own and logp is not None else math.nan
        for logp, own in zip(logprobs[begin:end], mask[begin:end])
    ]
    advantage = {"advantage": float(advantages[begin])} if advantages[begin] is not None else {}
    attempt = Attempt(None, ids[begin:end], tuple(known), parts=advantage)
    question = ""
    return Entry(row.where, question, (attempt,), step=_step(row), prompt_ids=ids[:begin])


# ---- people's labels of steps --------------------------------------------------------------------


def _processbench(row: Row) -> Entry:
    steps, label = row.columns["steps"], row.columns["label"]
    if not isinstance(steps, list) or not steps or not all(map(has_text, steps)):
        raise WorkbenchError(f'{row.where}: "steps" is no list of texts')
    name, question = _first(row, QUESTIONS)
    if not name:
        raise WorkbenchError(
            f"{row.where} has no question ({', '.join(QUESTIONS)}); its columns are "
            f"{row.column_names}"
        )
    text = "\n\n".join(steps)
    attempt = Attempt(
        text,
        reward=_reward(row, _first(row, REWARDS)[1]),
        correct=_verdict(row, _first(row, VERDICTS)[1]),
        wrong=_span(row, steps, label, text),
        labelled=True,
    )
    answer, solutions = _answer(row), _solutions(row)
    return Entry(row.where, _question(row, question), (attempt,), "", None, answer, solutions)


def _prm800k(row: Row) -> Entry:
    """The solution that was labelled: up to the first step that nobody chose.

    Where the whole of it is there ("pre_generated_steps"), the whole.
    """
    question, label = row.columns["question"], row.columns["label"]
    try:
        chosen = [_chosen(step) for step in label["steps"]]
        steps = question.get("pre_generated_steps") or [text for text, _ in chosen]
        ratings = [rating for _, rating in chosen]
        wrong = ratings.index(-1) if -1 in ratings else -1
        text = "\n".join(steps)
        right = {"solution": True, "found_error": False}.get(label["finish_reason"])
        span = _span(row, steps, wrong, text)
        attempt = Attempt(text, correct=right, wrong=span, labelled=True)
        answer, solution = question["ground_truth_answer"], question.get("ground_truth_solution")
        solutions = (solution,) if has_text(solution) else ()
        asked = _question(row, question["problem"])
        return Entry(row.where, asked, (attempt,), "", None, answer or "", solutions)
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


FORMS = (
    (frozenset({"token_ids", "loss_mask", "inference_logprobs", "advantages"}), _prime_rl),
    (frozenset({"steps", "label"}), _processbench),
    (frozenset({"label", "question", "labeler"}), _prm800k),
    (frozenset({"input", "output"}), _verl),
    (frozenset({"step", "prompt", "completion", "advantage"}), _trl),
    (frozenset(), _any),
)
