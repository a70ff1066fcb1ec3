"""Reconstructions (TAPO, arXiv 2606.18844, section 3.3): which wrong rollouts are taken up, and the
policy rewriting them from its own successes.

    pairs       which wrong rollout y-, with which correct sibling y+      Eq. 3; uniform without
                replacement, each y- with a y+ of its own
    construct   synthesis prompt(x, y-, y+) -> output -> y_ref, graded     one generation for all
                pairs of a step
    extend      the group with G_ref in it
    copied, overlap, measure   how much of y_ref is y-, how much of the rest is y+, and the other
                               numbers of a step

An output that is not usable is dropped, with the reason: ``truncated`` (cut off before it ended),
``unparsed`` (not exactly one analysis and one reconstruction, or an empty one), ``injected``
(control tokens, or words of our prompts, in what would be trained on), ``long`` (no room for it in
the model's context).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

import numpy as np

from workbench.core import Group, Problem, Rollout, Task, WorkbenchError, coordinates
from workbench.inspection.locators import shared_steps
from workbench.model import distributed
from workbench.model.batch import rescore
from workbench.model.policy import Policy
from workbench.rollouts.sampling import generate
from workbench.spans import common_prefix, split_steps
from workbench.tasks.prompts import LEAKS, TAGS, parse_synthesis

REASONS = ("truncated", "unparsed", "injected", "long")
PREFIXES = ("free", "masked", "spliced", "none")
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
    return tuple(r for r in group.rollouts if r.origin == "policy"), tuple(
        r for r in group.rollouts if r.origin != "policy"
    )


def eligible(group: Group, n_pos: int = 2, n_neg: int = 4) -> bool:
    """Eq. 3: right at least ``n_pos`` times and wrong at least ``n_neg`` times."""
    right = [r.verdict.correct for r in split(group)[0]]
    return sum(right) >= n_pos and len(right) - sum(right) >= n_neg


def pairs(group: Group, most: int, seed: tuple[int | str, ...]) -> list[Pair]:
    """At most ``most`` wrong rollouts, uniform without replacement, each with its own y+ ~
    Uniform(P). The group needs one right and one wrong.
    """
    own, _ = split(group)
    wrong = [i for i, r in enumerate(own) if not r.verdict.correct]
    right = [r for r in own if r.verdict.correct]
    rng = Random(coordinates(*seed, group.problem.id, "pairs"))
    return [
        Pair(group.problem, own[i], rng.choice(right), i)
        for i in sorted(rng.sample(wrong, min(most, len(wrong))))
    ]


def construct(
    policy: Policy,
    task: Task,
    chosen: Sequence[Pair],
    seed: tuple[int | str, ...],
    *,
    prefix: str = "free",
    reference: bool = True,
) -> list[Construction]:
    """Let the policy write y_ref for each pair; y_ref has the plain prompt, and its log-probs are
    those under the plain prompt.

    ``prefix``: ``spliced`` puts y- up to its failure point and the transition into the policy's
    mouth; ``none`` asks for a whole new solution from y+ instead; ``free`` and ``masked`` construct
    alike. Without ``reference`` y+ is withheld. Raises WorkbenchError without a synthesis prompt.
    """
    if prefix != "none" and not hasattr(task, "synthesis"):
        raise WorkbenchError(
            f"the task {task.name} has no synthesis prompt, so the policy cannot be asked "
            "for a reconstruction"
        )
    return distributed.spread(
        chosen, lambda mine: _construct(policy, task, mine, seed, prefix, reference)
    )


def _construct(
    policy: Policy,
    task: Task,
    chosen: Sequence[Pair],
    seed: tuple[int | str, ...],
    prefix: str,
    reference: bool,
) -> list[Construction]:
    shown = [(pair, pair.right.text if reference else "") for pair in chosen]
    prompts = [
        policy.prompt_ids(
            task.reprompt(pair.problem, solution=right, attempt="" if right else pair.wrong.text)
            if prefix == "none"
            else task.synthesis(pair.problem, pair.wrong.text, right)
        )
        for pair, right in shown
    ]
    seeds = [coordinates(*seed, "synthesis", pair.problem.id, pair.name) for pair in chosen]
    made = [
        _read(policy, task, pair, *written, whole=prefix == "none")
        for pair, written in zip(chosen, _write(policy, task, prompts, [""] * len(prompts), seeds))
    ]
    if prefix == "spliced":
        made = _splice(policy, task, made, prompts, seeds)
    kept = [m.rollout for m in made if m.rollout is not None]
    scored = iter(rescore(policy, kept))
    return [
        m
        if m.rollout is None
        else replace(m, rollout=replace(m.rollout, logprobs=tuple(next(scored)[0].tolist())))
        for m in made
    ]


def _write(
    policy: Policy, task: Task, prompts, heads: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, int, str]]:
    """(output, tokens written, why it cannot be used or "") for each prompt; an output begins with
    its head, which the policy finds written.
    """
    prompts = [prompt + policy.completion_ids(head)[:-1] for prompt, head in zip(prompts, heads)]
    rooms = [min(2 * task.max_new, policy.context - len(prompt)) for prompt in prompts]
    fits = [i for i, room in enumerate(rooms) if room >= task.max_new]
    found = [("", 0, "long")] * len(prompts)
    for i, [sample] in zip(
        fits,
        generate(
            policy,
            [prompts[i] for i in fits],
            [[seeds[i]] for i in fits],
            max_new=[rooms[i] for i in fits],
        ),
    ):
        found[i] = (
            heads[i] + policy.decode(sample.ids),
            len(sample.ids),
            "" if sample.finished else "truncated",
        )
    return found


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
    said = output.rpartition("</think>")[2]  # a reasoning model's thoughts are not the output
    parsed = ("", said.strip("\n")) if whole and said.strip() else parse_synthesis(said)
    if dropped or parsed is None:
        return Construction(pair, output, written, dropped=dropped or "unparsed")
    analysis, text = parsed
    ids = policy.completion_ids(text)
    if any(leak in "\n" + text for leak in LEAKS) or set(ids[:-1]) & (
        set(policy.tokenizer.all_special_ids) | policy.stop_ids
    ):
        return Construction(pair, output, written, analysis, dropped="injected")
    if len(pair.wrong.prompt_ids) + len(ids) > policy.context:
        return Construction(pair, output, written, analysis, dropped="long")
    rollout = Rollout(
        pair.wrong.prompt_ids,
        ids,
        (float("nan"),) * len(ids),
        text,
        task.grade(pair.problem, text),
        origin="correction",
    )
    return Construction(pair, output, written, analysis, rollout)


def _splice(
    policy: Policy, task: Task, made: Sequence[Construction], prompts, seeds: Sequence[int]
) -> list[Construction]:
    """Write the usable ones a second time: after their own analysis and y- verbatim through its
    failure point, the policy goes on from "Wait, ".
    """
    again = [i for i, m in enumerate(made) if m.rollout is not None]
    heads = []
    for i in again:
        kept = made[i].pair.wrong.text[: failure_point(task, made[i].pair)]
        heads.append(
            f"{TAGS[0]}{made[i].analysis}{TAGS[1]}{TAGS[2]}{kept}{'' if kept.endswith(chr(10)) else chr(10)}{TRANSITION}"
        )
    found = list(made)
    for i, (output, written, dropped) in zip(
        again, _write(policy, task, [prompts[i] for i in again], heads, [seeds[i] for i in again])
    ):
        found[i] = _read(policy, task, made[i].pair, output, made[i].written + written, dropped)
    return found


def extend(
    group: Group,
    made: Sequence[Construction],
    composed: Group | None = None,
    wrong_too: bool = True,
) -> Group:
    """The group with its reconstructions and those composed by hand, and notes of what was written
    and dropped.
    """
    ref = [m.rollout for m in made if m.rollout is not None] + list(
        composed.rollouts if composed else ()
    )
    ref = [r for r in ref if wrong_too or r.verdict.correct]
    # y_ref itself is counted as a rollout
    elsewhere = sum(m.written for m in made) - sum(len(r.completion_ids) - r.borrowed for r in ref)
    dropped = {f"dropped_{why}": sum(m.dropped == why for m in made) for why in REASONS}
    return replace(
        group,
        rollouts=group.rollouts + tuple(ref),
        notes={**group.notes, "pairs": len(made), "generated": elsewhere, **dropped},
    )


def from_buffer(
    path: str, policy: Policy, most: int, seed: tuple[int | str, ...]
) -> dict[str, Group]:
    """At most ``most`` groups of corrections composed by hand (workbench/corrections/buffer.py),
    drawn with the seed, by the id of their problem.
    """
    from workbench.corrections import buffer  # which imports compose, which imports this

    found = buffer.groups(buffer.load(path), policy)
    if not found:
        raise WorkbenchError(f"there are no corrections in the buffer {path}")
    return {
        group.problem.id: group
        for group in Random(coordinates(*seed, "buffer")).sample(found, min(most, len(found)))
    }


def failure_point(task: Task, pair: Pair) -> int:
    """The character of y- where its first wrong step ends: by the task where it knows, else the
    first step that says something else than y+.
    """
    text = pair.wrong.text
    known = task.first_error(pair.problem, text)
    if known is not None:
        return known.end
    own, right = split_steps(text), split_steps(pair.right.text)
    same = shared_steps(
        [text[s.start : s.end] for s in own], [pair.right.text[s.start : s.end] for s in right]
    )
    return own[min(same, len(own) - 1)].end if own else 0


# ---- what became of y- and y+ in y_ref


def copied(made: Rollout, group: Group) -> int:
    """Tokens of the longest beginning that ``made`` shares with a wrong rollout of its group: where
    it stops copying is the failure point. (With any of them, so it never falls short of what is
    shared with the one that was rewritten.)
    """
    return max(
        (
            common_prefix(made.completion_ids, r.completion_ids)
            for r in split(group)[0]
            if not r.verdict.correct
        ),
        default=0,
    )


def overlap(made: Rollout, group: Group) -> float:
    """Share of the 5-token sequences after the copied beginning that a correct rollout of the group
    has, too (the most for any of them). Near 1: the policy copies y+ instead of mending y-.
    """
    grams = lambda ids: {ids[i : i + NGRAM] for i in range(len(ids) - NGRAM + 1)}  # noqa: E731
    new = grams(made.completion_ids[copied(made, group) :])
    return (
        max(
            (
                len(new & grams(r.completion_ids)) / len(new)
                for r in split(group)[0]
                if r.verdict.correct
            ),
            default=0.0,
        )
        if new
        else 0.0
    )


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
    mean = lambda values: float(np.mean(values)) if values else float("nan")  # noqa: E731
    tried, lost = (
        sum(g.notes.get(name, 0) for g in groups for name in names)
        for names in (["pairs"], [f"dropped_{why}" for why in REASONS])
    )
    ref = [(r, g) for g in groups for r in split(g)[1]]
    made = [(r, copied(r, g), g) for r, g in ref if not r.borrowed]
    several = [[r.verdict.reward for r in split(g)[1]] for g in groups if len(split(g)[1]) > 1]
    return {
        "eligible": mean([eligible(g, n_pos, n_neg) for g in groups]),
        "parse_rate": 1 - lost / tried if tried else float("nan"),
        "corrections": float(len(made)),
        "ref_correct": mean([r.verdict.correct for r, _, _ in made]),
        "ref_equal": mean([len(set(rewards)) == 1 for rewards in several]),
        "copied": mean([n for _, n, _ in made]),
        "copied_share": mean([n / len(r.completion_ids) for r, n, _ in made]),
        "overlap": mean([overlap(r, g) for r, _, g in made]),
        "composed": float(len(ref) - len(made)),
    }
