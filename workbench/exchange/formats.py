"""What a record of rollouts says, in one form: an ``Entry``; and columns that are found by name.

The forms of other libraries' logs are in logs.py. A text is taken to have ended, where no column
``truncated`` says otherwise; ``first_wrong_step`` counts lines that are not blank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.core import Message, WorkbenchError, refuse_if
from workbench.tasks.base import chat
from workbench.tasks.loading import Row, has_text

# Looked for in this order. The dotted one is the form of verl's data files.
QUESTIONS = ("question", "problem", "prompt", "messages")
ANSWERS = ("answer", "final_answer", "ground_truth", "gts", "reward_model.ground_truth")
TEXTS = ("completions", "completion", "responses", "response", "outputs", "output", "texts")
IDS = ("completion_ids", "completions_ids", "response_ids")
LOGPROBS = ("logprobs", "completion_logprobs", "sampler_logprobs")
REWARDS = ("rewards", "reward", "scores", "score")
VERDICTS = ("correct", "is_correct", "verdicts", "final_answer_correct", "acc")
LABELS = ("first_wrong_step",)
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
        texts = isinstance(self.question, str)
        messages = chat(self.question) if texts else self.question
        asked = tuple(map(_items, messages))
        return self.step, self.prompt_ids or asked, self.answer


def _items(message: Message) -> tuple:
    return tuple(message.items())


# ---- columns by name -----------------------------------------------------------------------------


def first_of(row: Row, names: Sequence[str]) -> tuple[str, Any]:
    return row.first(names)


def by_columns(row: Row) -> Entry:
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
        _name(row),
        step_of(row),
        answer_of(row),
        solutions_of(row),
        None if prompt_ids is None else ids_in(row, "prompt_ids", prompt_ids),
    )


def _what_is_there(row: Row) -> tuple:
    """(question, texts or None, ids or None): one of the two is there."""
    question_name, question = first_of(row, QUESTIONS)
    texts_name, texts = first_of(row, TEXTS)
    ids_name, ids = first_of(row, IDS)
    if _is_ids(texts) or (isinstance(texts, list) and texts and all(map(_is_ids, texts))):
        ids_name, ids, texts = texts_name, texts, None
    if texts is None and ids is None and question_name == "messages":
        question, texts = _split_conversation(row, question)
    missing = "question" if question is None else "completions"
    refuse_if(
        question is None or (texts is None and ids is None),
        f"{row.where} has no {missing}; its columns are {row.column_names}; needed are a "
        f"question ({', '.join(QUESTIONS)}) and completions ({', '.join((*TEXTS, *IDS))})",
    )
    ids = _ids_of(row, ids_name, [ids] if _is_ids(ids) else ids)
    return question_of(row, question), _texts_of(row, texts_name, texts), ids


def _attempt(row: Row, columns: dict[str, Any]) -> Attempt:
    label, truncated = columns["label"], columns["truncated"]
    return Attempt(
        columns["text"],
        columns["ids"],
        columns["logprobs"],
        reward_of(row, columns["reward"]),
        verdict_of(row, columns["correct"]),
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


def question_of(row: Row, value: Any) -> str | tuple[Message, ...]:
    """Text, or messages with text."""
    if has_text(value):
        return value
    if isinstance(value, list) and value and all(map(_is_message, value)):
        return tuple({"role": m["role"], "content": _content(m)} for m in value)
    raise WorkbenchError(f"{row.where} has a question that is neither text nor a list of messages")


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("role"), str)
        and (_content(value) is not None)
    )


def _content(message: dict) -> str | None:
    """Text, or the parts of it; None where there is something else, such as an image."""
    content = message.get("content")
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    parts = [part.get("text") if isinstance(part, dict) else None for part in content]
    return "".join(parts) if all(isinstance(part, str) for part in parts) else None


def _texts_of(row: Row, name: str, value: Any) -> list[str] | None:
    if value is None:
        return None
    # one completion as messages is a list, too
    many = isinstance(value, list) and not (value and _is_message(value[0]))
    texts = [text_of(row, item) for item in (value if many else [value])]
    refuse_if(not texts, f"{row.where} has no completion in {name!r}")
    return texts


def text_of(row: Row, value: Any) -> str:
    """A completion: text, or one message of the assistant."""
    if isinstance(value, list) and len(value) == 1 and _is_message(value[0]):
        value = _content(value[0])
    refuse_if(
        not isinstance(value, str),
        f"{row.where} has a completion that is neither text, one message, nor a list of token "
        f"ids: {str(value)[:60]!r}",
    )
    return value


def _ids_of(row: Row, name: str, value: Any) -> list[tuple[int, ...]] | None:
    if value is None:
        return None
    refuse_if(
        not isinstance(value, list) or not value, f"{row.where}: {name!r} is no list of token ids"
    )
    return [ids_in(row, name, ids) for ids in value]


def ids_in(row: Row, name: str, value: Any) -> tuple[int, ...]:
    plain = isinstance(value, list) and all(type(item) is int for item in value)
    refuse_if(
        not plain or not value, f"{row.where}: {name!r} is no list of token ids (whole numbers)"
    )
    return tuple(value)


def _logprobs_of(row: Row) -> list[tuple[float, ...]] | None:
    name, value = first_of(row, LOGPROBS)
    if value is None:
        return None
    many = isinstance(value, list) and bool(value) and isinstance(value[0], (list, type(None)))
    return [_logprobs(row, name, item) for item in (value if many else [value])]


def _logprobs(row: Row, name: str, value: Any) -> tuple[float, ...] | None:
    """null, for one token or for all of a completion, is a log-prob that is not known."""
    if value is None:
        return None
    refuse_if(
        not isinstance(value, list) or not all(v is None or is_number(v) for v in value),
        f"{row.where}: {name!r} is no list of log-probabilities",
    )
    return tuple(math.nan if v is None else float(v) for v in value)


def is_number(value: Any) -> bool:
    """One that a float can hold."""
    small = isinstance(value, int) and value.bit_length() < 1024
    return isinstance(value, float) or (small and not isinstance(value, bool))


def _spread(row: Row, names: Sequence[str], count: int) -> list | None:
    """A column that has one value for each completion, or one for the only completion."""
    name, value = first_of(row, names)
    if value is None:
        return None
    refuse_if(
        not isinstance(value, list) and count > 1,
        f"{row.where} has {count} completions and one {name!r} for all of them",
    )
    return value if isinstance(value, list) else [value]


def reward_of(row: Row, value: Any) -> float | bool | None:
    if isinstance(value, bool):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    refuse_if(
        not is_number(value) or not math.isfinite(value),
        f"{row.where} has the reward {str(value)[:60]!r}; rewards are numbers, or true and false",
    )
    return float(value)


def verdict_of(row: Row, value: Any) -> bool | None:
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
    return span_of(row, lines, label, text)


def span_of(row: Row, steps: Sequence[str], label: Any, text: str | None) -> tuple[int, int] | None:
    """Where the step that a label names is; None for -1."""
    refuse_if(
        type(label) is not int or not -1 <= label < len(steps) or text is None,
        f"{row.where} has the label {label!r}: it is the number of the first wrong step, 0 to "
        f"{len(steps) - 1}, or -1 where none is wrong",
    )
    if label == -1:
        return None
    start = 0
    for step in steps[:label]:
        start = text.index(step, start) + len(step)
    start = text.index(steps[label], start)
    return start, start + len(steps[label])


def _name(row: Row) -> str:
    name = row.columns.get("id")
    return "" if name is None else str(name)


def step_of(row: Row) -> int | None:
    step = row.columns.get("step")
    return step if type(step) is int else None


def answer_of(row: Row) -> str:
    value = first_of(row, ANSWERS)[1]
    known = isinstance(value, (str, int, float)) and value == value  # a missing number is NaN
    return str(value).rpartition("####")[2].strip() if known else ""


def solutions_of(row: Row) -> tuple[str, ...]:
    value = first_of(row, ("solutions", "solution"))[1]
    return tuple(filter(has_text, value if isinstance(value, list) else [value]))
