"""SDPO against its table of who is distilled, hand arithmetic, enumeration, autograd, two other
implementations, and a teacher it must reach.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
import toys

from workbench.core import Credit, Distil, Group, Problem, Rollout, Scores, Verdict, WorkbenchError
from workbench.evaluation.statistics import bootstrap
from workbench.methods import find
from workbench.methods.grpo import GRPO
from workbench.methods.sdpo import SDPO, teacher_prompt
from workbench.model import llama_states
from workbench.model.batch import collate, score
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.model.scores import divergence
from workbench.options import with_options
from workbench.tasks import prompts
from workbench.training import update as step_of
from workbench.training.run import TrainConfig, collapse, fit
from workbench.training.update import update

KINDS = pytest.mark.parametrize("lora", [0, 4], ids=["full", "lora"])
PROBLEM = Problem(
    "7+5",
    ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "7+5"}),
    "12",
    ("7+5=12\nAnswer 12",),
)


def attempt(
    policy,
    text: str,
    correct: bool = False,
    feedback: str = "",
    prompt: tuple[int, ...] | None = None,
) -> Rollout:
    ids = policy.completion_ids(text)
    return Rollout(
        prompt or policy.prompt_ids(PROBLEM.messages),
        ids,
        (-1.0,) * len(ids),
        text,
        Verdict(float(correct), correct, feedback),
    )


def group_of(policy, *, right=(), wrong=(), feedback="", problem=PROBLEM) -> Group:
    return Group(
        problem,
        (
            *(attempt(policy, text, True) for text in right),
            *(attempt(policy, text, False, feedback) for text in wrong),
        ),
    )


def learner_of(lora: int = 0, dtype=torch.float64, **options) -> Learner:
    learner = Learner(
        tiny.policy(dtype=dtype, max_position_embeddings=256),
        OptimConfig(**{"lr": 1e-2, **options}),
        lora=lora,
    )
    if lora:
        tiny.shake_adapter(learner.policy.model)
    return learner


def logits(policy, prompt, ids):
    """[T, V] by the model's own forward pass, one sequence at a time."""
    return policy.model(input_ids=torch.tensor([tuple(prompt) + tuple(ids)])).logits[
        0, len(prompt) - 1 : -1
    ]


def disturb(learner, seed=3, size=0.05):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in learner.parameters:
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))


# ---- who is distilled, and from what


@pytest.mark.parametrize(
    "right, feedback, shown",
    [
        # (text of the demonstration or "", feedback?) for two wrong rollouts, after the right ones
        ([], "", [("", ""), ("", "")]),
        ([], "no", [("", "no"), ("", "no")]),
        (["A"], "", [("", ""), ("A", ""), ("A", "")]),  # a lone success has nobody to learn from
        (["A"], "no", [("", ""), ("A", ""), ("A", "")]),
        (["A", "B"], "", [("B", ""), ("A", ""), None, None]),
        (["A", "B"], "no", [("B", ""), ("A", ""), None, None]),
    ],
)
def test_the_table_of_who_is_distilled(right, feedback, shown):
    learner = learner_of()
    group = group_of(learner.policy, right=right, wrong=["C", "D"], feedback=feedback)
    method = SDPO()
    for i, want in enumerate(shown):
        if want is None:  # one of the two successes
            assert method.shown(group, i) in (("A", ""), ("B", ""))
        else:
            assert method.shown(group, i) == want
    credits = method.credit([group], learner)
    for i, (credit, rollout) in enumerate(zip(credits, group.rollouts)):
        taught = any(method.shown(group, i))
        assert credit.rollout is rollout and (credit.teacher_prompt_ids is not None) == taught
        assert (credit.kl == taught).all() and not credit.pg.any() and not credit.nll.any()
    expected = sum(any(method.shown(group, i)) for i in range(len(credits)))
    metrics = method.diagnose([group], credits)
    assert metrics["masked"] == pytest.approx(1 - expected / len(credits))
    assert metrics["demonstrated"] + metrics["advised"] == pytest.approx(expected / len(credits))


@pytest.mark.parametrize(
    "options, shown",
    [
        ({"feedback": "always"}, [("", ""), ("A", "no")]),  # a right answer has no feedback
        ({"feedback": "never"}, [("", ""), ("A", "")]),
        ({"demonstration": "any"}, [("A", ""), ("A", "")]),
        ({"demonstration": "none"}, [("", ""), ("", "no")]),
        ({"demonstration": "reference"}, [(PROBLEM.solutions[0], ""), (PROBLEM.solutions[0], "")]),
        ({"srpo": True}, [("", ""), ("A", "")]),
    ],
)
def test_options_of_what_is_shown(options, shown):
    group = group_of(tiny.policy(), right=["A"], wrong=["C"], feedback="no")
    assert [SDPO(**options).shown(group, i) for i in range(2)] == shown


def test_opsd_shows_every_rollout_the_reference_solution_and_reads_with_the_weights_as_loaded():
    learner, opsd = learner_of(), SDPO(teacher="frozen", demonstration="reference")
    disturb(learner)
    group = group_of(learner.policy, right=["7+5=12"], wrong=["7+5=13", "1"], feedback="no")
    credits = opsd.credit([group], learner)
    want = learner.policy.prompt_ids(prompts.reprompt(PROBLEM, solution=PROBLEM.solutions[0]))
    assert [c.teacher_prompt_ids for c in credits] == [want] * 3 and all(
        (c.kl == 1).all() for c in credits
    )
    [batch] = collate(credits, learner.policy.pad_id)
    scores = score(learner, batch, opsd)
    for i, credit in enumerate(batch.credits):
        ids = torch.tensor(credit.rollout.completion_ids)
        with torch.no_grad(), learner.weights("reference") as policy:
            log_q = (
                logits(policy, want, ids.tolist()).log_softmax(-1).gather(-1, ids[:, None])[:, 0]
            )
        torch.testing.assert_close(scores.teacher[i, : len(ids)], log_q, rtol=0, atol=1e-6)


def test_the_demonstration_is_drawn_evenly_and_by_coordinates():
    policy = tiny.policy()
    draws = Counter()
    for n in range(300):
        group = group_of(policy, right=["A", "B", "C"], wrong=[f"wrong {n}"])
        picks = [SDPO().shown(group, i)[0] for i in range(4)]
        assert picks == [SDPO(k=2).shown(group, i)[0] for i in range(4)], (
            "the same group, the same draw"
        )
        assert picks[0] != "A" and picks[1] != "B" and picks[2] != "C", "never its own"
        draws[picks[3]] += 1
    # 100 expected, standard deviation 8
    assert set(draws) == {"A", "B", "C"} and min(draws.values()) > 70


def test_thoughts_are_not_shown():
    policy = tiny.policy()
    group = group_of(
        policy, right=["<think>7+5,\nI wonder</think>\n\n7+5=12"], wrong=["C"], feedback="no"
    )
    assert SDPO().shown(group, 1) == ("7+5=12", "")
    bare = group_of(policy, right=["<think>only thoughts</think>\n"], wrong=["C"], feedback="no")
    assert SDPO().shown(bare, 1) == ("", "no")  # nothing is left of the demonstration


# ---- the teacher's prompt


def test_the_prompt_is_the_authors():
    """Their templates, filled by hand: {prompt}{solution}{feedback} and the instruction in the last
    user message; the system message stays.
    """
    policy = tiny.policy(max_position_embeddings=2048)
    wrong = attempt(policy, "7+5=13")
    text = (
        "7+5\nCorrect solution:\n\n7+5=12\nThe following is feedback from your "
        "unsuccessful earlier attempt:\n\nno"
        "\n\nCorrectly solve the original question."
    )
    want = policy.prompt_ids((PROBLEM.messages[0], {"role": "user", "content": text}))
    assert teacher_prompt(policy, PROBLEM, wrong, "7+5=12", "no") == want
    assert teacher_prompt(policy, PROBLEM, wrong, "", "") is None


@pytest.mark.parametrize(
    "texts", [("1+1=2\n" * 60, ""), ("", "no, no. " * 50), ("1+1=2\n" * 60, "no, no. " * 50)]
)
@pytest.mark.parametrize("context", [70, 90, 150])
def test_a_long_prompt_keeps_the_question_the_instruction_and_the_header(texts, context):
    policy = tiny.policy(max_position_embeddings=context)
    rollout = attempt(policy, "7+5=13")
    full = teacher_prompt(tiny.policy(max_position_embeddings=10**4), PROBLEM, rollout, *texts)
    assert len(full) > context
    ids = teacher_prompt(policy, PROBLEM, rollout, *texts)
    # as much as fits (a character may be several tokens)
    assert context - 6 <= len(ids) + len(rollout.completion_ids) <= context
    plain = policy.prompt_ids(PROBLEM.messages)
    begin = len(policy.prompt_ids(PROBLEM.messages[:1])) - (
        len(plain)
        - len(
            policy.tokenizer.apply_chat_template(
                [dict(m) for m in PROBLEM.messages], tokenize=True, add_generation_prompt=False
            )["input_ids"]
        )
    )
    text = policy.tokenizer.decode(ids)
    again = policy.tokenizer.decode(
        policy.prompt_ids(({"role": "user", "content": prompts.AGAIN},))
    )
    assert (
        begin > 0
        and text.endswith(again[again.index(prompts.AGAIN) :])
        and ids[:begin] == plain[:begin]
        and "7+5" in text
    )
    for head, shown in ((prompts.SOLUTION, texts[0]), (prompts.FEEDBACK, texts[1])):
        if shown and head in text:
            assert text.split(head)[1][:4] == shown[:4]  # its beginning stays


@pytest.mark.parametrize("context", range(100, 112))
def test_a_cut_inside_a_character_comes_to_an_end(context):
    """A tokenizer of bytes: half a character decodes to a sign of three bytes, which a naive cut
    would shorten and lengthen for ever.
    """

    class Bytes:
        def prompt_ids(self, messages):
            return tuple("".join(m["content"] for m in messages).encode())

        def completion_ids(self, text):
            return (*text.encode(), 0)

        def decode(self, ids):
            return bytes(ids).decode(errors="replace")

    policy = Bytes()
    policy.context = context
    ids = teacher_prompt(policy, PROBLEM, attempt(tiny.policy(), "12"), "é∑" * 90, "")
    text = policy.decode(ids)
    assert (
        context - 3 - 4 <= len(ids) <= context - 3
        and "\N{REPLACEMENT CHARACTER}" not in text
        and text.endswith(prompts.AGAIN)
    )


def test_a_prompt_that_cannot_fit_masks_the_rollout():
    policy = tiny.policy(max_position_embeddings=30)
    assert teacher_prompt(policy, PROBLEM, attempt(policy, "1" * 20), "12", "no") is None


# ---- alignment


def ragged(policy) -> list[Credit]:
    """Completions of several lengths, some of one prompt, with teacher's prompts of other lengths;
    one rollout has none.
    """
    mine, other = (
        policy.prompt_ids(PROBLEM.messages),
        policy.prompt_ids(({"role": "user", "content": "1"},)),
    )
    made = []
    for i, (prompt, text) in enumerate(
        [(mine, "7+5=12"), (mine, "1"), (other, "12345678"), (mine, "13"), (other, "2")]
    ):
        rollout = attempt(policy, text, i % 2 == 0, prompt=prompt)
        teacher = (
            None
            if i == 3
            else policy.prompt_ids(prompts.reprompt(PROBLEM, solution="9" * (3 * i + 1)))
        )
        made.append(Credit.of(rollout, kl=float(teacher is not None), teacher_prompt_ids=teacher))
    return made


@KINDS
@pytest.mark.parametrize("rows", [None, 2, 1])
@pytest.mark.parametrize("teacher", ["ema", "mixed", "frozen", "live"])
def test_the_teacher_reads_the_same_tokens_under_its_own_prompt(teacher, rows, lora):
    """Against single sequences through the model's own logits; "mixed" against the two
    distributions multiplied out and normalised.
    """
    learner, method = learner_of(lora), SDPO(teacher=teacher, a=1.0, top_k=0, trust=0.3)
    with learner.weights("teacher"):
        pass
    disturb(learner)
    learner.update_teacher()
    credits, seen = ragged(learner.policy), 0
    for batch in collate(credits, learner.policy.pad_id, rows):
        scores = score(learner, batch, method)
        for i, credit in enumerate(batch.credits):
            ids, n = credit.rollout.completion_ids, len(credit.rollout.completion_ids)
            if credit.teacher_prompt_ids is None:
                assert not any(
                    x[i].any()
                    for x in (
                        scores.teacher,
                        scores.divergence,
                        scores.divergence_credit,
                        scores.tail_mass,
                        scores.teacher_entropy,
                    )
                )
                continue

            def read(which):
                with torch.no_grad(), learner.weights(which) as policy:
                    return logits(policy, credit.teacher_prompt_ids, ids).softmax(-1)

            q = read({"ema": "teacher", "frozen": "reference"}.get(teacher, "policy"))
            if teacher == "mixed":
                q = read("reference") ** 0.7 * q**0.3
                q = q / q.sum(-1, keepdim=True)
            pi = logits(learner.policy, credit.rollout.prompt_ids, ids).softmax(-1)
            y = torch.tensor(ids)[:, None]
            torch.testing.assert_close(
                scores.teacher[i, :n], q.gather(-1, y)[:, 0].log(), rtol=0, atol=1e-6
            )
            torch.testing.assert_close(
                scores.divergence[i, :n], (pi * (pi / q).log()).sum(-1), rtol=0, atol=1e-6
            )
            torch.testing.assert_close(
                scores.divergence_credit[i, :n],
                (q / pi).log().gather(-1, y)[:, 0],
                rtol=0,
                atol=1e-6,
            )
            torch.testing.assert_close(
                scores.teacher_entropy[i, :n], -(q * q.log()).sum(-1), rtol=0, atol=1e-6
            )
            assert (
                not scores.divergence[i, n:].any() and scores.divergence[i, :n].abs().max() > 1e-3
            )
            seen += 1
        assert scores.divergence.requires_grad == any(
            c.teacher_prompt_ids is not None for c in batch.credits
        )
        assert not any(
            x.requires_grad
            for x in (
                scores.teacher,
                scores.divergence_credit,
                scores.tail_mass,
                scores.teacher_entropy,
            )
        )
    assert seen == 4


@KINDS
def test_equal_attempts_are_read_once_by_the_teacher_and_trained_on_each_time(lora, monkeypatch):
    """Two of the three wrong ones are the same, and all are shown the one success: the teacher
    reads two completions, the policy four.
    """
    learner, method = learner_of(lora), SDPO()
    disturb(learner)
    group = group_of(learner.policy, right=["7+5=12"], wrong=["7+5=13", "1", "7+5=13"])
    credits, calls, read = method.credit([group], learner), [], llama_states.completion_states
    monkeypatch.setattr(
        llama_states,
        "completion_states",
        lambda *args: (calls.append((len(args[2]), torch.is_grad_enabled())), read(*args))[1],
    )
    [batch] = collate(credits, learner.policy.pad_id)
    scores = score(learner, batch, method)
    assert calls == [(2, False), (4, True)]
    for i, credit in enumerate(batch.credits):
        [alone] = collate([credit], learner.policy.pad_id)
        single, n = score(learner, alone, method), len(credit.kl)
        for name in ("logp", "teacher", "divergence", "divergence_credit", "teacher_entropy"):
            torch.testing.assert_close(
                getattr(scores, name)[i, :n].double(),
                getattr(single, name)[0].double(),
                rtol=0,
                atol=1e-10,
            )


@KINDS
@pytest.mark.parametrize("teacher", ["ema", "frozen", "live", "mixed"])
@pytest.mark.parametrize(
    "options",
    [
        {"a": 0.5},
        {"a": 0.0, "top_k": 0},
        {"a": 1.0, "top_k": 5},
        {"form": "token"},
        {"form": "sequence"},
    ],
)
def test_the_same_prompt_and_the_same_weights_give_exactly_zero(teacher, options, lora):
    learner, method = (
        Learner(tiny.policy(max_position_embeddings=256), lora=lora),
        SDPO(teacher=teacher, **options),
    )
    credits = [
        replace(c, teacher_prompt_ids=c.rollout.prompt_ids, kl=c.kl * 0 + 1)
        for c in ragged(learner.policy)
    ]
    [batch] = collate(credits, learner.policy.pad_id)
    loss = method.loss(score(learner, batch, method), batch)
    loss.value.backward()
    # with two heads side by side the sum of the logits rounds otherwise
    exact = not (teacher == "mixed" and not lora)
    if exact:
        assert (
            loss.value == 0
            and not loss.credit.any()
            and all(p.grad is None or not p.grad.any() for p in learner.parameters)
        )
    else:
        assert loss.value.abs() < 1e-5 and loss.credit.abs().max() < 1e-4
        assert all(p.grad is None or p.grad.abs().max() < 1e-4 for p in learner.parameters)


@KINDS
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"form": "token"},
        {"form": "sequence"},
        {"aggregate": "sequence"},
        {"mix": 0.4},
        {"srpo": True},
        {"mix": 0.4, "aggregate": "sequence"},
        {"srpo": True, "aggregate": "sequence"},
        {"teacher": "mixed"},
    ],
    ids=str,
)
def test_micro_batches_and_order_do_not_matter(options, rows, lora):
    learner, method = learner_of(lora), SDPO(**options)
    disturb(learner)
    policy = learner.policy
    groups = [
        group_of(policy, right=["7+5=12", "Answer 12"], wrong=["7+5=1", "1"]),
        group_of(policy, wrong=["3", "12345"], feedback="no"),
        group_of(policy, right=["12"], wrong=["123456"]),
    ]
    credits = method.credit(groups, learner)

    def measured(credits, rows):
        value, painted, metrics = 0.0, {}, defaultdict(float)
        for batch in collate(credits, policy.pad_id, rows):
            loss = method.loss(score(learner, batch, method), batch)
            assert float(loss.per_token.sum()) == pytest.approx(float(loss.value), abs=1e-9)
            if loss.value.requires_grad:
                loss.value.backward()
            value += float(loss.value)
            for name, part in loss.metrics.items():
                metrics[name] += part
            painted |= {
                id(c.rollout): row[: len(c.kl)] for c, row in zip(batch.credits, loss.credit)
            }
        grads = [p.grad.clone() for p in learner.parameters]
        learner.optimizer.zero_grad(set_to_none=True)
        return value, painted, metrics, grads

    value, painted, metrics, grads = measured(credits, None)
    other_value, other_painted, other_metrics, other_grads = measured(credits[::-1], rows)
    assert other_value == pytest.approx(value, rel=1e-6) and other_metrics == pytest.approx(
        metrics, rel=1e-5
    )
    for key, row in painted.items():
        torch.testing.assert_close(other_painted[key], row, rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(other_grads, grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


# ---- the loss on given scores


def given(lengths, *, kl=None, rewards=None, seed=0, behaviour=None, old=None):
    """A batch and scores of it drawn at random, in double precision; gradients start at logp and
    divergence.
    """
    generator = torch.Generator().manual_seed(seed)
    kl = kl or [1.0] * len(lengths)
    group = toys.group(lengths, rewards or [float(i % 2 == 0) for i in range(len(lengths))])
    [batch] = collate(
        [Credit.of(r, kl=x, pg=0.5 - i) for i, (r, x) in enumerate(zip(group.rollouts, kl))], 0
    )

    def draw():
        return torch.rand(batch.mask.shape, generator=generator, dtype=torch.float64) * batch.mask

    logp, teacher, spread = -0.2 - 2 * draw(), -0.2 - 2 * draw(), draw()
    scores = Scores(
        (logp * batch.mask).requires_grad_(),
        draw(),
        None,
        teacher * batch.mask,
        draw().requires_grad_(),
        draw() - 0.5,
        draw() / 10,
        spread,
    )
    batch = replace(
        batch,
        sampler_logp=logp.detach().clone() if behaviour is None else logp.detach() + behaviour,
        old_logp=None if old is None else logp.detach() + old,
    )
    return batch, scores


@pytest.mark.parametrize(
    "aggregate, want", [("token", [1 / 6] * 6), ("sequence", [1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8])]
)
def test_means_by_hand(aggregate, want):
    """Three rollouts of 1, 2 and 3 tokens; for "sequence" the third is masked and still counts
    among four (there are 4).
    """
    if aggregate == "token":  # 1 + 2 + 3 tokens are distilled, 4 are not
        batch, scores = given([1, 2, 3, 4], kl=[1, 1, 1, 0])
        per = [1 / 6] * 6
    else:  # 1/1/4, 1/2/4 twice, and 1/2/4 twice
        batch, scores = given([1, 2, 3, 2], kl=[1, 1, 0, 1])
        per = want
    loss = SDPO(aggregate=aggregate).loss(scores, batch)
    on = batch.channels["kl"] != 0
    torch.testing.assert_close(
        loss.value, (scores.divergence[on] * torch.tensor(per, dtype=torch.float64)).sum()
    )
    torch.testing.assert_close(
        loss.credit[on],
        scores.divergence_credit[on]
        * torch.tensor(per, dtype=torch.float64)
        * batch.denominators["tokens"],
    )
    assert not loss.credit[~on].any() and not loss.per_token[~on].any()


@pytest.mark.parametrize(
    "moved, gap, weight",
    [
        # log(pi / pi_old), log(pi_old / pi_sampler)
        (0.0, 0.0, 1.0),
        (math.log(3), 0.0, 2.0),
        (math.log(0.5), 0.0, 0.5),
        (0.0, math.log(5), 2.0),
        (math.log(1.5), math.log(4), 3.0),
    ],
)
def test_importance_weights_by_hand(moved, gap, weight):
    for form in ("logit", "token"):
        batch, scores = given([3, 2], old=-moved, behaviour=-moved - gap)
        plain, _ = given([3, 2])
        value = SDPO(form=form).loss(scores, batch).value
        torch.testing.assert_close(
            value, weight * SDPO(form=form).loss(scores, plain).value, rtol=1e-5, atol=0
        )
    borrowed = replace(plain, sampler_logp=torch.full_like(plain.sampler_logp, math.nan))
    # nobody sampled it
    assert SDPO().loss(scores, borrowed).value == SDPO().loss(scores, plain).value


@pytest.mark.parametrize("form", ["token", "sequence"])
@pytest.mark.parametrize(
    "options", [{}, {"aggregate": "sequence"}, {"mix": 0.9}, {"srpo": True}, {"cap": 1.1}], ids=str
)
def test_credit_is_the_gradient_of_the_sampled_tokens(form, options):
    """In these forms only log pi(y_t) has a gradient, so the drawn number must be autograd's."""
    batch, scores = given([3, 1, 4, 2], kl=[1, 0, 1, 1], old=0.1, behaviour=-0.2)
    loss = SDPO(form=form, **options).loss(scores, batch)
    [gradient] = torch.autograd.grad(loss.value, scores.logp)
    torch.testing.assert_close(
        -gradient * batch.denominators["tokens"], loss.credit, rtol=1e-6, atol=1e-8
    )
    torch.testing.assert_close(loss.per_token.sum(), loss.value.detach())
    assert loss.credit.abs().max() > 0.01


def test_token_form_by_hand():
    batch, scores = given([2])
    # Delta = -2 and 1.5
    logp, teacher = (
        torch.tensor([row], dtype=torch.float64) for row in ([-1.0, -2.0], [-3.0, -0.5])
    )
    scores = replace(
        scores,
        logp=logp.requires_grad_(),
        teacher=teacher,
        divergence_credit=teacher - logp.detach(),
    )
    batch = replace(batch, sampler_logp=logp.detach())
    token, sequence = (SDPO(form=form).loss(scores, batch) for form in ("token", "sequence"))
    # -Delta log pi, their mean
    assert float(token.value) == pytest.approx(
        (-2 * 1 + 1.5 * 2) / 2
    ) and token.credit.tolist() == [[-2.0, 1.5]]
    assert sequence.credit.tolist() == [[-0.25, -0.25]]
    # Delta is the credit of KL(pi || q)
    assert SDPO(form="token", a=0.5, top_k=5, advantage_clip=1.0).distil == Distil(
        1.0, 0, "teacher", 0.01, 1.0
    )


@pytest.mark.parametrize("a", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 0},
        {"top_k": 2},
        {"top_k": 2, "advantage_clip": 0.1},
        {"top_k": 0, "aggregate": "sequence"},
    ],
    ids=str,
)
def test_expected_credit_is_the_gradient_of_the_whole_loss(a, options):
    """Full enumeration of a completion of one token out of four: sum_y pi(y) credit(y) grad log
    pi(y) = -grad L, with the credit that is drawn.
    """
    method, eye = SDPO(a=a, **options), torch.eye(4, dtype=torch.float64)
    z, teacher = torch.randn(
        2, 1, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    total = torch.zeros_like(z)
    for y in range(4):
        rollout = Rollout((1,), (y,), (-1.0,), "?", Verdict(0.0, False))
        [batch] = collate([Credit.of(rollout, kl=1.0, teacher_prompt_ids=(2,))], 0)
        free = z.clone().requires_grad_()
        logp = free.log_softmax(-1)[:, y]
        found = divergence(
            free,
            eye,
            teacher,
            eye,
            torch.tensor([y]),
            method.a,
            method.top_k,
            method.advantage_clip,
        )
        wide = [
            x[:, None]
            for x in (
                logp,
                logp * 0,
                found.teacher,
                found.value,
                found.credit,
                found.tail_mass,
                found.entropy,
            )
        ]
        loss = method.loss(
            Scores(wide[0], wide[1].detach(), None, *wide[2:]),
            replace(batch, sampler_logp=wide[0].detach()),
        )
        [gradient] = torch.autograd.grad(loss.value, free, retain_graph=True)
        [direction] = torch.autograd.grad(logp.sum(), free)
        total += float(logp.detach().exp()) * float(loss.credit) * direction
    assert gradient.abs().max() > 1e-3
    torch.testing.assert_close(total, -gradient, rtol=1e-7, atol=1e-9)


def test_mix_is_the_sum_of_the_two_losses():
    batch, scores = given([3, 2, 4], old=0.05, behaviour=0.05)
    plain, mixed = SDPO(), SDPO(mix=0.9)
    sdpo, grpo = plain.loss(scores, batch), mixed.grpo.loss(scores, batch)
    loss = mixed.loss(scores, batch)
    torch.testing.assert_close(loss.value, 0.1 * sdpo.value + 0.9 * grpo.value)
    torch.testing.assert_close(loss.credit, 0.1 * sdpo.credit + 0.9 * grpo.credit)
    torch.testing.assert_close(loss.per_token, 0.1 * sdpo.per_token + 0.9 * grpo.per_token)
    assert {"ratio", "clipped", "divergence"} <= loss.metrics.keys()
    assert SDPO(mix=1.0).loss(scores, batch).value == grpo.value
    # the paper's GRPO: no division by the standard deviation
    group = toys.group([2, 2, 2, 2], [1, 0, 0, 0])
    credits = SDPO(mix=0.9).credit([group], learner_of())
    assert [float(c.pg[0]) for c in credits] == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_srpo_routes_wrong_rollouts_with_a_teacher_to_it_and_all_others_to_grpo():
    learner = learner_of()
    mixed = group_of(learner.policy, right=["A", "B"], wrong=["C", "D"])
    hopeless = group_of(learner.policy, wrong=["C", "D"])
    credits = SDPO(srpo=True).credit([mixed, hopeless], learner)
    assert [bool(c.kl.all()) for c in credits] == [False, False, True, True, False, False]
    # the hopeless group has no contrast
    assert [float(c.pg[0]) for c in credits] == [0.5, 0.5, 0, 0, 0, 0]


def test_srpo_weighs_confident_teachers_more():
    """Entropies ln 1 and ln 3: weights 1 and 1/3, with mean 1:

    3/2 and 1/2; over the four tokens of the batch, two of them GRPO's.
    """
    batch, scores = given([2, 2], kl=[1, 0])
    scores = replace(
        scores, teacher_entropy=torch.tensor([[0.0, math.log(3)], [0.0, 0.0]], dtype=torch.float64)
    )
    batch.channels["pg"][0] = 0.0
    loss = SDPO(srpo=True).loss(scores, batch)
    torch.testing.assert_close(
        loss.credit[0], scores.divergence_credit[0] * torch.tensor([1.5, 0.5], dtype=torch.float64)
    )
    torch.testing.assert_close(loss.credit[1], batch.channels["pg"][1].double())


def test_health_by_hand():
    batch, scores = given([2, 1, 3], kl=[1, 1, 0], rewards=[1, 0, 1])
    metrics, delta = SDPO().loss(scores, batch).metrics, (scores.teacher - scores.logp).detach()
    assert metrics["delta_right"] == pytest.approx(float(delta[0, :2].mean())) and metrics[
        "delta_wrong"
    ] == pytest.approx(float(delta[1, 0]))
    for name, column in (
        ("divergence", scores.divergence),
        ("tail", scores.tail_mass),
        ("student_entropy", scores.entropy),
        ("teacher_entropy", scores.teacher_entropy),
    ):
        assert metrics[name] == pytest.approx(float((column[0, :2].sum() + column[1, 0]) / 3))
    nobody, scores = given([2, 1], kl=[0, 0])
    loss = SDPO().loss(scores, nobody)
    assert loss.metrics == {} and loss.value == 0 and not loss.credit.any()


def test_every_step_logs_the_health_and_each_number_is_explained_once():
    """With a success and failures in every group; each name begins one line of one docstring."""
    learner, task = Learner(toys.tiny_policy(), OptimConfig(lr=1e-2)), Told()
    health = {
        "demonstrated",
        "advised",
        "masked",
        "copied",
        "divergence",
        "delta_right",
        "delta_wrong",
        "tail",
        "student_entropy",
        "teacher_entropy",
    }
    explained = Counter(
        word.strip(",:")
        for words in (SDPO.health.__doc__, SDPO.diagnose.__doc__)
        for line in words.split("\n")
        for word in line.split()[:1]
    )
    assert all(explained[name] == 1 for name in health)
    assert (
        "teacher_distance," in step_of.measure.__doc__
        and "length (completion tokens)" in step_of.describe.__doc__
    )
    for step in range(2):
        record = update(SDPO(k=8), learner, task, task.problems("train", 4, step), (0, step))
        assert health | {"teacher_distance", "length"} <= record.metrics.keys()
        assert all(math.isfinite(value) for value in record.metrics.values())


def test_copied_is_the_share_of_lines_that_stand_in_the_demonstration():
    policy = tiny.policy()
    group = group_of(policy, right=["7+5=12\nAnswer 12"], wrong=["7+5=12\nAnswer 13", "1\n2"])
    method = SDPO()
    # one of the two wrong rollouts' four lines
    assert method.diagnose([group], method.credit([group], learner_of()))["copied"] == 1 / 4


# ---- other implementations


def authors(student, teacher, old, sampler, mask, a, k, cap):
    """The released loss, written again from its formula: [B, T, V] logits, [B, T] sampled
    log-probs, one mean over the tokens of ``mask``.
    """
    (logp, all_p), (logq, all_q) = student, teacher
    if k is None:
        per = (logp - logq).detach() * logp
    else:
        if k:
            ids = all_p.topk(k).indices

            def close(x):
                x = x.gather(-1, ids)
                s = x.exp().sum(-1, keepdim=True).clamp(max=math.exp(-1e-7))
                return torch.cat([x, (1 - s).log()], -1)

            all_p, all_q = close(all_p), close(all_q)
        p, q = all_p.exp(), all_q.exp()
        m = ((1 - a) * p + a * q).log()
        per = {1.0: p * (all_p - all_q), 0.0: q * (all_q - all_p)}.get(
            a, (1 - a) * p * (all_p - m) + a * q * (all_q - m)
        ).sum(-1)
    per = (
        per
        * (logp - old).detach().clamp(-20, 20).exp().clamp(max=cap)
        * (old - sampler).exp().clamp(max=2)
    )
    return (per * mask).sum() / mask.sum()


def package(student, teacher, old, sampler, mask, a, k, cap):
    reason = "sdpo-rl is not installed (pip install --no-deps sdpo-rl)"
    rl = pytest.importorskip("sdpo_rl.distillation", reason=reason)
    ids = (
        student[1].topk(k).indices
        if k
        else torch.arange(student[1].shape[-1]).expand_as(student[1])
    )
    tops = (
        {}
        if k is None
        else {
            "student_topk_log_probs": student[1].gather(-1, ids),
            "teacher_topk_log_probs": teacher[1].gather(-1, ids),
        }
    )
    return rl.compute_self_distillation_loss(
        student[0],
        teacher[0],
        mask,
        **tops,
        alpha=a,
        is_clip=cap,
        add_tail=bool(k),
        old_log_probs=old,
        rollout_is_weights=(old - sampler).exp().clamp(max=2),
    )[0]


def trl(student, teacher, old, sampler, mask, a, k, cap):
    other = pytest.importorskip(
        "trl.experimental.sdpo.loss_utils", reason="TRL with SDPO is not installed"
    )
    if k is None:
        per = (student[0] - teacher[0]).detach() * student[0]
    elif k:
        per = other.compute_topk_self_distillation_loss(
            student[1],
            teacher[1],
            distillation_topk=k,
            distillation_alpha=a,
            distillation_add_tail=True,
        )
    else:
        per = other.compute_full_logit_self_distillation_loss(
            student[1], teacher[1], distillation_alpha=a
        )
    per = other.apply_importance_sampling_clipping(per, student[0], old, cap) * (
        old - sampler
    ).exp().clamp(max=2)
    return (per * mask).sum() / mask.sum()


@pytest.mark.parametrize("oracle", [authors, package, trl])
# None: the token form
@pytest.mark.parametrize(
    "a, k", [(0.0, 0), (0.0, 5), (0.5, 0), (0.5, 5), (0.3, 5), (1.0, 0), (1.0, 5), (1.0, None)]
)
def test_value_and_gradient_equal_other_implementations(oracle, a, k):
    generator = torch.Generator().manual_seed(7)
    lengths, v = [4, 7, 1, 5], 23

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shift_old, shift_sampler = 0.6 * draw(4, 7), 0.6 * draw(4, 7)
    batch, _ = given(lengths, kl=[1, 1, 0, 1])
    student, teacher = 1.5 * draw(4, 7, v), 1.5 * draw(4, 7, v)
    y, results = batch.targets % v, []
    for which in ("ours", "theirs"):
        z = student.clone().requires_grad_()
        all_p, all_q = z.log_softmax(-1), teacher.log_softmax(-1)
        logp, logq = (x.gather(-1, y[..., None])[..., 0] for x in (all_p, all_q))
        old = logp.detach() + shift_old
        sampler = old + shift_sampler
        if which == "ours":
            eye = torch.eye(v, dtype=torch.float64)
            method = SDPO(a=a, top_k=k or 0, form="token" if k is None else "logit")
            found = divergence(
                z.flatten(0, 1),
                eye,
                teacher.flatten(0, 1),
                eye,
                y.flatten(),
                method.distil.alpha,
                method.distil.top_k,
            )
            value, credit, tail, entropy = (
                x.reshape(4, 7) for x in (found.value, found.credit, found.tail_mass, found.entropy)
            )
            scores = Scores(logp, torch.zeros_like(old), None, logq, value, credit, tail, entropy)
            loss = method.loss(
                scores,
                replace(batch, old_logp=old, sampler_logp=torch.where(batch.mask, sampler, 0.0)),
            ).value
        else:
            loss = oracle(
                (logp, all_p),
                (logq, all_q),
                old,
                sampler,
                (batch.mask & (batch.channels["kl"] != 0)).double(),
                a,
                k,
                2.0,
            )
        loss.backward()
        results.append((loss.detach(), z.grad))
    assert abs(float(results[0][0])) > 1e-3
    torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-9)


# ---- the loop


@dataclass(frozen=True)
class Told(toys.FirstCharacter):
    """The task of ``toys`` whose reward is a first character, with words for those that fail."""

    wanted: str = toys.HALF
    max_new: int = 3
    feedback: str = ""

    def grade(self, problem, text):
        verdict = super().grade(problem, text)
        return replace(verdict, feedback="" if verdict.correct else self.feedback)


NOBODY = "é"  # a character that the tokenizer does not have: every attempt is wrong


@KINDS
@pytest.mark.parametrize(
    "method, updates, rows",
    [(SDPO(k=4), 1, None), (SDPO(k=4), 3, 2), (SDPO(k=4, teacher="frozen"), 1, None)],
    ids=str,
)
def test_the_teacher_steps_once_a_batch(method, updates, rows, lora):
    learner = Learner(toys.tiny_policy(), OptimConfig(lr=1e-2, ema=0.25), lora=lora)
    task = Told()
    before = [p.detach().clone() for p in learner.parameters]
    record = update(
        method, learner, task, task.problems("train", 2, 0), (0, 0), rows=rows, updates=updates
    )
    moved = [p.detach().clone() for p in learner.parameters]
    assert record.metrics["loss"] > 0 and any((a != b).any() for a, b in zip(before, moved))
    if method.teacher == "frozen":
        assert learner._teacher is None and "teacher_distance" not in record.metrics
        return
    for start, now, held in zip(before, moved, learner._teacher.values(), strict=True):
        torch.testing.assert_close(held, torch.lerp(start, now, 0.25))
        assert not held.requires_grad
    assert record.metrics["teacher_distance"] == pytest.approx(0.75, abs=1e-4)
    assert not {id(p) for p in learner._teacher.values()} & {id(p) for p in learner.parameters}


def test_the_teacher_stays_when_an_update_was_not_finite(monkeypatch):
    learner, task = Learner(toys.tiny_policy(), OptimConfig(lr=1e-2, ema=0.5)), Told()
    step = learner.step

    def bad():
        learner.parameters[0].grad[0] = math.nan
        return step()

    monkeypatch.setattr(learner, "step", bad)
    record = update(SDPO(k=4), learner, task, task.problems("train", 2, 0), (0, 0))
    assert learner.skipped == 1 and "teacher_distance" not in record.metrics
    assert all(
        torch.equal(held, start)
        for held, start in zip(learner._teacher.values(), learner._start.values())
    )


def test_the_adapters_product_follows_at_the_rate_of_the_ema():
    """Product space:

    B'A' of the averaged factors against the average of the products B A, after each of eight
    updates. A teacher whose A and B both started from 0 would be .80, .64, .51, ... of it away.
    """
    learner, task = Learner(toys.tiny_policy(), OptimConfig(lr=2e-3, ema=0.2), lora=4), Told()

    def products(weights):
        return [
            (weights[n.replace("lora_A", "lora_B")] @ p).detach()
            for n, p in weights.items()
            if "lora_A" in n
        ]

    def norm(parts):
        return float(sum(p.square().sum() for p in parts)) ** 0.5

    exact = [torch.zeros_like(p) for p in products(learner._weights())]  # B = 0 at the start
    for step in range(8):
        update(
            SDPO(k=4, demonstration="any"),
            learner,
            task,
            task.problems("train", 4, step),
            (0, step),
        )
        exact = [torch.lerp(e, p, 0.2) for e, p in zip(exact, products(learner._weights()))]
        assert norm(exact) > 0 and norm(
            [a - b for a, b in zip(exact, products(learner._teacher))]
        ) < 0.03 * norm(exact)


@pytest.mark.parametrize(
    "teacher, adapters", [("ema", 2), ("mixed", 1), ("frozen", 1), ("live", 1)]
)
def test_with_lora_no_teacher_is_a_second_copy_of_the_base(teacher, adapters):
    """After a whole update: the tensors of the model, the optimiser, the teacher and the
    checkpoint, counted.
    """
    policy = toys.tiny_policy()
    base = sum(p.numel() for p in policy.model.parameters())
    learner, task = Learner(policy, OptimConfig(lr=1e-2), lora=2), Told()
    adapter = sum(p.numel() for p in learner.parameters)
    record = update(
        SDPO(k=4, teacher=teacher, demonstration="any"),
        learner,
        task,
        task.problems("train", 2, 0),
        (0, 0),
    )
    assert record.metrics["demonstrated"] > 0 and 4 * adapter < base
    assert sum(p.numel() for p in policy.model.parameters()) == base + adapter
    assert sum(p.numel() for p in learner._start.values()) == adapter
    assert sum(p.numel() for p in (learner._teacher or {}).values()) == (adapters - 1) * adapter


def test_a_batch_that_nobody_can_teach_changes_nothing():
    learner = Learner(toys.tiny_policy(), OptimConfig(lr=1e-2))
    task = Told(NOBODY)  # nothing is right, and there is no feedback
    before = [p.detach().clone() for p in learner.parameters]
    for rows in (None, 1):
        record = update(SDPO(k=3), learner, task, task.problems("train", 2, 0), (0, 0), rows=rows)
        assert (
            record.metrics["masked"] == 1
            and record.metrics["loss"] == 0
            and record.metrics["credit_mean"] == 0
        )
    assert all(torch.equal(a, b) for a, b in zip(before, learner.parameters))


@pytest.mark.parametrize(
    "options",
    [{"a": 0.5}, {"a": 1.0}, {"a": 0.0}, {"a": 1.0, "form": "token"}, {"teacher": "ema"}],
    ids=str,
)
def test_the_policy_reaches_its_teacher(options):
    """Against a frozen teacher the optimum is known: the policy without the feedback writes what
    the teacher writes with it.
    """
    method = SDPO(**{"k": 16, "teacher": "frozen", "top_k": 0, "demonstration": "none", **options})
    learner, task = (
        Learner(tiny.policy(max_position_embeddings=256), OptimConfig(lr=2e-3, ema=0.0)),
        Told(NOBODY, max_new=1, feedback="no"),
    )
    [problem] = task.problems("train", 1, 0)
    rollout = attempt(learner.policy, "1")
    taught = (
        logits(learner.policy, teacher_prompt(learner.policy, problem, rollout, "", "no"), (0,))
        .softmax(-1)[0]
        .detach()
    )
    plain = learner.policy.prompt_ids(problem.messages)

    def away():
        return float((taught - logits(learner.policy, plain, (0,)).softmax(-1)[0]).abs().sum() / 2)

    before = away()
    for step in range(60):
        update(method, learner, task, [problem], (0, step))
    assert before > 0.3 and away() < 0.25 * before


@KINDS
def test_a_killed_run_goes_on_bit_for_bit(lora, tmp_path):
    """The EMA teacher is part of what is resumed: the third and fourth step compare with it."""
    plan = TrainConfig(steps=4, prompts=2, eval_every=0, checkpoint_every=2)

    def run(folder, steps, **how):
        learner = Learner(toys.tiny_policy(), OptimConfig(lr=1e-2, ema=0.3), lora=lora)
        fit(
            SDPO(k=3),
            learner,
            Told(feedback="no"),
            replace(plan, steps=steps),
            tmp_path / folder,
            progress=False,
            **how,
        )
        return learner

    whole = run("whole", 4)
    run("parts", 2)
    parts = run("parts", 4, resume=True)
    for ours, theirs in ((parts._weights(), whole._weights()), (parts._teacher, whole._teacher)):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not any(p.requires_grad for p in parts._teacher.values())
    assert not all(torch.equal(parts._teacher[name], parts._start[name]) for name in parts._start)


# ---- collapse


def history(**values):
    size = max(map(len, values.values()))
    return [
        {"correct": 0.5, "entropy": 1.0, "length": 20.0}
        | {name: row[i] for name, row in values.items()}
        for i in range(size)
    ]


def certain(average):
    return SimpleNamespace(avg=average, low=average, high=average, length=1.0)


def evaluations(*averages, error=0.01):
    rows = np.add.outer([0.0, -error, error], averages)
    return dict(zip(("eval_avg", "eval_low", "eval_high"), rows.tolist(), strict=True))


@pytest.mark.parametrize(
    "values, word",
    [
        ({"correct": [0.5] * 5 + [0.8] * 5 + [0.3] * 5}, "correct fell from 0.8 to 0.3"),
        ({"correct": [0.8] * 5 + [0.5] * 5}, ""),
        ({"correct": [0.8] * 5 + [0.0]}, ""),  # one bad step is noise
        ({"correct": [0.08] * 5 + [0.0] * 5}, ""),  # hard problems: too few successes to tell
        ({"entropy": [1.0] * 5 + [0.09] * 5}, "entropy fell"),
        ({"length": [50.0] * 5 + [15.0] * 5}, ""),  # the paper's answers become three times shorter
        ({"length": [50.0] * 5 + [9.0] * 5}, "length fell"),
        ({"correct": [0.5] * 4}, ""),
        (
            evaluations(0.5, 0.4, 0.2),
            "right answers to the validation problems fell from 0.5 to 0.2",
        ),
        (evaluations(0.5, 0.4, 0.2, error=0.2), ""),  # few problems: the intervals overlap
        (evaluations(0.5, float("nan"), 0.26), ""),
        (evaluations(0.04, 0.0), ""),
    ],
)
def test_collapse_is_told_from_noise(values, word):
    said = collapse(history(**values), SDPO())
    assert said.startswith(word) if word else said == ""


def test_a_policy_that_stays_as_it_is_hardly_ever_seems_to_collapse_on_few_problems():
    """Three problems a step, right three times in ten: 16 of 20 such runs halved at some time."""
    rng = np.random.default_rng(0)
    chances = rng.beta(0.3, 0.7, (200, 30, 3))
    correct = rng.binomial(8, chances).mean(2) / 8
    means = np.apply_along_axis(np.convolve, 1, correct, np.full(5, 0.2), "valid")
    best = np.maximum.accumulate(means, axis=1)
    assert (means < best / 2).any(axis=1).sum() > 140
    runs = [history(correct=list(row)) for row in correct]
    alarms = [any(collapse(run[:n], GRPO()) for n in range(6, 31)) for run in runs]
    assert sum(alarms) <= 20
    # and one that loses everything within three steps is told of by the fifth
    lost = [
        history(correct=[*row[:15], row[15] / 2, *[0.0] * 6])
        for row in np.clip(correct + 0.3, 0, 1)
    ]
    assert sum(bool(collapse(run, GRPO())) for run in lost) > 190


@pytest.mark.parametrize("problems, samples", [(8, 4), (12, 2)])
def test_evaluations_of_the_same_policy_hardly_ever_seem_to_collapse(problems, samples):
    """Ten looks at few and hard problems: by their means alone, half of such runs fell by half."""
    rng = np.random.default_rng(0)
    halved = alarms = 0
    for _ in range(100):
        chances = rng.beta(0.1, 0.7, problems)
        rates = rng.binomial(samples, chances, (10, problems)) / samples
        lows, highs = np.transpose([bootstrap(each, draws=400) for each in rates])
        run = history(eval_avg=rates.mean(1), eval_low=lows, eval_high=highs)
        best = np.maximum.accumulate(rates.mean(1))
        halved += any((rates.mean(1) < best / 2) & (best >= 0.05))
        alarms += any(collapse(run[:n], GRPO()) for n in range(1, 11))
    assert halved >= 40 and alarms <= 10


def test_a_reward_may_lower_entropy_and_length():
    fallen = history(entropy=[1.0] * 5 + [0.01] * 5, length=[50.0] * 5 + [5.0] * 5)
    assert collapse(fallen, SDPO()) and not collapse(fallen, GRPO())
    assert collapse(history(correct=[0.8] * 5 + [0.3] * 5), GRPO())


def test_a_run_keeps_its_best_policy_and_warns_once_when_it_collapses(tmp_path, monkeypatch):
    """Evaluations .3, .6, .6, .2, ...: the second is kept.

    Every rollout is wrong from step 6 on.
    """
    scores = iter([0.3, 0.6, 0.6] + [0.2] * 20)
    monkeypatch.setattr(
        "workbench.training.run.evaluate",
        lambda *_: certain(next(scores)),
    )
    learner = Learner(toys.tiny_policy(), OptimConfig(lr=1e-2))
    policies, save = [], learner.save
    monkeypatch.setattr(
        learner,
        "save",
        lambda folder: (
            policies.append([p.detach().clone() for p in learner.parameters]),
            save(folder),
        ),
    )

    class Turns(Told):
        calls = 0

        def problems(self, split, n, seed):
            Turns.calls += split == "train"
            return super().problems(split, n, seed)

        def grade(self, problem, text):
            return super().grade(problem, text) if Turns.calls <= 6 else Verdict(0.0, False)

    with pytest.warns(
        UserWarning,
        match="validation problems fell from 0.6 to 0.2: the run may be collapsing.* best "
        "evaluation is in .*best",
    ) as caught:
        fit(
            SDPO(k=4),
            learner,
            Turns(),
            TrainConfig(steps=14, prompts=2, eval_every=1, eval_problems=1),
            tmp_path / "run",
            progress=False,
        )
    assert sum("collapsing" in str(w.message) for w in caught) == 1
    assert len(policies) == 2  # the second evaluation, and the end of the run
    best = load_policy(tmp_path / "run" / "best")
    assert all(
        torch.equal(ours, kept)
        for ours, kept in zip(best.model.parameters(), policies[0], strict=True)
    )
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize("scores, kept", [((0.3, 0.6), True), ((0.6, 0.3), False)])
def test_the_best_is_what_training_made_and_may_be_the_last(scores, kept, tmp_path, monkeypatch):
    each = iter(scores)
    monkeypatch.setattr(
        "workbench.training.run.evaluate",
        lambda *_: SimpleNamespace(avg=next(each), low=0.0, high=1.0, length=1.0),
    )
    out = fit(
        SDPO(k=4),
        Learner(toys.tiny_policy(), OptimConfig(lr=1e-2)),
        Told(),
        TrainConfig(steps=2, prompts=2, eval_every=2, eval_problems=1),
        tmp_path / "run",
        progress=False,
    )
    assert (out / "best").is_dir() == kept
    if kept:
        last, best = (load_policy(out / name).model.parameters() for name in ("model", "best"))
        assert all(map(torch.equal, last, best))


# ---- options


@pytest.mark.parametrize(
    "options",
    [
        {"k": 0},
        {"a": 1.5},
        {"mix": -0.1},
        {"teacher": "old"},
        {"form": "word"},
        {"demonstration": "own"},
        {"cap": 0},
        {"feedback": "some"},
        {"aggregate": "sum"},
        {"trust": 2},
        {"advantage_clip": 0},
        {"top_k": -1},
        {"srpo": True, "mix": 0.5},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(WorkbenchError, match=next(iter(options))):
        SDPO(**options)


def test_it_is_found_and_takes_options_as_text():
    assert find("sdpo") is SDPO
    made = with_options(
        SDPO, ["a=1", "top_k=20", "advantage_clip=5", "srpo=true", "teacher=mixed"], "sdpo"
    )
    assert made == SDPO(a=1.0, top_k=20, advantage_clip=5.0, srpo=True, teacher="mixed")
