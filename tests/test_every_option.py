"""Every option does something: another value changes what is sampled, credited or lost on an input
that it is made for, or it is refused in a sentence. An option that is inherited and not read is
found here.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import get_args, get_type_hints

import pytest
import torch
import toys
from test_credit_is_gradient import disturbed, learner_of, some_groups

from workbench.core import Group, Scores, WorkbenchError
from workbench.methods import METHODS, find, from_record
from workbench.methods.grpo import GRPO
from workbench.model.batch import collate
from workbench.model.learner import Learner, OptimConfig
from workbench.records import read_metrics
from workbench.training import run
from workbench.training.plan import TrainConfig

OTHERS = {  # values that matter on these groups; else a little more than half of the default
    "k": 12,
    "n_pos": 4,
    "n_neg": 2,
    "m_max": 1,
    "top_k": 3,
    "constant": 5,
    "wrong": 1,
    "others": 1,
    "clip": 1e-4,
    "bound": 1e-4,
    "advantage_clip": 0.5,
}
BESIDE = {  # what an option needs beside it to have anything to do
    ("CAST", "bound"): {"base": 1e-6, "lam": 1.0},
    ("GRPO", "constant"): {"aggregate": "constant"},
    ("TAPO", "constant"): {"aggregate": "constant"},
    ("OPD", "top_k"): {"form": "logit"},
    ("SDPO", "gate"): {"ascend": True},
    ("TRAPO", "gamma"): {"prefix": "luffy"},
}
# What a model that writes at random never does, to give a reconstruction that can be read or to be
# lent half of a solution, is scripted in the method's own tests.
SCRIPTED = {("TAPO", "negatives"), ("TAPO", "reference"), ("TRAPO", "preset")}
CASES = []
for name, kind in METHODS.items():
    read = [f for f in fields(find(name)) if (kind, f.name) not in SCRIPTED]
    CASES += [(name, field) for field in read]


class Task(toys.FirstCharacter):
    def synthesis(self, problem, wrong, right):
        return problem.messages


def other(kind, field):
    """A value that is not the default."""
    if isinstance(field.default, bool):
        return not field.default
    if isinstance(field.default, str):
        choices = get_args(get_type_hints(kind)[field.name])
        return next(value for value in choices if value != field.default)
    value = OTHERS.get(field.name, 0.6 * field.default + 0.11)
    assert value != field.default
    return value


def groups_of_every_kind() -> list[Group]:
    """Each of a problem of its own with a solution, with words and a text of its own on each
    rollout; the last is all wrong.
    """
    groups = []
    for i, group in enumerate([*some_groups(), toys.group((3, 3), (0, 0), seed=21)]):
        rollouts = []
        for j, rollout in enumerate(group.rollouts):
            verdict = replace(rollout.verdict, feedback="look again")
            rollouts.append(replace(rollout, text=f"{i}+{j}={i + j}", verdict=verdict))
        asked = ({"role": "user", "content": f"{i}+{i}"},)
        problem = replace(group.problem, id=str(i), messages=asked, solutions=("7", "71"))
        groups.append(replace(group, problem=problem, rollouts=tuple(rollouts)))
    return groups


def traces(method) -> list:
    """Everything that a method does, as numbers and texts that can be compared."""
    task = Task(toys.HALF, max_new=3)
    method = method.for_task(task)
    problems = [replace(p, solutions=("7", "71")) for p in task.problems("train", 6, 3)]
    sampled = method.sample(learner_of(), task, problems, (0,))
    told = [method.distil, method.needs_reference, method.needs_expert]
    for group in sampled:
        told += [group.notes, [(r.prompt_ids, r.completion_ids) for r in group.rollouts]]
    groups = groups_of_every_kind()
    credits = method.credit(groups, disturbed()[0])
    for credit in credits:
        channels = [channel.tolist() for channel in (credit.pg, credit.nll, credit.kl)]
        told += [*channels, credit.weight, credit.teacher_prompt_ids]
    [batch] = collate(credits, 0, None)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn((9, *batch.mask.shape), generator=generator)
    logp = -3 * drawn[0].abs()
    scores = Scores(logp, *drawn[1:3], logp - drawn[3].abs(), *drawn[4:6], *drawn[6:8].abs())
    loss = method.loss(scores, replace(batch, old_logp=logp + drawn[8]))
    return [*told, float(loss.value), loss.credit.tolist()]


@pytest.mark.parametrize("name, field", CASES, ids=[f"{n}-{f.name}" for n, f in CASES])
@pytest.mark.filterwarnings("ignore:TAPO does little more than GRPO here")
def test_every_option_of_a_method_does_something_or_is_refused(name, field):
    kind = find(name)
    beside = BESIDE.get((METHODS[name], field.name), {})
    try:
        changed = kind(**beside | {field.name: other(kind, field)})
    except WorkbenchError as error:
        assert field.name in str(error)
        return
    assert traces(changed) != traces(kind(**beside))


@pytest.mark.parametrize("name", ["cast", "rlcsd", "credit"])
def test_an_inherited_option_without_a_place_is_refused_and_recorded_ones_load(name):
    with pytest.raises(WorkbenchError, match=f"{METHODS[name]} does not read eps"):
        find(name)(eps=0.3)
    config = {"method": METHODS[name], "options": {"k": 4, "eps": 0.2}}
    assert from_record(config) == find(name)(k=4)


@pytest.mark.parametrize(
    "option",
    [
        {"lr": 0.02},
        {"weight_decay": 0.1},
        {"clip": 1e-3},
        {"ema": 0.5},
        {"warmup": 3},
        {"schedule": "cosine"},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_of_the_optimiser_does_something(option):
    def after(settings: OptimConfig) -> list[torch.Tensor]:
        learner = Learner(toys.tiny_policy(), settings)
        for update in (1, 2):
            learner.set_rate(update, 4)
            for p in learner.parameters:  # of another size each time: AdamW forgets a constant one
                p.grad = torch.full_like(p, 0.1 / update)
            learner.step()
            learner.update_teacher()
        return [p.detach() for p in (*learner.parameters, *learner._teacher.values())]

    plain, changed = after(OptimConfig(lr=0.01)), after(OptimConfig(**{"lr": 0.01} | option))
    assert any(not torch.equal(a, b) for a, b in zip(plain, changed, strict=True))
    assert {field.name for field in fields(OptimConfig)} == {
        *("lr", "weight_decay", "clip", "ema", "eight_bit", "warmup", "schedule")
    }


SMALL = TrainConfig(
    steps=3, prompts=4, rows=8, eval_every=2, eval_problems=6, eval_samples=2, keep_groups=1
)
FILTER = {"filter_problems": 8, "filter_samples": 4, "accuracy_lower_bound": 0.0}
PLANS = {  # another value, with what it needs beside it
    "steps": {"steps": 2},
    "seed": {"seed": 1},
    "prompts": {"prompts": 3},
    "rows": {"rows": 2},
    "updates": {"updates": 2},
    "minibatches": {"minibatches": 2},
    "temperature": {"temperature": 0.5},
    "dynamic_sampling": {"dynamic_sampling": 1},
    "filter_problems": FILTER,
    "filter_samples": FILTER | {"filter_samples": 2},
    "accuracy_lower_bound": FILTER | {"accuracy_lower_bound": 0.5},
    "accuracy_upper_bound": FILTER | {"accuracy_upper_bound": 0.5},
    "eval_every": {"eval_every": 1},
    "eval_problems": {"eval_problems": 3},
    "eval_samples": {"eval_samples": 1},
    "checkpoint_every": {"checkpoint_every": 1},
    "keep_groups": {"keep_groups": 2},
    "stop_after": {"eval_every": 1, "stop_after": 1},
}


@pytest.mark.parametrize("name", [field.name for field in fields(TrainConfig)])
def test_every_option_of_the_plan_does_something(name, tmp_path, monkeypatch):
    def leaves(label: str, plan: TrainConfig) -> list:
        """What a run leaves that can be compared, its checkpoints and its backward passes."""
        events = []
        monkeypatch.setattr(run, "_checkpoint", lambda out, learner, step, _: events.append(step))
        # a rate that changes nothing: then the evaluation before is never surpassed
        rate = 1e-12 if name == "stop_after" else 0.01
        learner = Learner(toys.tiny_policy(), OptimConfig(lr=rate))
        backward = learner.backward
        monkeypatch.setattr(
            learner, "backward", lambda *a: events.append("backward") or backward(*a)
        )
        task = toys.FirstCharacter(toys.HALF)
        out = run.fit(GRPO(k=2), learner, task, plan, tmp_path / label, progress=False)
        lines = [
            {key: value for key, value in line.items() if "seconds" not in key}
            for line in read_metrics(out)
        ]
        groups = (out / "groups.jsonl").read_text().count("\n")
        return [repr(lines), groups, events]

    changed = PLANS[name]
    beside = {key: value for key, value in changed.items() if key != name}
    before, after = replace(SMALL, **beside), replace(SMALL, **changed)
    one = leaves("before", before)
    assert leaves("again", before) == one
    assert leaves("after", after) != one
