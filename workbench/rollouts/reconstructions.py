"""Reconstructions: the policy rewrites its wrong rollouts from its own successes.

TAPO, arXiv 2606.18844, section 3.3

    pairs       which wrong rollout y-, with which correct sibling y+       Eq. 3; uniform without
                                                                            replacement, a y+ each
    construct   synthesis prompt(x, y-, y+) -> output -> y_ref, graded      one generation for all
                                                                            pairs of a step
    extend      the group with G_ref in it
    copied, overlap, measure    how much of y_ref is y-, how much of the rest is y+, and the other
                                numbers of a step

An output that is not usable is dropped, with the reason: ``truncated`` (cut off before it ended),
``unparsed`` (not exactly one analysis and one reconstruction, or an empty one), ``injected``
(control tokens, or words of our prompts, in what would be trained on), ``long`` (no room for it in
the model's context).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import NamedTuple

import numpy as np

from workbench.core import (
    Group,
    Message,
    Problem,
    Rollout,
    Task,
    coordinates,
    refuse_if,
)
from workbench.model import distributed
from workbench.model.batch import rescore
from workbench.model.policy import Policy
from workbench.rollouts.sampling import generate
from workbench.spans import common_prefix, shared_steps, thought_steps, thought_texts
from workbench.tasks.prompts import LEAKS, TAGS, parse_synthesis
from workbench.thoughts import said_aloud, spoken

REASONS = ("truncated", "unparsed", "injected", "long")
TRANSITION = "Wait, "
NGRAM = 5  # tokens


class Pair(NamedTuple):
    problem: Problem
    wrong: Rollout
    right: Rollout
    # place of the wrong rollout in its group: with the problem's id, the coordinates of what is
    # drawn for it
    name: int


@dataclass(frozen=True)
class Construction:
    """What came of one pair.

    ``rollout`` is y_ref, or None with the reason in ``dropped``; ``written``: tokens that the
    policy wrote for it.
    """

    pair: Pair
    output: str
    written: int
    analysis: str = ""
    rollout: Rollout | None = None
    dropped: str = ""


def split(group: Group) -> tuple[tuple[Rollout, ...], tuple[Rollout, ...]]:
    """G_orig and G_ref: the rollouts that the policy wrote alone, and all others."""
    alone, others = [], []
    for rollout in group.rollouts:
        (alone if rollout.origin == "policy" else others).append(rollout)
    return tuple(alone), tuple(others)


def eligible(group: Group, n_pos: int = 2, n_neg: int = 4) -> bool:
    """Eq. 3: right at least ``n_pos`` times and wrong at least ``n_neg`` times."""
    right = [r.verdict.correct for r in split(group)[0]]
    return sum(right) >= n_pos and len(right) - sum(right) >= n_neg


def pairs(group: Group, most: int, seed: tuple[int | str, ...]) -> list[Pair]:
    """At most ``most`` wrong rollouts, uniform without replacement, each with a y+ ~ Uniform(P).

    The group needs one right and one wrong.
    """
    alone, _ = split(group)
    wrong = [i for i, rollout in enumerate(alone) if not rollout.verdict.correct]
    right = [rollout for rollout in alone if rollout.verdict.correct]
    rng = Random(coordinates(*seed, group.problem.id, "pairs"))
    chosen = sorted(rng.sample(wrong, min(most, len(wrong))))
    return [Pair(group.problem, alone[i], rng.choice(right), i) for i in chosen]


def construct(
    policy: Policy,
    task: Task,
    chosen: Sequence[Pair],
    seed: tuple[int | str, ...],
    *,
    prefix: str = "free",
    reference: bool = True,
) -> list[Construction]:
    """Let the policy write y_ref for each pair.

    y_ref has the plain prompt, and its log-probs are those under the plain prompt. ``prefix``:
    ``spliced`` puts y- up to its failure point and the transition into the policy's mouth; ``none``
    asks for a whole new solution from y+ instead; ``free`` and ``masked`` construct alike. Without
    ``reference`` y+ is withheld. Raises WorkbenchError without a synthesis prompt.
    """
    refuse_if(
        prefix != "none" and not hasattr(task, "synthesis"),
        f"the task {task.name} has no synthesis prompt, so the policy cannot be asked "
        "for a reconstruction",
    )
    return distributed.spread(
        chosen, lambda share: _construct(policy, task, share, seed, prefix, reference)
    )


def _construct(
    policy: Policy,
    task: Task,
    chosen: Sequence[Pair],
    seed: tuple[int | str, ...],
    prefix: str,
    reference: bool,
) -> list[Construction]:
    chosen = list(map(_aloud, chosen))
    prompts = [policy.prompt_ids(_messages(task, pair, prefix, reference)) for pair in chosen]
    seeds = [coordinates(*seed, "synthesis", pair.problem.id, pair.name) for pair in chosen]
    outputs = _write(policy, task, prompts, [""] * len(prompts), seeds)
    constructions = [
        _read(policy, task, pair, *output, whole=prefix == "none")
        for pair, output in zip(chosen, outputs)
    ]
    if prefix == "spliced":
        constructions = _splice(policy, task, constructions, prompts, seeds)
    return _scored(policy, constructions)


def _aloud(pair: Pair) -> Pair:
    """The pair without thoughts: of the wrong one there may be nothing else."""
    wrong, right = pair.wrong, pair.right
    said = [spoken(wrong.text) or wrong.text, spoken(right.text)]
    if said == [wrong.text, right.text]:
        return pair
    return pair._replace(wrong=replace(wrong, text=said[0]), right=replace(right, text=said[1]))


def _messages(task: Task, pair: Pair, prefix: str, reference: bool) -> tuple[Message, ...]:
    """What the policy is asked."""
    right = pair.right.text if reference else ""
    if prefix != "none":
        return task.synthesis(pair.problem, pair.wrong.text, right)
    attempt = "" if right else pair.wrong.text
    return task.reprompt(pair.problem, solution=right, attempt=attempt)


def _scored(policy: Policy, constructions: Sequence[Construction]) -> list[Construction]:
    """With the policy's log-probs under the plain prompt."""
    usable = [i for i, each in enumerate(constructions) if each.rollout is not None]
    scored = list(constructions)
    for i, (logp, _) in zip(usable, rescore(policy, [constructions[i].rollout for i in usable])):
        rollout = replace(constructions[i].rollout, logprobs=tuple(logp.tolist()))
        scored[i] = replace(constructions[i], rollout=rollout)
    return scored


def _write(
    policy: Policy, task: Task, prompts, heads: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, int, str]]:
    """(output, tokens written, why it cannot be used or "") for each prompt.

    An output begins with its head, which the policy finds written, and with the mark of a thought
    that its prompt opened.
    """
    openings = list(map(policy.opening, prompts))
    heads = [head and policy.aloud(prompt, head) for prompt, head in zip(prompts, heads)]
    prompts = [prompt + policy.text_ids(head) for prompt, head in zip(prompts, heads)]
    rooms = [min(2 * task.max_new, policy.context - len(prompt)) for prompt in prompts]
    fitting = [i for i, room in enumerate(rooms) if room >= task.max_new]
    samples = generate(
        policy,
        [prompts[i] for i in fitting],
        [[seeds[i]] for i in fitting],
        max_new=[rooms[i] for i in fitting],
    )
    outputs = [("", 0, "long")] * len(prompts)
    for i, [sample] in zip(fitting, samples):
        text = openings[i] + heads[i] + policy.decode(sample.ids)
        outputs[i] = text, len(sample.ids), "" if sample.finished else "truncated"
    return outputs


def _read(
    policy: Policy,
    task: Task,
    pair: Pair,
    output: str,
    written: int,
    dropped: str,
    whole: bool = False,
) -> Construction:
    """Parse, check, tokenise as a reply to the plain prompt, grade."""
    drop = partial(Construction, pair, output, written)
    said = said_aloud(output)
    parsed = ("", said.strip("\n")) if whole and said.strip() else parse_synthesis(said)
    if dropped or parsed is None:
        return drop(dropped=dropped or "unparsed")
    analysis, text = parsed
    if any(leak in "\n" + text for leak in LEAKS) or policy.foreign(text):
        return drop(analysis, dropped="injected")
    prompt = pair.wrong.prompt_ids
    text = policy.aloud(prompt, text)
    ids = policy.completion_ids(text)
    if len(prompt) + len(ids) > policy.context:
        return drop(analysis, dropped="long")
    unscored = (float("nan"),) * len(ids)
    verdict = task.grade(pair.problem, policy.opening(prompt) + text)
    y_ref = Rollout(prompt, ids, unscored, text, verdict, origin="correction", source=pair.name)
    return drop(analysis, y_ref)


def _splice(
    policy: Policy, task: Task, drafts: Sequence[Construction], prompts, seeds: Sequence[int]
) -> list[Construction]:
    """Write the usable ones a second time.

    After their own analysis and y- verbatim through its failure point, the policy goes on from
    "Wait, ".
    """
    usable = [i for i, draft in enumerate(drafts) if draft.rollout is not None]
    heads = [_head(task, drafts[i]) for i in usable]
    outputs = _write(policy, task, [prompts[i] for i in usable], heads, [seeds[i] for i in usable])
    constructions = list(drafts)
    for i, (output, written, dropped) in zip(usable, outputs):
        draft = drafts[i]
        constructions[i] = _read(policy, task, draft.pair, output, draft.written + written, dropped)
    return constructions


def _head(task: Task, draft: Construction) -> str:
    """The beginning of an output: the analysis, y- through its failure point, the transition."""
    wrong = draft.pair.wrong.text[: failure_point(task, draft.pair)]
    line_break = "" if wrong.endswith("\n") else "\n"
    return f"{TAGS[0]}{draft.analysis}{TAGS[1]}{TAGS[2]}{wrong}{line_break}{TRANSITION}"


def extend(group: Group, constructions: Sequence[Construction], wrong_too: bool = True) -> Group:
    """The group with its reconstructions, and notes of what was written and dropped."""
    usable = [each.rollout for each in constructions if each.rollout is not None]
    reconstructions = [r for r in usable if wrong_too or r.verdict.correct]
    written = sum(each.written for each in constructions)
    notes = dict.fromkeys((f"dropped_{reason}" for reason in REASONS), 0)
    for each in constructions:
        if each.dropped:
            notes[f"dropped_{each.dropped}"] += 1
    notes["pairs"] = len(constructions)
    # y_ref itself is counted as a rollout
    notes["generated"] = written - sum(len(r.completion_ids) for r in reconstructions)
    rollouts = group.rollouts + tuple(reconstructions)
    return replace(group, rollouts=rollouts, notes={**group.notes, **notes})


def failure_point(task: Task, pair: Pair) -> int:
    """The character of y- where its first wrong step ends.

    By the task where it knows, else the first step that says something else than y+.
    """
    text = pair.wrong.text
    truth = task.first_error(pair.problem, text)
    if truth is not None:
        return truth.end
    steps = thought_steps(text)
    if not steps:
        return 0
    shared = shared_steps(thought_texts(text), thought_texts(pair.right.text))
    return steps[min(shared, len(steps) - 1)].end


# ---- what became of y- and y+ in y_ref


def copied(reconstruction: Rollout, group: Group) -> int:
    """Tokens of the longest beginning shared with y-. Where it stops copying is the failure point.

    Where it is not known which one it rewrites (composed by hand, or an old record): shared with
    any wrong rollout of the group.
    """
    ids = reconstruction.completion_ids
    if reconstruction.source is not None:
        return common_prefix(ids, group.rollouts[reconstruction.source].completion_ids)
    wrong = [r.completion_ids for r in split(group)[0] if not r.verdict.correct]
    return max((common_prefix(ids, other) for other in wrong), default=0)


def overlap(reconstruction: Rollout, group: Group) -> float:
    """Share of the 5-token sequences after the copied beginning that a correct rollout has, too.

    The most for any correct rollout of the group. Near 1: the policy copies y+ instead of mending
    y-.
    """
    new = _grams(reconstruction.completion_ids[copied(reconstruction, group) :])
    right = [_grams(r.completion_ids) for r in split(group)[0] if r.verdict.correct]
    if not new:
        return 0.0
    return max((len(new & grams) / len(new) for grams in right), default=0.0)


def _grams(ids: tuple[int, ...]) -> set[tuple[int, ...]]:
    return {ids[i : i + NGRAM] for i in range(len(ids) - NGRAM + 1)}


def measure(groups: Sequence[Group], n_pos: int, n_neg: int) -> dict[str, float]:
    """Of the reconstructions that the policy wrote; those composed by hand are only counted.

    eligible     share of problems taken up. 0.3 or more is well; near 0: too hard or too easy.
    parse_rate   share of pairs that gave a usable y_ref (the paper's: 0.8 to 0.9). dropped_*: why
                 the others did not.
    corrections  how many there are in the step; ref_correct: share of them that are right (under
                 one half: the policy cannot use y+).
    ref_equal    share of G_ref of two or more whose rewards are all equal: there A_ref = 0 and
                 nothing is learned from them.
    copied       tokens of y_ref that repeat y-, copied_share as a share. Near 0: not its own
                 mistake; near 1: nothing mended.
    overlap      how much of the rest is y+. Near 1: copied from it.          Null: there was
                 nothing to measure.
    composed     corrections composed by hand that joined a G_ref.
    """
    columns = defaultdict(list)
    tried = dropped = composed = 0
    for group in groups:
        tried += group.notes.get("pairs", 0)
        dropped += sum(group.notes.get(f"dropped_{reason}", 0) for reason in REASONS)
        columns["eligible"].append(eligible(group, n_pos, n_neg))
        reconstructions = split(group)[1]
        if len(reconstructions) > 1:
            rewards = {rollout.verdict.reward for rollout in reconstructions}
            columns["ref_equal"].append(len(rewards) == 1)
        for rollout in reconstructions:
            if rollout.borrowed:
                composed += 1
                continue
            length = copied(rollout, group)
            columns["ref_correct"].append(rollout.verdict.correct)
            columns["copied"].append(length)
            columns["copied_share"].append(length / len(rollout.completion_ids))
            columns["overlap"].append(overlap(rollout, group))
    names = ("eligible", "ref_correct", "ref_equal", "copied", "copied_share", "overlap")
    return {
        **{name: _mean(columns[name]) for name in names},
        "parse_rate": 1 - dropped / tried if tried else float("nan"),
        "corrections": float(len(columns["copied"])),
        "composed": float(composed),
    }


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
