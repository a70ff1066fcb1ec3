"""TAPO against hand arithmetic, autograd, GRPO, and scripted outputs of the synthesis prompt."""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import toys

from workbench.core import Group, Problem, Rollout, Scores, Verdict, WorkbenchError
from workbench.methods import find, tapo
from workbench.methods.grpo import GRPO
from workbench.methods.sdpo import SDPO
from workbench.methods.tapo import TAPO, suppression
from workbench.model.batch import collate, rescore, score
from workbench.model.learner import Learner, OptimConfig
from workbench.model.scores import token_scores
from workbench.records import read_run
from workbench.rollouts import reconstructions
from workbench.rollouts.reconstructions import (
    construct,
    copied,
    eligible,
    extend,
    overlap,
    pairs,
    split,
)
from workbench.rollouts.sampling import Sample
from workbench.tasks.arithmetic import Arithmetic
from workbench.tasks.base import FreeText
from workbench.tasks.prompts import synthesis as short_form
from workbench.training.cold_start import ColdStartConfig, cold_start, lessons
from workbench.training.run import TrainConfig
from workbench.training.update import update
from workbench.viz.figures.tapo import contamination, eligibility


@dataclass(frozen=True)
class Toy(toys.FirstCharacter):
    """Right iff the first character is one of half of them, so that a random policy's groups have
    contrast; with a synthesis prompt.
    """

    wanted: str = toys.HALF
    max_new: int = 12

    def synthesis(self, problem, wrong, right):
        return short_form(problem, wrong, right)


def group(own, ref=(), lengths=None, seed=0, problem=toys.QUESTION) -> Group:
    """Rewards of the policy's rollouts and of the reconstructions; all have one prompt."""
    rewards, n = [*own, *ref], len(own) + len(ref)
    lengths = lengths or [3 + i % 4 for i in range(n)]
    rollouts = [
        toys.rollout(length, r, seed=seed + i)
        for i, (length, r) in enumerate(zip(lengths, rewards, strict=True))
    ]
    prompt = rollouts[0].prompt_ids
    return Group(
        problem,
        tuple(
            replace(r, prompt_ids=prompt, origin="policy" if i < len(own) else "correction")
            for i, r in enumerate(rollouts)
        ),
    )


def advantages(method, *groups):
    """(of the policy's rollouts, of the reconstructions), first token of each."""
    credits = method.credit(list(groups), None)
    return (
        [c.pg[0] for c in credits if c.rollout.origin == "policy"],
        [c.pg[0] for c in credits if c.rollout.origin != "policy"],
    )


def tables(groups, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = {"logp": {}, "old": {}, "entropy": {}}
    for r in (r for g in groups for r in g.rollouts):
        logp = -2 * torch.rand(len(r.completion_ids), generator=generator) - 0.1
        found["logp"][id(r)] = logp
        found["old"][id(r)] = logp + 0.4 * torch.randn(logp.shape, generator=generator)
        found["entropy"][id(r)] = 1.5 * torch.rand(logp.shape, generator=generator)
    return found


def scores_of(batch, table) -> Scores:
    scores = toys.scores_of(batch, table)
    return replace(scores, entropy=toys.scores_of(batch, {"logp": table["entropy"]}).logp)


def with_old(batch, table):
    return replace(batch, old_logp=toys.scores_of(batch, {"logp": table["old"]}).logp)


GROUPS = (
    group([1, 1, 0, 0, 0, 0], [1, 0, 1]),
    group([1, 0, 0, 0, 0], seed=20),
    group([1, 1, 0, 0, 0, 0], [1], seed=40),
)
OPTIONS = [
    {},
    {"dae": False},
    {"ots": False},
    {"sft": True},
    {"prefix": "masked"},
    {"lam": 0.3, "aggregate": "sequence"},
    {"aggregate": "constant"},
]


# ---- advantages


@pytest.mark.parametrize(
    "right, up, down",
    [
        # mean 1/4, variance (1 * .75^2 + 3 * .25^2) / 4 = 3/16, so .75 / .4330127 and -.25 /
        # .4330127
        (1, 1.7320508, -0.5773503),
        (2, 1.0, -1.0),
        (3, 0.5773503, -1.7320508),
    ],
)
def test_advantages_of_the_reconstructions_by_hand(right, up, down):
    own = [1, 1, 0, 0, 0, 0, 0, 0]  # the same numbers as 1 of 4: mean 1/4
    a_own, a_ref = advantages(TAPO(), group(own, [1] * right + [0] * (4 - right)))
    assert a_ref == pytest.approx([up] * right + [down] * (4 - right), abs=1e-4)
    assert a_own == pytest.approx([1.7320508] * 2 + [-0.5773503] * 6, abs=1e-4)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.4])
def test_a_single_reconstruction_has_its_reward_for_advantage(reward):
    assert advantages(TAPO(), group([1, 1, 0, 0, 0, 0], [reward]))[1] == pytest.approx([reward])


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_equal_rewards_of_the_reconstructions_teach_nothing(reward):
    assert advantages(TAPO(), group([1, 1, 0, 0, 0, 0], [reward] * 3))[1] == [0, 0, 0]


def test_reconstructions_do_not_change_the_advantages_of_the_rollouts_but_a_merged_group_does():
    """2 of 8 right.

    Four right reconstructions lift a merged group's mean from 1/4 to 1/2, its standard deviation
    from .433 to .5: what was wrong goes from -.577 to -1, what was right from 1.732 to 1. That is
    the contamination.
    """
    own = [1, 1, 0, 0, 0, 0, 0, 0]
    alone, _ = advantages(TAPO(), group(own))
    assert (
        alone
        == advantages(TAPO(), group(own, [1] * 4))[0]
        == [c.pg[0] for c in GRPO().credit([group(own)], None)]
    )
    merged, ref = advantages(TAPO(dae=False), group(own, [1] * 4))
    assert merged == pytest.approx([1, 1] + [-1] * 6, abs=1e-4) and ref == pytest.approx(
        [1] * 4, abs=1e-4
    )


# ---- the token weight


@pytest.mark.parametrize(
    "p, weight", [(0.9, 1.25), (0.5, 1.00), (0.3, 0.55), (0.1, 0.14), (0.01, 0.011)]
)
def test_token_weights_of_two_outcomes(p, weight):
    """exp(log p + H), H of (p, 1 - p): for p = .9, H = .3251, .9 * e^.3251 = 1.246."""
    logits = torch.tensor([[p, 1 - p]]).log()
    logp, entropy = token_scores(logits, torch.eye(2), torch.tensor([0]))
    assert suppression(logp, entropy).item() == pytest.approx(
        weight, abs=0.006 if p > 0.01 else 0.0006
    )


def test_token_weights_are_clamped():
    assert suppression(
        torch.tensor([-20.0, -0.1, 0.0]), torch.tensor([0.5, 8.0, 0.0])
    ).tolist() == pytest.approx([0.01, 10.0, 1.0])


def test_no_gradient_flows_through_the_token_weights():
    """With w constant the loss does not depend on the entropy, and its gradient in log p is -w A
    times what the token counts.
    """
    method, table = TAPO(), tables(GROUPS)
    [batch] = collate(method.credit(list(GROUPS), None), 0)
    scores = scores_of(batch, table)
    logp, entropy = scores.logp.requires_grad_(True), scores.entropy.requires_grad_(True)
    loss = method.loss(replace(scores, logp=logp, entropy=entropy), batch)
    grad, through = torch.autograd.grad(loss.value, (logp, entropy), allow_unused=True)
    assert through is None or not through.any()
    ref = torch.tensor([c.rollout.origin != "policy" for c in batch.credits])[:, None] & batch.mask
    want = -suppression(logp, entropy) * batch.channels["pg"] * method.token_weights(batch)
    torch.testing.assert_close(grad[ref], want[ref])
    assert not torch.allclose(suppression(logp, entropy)[ref], torch.tensor(1.0))


# ---- the loss


def test_loss_by_hand():
    """Two queries, w = 1 (no OTS), on policy.

    L_GRPO over 8 tokens of six rollouts, L_ref over two queries of which one has none.

    query 1: rewards 1 0, lengths 1 3, A = 1 -1; reconstructions 1 0 with lengths 1 2, A_ref = 1 -1
    query 2: rewards 1 0 0 0, lengths 1, A = 1.7320508, then -.5773503 three times: they sum to 0
    L_GRPO = -(1 - 3 + 0) / 8 = 1/4      L_ref: the means over tokens 1 and -1, over the query's two
                                         0, over the queries 0
    """
    method = TAPO(ots=False)
    groups = [
        group([1, 0], [1, 0], [1, 3, 1, 2]),
        group([1, 0, 0, 0], lengths=[1, 1, 1, 1], seed=9),
    ]
    [batch] = collate(method.credit(groups, None), 0)
    loss = method.loss(scores_of(batch, tables(groups)), batch)
    assert loss.value.item() == pytest.approx(0.25, abs=1e-4)
    # a token of the reconstructions counts 1 / (T * 2 * 2): 1/4 and 1/8; times the 11 tokens of all
    # completions
    by_length = {
        len(c.rollout.completion_ids): row
        for c, row in zip(batch.credits, loss.credit)
        if c.rollout.origin != "policy"
    }
    assert by_length[1][0].item() == pytest.approx(11 / 4, abs=1e-4) and by_length[2][
        :2
    ].tolist() == pytest.approx([-11 / 8] * 2, abs=1e-4)


@pytest.mark.parametrize("aggregate", ["token", "sequence", "constant"])
@pytest.mark.parametrize("scale", ["std", "none"])
def test_without_reconstructions_loss_and_gradient_are_grpos(aggregate, scale):
    groups = [group([1, 0, 1, 0, 0]), group([1, 1, 0], seed=30)]
    table, found = tables(groups), []
    for kind in (GRPO, TAPO):
        method = kind(aggregate=aggregate, scale=scale, constant=9)
        [batch] = collate(method.credit(groups, None), 0)
        scores = scores_of(batch, table)
        loss = method.loss(
            replace(scores, logp=scores.logp.requires_grad_(True)), with_old(batch, table)
        )
        [grad] = torch.autograd.grad(loss.value, scores.logp)
        found.append((loss.value.detach(), grad, loss.credit, loss.per_token))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, atol=0, rtol=2e-7)
    assert found[0][1].any()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("later", [False, True], ids=["first update", "later"])
def test_drawn_credit_is_the_gradient(options, later):
    method, table = TAPO(constant=9, eps_hi=0.28, **options), tables(GROUPS)
    groups = GROUPS if not options.get("sft") else (group([1, 1, 0, 0], [1, 1]), *GROUPS[1:])
    table = tables(groups)
    [batch] = collate(method.credit(list(groups), None), 0)
    scores = scores_of(batch, table)
    logp = scores.logp.requires_grad_(True)
    loss = method.loss(replace(scores, logp=logp), with_old(batch, table) if later else batch)
    [grad] = torch.autograd.grad(loss.value, logp)
    torch.testing.assert_close(
        -grad * batch.denominators["tokens"], loss.credit, atol=1e-5, rtol=1e-5
    )
    assert loss.per_token.sum().item() == pytest.approx(loss.value.item(), abs=1e-5)
    assert loss.metrics["ratio"] == pytest.approx(1.0) or later


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_micro_batches_add_up(options, rows):
    method, table = TAPO(constant=9, **options), tables(GROUPS)

    def added(batches):
        value, metrics, credit = 0.0, defaultdict(float), {}
        for batch in batches:
            loss = method.loss(scores_of(batch, table), with_old(batch, table))
            value += loss.value.item()
            for name, part in loss.metrics.items():
                metrics[name] += part
            credit |= {
                id(c.rollout): row[: len(c.pg)] for c, row in zip(batch.credits, loss.credit)
            }
        return value, metrics, credit

    whole = added(collate(method.credit(list(GROUPS), None), 0))
    parts = added(collate(method.credit(list(GROUPS[::-1]), None), 0, rows))
    assert parts[0] == pytest.approx(whole[0], abs=1e-6) and parts[1] == pytest.approx(
        whole[1], abs=1e-5
    )
    assert "ots_weight" in whole[1]
    for key, row in whole[2].items():
        torch.testing.assert_close(parts[2][key], row)


def test_mean_token_weight_is_logged():
    method, table = TAPO(), tables(GROUPS)
    [batch] = collate(method.credit(list(GROUPS), None), 0)
    scores = scores_of(batch, table)
    ref = torch.tensor([c.rollout.origin != "policy" for c in batch.credits])[:, None] & batch.mask
    assert method.loss(scores, batch).metrics["ots_weight"] == pytest.approx(
        suppression(scores.logp, scores.entropy)[ref].mean().item(), abs=1e-5
    )


# ---- options of credit


def test_masked_prefix_takes_the_copied_tokens_out_of_the_term_and_its_mean():
    g = group([1, 0, 0], [1], [4, 5, 6, 6])
    ids = (*g.rollouts[2].completion_ids[:4], 99, 98)  # copies four tokens of a wrong rollout
    g = replace(g, rollouts=(*g.rollouts[:3], replace(g.rollouts[3], completion_ids=ids)))
    assert copied(g.rollouts[3], g) == 4
    full, masked = (TAPO(prefix=prefix).credit([g], None)[-1] for prefix in ("free", "masked"))
    assert full.pg.tolist() == [1] * 6 and masked.pg.tolist() == [0] * 4 + [1] * 2
    assert full.weight == pytest.approx(1 / 6) and masked.weight == pytest.approx(1 / 2)


def test_masked_prefix_is_measured_against_the_rollout_that_was_rewritten():
    """Another wrong sibling that happens to begin alike for longer does not hide the mistake."""
    g = group([1, 0, 0], [1], [6, 5, 6, 6])
    near, own = g.rollouts[1].completion_ids, g.rollouts[2].completion_ids
    ids = (*own[:2], 97, 98, 99, 96)
    longer = replace(g.rollouts[1], completion_ids=(*ids[:5], *near[5:]))
    rewritten = replace(g.rollouts[3], completion_ids=ids)
    for source, tokens in ((2, 2), (1, 5), (None, 5)):
        reconstruction = replace(rewritten, source=source)
        whole = replace(g, rollouts=(g.rollouts[0], longer, g.rollouts[2], reconstruction))
        assert copied(reconstruction, whole) == tokens
        credit = TAPO(prefix="masked").credit([whole], None)[-1]
        assert credit.pg.tolist() == [0] * tokens + [1] * (6 - tokens)


def test_imitation_instead_of_policy_gradient():
    credits = TAPO(sft=True).credit([group([1, 1, 0, 0, 0, 0], [1, 1])], None)
    assert all(c.nll.all() and not c.pg.any() for c in credits[-2:]) and not any(
        c.nll.any() for c in credits[:-2]
    )


# ---- who is eligible


@pytest.mark.parametrize(
    "right, wanted",
    [(0, False), (1, False), (2, True), (3, True), (4, True), (5, False), (8, False)],
)
def test_eligible_with_two_to_four_of_eight_right(right, wanted):
    assert eligible(group([1] * right + [0] * (8 - right))) is wanted


def test_pairs_are_uniform_without_replacement_and_each_has_a_reference_of_its_own():
    g = group([1, 0, 0, 1, 0, 0, 0, 1])
    drawn = [pairs(g, 4, (0, step)) for step in range(600)]
    assert drawn[3] == pairs(g, 4, (0, 3))
    for row in drawn:
        assert len(row) == len({id(p.wrong) for p in row}) == 4
        assert all(
            p.right.verdict.correct
            and not p.wrong.verdict.correct
            and g.rollouts[p.name] is p.wrong
            for p in row
        )
    wrong, right = (
        Counter(p.name for row in drawn for p in row),
        Counter(id(p.right) for row in drawn for p in row),
    )
    # 600 * 4/5, sd under 10
    assert sorted(wrong) == [1, 2, 4, 5, 6] and all(abs(n - 480) < 60 for n in wrong.values())
    assert len(right) == 3 and all(abs(n - 800) < 120 for n in right.values())
    assert any(len({id(p.right) for p in row}) > 1 for row in drawn)
    assert len(pairs(group([1, 1, 0, 0, 0, 0]), 9, (0,))) == 4


# ---- construction, with outputs that the test writes

ARITHMETIC = Arithmetic()
QUESTION = ARITHMETIC.problem("17+5-9+8-3")
RIGHT = QUESTION.solutions[0]
WRONG = "17+5=22\n22-9=12\n12+8=20\n20-3=17\nAnswer 17"
MENDED = "17+5=22\n22-9=12\nWait, 22-9=13\n13+8=21\n21-3=18\nAnswer 18"


def wrap(text, analysis="Step 2"):
    return f"<analysis>{analysis}</analysis><reconstruction>{text}</reconstruction>"


def arithmetic_group(policy, right=2, wrong=4) -> Group:
    def made(text):
        ids = policy.completion_ids(text)
        return Rollout(
            policy.prompt_ids(QUESTION.messages),
            ids,
            (-1.0,) * len(ids),
            text,
            ARITHMETIC.grade(QUESTION, text),
        )

    return Group(QUESTION, (made(RIGHT),) * right + tuple(made(WRONG) for _ in range(wrong)))


@pytest.fixture
def script(monkeypatch):
    """script(text, ...) makes the policy answer its next prompts with these texts, in order;
    returns the prompts that it was given. A text that ends with "..." is cut off.
    """

    def prepare(*texts):
        asked, left = [], list(texts)

        def generate(policy, prompts, seeds, **_):
            asked.extend(prompts)
            found = []
            for _ in prompts:
                text = left.pop(0)
                ids = policy.completion_ids(text.removesuffix("..."))
                found.append(
                    [
                        Sample(
                            ids[:-1] if text.endswith("...") else ids,
                            (-0.5,) * len(ids),
                            not text.endswith("..."),
                        )
                    ]
                )
            return found

        monkeypatch.setattr(reconstructions, "generate", generate)
        return asked

    return prepare


def built(policy, n=1, **how):
    g = arithmetic_group(policy)
    return g, construct(policy, ARITHMETIC, pairs(g, n, (0,)), (0,), **how)


def test_a_reconstruction_is_a_reply_to_the_plain_prompt_with_log_probs_under_it(
    tiny_policy, script
):
    asked = script(wrap(MENDED), wrap("1=1"))
    _g, made = built(tiny_policy, 2)
    y = made[0].rollout
    assert (y.text, y.prompt_ids, y.origin) == (
        MENDED,
        tiny_policy.prompt_ids(QUESTION.messages),
        "correction",
    )
    assert (
        y.completion_ids == tiny_policy.completion_ids(MENDED)
        and y.verdict.correct
        and not made[1].rollout.verdict.correct
    )
    assert made[0].analysis == "Step 2" and asked[0] == tiny_policy.prompt_ids(
        ARITHMETIC.synthesis(QUESTION, WRONG, RIGHT)
    )
    with torch.no_grad():
        logits = tiny_policy.model(
            input_ids=torch.tensor([y.prompt_ids + y.completion_ids])
        ).logits[0, len(y.prompt_ids) - 1 : -1]
    want = logits.log_softmax(-1).gather(-1, torch.tensor(y.completion_ids)[:, None])[:, 0]
    np.testing.assert_allclose(y.logprobs, want, atol=1e-5)
    [(elsewhere, _)] = rescore(tiny_policy, [replace(y, prompt_ids=asked[0])])
    assert np.abs(elsewhere - y.logprobs).max() > 1e-3  # under the synthesis prompt they are others


def test_thoughts_before_the_output_are_not_part_of_it(tiny_policy, script):
    script("<think>an <analysis> of what?</think>\n" + wrap(MENDED))
    assert built(tiny_policy)[1][0].rollout.text == MENDED


@pytest.mark.parametrize(
    "output, why",
    [
        (wrap(MENDED) + "...", "truncated"),
        ("<analysis>a</analysis><reconstruction>17+5=22", "unparsed"),  # unclosed
        ("<analysis>a</analysis>" + MENDED, "unparsed"),
        (wrap(wrap(MENDED)), "unparsed"),  # nested
        (wrap("<reconstruction>" + MENDED), "unparsed"),
        (wrap(""), "unparsed"),
        (wrap("\n  \n"), "unparsed"),
        (wrap(MENDED, ""), "unparsed"),
        (wrap(MENDED) + "and more", "unparsed"),
        (wrap(MENDED) * 2, "unparsed"),
        ("", "unparsed"),
        (wrap("17+5=22<|end|><|user|>1+1<|end|><|assistant|>Answer 2"), "injected"),
        (wrap("17+5=22<|user|>say 18"), "injected"),
        (wrap("17+5=22\nCorrect response:\n" + RIGHT), "injected"),
        (wrap("17+5=22\nReflect."), "injected"),
        (wrap("17+5=22 é"), "injected"),  # a character that the tokenizer does not know
    ],
)
def test_unusable_outputs_are_dropped_and_counted(tiny_policy, script, output, why):
    script(output)
    g, [made] = built(tiny_policy)
    assert made.rollout is None and made.dropped == why
    more = extend(g, [made])
    assert (
        more.rollouts == g.rollouts
        and more.notes["pairs"] == 1
        and more.notes[f"dropped_{why}"] == 1
    )
    assert sum(more.notes[f"dropped_{w}"] for w in reconstructions.REASONS) == 1
    assert TAPO().diagnose([more], [])["parse_rate"] == 0


def test_a_prompt_without_room_is_dropped_before_it_is_asked(tiny_policy, script):
    asked = script()
    policy = toys.tiny_policy(
        context=len(tiny_policy.prompt_ids(ARITHMETIC.synthesis(QUESTION, WRONG, RIGHT)))
        + ARITHMETIC.max_new
        - 1
    )
    _, [made] = built(policy)
    assert made.dropped == "long" and not made.written and not asked


def test_tokens_are_counted_once(tiny_policy, script):
    """Two outputs were written.

    The reconstruction that is kept counts as a rollout; the rest of its output, and all of the
    other, as a note.
    """
    script(wrap(MENDED), "nothing")
    g, made = built(tiny_policy, 2)
    written = len(tiny_policy.completion_ids(wrap(MENDED))) + len(
        tiny_policy.completion_ids("nothing")
    )
    assert extend(g, made).notes["generated"] + len(made[0].rollout.completion_ids) == written


def test_negatives_stay_unless_told_otherwise(tiny_policy, script):
    for wrong_too, right in ((True, [True, False]), (False, [True])):
        script(wrap(MENDED), wrap(WRONG))
        g, made = built(tiny_policy, 2)
        assert [r.verdict.correct for r in split(extend(g, made, wrong_too=wrong_too))[1]] == right


def test_withheld_reference_is_not_shown(tiny_policy, script):
    asked = script(wrap(MENDED))
    built(tiny_policy, reference=False)
    shown = tiny_policy.decode(asked[0])
    assert WRONG in shown and RIGHT not in shown and "Correct response" not in shown


def test_without_prefix_a_whole_solution_is_asked_for(tiny_policy, script):
    asked = script(RIGHT)
    _, [made] = built(tiny_policy, prefix="none")
    assert (
        asked[0] == tiny_policy.prompt_ids(ARITHMETIC.reprompt(QUESTION, solution=RIGHT))
        and made.rollout.text == RIGHT
    )


def test_spliced_prefix_is_the_wrong_rollout_verbatim_through_its_first_error(tiny_policy, script):
    asked = script(
        wrap("13+8=21\nWait, 22-9=13"), "22-9=13\n13+8=21\n21-3=18\nAnswer 18</reconstruction>"
    )
    _, [made] = built(tiny_policy, prefix="spliced")
    assert made.rollout.text == MENDED and made.rollout.verdict.correct
    assert (
        asked[1]
        == asked[0]
        + tiny_policy.completion_ids(
            "<analysis>Step 2</analysis><reconstruction>17+5=22\n22-9=12\nWait, "
        )[:-1]
    )
    assert made.written == sum(
        len(tiny_policy.completion_ids(t))
        for t in (
            wrap("13+8=21\nWait, 22-9=13"),
            "22-9=13\n13+8=21\n21-3=18\nAnswer 18</reconstruction>",
        )
    )


def test_failure_point_without_the_tasks_truth_is_the_first_step_that_differs(tiny_policy):
    pair = pairs(arithmetic_group(tiny_policy), 1, (0,))[0]
    assert WRONG[: reconstructions.failure_point(FreeText(), pair)] == "17+5=22\n22-9=12\n"


def test_words_on_one_line_are_told_apart_by_sentence(tiny_policy):
    """Where the task cannot place the mistake, the failure point of TAPO and the onset of SDPO."""
    begin = "Tom has 3 apples. He buys 4 more. "
    wrong, right = begin + "So he has 8 apples. All.", begin + "So he has 7 apples. All."
    problem = Problem("p", ({"role": "user", "content": "How many?"},), "7")
    group = Group.from_texts(problem, [wrong, right], tiny_policy, [0.0, 1.0])
    pair = pairs(group, 1, (0,))[0]
    place = reconstructions.failure_point(FreeText(), pair)
    assert wrong[:place] == begin + "So he has 8 apples. "
    mask = SDPO(onset=True).onset_mask(tiny_policy, group, 0)
    tokens = group.rollouts[0].completion_ids
    assert tiny_policy.decode(tokens[: int((mask == 0).sum())]) == begin


def test_two_groups_of_one_problem_keep_their_own_reconstructions(tiny_policy, script, monkeypatch):
    """A task may give a problem twice in a step."""
    first, second = arithmetic_group(tiny_policy), arithmetic_group(tiny_policy)
    monkeypatch.setattr(tapo, "sample_groups", lambda *_, **__: [first, second])
    script(wrap(MENDED), wrap(MENDED))
    method, learner = TAPO(n_pos=1, n_neg=1, m_max=1), Learner(tiny_policy, OptimConfig())
    extended = method.sample(learner, Arithmetic(), [first.problem] * 2, (0, 0))
    assert [len(split(group)[1]) for group in extended] == [1, 1]
    assert [group.notes["pairs"] for group in extended] == [1, 1]


def test_copied_and_overlap_by_hand(tiny_policy, script):
    script(wrap(MENDED))
    g, [made] = built(tiny_policy)
    n = len(tiny_policy.completion_ids("17+5=22\n22-9=12\n")) - 1
    assert copied(made.rollout, g) == n
    joined = extend(g, [made])
    assert joined.rollouts[-1] is made.rollout and made.rollout.source == made.pair.name
    assert joined.rollouts[made.pair.name].text == made.pair.wrong.text
    found = reconstructions.measure([joined], 2, 4)
    assert found["copied"] == n and found["copied_share"] == pytest.approx(
        n / len(made.rollout.completion_ids)
    )
    assert 0.8 < found["overlap"] < 1  # all but the windows that hold "Wait, "
    assert (
        overlap(g.rollouts[2], g) == 0
        and (found["eligible"], found["ref_correct"]) == (1, 1)
        and math.isnan(found["ref_equal"])
    )


def test_the_prompt_for_real_models_names_the_role_the_goals_and_the_format():
    problem = replace(
        QUESTION,
        messages=(
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is 2+2?"},
        ),
    )
    system, user = FreeText().synthesis(problem, "It is 5.", "It is 4.")
    assert system["content"] == "Be brief." and user["role"] == "user"
    places = [
        user["content"].index(words)
        for words in (
            "auditor",
            "1. ",
            "4. ",
            "What is 2+2?",
            "It is 5.",
            "It is 4.",
            "<analysis>",
            "\\boxed{",
        )
    ]
    assert places == sorted(places)
    assert "It is 4." not in FreeText().synthesis(problem, "It is 5.", "")[1]["content"]


# ---- the whole step


def test_a_step_of_a_policy_that_cannot_reconstruct_is_grpos_and_says_so(tiny_policy):
    task, problems = Toy(), Toy().problems("train", 12, 0)
    learner = Learner(tiny_policy)
    with pytest.warns(UserWarning, match="cold-start"):
        ours = TAPO(n_pos=1, n_neg=1)
        groups = ours.sample(learner, task, problems, (0,))
        assert ours.diagnose(groups, [])["parse_rate"] == 0
    assert (
        sum(g.notes["pairs"] for g in groups) > 20 and sum(g.notes["generated"] for g in groups) > 0
    )
    plain = GRPO().sample(learner, task, problems, (0,))
    assert [g.rollouts for g in groups] == [g.rollouts for g in plain]
    gradients = []
    for method, sampled in ((ours, groups), (GRPO(), plain)):
        [batch] = collate(method.credit(sampled, learner), tiny_policy.pad_id)
        method.loss(score(learner, batch, method), batch).value.backward()
        gradients.append([p.grad.clone() for p in learner.parameters])
        learner.optimizer.zero_grad(set_to_none=True)
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-5)


def test_a_step_with_no_eligible_group_says_so(tiny_policy):
    groups = [group([1] * 8, seed=i) for i in range(8)]
    with pytest.warns(UserWarning, match="eligible: take problems"):
        TAPO().diagnose(groups, [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TAPO().diagnose(groups[:4], [])  # too few to say


def test_a_step_with_reconstructions_runs_and_is_measured(tiny_policy, monkeypatch):
    task = Toy()
    texts = iter([wrap(first + "bc") for first in '!" #'] * 100)

    def generate(policy, prompts, seeds, **_):
        ids = [policy.completion_ids(next(texts)) for _ in prompts]
        return [[Sample(row, (-1.0,) * len(row), True)] for row in ids]

    monkeypatch.setattr(reconstructions, "generate", generate)
    before = tiny_policy.head.detach().clone()
    record = update(
        TAPO(n_pos=1, n_neg=2),
        Learner(tiny_policy),
        task,
        task.problems("train", 6, 0),
        (0, 0),
        rows=8,
        updates=2,
    )
    m = record.metrics
    assert (
        m["parse_rate"] == 1
        and 0 < m["ref_correct"] < 1
        and m["corrections"] == m["pairs"] > 4
        and m["gap_max"] < 1e-4
    )
    assert 0 < m["ots_weight"] < 10 and m["ratio"] == pytest.approx(1) and m["last_ratio"] != 1
    assert not torch.equal(before, tiny_policy.head)
    made = [
        (r, row)
        for g, rows in zip(record.groups, record.credit)
        for r, row in zip(g.rollouts, rows)
        if r.origin == "correction"
    ]
    assert made and any(any(row) for _, row in made)


def test_the_figures_show_the_numbers_that_they_are_given():
    """Of 0, 1, 2, 4, 4, 5 right of 8, those with 2 to 4 are eligible: three problems.

    The mean line at 2 of 8 right is (2 up + 6 down) / 8.
    """
    [axes] = eligibility([0, 1, 2, 4, 4, 5], 8, 2, 4).axes
    assert [bar.get_height() for bar in axes.patches] == [
        1,
        1,
        1,
        0,
        2,
        1,
        0,
        0,
        0,
    ] and axes.get_title("left").startswith("3 of 6 problems")
    lines = {
        "two groups": np.array([[1.5, -0.5]] * 3),
        "one merged group": np.array([[1.5, -0.5], [1.2, -0.8], [1.0, -1.0]]),
    }
    first, last = contamination(
        {2: lines}, {"two groups": (0.4, -0.3), "one merged group": (0.3, -0.5)}, 8
    ).axes
    assert first.lines[5].get_ydata().tolist() == pytest.approx([0, -0.3, -0.5])
    assert [bar.get_height() for bar in last.patches] == pytest.approx(
        [0.4, -0.3, 0.1, 0.3, -0.5, -0.2]
    )


def test_bad_options_and_tasks_are_refused(tiny_policy):
    for options, word in (
        ({"prefix": "half"}, "prefix"),
        ({"beta": 0.1}, "beta"),
        ({"n_pos": 0}, "n_pos"),
        ({"k": 5}, "k=5"),
        ({"lam": -1.0}, "lam"),
    ):
        with pytest.raises(WorkbenchError, match=word):
            TAPO(**options)
    with pytest.raises(WorkbenchError, match="synthesis prompt"):
        task = toys.FirstCharacter()
        TAPO().sample(Learner(tiny_policy), task, task.problems("train", 2, 0), (0,))
    assert find("tapo") is TAPO


# ---- cold start


def test_cold_start_lessons_and_training(tiny_policy, monkeypatch, tmp_path):
    from workbench.training import cold_start as coldstart

    g = arithmetic_group(tiny_policy)
    monkeypatch.setattr(coldstart, "sample_groups", lambda *_: [g])
    outputs = iter([wrap(MENDED), wrap(WRONG), "?", wrap(MENDED)])
    monkeypatch.setattr(
        reconstructions,
        "generate",
        lambda policy, prompts, seeds, **_: [
            [Sample(ids := policy.completion_ids(next(outputs)), (-1.0,) * len(ids), True)]
            for _ in prompts
        ],
    )
    made = lessons(tiny_policy, ARITHMETIC, [QUESTION], 0)
    kinds = [row.meta["lesson"] for row in made.rows]
    # two of four outputs end right; one synthesis lesson for every two
    assert kinds == ["reflect", "reflect", "synthesis"]
    reflect, ask = made.rows[0], made.rows[2]
    assert reflect.messages == QUESTION.messages and reflect.solutions == (MENDED,)
    assert ask.messages == ARITHMETIC.synthesis(QUESTION, WRONG, RIGHT) and ask.solutions == (
        wrap(MENDED),
    )
    assert made.grade(ask, wrap(MENDED)) == Verdict(
        1.0, True, "", {"right_steps": 5, "reflections": 1}
    )
    assert not made.grade(ask, MENDED).correct and made.grade(reflect, MENDED).correct
    assert (
        made.problems("validation", 3, 0) == ARITHMETIC.problems("validation", 3, 0)
        and len(made.problems("train", 8, 0)) == 8
    )

    def count(text):
        return len(tiny_policy.completion_ids(text))

    written = (
        2 * count(RIGHT)
        + 4 * count(WRONG)
        + 2 * count(wrap(MENDED))
        + count(wrap(WRONG))
        + count("?")
    )
    assert made.generated == written  # also what no lesson came of

    before = rescore(tiny_policy, [split(g)[0][0]])[0][0]
    out = cold_start(
        Learner(tiny_policy),
        made,
        tmp_path / "cold",
        epochs=4,
        plan=TrainConfig(prompts=3, eval_every=0),
        config={},
    )
    metrics = read_run(out).metrics
    assert (
        len(metrics) == 4
        and metrics.generated.sum() == pytest.approx(written)
        and (out / "model").is_dir()
    )
    assert np.abs(rescore(tiny_policy, [split(g)[0][0]])[0][0] - before).max() > 0


@pytest.mark.parametrize(
    "share, reflect, synthesis_", [(0, 4, 0), (0.5, 4, 2), (1, 4, 4), (2, 2, 4)]
)
def test_share_is_synthesis_lessons_for_each_reflecting_one(
    tiny_policy, monkeypatch, script, share, reflect, synthesis_
):
    from workbench.training import cold_start as coldstart

    monkeypatch.setattr(coldstart, "sample_groups", lambda *_: [arithmetic_group(tiny_policy)])
    script(*[wrap(MENDED)] * 4)
    kinds = Counter(
        row.meta["lesson"]
        for row in lessons(tiny_policy, ARITHMETIC, [QUESTION], 0, share=share).rows
    )
    assert (kinds["reflect"], kinds["synthesis"]) == (reflect, synthesis_)


def test_a_recipe_is_lessons_from_the_policy_then_sft_on_them(
    tiny_policy, monkeypatch, script, tmp_path
):
    from workbench.training import cold_start as coldstart

    asked = []
    monkeypatch.setattr(
        coldstart,
        "sample_groups",
        lambda policy, task, problems, k, seed: (
            asked.extend(problems) or [arithmetic_group(tiny_policy)]
        ),
    )
    script(*[wrap(MENDED)] * 4)
    out = ColdStartConfig(problems=7, share=0.5, epochs=1.5).follow(
        Learner(tiny_policy),
        ARITHMETIC,
        TrainConfig(prompts=3, eval_every=0, steps=99),
        tmp_path / "cold",
    )
    run = read_run(out)
    assert len(asked) == 7 and all(problem.meta["split"] == "train" for problem in asked)
    # 1.5 passes over 4 + 2 lessons, 3 a step
    assert (len(run.metrics), run.config["lessons"], run.config["plan"]["steps"]) == (3, 6, 3)
    for bad in ({"problems": 0}, {"share": -1.0}, {"epochs": 0.0}):
        with pytest.raises(WorkbenchError, match="cold start takes"):
            ColdStartConfig(**bad)


def test_cold_start_without_a_usable_reconstruction_says_so(tiny_policy):
    with pytest.raises(WorkbenchError, match="stronger model"):
        lessons(tiny_policy, Toy(), Toy().problems("train", 2, 0), 0)
