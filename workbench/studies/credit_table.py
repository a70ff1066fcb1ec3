"""How right is each method's number on a token?

Every method's credit against the true one (workbench/inspection/true_credit.py), on groups of a
model's own rollouts and on what the method adds to them; scores and their formulas:
workbench/inspection/credit_scores.py. Nothing is trained.

    workbench credit --model data/organism/3m --teacher data/organism/teacher --out FILE

With ``--keep`` the record also holds the rollouts themselves, with the truth and every method's
credit of each token (credit_kept.py), so that they can be drawn without the model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from itertools import chain
from pathlib import Path

import numpy as np

from workbench import methods as shipped
from workbench.core import (
    Group,
    Method,
    Problem,
    Task,
    WorkbenchError,
    coordinates,
    refuse_if,
)
from workbench.inspection.credit import realised_credits
from workbench.inspection.credit_scores import (
    DECISIVE,
    LENGTH,
    decisive,
    gradient_scores,
    ideal_gradients,
    token_scores,
)
from workbench.inspection.true_credit import CERTAIN, TrueCredit, expected_cost, true_credit
from workbench.model.learner import Learner
from workbench.model.loading import load_policy
from workbench.options import add_flags, with_options
from workbench.paths import ORGANISM
from workbench.records import dumps, refuse_unwritable, write_atomic
from workbench.rollouts.sampling import sample_groups
from workbench.studies.credit_kept import kept_rows
from workbench.tasks import load_task
from workbench.training.update import update
from workbench.viz.page import plain_table

# the same reading Delta, six signs and weightings
SIGNS = ("sdpo:form=token", "sdpo:form=token,ascend=true", "rlsd", "rlcsd", "rlrt", "cast")
ALL = (
    *("grpo", "sft", "kd:k=8", "opd:k=8", "scope", "tapo", "trapo", "luffy"),
    *("sdpo", "sdpo:a=1", "sdpo:a=0", "sdpo:srpo=true", "sdpo:by_pass_rate=true"),
    *("sdpo:a=1,onset=true", "credit", *SIGNS),
)
QUICK = ("grpo", "sdpo", "sdpo:a=1")
OF_PARAMETERS = ("gradient", "gain")
SCORES = ("cosine", "sign", "decisive", "rank", *OF_PARAMETERS)


def parse(words: Sequence[str], k: int = 8) -> dict[str, Method]:
    """``NAME`` or ``NAME:key=value,key=value`` to a method, by what was written.

    ``k``: rollouts of each problem, for a method that compares several, was not told how many, and
    does not need more.
    """
    parsed = {}
    for word in words:
        name, _, written = word.partition(":")
        kind = shipped.find(name)
        options = written.split(",") if written else []
        parsed[word] = with_options(kind, options, name)
        if getattr(kind, "k", 1) > 1:
            with suppress(WorkbenchError):
                parsed[word] = with_options(kind, [f"k={k}", *options], name)
    return parsed


def measure(
    learner: Learner,
    task: Task,
    methods: Mapping[str, Method],
    problems: Sequence[Problem],
    *,
    k: int = 8,
    samples: int = 32,
    seed: int = 0,
    error: float | None = None,
    certain: float = CERTAIN,
    keep: bool = False,
    parameters: bool = True,
    says=print,
) -> dict[str, object]:
    """The whole table as plain data: {"methods": {name: {score: [value, low, high]}}, ...}.

    A method that cannot sample here (no solutions to show, no stronger model) is left out, and
    said. ``error``, ``certain``: true_credit.py; ``keep``: credit_kept.py. Without ``parameters``
    the scores of gradients are NaN.
    """
    began = time.perf_counter()
    methods = {name: method.for_task(task) for name, method in methods.items()}
    groups = {"": sample_groups(learner.policy, task, problems, k, (seed, "credit"))}
    groups |= _sampled(learner, task, methods, problems, (seed, "credit"), says)
    every = list(chain.from_iterable(groups.values()))
    says(f"true credit: about {expected_cost(every, samples, certain):,} tokens")
    measured = true_credit(learner.policy, task, every, samples, seed, error=error, certain=certain)
    says(f"measured in {time.perf_counter() - began:.0f} s")
    ordered = iter(measured)
    truths = {name: [next(ordered) for _ in part] for name, part in groups.items()}
    ideal = ideal_gradients(learner, truths[""]) if parameters else None
    rows, credits = {}, {}
    for name in filter(groups.get, methods):
        credits[name] = realised_credits(learner, groups[name], methods[name])
        rows[name] = token_scores(credits[name], truths[name], task, learner.policy.decode)
        rows[name] |= dict.fromkeys(OF_PARAMETERS, (np.nan,) * 3)
        if parameters:
            rows[name] |= gradient_scores(learner, methods[name], groups[name], ideal)
        says(f"{name}: cosine {rows[name]['cosine'][0]:.3f}")
    cost = sum(truth.cost for truth in measured)
    facts = {"tokens": cost, "seconds": time.perf_counter() - began}
    more = {"kept": kept_rows(truths[""], learner.policy, credits)} if keep else {}
    return {**facts, **_facts(groups[""], truths[""]), "methods": rows, **more}


def _sampled(learner, task, methods, problems, where, says) -> dict[str, list[Group]]:
    """The groups of each method that can sample here."""
    groups = {}
    for name, method in methods.items():
        try:
            groups[name] = method.sample(learner, task, list(problems), where)
        except WorkbenchError as missing:
            says(f"{name} is left out: {missing}")
    return groups


def while_learning(
    learner: Learner, task: Task, after: Sequence[int], methods: Mapping[str, Method], **how
) -> list[dict[str, object]]:
    """``measure`` after so many updates of GRPO on 16 problems each, ``after`` in rising order.

    The self-teacher is the policy as it then is. ``how``: what ``measure`` takes, with ``seed``.

    Raises WorkbenchError for updates of an adapter.
    """
    refuse_if(learner.lora and any(after), "--after trains all weights: leave --lora out")
    stages, step = [], 0
    for stop in after:
        while step < stop:
            problems = task.problems("train", 16, coordinates(how["seed"], step))
            update(shipped.find("grpo")(), learner, task, problems, (how["seed"], step))
            step += 1
        now = Learner(deepcopy(learner.policy), expert=learner.expert) if stop else learner
        stages.append({"updates": stop, **measure(now, task, methods, **how)})
    return stages


def _facts(groups: Sequence[Group], truths: Sequence[TrueCredit]) -> dict[str, float]:
    """How sure the truth is, and how much of it there is, on the model's own rollouts."""
    advantage = np.concatenate([row for truth in truths for row in truth.advantage])
    errors = np.concatenate([row for truth in truths for row in truth.errors])
    return {
        "correct": float(np.mean([r.verdict.correct for g in groups for r in g.rollouts])),
        "error": float(np.sqrt(np.mean(errors**2))),
        "decisive_tokens": float(np.mean(decisive(advantage, errors))),
    }


def table(record: Mapping) -> str:
    """The record in words: best cosine first, 95 % intervals over problems."""
    best_first = sorted(
        record["methods"].items(), key=lambda row: -np.nan_to_num(row[1]["cosine"][0], nan=-np.inf)
    )
    rows = [[name, *(shown(row[score]) for score in SCORES)] for name, row in best_first]
    head = (
        f"{record['groups']} problems x {record['k']} rollouts, {record['samples']} continuations "
        f"a prefix; {record['decisive_tokens']:.1%} of the tokens are decisive, mean error of A "
        f"{record['error']:.3f}; {record['tokens']:,} tokens, {record['seconds']:.0f} s"
    )
    feet = (
        f"cosine, sign, decisive, rank: of tokens (|A| > {DECISIVE}: decisive); gradient, gain: of "
        f"parameters (a step of length {LENGTH}); none: nothing said, or too little truth to tell "
        f"from its noise. Formulas: workbench/inspection/credit_scores.py"
    )
    return f"{head}\n\n{plain_table(['method', *SCORES], rows)}\n\n{feet}"


def shown(score: Sequence[float]) -> str:
    """A value with its interval; "none" where it is not defined."""
    value, low, high = score
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(value) else "none"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--methods", nargs="+", metavar="NAME[:KEY=VALUE,...]", help="all, where none is named"
    )
    parser.add_argument("--adapter", type=Path, help="a peft adapter to put on the model")
    parser.add_argument("--teacher-adapter", type=Path, help="a peft adapter to put on the teacher")
    parser.add_argument(
        "--after", nargs="+", type=int, default=[0], help="updates of GRPO before it is scored"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the tokens and their numbers in the record, too"
    )
    parser.add_argument(
        "--tokens-only",
        action="store_true",
        help="leave the scores of gradients out, which cost a large model most",
    )
    parser.add_argument("--quick", action="store_true", help="three methods, 2 x 4 rollouts")
    add_flags(
        parser,
        out=Path("runs/credit.json"),
        model=str(ORGANISM / "3m"),
        task="arithmetic",
        teacher=("", "a stronger model with the same tokenizer, for methods that learn from one"),
        split="validation",
        groups=8,
        k=(8, "rollouts of each problem"),
        samples=(32, "continuations of each prefix"),
        error=(0.0, "where values differ, continue until A is known to this; 0: no more"),
        certain=(CERTAIN, "no continuations before a token that is as likely as 1 less this"),
        seed=0,
        lora=(0, "rank of an adapter whose gradient is compared; 0: all weights"),
    )


def main(args: argparse.Namespace) -> None:
    if args.quick:
        args.groups, args.k, args.samples = 2, 4, 8
    refuse_unwritable(args.out)
    methods = parse(args.methods or (QUICK if args.quick else ALL), args.k)
    task, learner = load_task(args.task), _learner(args)
    problems = task.problems(args.split, args.groups, args.seed)
    amounts = {"k": args.k, "samples": args.samples, "seed": args.seed, "certain": args.certain}
    stages = while_learning(
        learner,
        task,
        sorted(args.after),
        methods,
        problems=problems,
        error=args.error or None,
        keep=args.keep,
        parameters=not args.tokens_only,
        **amounts,
    )
    what = {
        "schema_version": 1,
        "model": Path(args.model).name,
        "task": args.task,
        "split": args.split,
        "groups": args.groups,
        "teacher": Path(args.teacher).name,
    }
    for name in ("adapter", "teacher_adapter"):
        if getattr(args, name):
            what[name] = getattr(args, name).name
    record = {**what, **amounts, **stages[-1], "before": stages[:-1]}
    write_atomic(args.out, dumps(record) + "\n")
    print(table(record))


def _learner(args: argparse.Namespace) -> Learner:
    refuse_if(
        args.teacher_adapter and not args.teacher,
        "--teacher-adapter wants a --teacher to put it on",
    )
    expert = None
    if args.teacher:
        expert = load_policy(args.teacher, adapter=args.teacher_adapter, frozen=True)
    policy = load_policy(args.model, adapter=args.adapter, frozen=bool(args.lora))
    return Learner(policy, lora=args.lora, expert=expert)


def read(path: str | Path) -> dict:
    """A record; a score that is not defined is NaN."""
    record = json.loads(Path(path).read_text(encoding="utf-8"))
    for stage in (record, *record.get("before", ())):
        for row in stage["methods"].values():
            for name, score in row.items():
                row[name] = [np.nan if value is None else value for value in score]
    return record
