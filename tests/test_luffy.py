"""LUFFY: one whole trace a group, shaped; against hand arithmetic and TRAPO's arm.

(The released loss is in test_trapo.)
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import toys

from workbench.core import Group, WorkbenchError
from workbench.methods import find
from workbench.methods.luffy import LUFFY
from workbench.methods.trapo import TRAPO
from workbench.model.batch import collate
from workbench.model.learner import Learner, OptimConfig
from workbench.tasks.arithmetic import Arithmetic
from workbench.training.update import update


def group_with_trace(rewards, lengths=(3, 2, 4)):
    *own, last = toys.group(lengths, rewards).rollouts
    n = len(last.completion_ids)
    return Group(
        toys.QUESTION, (*own, replace(last, borrowed=n, logprobs=(math.nan,) * n, origin="expert"))
    )


def test_a_group_is_own_rollouts_and_one_whole_trace(tiny_policy):
    task = Arithmetic(steps=2, style="turned")
    one, none = task.problems("train", 2, 0)
    none = replace(none, solutions=())
    record = update(LUFFY(k=4), Learner(tiny_policy), task, [one, none], (0,), rows=3)
    a, b = record.groups
    assert [r.origin for r in a.rollouts] == ["policy"] * 3 + ["expert"] and [
        r.origin for r in b.rollouts
    ] == ["policy"] * 4
    assert (
        a.rollouts[-1].text == one.solutions[0]
        and a.rollouts[-1].completion_ids[-1] in tiny_policy.stop_ids
    )
    # over its own rollouts
    assert record.metrics["gap_max"] < 1e-4 and record.metrics["reward"] == 0.0
    assert record.metrics["generated"] == sum(
        len(r.completion_ids) for g in record.groups for r in g.own
    )


def test_credit_and_loss_by_hand():
    group = group_with_trace([0, 0, 1])  # mean 1/3: A = -1/3, -1/3, 2/3
    method = LUFFY(k=3, constant=10, entropy=0.0)
    [batch] = collate(method.credit([group], None), 0)
    assert batch.denominators["nll"] == 4 and batch.denominators["pg"] == 5
    table = {id(r): torch.full((len(r.completion_ids),), math.log(0.4)) for r in group.rollouts}
    loss = method.loss(toys.scores_of(batch, {"logp": table}), batch)
    # own: 5 tokens at 1/3; expert: 4 at -2/3 * .4/.5; over 10 * 3
    assert float(loss.value) == pytest.approx((5 / 3 - 4 * 2 / 3 * 0.8) / 30, abs=1e-6)
    # expert's credit: 2/3 * .1 * .4 / .25 = .10667, own -1/3, times 9 tokens over 30
    assert loss.credit[2, 0] == pytest.approx(2 / 3 * 0.16 * 0.3, abs=1e-6) and loss.credit[
        0, 0
    ] == pytest.approx(-0.1, abs=1e-6)


def test_a_group_that_is_all_right_teaches_nothing():
    [batch] = collate(LUFFY(k=3).credit([group_with_trace([1, 1, 1])], None), 0)
    assert not batch.channels["pg"].any() and not batch.channels["nll"].any()


def test_it_is_trapos_arm_on_the_same_groups():
    groups = [group_with_trace([0, 1, 1]), group_with_trace([0, 0, 1], (5, 1, 2))]
    a, b = LUFFY(k=3), TRAPO(prefix="luffy")
    [ours], [theirs] = collate(a.credit(groups, None), 0), collate(b.credit(groups, None), 0)
    logp = -2 * torch.rand(ours.mask.shape, generator=torch.Generator().manual_seed(0)) * ours.mask
    tables = {"logp": {id(c.rollout): logp[i, : len(c.pg)] for i, c in enumerate(ours.credits)}}
    x, y = (
        a.loss(toys.scores_of(ours, tables), ours),
        b.loss(toys.scores_of(theirs, tables), theirs),
    )
    torch.testing.assert_close(x.per_token, y.per_token)
    torch.testing.assert_close(x.credit, y.credit)
    assert x.credit[ours.mask].abs().min() > 0


def test_the_trace_grows_likelier_where_the_policy_fails(tiny_policy):
    task = toys.FirstCharacter("7", max_new=2)
    learner, found = Learner(tiny_policy, OptimConfig(lr=1e-2)), []
    for step in range(30):
        found.append(
            update(
                LUFFY(constant=80), learner, task, task.problems("train", 4, step), (0, step)
            ).metrics["expert_p"]
        )
    assert found[0] < 0.05 and found[-1] > 0.3


@pytest.mark.parametrize("options", [{"k": 1}, {"gamma": 0.0}, {"entropy": -0.1}, {"constant": 0}])
def test_bad_options_are_refused(options):
    with pytest.raises(WorkbenchError, match=next(iter(options))):
        LUFFY(**options)


def test_found_by_name():
    assert find("luffy") is LUFFY and find("trapo") is TRAPO
