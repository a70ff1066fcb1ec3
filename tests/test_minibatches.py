"""Mini-batches, rate schedules, temperature, nucleus, query filter, dynamic sampling:
identities, hand arithmetic, and transformers' own numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
import toys

from workbench.app.cli import main
from workbench.core import Verdict, WorkbenchError
from workbench.evaluation.metrics import evaluate
from workbench.methods.grpo import GRPO
from workbench.methods.luffy import LUFFY
from workbench.methods.sft import SFT
from workbench.methods.trapo import TRAPO
from workbench.model.batch import collate, logp_and_entropy, pack, score
from workbench.model.learner import Learner, OptimConfig
from workbench.paths import ORGANISM
from workbench.records import read_metrics, read_run
from workbench.rollouts.sampling import pick, sample_groups
from workbench.training.run import TrainConfig, fit
from workbench.training.selection import contrast, written
from workbench.training.update import accumulate, mini_batches, update

TASK = toys.FirstCharacter(toys.HALF, max_new=6)


def learner_of(lr=1e-2, **options) -> Learner:
    return Learner(toys.tiny_policy(), OptimConfig(lr=lr, **options))


def one_update(learner, method=GRPO(k=4), **how):
    return update(method, learner, TASK, TASK.problems("train", 4, 0), (0, 0), **how)


def gradient(learner) -> torch.Tensor:
    parts = [p.grad.flatten() for p in learner.parameters if p.grad is not None]
    return torch.cat(parts).clone()


def steps_of(monkeypatch, learner) -> list[torch.Tensor]:
    gradients, step = [], learner.step

    def watching():
        gradients.append(gradient(learner))
        return step()

    monkeypatch.setattr(learner, "step", watching)
    return gradients


# ---- mini-batches


@pytest.mark.parametrize("n", [2, 3, 4])
def test_at_fixed_weights_the_parts_add_up_to_the_batch(monkeypatch, n):
    whole, parts = learner_of(lr=1e-30), learner_of(lr=1e-30)
    want, got = steps_of(monkeypatch, whole), steps_of(monkeypatch, parts)
    a, b = one_update(whole), one_update(parts, minibatches=n)
    assert len(want) == 1 and len(got) == n and want[0].abs().max() > 1e-3
    torch.testing.assert_close(sum(got) / n, want[0], atol=1e-6, rtol=1e-4)
    assert (got[0] - want[0]).abs().max() > 1e-3
    assert (a.metrics["optimizer_steps"], b.metrics["optimizer_steps"]) == (1, n)
    for name in ("loss", "entropy", "credit_mean", "ratio", "clipped", "generated", "correct"):
        assert b.metrics[name] == pytest.approx(a.metrics[name], abs=1e-5), name
    flat = [[x for group in r.credit for row in group for x in row] for r in (a, b)]
    assert flat[1] == pytest.approx(flat[0], abs=1e-4)


def test_old_log_probs_are_those_from_before_the_first_step():
    seen = []

    @dataclass(frozen=True)
    class Watching(GRPO):
        def loss(self, scores, batch):
            seen.append((scores.logp.detach().clone(), batch.old_logp, batch))
            return super().loss(scores, batch)

    learner, start = learner_of(lr=3e-2), learner_of()
    record = one_update(learner, Watching(k=4), minibatches=4, updates=2, rows=None)
    assert len(seen) == 8 and record.metrics["optimizer_steps"] == 8
    assert seen[0][1] is None
    for i, (logp, old, batch) in enumerate(seen[1:], 1):
        with torch.no_grad():
            want, _ = logp_and_entropy(start.policy, batch)
        torch.testing.assert_close(old, want, atol=1e-5, rtol=1e-5)
        assert (logp - old).abs().max() > 1e-3, i
    assert record.metrics["clipped"] > 0 and record.metrics["gap_max"] < 1e-4
    assert one_update(learner_of(lr=3e-2)).metrics["clipped"] == 0


def test_parts_are_whole_groups():
    groups = [toys.group([2, 3], [0, 1], seed=i) for i in range(5)]
    credits = GRPO(k=2).credit(groups, None)
    assert mini_batches(credits, groups, 2) == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7]]
    assert len(mini_batches(credits, groups, 9)) == 5
    batches = [collate(credits, 0, 1, only=part) for part in mini_batches(credits, groups, 2)]
    assert sorted(p for part in batches for b in part for p in b.places) == list(range(10))
    assert {b.denominators["tokens"] for part in batches for b in part} == {25.0}


# ---- the learning rate


@pytest.mark.parametrize("warmup, updates", [(0, 7), (3, 10), (5, 6)])
def test_the_schedule_is_that_of_transformers(warmup, updates):
    from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

    for schedule in ("cosine", "constant"):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
        if schedule == "cosine":
            theirs = get_cosine_schedule_with_warmup(optimizer, warmup, updates)
        else:
            theirs = get_constant_schedule_with_warmup(optimizer, warmup)
        settings = OptimConfig(lr=0.3, warmup=warmup, schedule=schedule)
        for number in range(updates):
            assert settings.rate(number, updates) == pytest.approx(theirs.get_last_lr()[0])
            optimizer.step()
            theirs.step()
    # by hand: half-way down after the warm-up
    assert OptimConfig(lr=0.2, warmup=2, schedule="cosine").rate(6, 10) == pytest.approx(0.1)


def test_a_schedule_is_recorded_applied_and_exact_on_resume(tmp_path):
    settings = {"lr": 1e-2, "warmup": 2, "schedule": "cosine"}
    plan = TrainConfig(steps=6, prompts=4, eval_every=0, checkpoint_every=3, minibatches=2)

    def run(out, upto=None, **how):
        learner = learner_of(**settings)
        if upto is not None:
            step, made = learner.step, []

            def dying():
                made.append(1)
                if len(made) > upto:
                    raise RuntimeError("killed")
                return step()

            learner.step = dying
        fit(GRPO(k=4), learner, TASK, plan, out, progress=False, **how)

    run(tmp_path / "a")
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "b", upto=9)
    run(tmp_path / "b", resume=True)
    a, b = read_metrics(tmp_path / "a"), read_metrics(tmp_path / "b")
    rates = [line["lr"] for line in a]
    assert rates == pytest.approx([0, 5e-3, 1e-2, 8.5355339e-3, 5e-3, 1.4644661e-3])
    timeless = [
        [{k: v for k, v in line.items() if not k.startswith("seconds")} for line in run]
        for run in (a, b)
    ]
    assert timeless[0] == timeless[1]
    for change in ({"schedule": "constant"}, {"warmup": 3}):
        with pytest.raises(WorkbenchError, match="other settings"):
            fit(GRPO(k=4), learner_of(**settings | change), TASK, plan, tmp_path / "a", resume=True)
    longer = TrainConfig(**{**vars(plan), "steps": 8})
    with pytest.raises(WorkbenchError, match="steps"):  # it would have been another cosine
        fit(GRPO(k=4), learner_of(**settings), TASK, longer, tmp_path / "a", resume=True)
    with pytest.raises(WorkbenchError, match="warm-up of 9"):
        fit(GRPO(k=4), learner_of(warmup=9), TASK, plan, tmp_path / "c")
    assert not (tmp_path / "c").exists()


# ---- temperature and nucleus


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_at_a_temperature_sampler_and_trainer_agree(temperature):
    learner = learner_of(lr=1e-30)
    record = one_update(learner, temperature=temperature)
    assert record.metrics["gap_max"] < 1e-4 and learner.policy.temperature == 1
    rollout = record.groups[0].rollouts[0]
    packed = pack([(rollout.prompt_ids, rollout.completion_ids)], 0)
    ids = torch.tensor([rollout.prompt_ids + rollout.completion_ids])
    logits = learner.policy.model(input_ids=ids).logits[0] / temperature
    rows = logits.log_softmax(-1)[len(rollout.prompt_ids) - 1 : -1]
    want = rows.gather(-1, packed.targets.T)[:, 0]
    torch.testing.assert_close(torch.tensor(rollout.logprobs), want, atol=1e-5, rtol=1e-5)


def test_the_gradient_is_that_of_the_tempered_policy():
    learner = learner_of()
    group = sample_groups(learner.policy, TASK, TASK.problems("train", 1, 0), 2, (0,))[0]
    [batch] = collate(SFT().credit([group], learner), 0)
    learner.policy.temperature = 2.0
    accumulate(SFT(), learner, [batch])
    got = gradient(learner)
    learner.policy.temperature = 1.0
    learner.optimizer.zero_grad()
    logits = learner.policy.model(input_ids=batch.input_ids).logits / 2
    rows = logits.gather(1, batch.gather[..., None].expand(-1, -1, logits.shape[-1]))
    logp = rows.log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0]
    (-logp[batch.mask].mean()).backward()
    torch.testing.assert_close(got, gradient(learner), atol=1e-6, rtol=1e-3)
    assert score(learner, batch).logp.shape == batch.mask.shape


@pytest.mark.parametrize("top_p", [1e-6, 0.05, 0.3, 0.9, 0.99])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_what_is_drawn_is_the_fewest_likeliest_tokens_that_have_the_mass(top_p, temperature):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(0)) * 3
    p = (logits / temperature).softmax(-1)
    order = p.argsort(descending=True)
    size = int((p[order].cumsum(0) < top_p).sum()) + 1
    uniform = (torch.arange(4000) + 0.5) / 4000
    drawn = pick(logits.expand(4000, -1), uniform, temperature, top_p)
    shares = torch.bincount(drawn, minlength=40) / 4000
    inside = torch.zeros(40).index_fill(0, order[:size], 1.0) * p
    torch.testing.assert_close(shares, inside / inside.sum(), atol=1 / 2000, rtol=0)


def test_an_evaluation_from_a_nucleus_of_one_token_is_the_greedy_one(capsys):
    policy, problems = toys.tiny_policy(), TASK.problems("test", 24, 0)
    free = evaluate(policy, TASK, problems, 8, 0)
    nucleus_of_one = evaluate(policy, TASK, problems, 8, 0, top_p=1e-6)
    greedy = evaluate(policy, TASK, problems, 1, 0, temperature=1e-6)
    assert nucleus_of_one.per_problem == greedy.per_problem != free.per_problem
    assert {0.0, 1.0} >= set(nucleus_of_one.per_problem)
    words = ["--model", str(ORGANISM / "3m"), "--task", "arithmetic", "--problems", "5"]
    main(["eval", *words, "--samples", "4", "--json", "--top-p", "0.000001"])
    result = json.loads(capsys.readouterr().out)
    assert result["avg"] == result["pass_at"]["4"] and result["samples"] == 4


# ---- the length to divide by


def test_the_constant_of_the_length_is_the_tasks(tmp_path):
    def loss(**constant):
        return one_update(learner_of(), TRAPO(**constant)).metrics["loss"]

    assert loss() == loss(constant=TASK.max_new) != loss(constant=80)
    plan = TrainConfig(steps=1, prompts=2, eval_every=0)
    fit(LUFFY(k=4), learner_of(), TASK, plan, tmp_path / "run", progress=False)
    assert read_run(tmp_path / "run").config["options"]["constant"] == TASK.max_new


# ---- which problems


@dataclass(frozen=True)
class Known(toys.FirstCharacter):
    """Problems whose attempts are right with a known share: 0, one half or 1, by their number."""

    def grade(self, problem, text):
        kind = int(problem.id[1:]) % 3
        right = kind == 2 or (kind == 1 and text[:1] in toys.HALF and text != "")
        return Verdict(float(right), right)


def test_groups_without_contrast_are_replaced_and_charged_for():
    task, learner = Known(max_new=6), learner_of(lr=1e-30)
    problems = task.problems("train", 6, 0)
    plain = update(GRPO(k=8), learner, task, problems, (0, 0))
    more = update(GRPO(k=8), learner, task, problems, (0, 0), dynamic_sampling=3)
    assert plain.metrics["contrast"] == pytest.approx(1 / 3) and more.metrics["contrast"] > 0.5
    assert more.metrics["resampled"] >= 4
    assert more.metrics["generated"] == sum(map(written, more.groups))
    kept = sum(len(r.completion_ids) for g in more.groups for r in g.rollouts)
    dropped = sum(
        len(r.completion_ids) for g in plain.groups if not contrast(g) for r in g.rollouts
    )
    assert more.metrics["generated"] >= kept + dropped


def test_the_filter_keeps_to_problems_of_medium_difficulty_and_is_charged(tmp_path):
    task = Known(max_new=6)
    plan = TrainConfig(steps=2, prompts=2, eval_every=0, filter_problems=9, checkpoint_every=1)
    fit(GRPO(k=4), learner_of(), task, plan, tmp_path / "run", progress=False)
    record = json.loads((tmp_path / "run" / "filter.json").read_text())
    assert len(record["accuracy"]) == 9
    assert {name for name, share in record["accuracy"].items() if 0.125 <= share <= 0.875} == {
        "p1",
        "p4",
        "p7",
    }
    first, second = read_metrics(tmp_path / "run")
    assert first["generated"] > record["generated"] > 9 * 8 - 1 > second["generated"] > 0
    with pytest.raises(WorkbenchError, match="raise filter_problems"):
        none = TrainConfig(steps=2, prompts=4, eval_every=0, filter_problems=9)
        fit(GRPO(k=4), learner_of(), task, none, tmp_path / "none", progress=False)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "options", [{"minibatches": 17}, {"temperature": 0.0}, {"accuracy_lower_bound": 0.9}]
)
def test_a_plan_that_makes_no_sense_is_refused(options):
    with pytest.raises(WorkbenchError):
        TrainConfig(**options)


def test_the_length_to_divide_by_is_the_tasks():
    assert TRAPO().for_task(TASK).constant == 6 and TRAPO(constant=80).for_task(TASK).constant == 80
