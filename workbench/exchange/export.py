"""Corrections and groups in the forms that other libraries train on.

    sft           messages: a conversation. TRL's SFTTrainer; as .parquet, verl's SFT data set
    completions   prompt and completion as messages: TRL's, whose loss is on the completion alone
    tokens        input_ids and labels: the very tokens. Labels are -100, weight 0, on the prompt
                  and on what a correction keeps of the wrong attempt: the mistake is not imitated
    dpo           prompt, chosen, rejected as messages. Of a correction: the correction and the
                  wrong attempt that it begins with; of a group: each wrong attempt and the right
                  one that shares the most steps with it. With ``policy``: as texts, and the prompt,
                  written out by its chat template, holds all that the two share, so that they
                  differ from their first token on (a trainer can continue no message, but a text)
    verl          a problem a row, for verl's RL data set: data_source, prompt, ability,
                  reward_model, extra_info (0.10; give it a custom_reward_function)
    groups        everything, as a run records it; ``load_rollouts`` gives the same groups back

Wrong attempts are exported as ``rejected`` and in ``groups`` alone. A correction whose verdict is
unknown is exported: who composed it vouches for it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.core import Group, Problem, Rollout, WorkbenchError, needed, refuse_if
from workbench.corrections import buffer
from workbench.corrections.buffer import Correction
from workbench.records import dumps, group_to_dict, write_atomic
from workbench.spans import common_prefix, shared_steps, step_texts
from workbench.tasks.loading import INSTALL

if TYPE_CHECKING:
    from datasets import Dataset

    from workbench.model.policy import Policy

MASKED = -100  # a label that a loss leaves out


@dataclass(frozen=True)
class Example:
    """A text to learn; ``rejected``: a wrong attempt beside it, whose first ``keep`` tokens it
    begins with.
    """

    problem: Problem
    rollout: Rollout
    rejected: Rollout | None = None
    keep: int = 0

    @property
    def prompt(self) -> list[dict]:
        return [dict(message) for message in self.problem.messages]


def export_groups(
    groups: Iterable[Group], path: str | Path, form: str, policy: Policy | None = None
) -> int:
    """Write a .jsonl or .parquet file; how many rows it has. ``policy``: for dpo pairs as texts.

    Raises WorkbenchError for an unknown form or suffix, and where there is nothing to export; then
    nothing is written.
    """
    return _write(rows(groups, form, policy), Path(path), form)


def export_corrections(
    corrections: Sequence[Correction] | str | Path,
    path: str | Path,
    form: str,
    policy: Policy | None = None,
) -> int:
    """The same for corrections, or the file that they are kept in."""
    if isinstance(corrections, (str, Path)):
        corrections = buffer.load(corrections)
    return _write(rows(corrections, form, policy), Path(path), form)


def as_dataset(
    source: Iterable[Group | Correction], form: str, policy: Policy | None = None
) -> Dataset:
    """The rows as a ``datasets.Dataset``, for a trainer in the same process."""
    datasets = needed("datasets", f"as_dataset needs datasets, {INSTALL}")
    return datasets.Dataset.from_list(rows(source, form, policy))


def rows(
    source: Iterable[Group | Correction], form: str, policy: Policy | None = None
) -> list[dict[str, Any]]:
    """One dict a row."""
    if form == "groups":
        records = [group_to_dict(_group(item)) for item in source]
    elif form == "verl":
        problems = {item.problem.key: item.problem for item in source}
        records = [_verl(index, problem) for index, problem in enumerate(problems.values())]
    elif form in FORMS:
        examples = (example for item in source for example in _examples(item, form == "dpo"))
        row = partial(_dpo_texts, policy) if form == "dpo" and policy else FORMS[form]
        records = [row(example) for example in examples]
    else:
        forms = ", ".join((*FORMS, "verl", "groups"))
        raise WorkbenchError(f"there is no form {form!r} to export; there are {forms}")
    what = "no wrong attempt with a right one beside it" if form == "dpo" else "nothing right"
    refuse_if(not records, f"there is nothing to export as {form}: {what}")
    return records


def _group(item: Group | Correction) -> Group:
    if isinstance(item, Group):
        return item
    return Group(item.problem, (item.composition.source, item.rollout))


def _examples(item: Group | Correction, pairs: bool) -> Iterator[Example]:
    if isinstance(item, Correction):
        verdict, composition = item.rollout.verdict, item.composition
        if verdict.correct or not verdict.known:
            yield Example(item.problem, item.rollout, composition.source, composition.keep)
        return
    right = [rollout for rollout in item.rollouts if rollout.verdict.correct]
    if not pairs:
        yield from (Example(item.problem, rollout) for rollout in right)
        return
    for wrong in item.rollouts:
        if right and wrong.verdict.known and not wrong.verdict.correct:
            yield Example(item.problem, _nearest(wrong, right), wrong)


def _nearest(wrong: Rollout, right: Sequence[Rollout]) -> Rollout:
    """The right attempt that shares the most leading steps."""
    steps = step_texts(wrong.text)
    return max(right, key=lambda rollout: shared_steps(steps, step_texts(rollout.text)))


# ---- a row of each form --------------------------------------------------------------------------


def _reply(rollout: Rollout) -> list[dict]:
    return [{"role": "assistant", "content": rollout.text}]


def _sft(example: Example) -> dict:
    return {"messages": example.prompt + _reply(example.rollout)}


def _completions(example: Example) -> dict:
    return {"prompt": example.prompt, "completion": _reply(example.rollout)}


def _dpo(example: Example) -> dict:
    chosen, rejected = _reply(example.rollout), _reply(example.rejected)
    return {"prompt": example.prompt, "chosen": chosen, "rejected": rejected}


def _dpo_texts(policy: Policy, example: Example) -> dict:
    chosen, rejected = example.rollout.completion_ids, example.rejected.completion_ids
    shared = min(common_prefix(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    prompt_ids = list(example.rollout.prompt_ids)
    tokenizer = policy.tokenizer
    if tokenizer("").input_ids == prompt_ids[:1]:  # the trainer's tokenizer adds it again
        prompt_ids = prompt_ids[1:]

    def text(ids: Sequence[int]) -> str:
        return tokenizer.decode([*prompt_ids, *ids], clean_up_tokenization_spaces=False)

    both = text(chosen), text(rejected)
    while not all(whole.startswith(text(chosen[:shared])) for whole in both):
        shared -= 1  # inside of a character
    prompt = text(chosen[:shared])
    right, wrong = (whole[len(prompt) :] for whole in both)
    return {"prompt": prompt, "chosen": right, "rejected": wrong}


def _tokens(example: Example) -> dict:
    prompt, completion = example.rollout.prompt_ids, example.rollout.completion_ids
    masked = len(prompt) + example.keep
    ids = [*prompt, *completion]
    return {"input_ids": ids, "labels": [MASKED] * masked + ids[masked:]}


def _verl(index: int, problem: Problem) -> dict:
    refuse_if(not problem.answer, f"verl needs a ground truth, and {problem.id!r} has no answer")
    messages = [dict(message) for message in problem.messages]
    return {
        "data_source": "workbench",
        "prompt": messages,
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": problem.answer},
        "extra_info": {"split": "train", "index": index, "id": problem.id},
    }


FORMS: dict[str, Callable[[Example], dict]] = {
    "sft": _sft,
    "completions": _completions,
    "tokens": _tokens,
    "dpo": _dpo,
}


def _write(records: list[dict], path: Path, form: str) -> int:
    if path.suffix == ".jsonl":
        data = "".join(dumps(record) + "\n" for record in records).encode()
    elif path.suffix == ".parquet" and form != "groups":
        data = _parquet(records)
    else:
        kinds = ".jsonl" if form == "groups" else ".jsonl or .parquet"
        raise WorkbenchError(f"the form {form} is written to a {kinds} file, not to {path.name}")
    write_atomic(path, data)
    return len(records)


def _parquet(records: list[dict]) -> bytes:
    missing = f"a .parquet file is written by pyarrow, {INSTALL}"
    pyarrow, parquet = needed("pyarrow", missing), needed("pyarrow.parquet", missing)
    data = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(records), data)
    return data.getvalue()
