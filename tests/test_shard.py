"""A sharded policy (FSDP) makes the run of one process that holds everything, each process holds
half, and what cannot be sharded is refused.

Run as a script this file is the program of the processes, as test_distributed.py is.
"""

from __future__ import annotations

import gc
import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import toys
from test_distributed import PLAN, TRAIN, Halves, close, ended, free_port, launch, lines, well

from workbench.core import WorkbenchError
from workbench.evaluation.metrics import evaluate
from workbench.methods.grpo import GRPO
from workbench.methods.opd import OPD
from workbench.methods.sdpo import SDPO
from workbench.model import distributed
from workbench.model.adapters import peft_adapter
from workbench.model.batch import rescore
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.records import read_run
from workbench.rollouts.sampling import generate
from workbench.training.run import fit
from workbench.training.update import update

WIDE = {"vocab_size": 131}  # two processes cannot halve it


class Some(SDPO):
    """In the first step only the first problem's rollouts have a teacher: a rank without them has
    nothing to read and no gradient. In the second nobody has one: no weight may move, as AdamW
    would with a gradient of 0.
    """

    def credit(self, groups, learner):
        taught = {id(r) for r in groups[0].rollouts if groups[0].problem == FIRST}
        credits = super().credit(groups, learner)
        return [
            c
            if id(c.rollout) in taught
            else replace(c, kl=np.zeros_like(c.kl), teacher_prompt_ids=None)
            for c in credits
        ]


class Back(OPD):
    """In the first step GRPO's credit, which moves the policy; then the reference's."""

    def credit(self, groups, learner):
        toward = super().credit(groups, learner)
        return GRPO(k=4).credit(groups, learner) if groups[0].problem == FIRST else toward


FIRST = Halves().problems("train", 3, 0)[0]
# Method, rank of the adapter, model, what else ``update`` and the learner are given. 3 problems of
# 4 rollouts: ranks have 2 and 1, and 2 and 1 micro-batches.
CASES = {
    "grpo": (GRPO(k=4, beta=0.1), 0, {}, {}),
    "grpo lora": (GRPO(k=4, beta=0.1), 4, WIDE, {"rows": 3}),
    "sdpo": (SDPO(k=4), 0, WIDE, {"checkpointing": True}),
    "sdpo lora": (SDPO(k=4), 4, {"family": "qwen2"}, {}),
    "some": (Some(k=4), 0, {}, {}),
    "mixed": (SDPO(k=4, teacher="mixed", trust=0.5), 0, {"family": "qwen2"}, {"updates": 2}),
    "expert": (OPD(k=4, form="logit"), 0, {"tie_word_embeddings": False}, {}),
    "reference": (Back(k=4, teacher="reference"), 0, {}, {}),
    "reference lora": (Back(k=4, teacher="reference"), 4, {}, {"updates": 2}),
    # an adapter that the policy was loaded with: reference and teacher start from it
    "further": (Back(k=4, teacher="reference"), 4, {"adapted": True}, {"updates": 2}),
    "further, sdpo": (SDPO(k=4), 4, {"adapted": True}, {}),
}


def learner_of(
    lora: int = 0,
    shard: bool = False,
    checkpointing: bool = False,
    adapted: bool = False,
    **model,
) -> Learner:
    expert = tiny.policy(**model | {"seed": 1})
    policy = tiny.policy(**model)
    if adapted:
        torch.manual_seed(3)
        policy.model = peft_adapter(policy.model, 2)
        tiny.shake_adapter(policy.model)
    return Learner(
        policy,
        OptimConfig(lr=1e-3),
        lora=lora,
        expert=expert,
        shard=shard,
        checkpointing=checkpointing,
    )


def updates(out: Path, shard: bool) -> None:
    """Two steps of every case, and an evaluation."""
    found = {}
    for name, (method, lora, model, options) in CASES.items():
        learner, task = (
            learner_of(lora, shard, options.get("checkpointing", False), **model),
            Halves(),
        )
        options = {"rows": 5, **{k: v for k, v in options.items() if k != "checkpointing"}}
        begun = learner.fingerprint()
        records = [
            update(
                method,
                learner,
                task,
                task.problems("train", 3, step),
                (0, step),
                step=step,
                **options,
            )
            for step in range(2)
        ]
        with learner.gathered():
            measured = evaluate(learner.policy, task, task.problems("test", 5, 0), 2, 0)
        learner.save(out / name)
        found[name] = records, learner.state(), measured, begun, learner.fingerprint()
    if distributed.main():
        (out / "found.pickle").write_bytes(pickle.dumps(found))


def held(lora: int) -> dict[str, float]:
    """Of what a rank could hold, the share that it does hold after a step.

    ``gathered``: whole embeddings that are still in memory.
    """
    learner, task = Learner(tiny.policy(), lora=lora, shard=True), Halves()
    update(SDPO(k=4), learner, task, task.problems("train", 3, 0), (0,), rows=5)
    moments = [
        m for of in learner.optimizer.state_dict()["state"].values() for m in of.values() if m.ndim
    ]
    sets = {
        "weights": list(learner.policy.model.parameters()),
        "moments": moments,
        "start": list(learner._start.values()),
        "teacher": list(learner._teacher.values()),
    }
    shape = learner.policy.head.shape
    gc.collect()
    whole = [
        t
        for t in gc.get_objects()
        if type(t) in (torch.Tensor, torch.nn.Parameter)
        and t.shape == shape
        and t.untyped_storage().nbytes()
    ]
    return {"gathered": len(whole)} | {
        name: sum(t.to_local().numel() for t in of) / sum(t.numel() for t in of)
        for name, of in sets.items()
    }


def refused(do) -> str:
    try:
        do()
        return "nothing"
    except WorkbenchError as error:
        return str(error)


def apart() -> list[str]:
    learner = Learner(tiny.policy(), shard=True)
    group = Halves().problems("train", 1, 0)
    return [
        refused(lambda: Learner(tiny.policy(seed=distributed.rank()), shard=True)),
        refused(lambda: generate(learner.policy, [(1, 2)], [[0]], max_new=1)),
        refused(lambda: evaluate(learner.policy, Halves(), group, 1, 0)),
        refused(lambda: rescore(learner.policy, [])),
    ]


def together(out: Path) -> None:
    """In one start, which is most of the time."""
    updates(out, shard=True)
    said = distributed.gather((held(0), held(4), apart()))
    if distributed.main():
        (out / "said.json").write_text(json.dumps(said))


def run(
    folder: Path, lora: int, shard: bool, steps: int = PLAN.steps, resume: bool = False
) -> None:
    fit(
        SDPO(k=4),
        learner_of(lora, shard),
        Halves(),
        replace(PLAN, steps=steps),
        folder,
        progress=False,
        resume=resume,
    )


def runs(out: Path) -> None:
    """Whole, cut and resumed runs, with all weights and with an adapter; and the resumed second
    half of what one process began.
    """
    for lora in (0, 4):
        run(out / f"sharded{lora}", lora, True)
        run(out / f"cut{lora}", lora, True, steps=2)
        if distributed.main():
            shutil.copytree(out / f"cut{lora}", out / f"again{lora}")
        distributed.gather("copied")
        run(out / f"again{lora}", lora, True, resume=True)
        run(out / f"begun{lora}", lora, True, resume=True)


PROGRAMS = {f.__name__: f for f in (together, runs)}


# ---- the test's side


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes with half of the policy each found, what one with all of it, and what the
    two said.
    """
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    process = launch(__file__, "together", str(two))
    updates(one, shard=False)
    well(process)
    return (
        *(pickle.loads((folder / "found.pickle").read_bytes()) for folder in (two, one)),
        json.loads((two / "said.json").read_text()),
        two,
        one,
    )


@pytest.mark.parametrize("name", CASES)
def test_a_sharded_policy_makes_the_update_of_a_whole_one(pair, name):
    """As in test_distributed.py.

    Here training goes through the model's own forward pass and not through llama.py, so the last
    bits of all gradients differ, and AdamW makes of them a share of the learning rate where a
    gradient is near 0: the moments say that the gradients are equal.
    """
    (records, state, measured, begun, after), (alone, want, expected, first, _) = (
        found[name] for found in pair[:2]
    )
    for record, other in zip(records, alone, strict=True):
        assert [
            [(r.completion_ids, r.origin, r.verdict) for r in g.rollouts] for g in record.groups
        ] == [[(r.completion_ids, r.origin, r.verdict) for r in g.rollouts] for g in other.groups]
        ours, theirs = (
            {k: v for k, v in r.metrics.items() if not k.startswith("gap")} for r in (record, other)
        )
        close(ours, theirs, name)
        assert max(r.metrics["gap_max"] for r in (record, other)) < 1e-4
        for a, b in zip(record.credit, other.credit, strict=True):
            assert all(x == pytest.approx(y, abs=1e-4) for x, y in zip(a, b, strict=True))
    assert state["trainable"].keys() == want["trainable"].keys() and measured == expected
    off = torch.cat(
        [
            (weight - want["trainable"][key]).abs().flatten()
            for key, weight in state["trainable"].items()
        ]
    )
    assert off.max() < 1e-3 and (off > 2e-5).float().mean() < 1e-3
    for i, of in want["optimiser"]["state"].items():
        for key, moment in of.items():
            torch.testing.assert_close(
                state["optimiser"]["state"][i][key], moment, atol=1e-6, rtol=1e-4
            )
    assert (state["teacher"] is None) == (want["teacher"] is None)
    for key, weight in (state["teacher"] or {}).items():
        torch.testing.assert_close(weight, want["teacher"][key], atol=1e-4, rtol=0)
    assert begun == first and after != begun


@pytest.mark.parametrize("name", ["grpo", "grpo lora", "expert"])
def test_what_is_saved_is_a_plain_model(pair, name):
    found, folder = pair[0][name], pair[3] / name
    lora = CASES[name][1]
    saved, plain = ({p.name for p in (where / name).iterdir()} for where in pair[3:])
    assert saved == plain
    if lora:
        from safetensors.torch import load_file

        weights = {
            key.replace(".weight", ""): w
            for key, w in load_file(folder / "adapter_model.safetensors").items()
        }
        want = {key.replace(".weight", ""): w for key, w in found[1]["trainable"].items()}
    else:
        assert json.loads((folder / "config.json").read_text()) == json.loads(
            (pair[4] / name / "config.json").read_text()
        )
        weights, want = (
            dict(load_policy(folder, device="cpu").model.named_parameters()),
            found[1]["trainable"],
        )
    assert weights.keys() == want.keys() and all(
        torch.equal(weights[key], want[key]) for key in want
    )


def test_each_process_holds_half(pair):
    for whole, adapter, _ in pair[2]:
        for share in (whole, adapter):
            assert share.pop("gathered") == 0
            assert all(0.45 < part < 0.55 for part in share.values()), share


def test_what_cannot_be_done_with_parts_is_one_sentence_on_all(pair):
    for *_, said in pair[2]:
        for sentence, part in zip(
            said,
            ("different weights", "learner.gathered()", "learner.gathered()", "learner.gathered()"),
            strict=True,
        ):
            assert part in sentence


@pytest.mark.slow
def test_a_sharded_run_is_the_run_of_one_and_each_resumes_the_other(tmp_path):
    for lora in (0, 4):
        run(tmp_path / f"begun{lora}", lora, False, steps=2)
    process = launch(__file__, "runs", str(tmp_path))
    for lora in (0, 4):
        run(tmp_path / f"one{lora}", lora, False)
    well(process)
    for lora in (0, 4):
        run(tmp_path / f"cut{lora}", lora, False, resume=True)
        want, got = lines(tmp_path / f"one{lora}"), lines(tmp_path / f"sharded{lora}")
        assert [line["step"] for line in got] == [0, 1, 2, 3]
        for name in ("sharded", "cut", "begun"):
            for ours, theirs in zip(lines(tmp_path / f"{name}{lora}"), want, strict=True):
                close(
                    {k: ours[k] for k in theirs if "gap" not in k},
                    {k: v for k, v in theirs.items() if "gap" not in k},
                    name,
                )
        for ours, theirs in zip(lines(tmp_path / f"again{lora}"), got, strict=True):
            assert {k: v for k, v in ours.items() if k in theirs} == theirs  # bit for bit
        assert sorted(p.name for p in (tmp_path / f"sharded{lora}").iterdir()) == sorted(
            p.name for p in (tmp_path / f"one{lora}").iterdir()
        )


@pytest.mark.slow
def test_the_command_line_shards_and_accelerate_goes_on(tmp_path):
    """accelerate asks transformers for weights on the first process only: were that not undone, the
    processes would have different ones.
    """
    folder = toys.saved(toys.tiny_policy(), tmp_path / "model")
    command = ("-m", "workbench", *TRAIN, "--model", str(folder), "--out", str(tmp_path / "run"))
    fsdp = (
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--use_fsdp",
        "--num_processes=2",
        "--mixed_precision=no",
        "--num_machines=1",
    )
    assert well(launch(*command, "--shard")).count("The run is in") == 1
    well(
        launch(
            *command,
            "--resume",
            "--steps",
            "3",
            launcher=(*fsdp, f"--main_process_port={free_port()}"),
        )
    )
    found = read_run(tmp_path / "run")
    assert (
        list(found.metrics["step"]) == [0, 1, 2]
        and found.env["processes"] == 2
        and (tmp_path / "run" / "model" / "config.json").is_file()
    )
    code, _, err = ended(
        launch(*command, "--8bit-optimizer", launcher=(*fsdp, f"--main_process_port={free_port()}"))
    )
    # so it was asked to shard
    assert code != 0 and err.count("the 8-bit optimiser cannot be sharded") == 1


# ---- refusals


def test_one_process_is_not_sharded(monkeypatch):
    with pytest.raises(WorkbenchError, match="there is one: start them with torchrun"):
        learner_of(shard=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(WorkbenchError, match="there is one: start them with torchrun"):
        learner_of()


def test_what_cannot_be_sharded_is_refused():
    for attribute, message in (("unsloth", "Unsloth"), ("four_bit", "4 bits")):
        policy = tiny.policy()
        policy.unsloth = attribute == "unsloth"
        policy.base.is_quantized = attribute == "four_bit"
        with pytest.raises(WorkbenchError, match=f"cannot be sharded in {message}"):
            Learner(policy, lora=0 if attribute == "unsloth" else 4, shard=True)
    with pytest.raises(WorkbenchError, match="8-bit optimiser cannot be sharded"):
        Learner(tiny.policy(), OptimConfig(eight_bit=True), shard=True)
    policy = tiny.policy()
    policy.model.value = torch.nn.Linear(2, 2)
    with pytest.raises(WorkbenchError, match="not layers between embeddings"):
        Learner(policy, shard=True)


@pytest.mark.parametrize(
    "name, value",
    [
        ("FSDP_SHARDING_STRATEGY", "SHARD_GRAD_OP"),
        ("FSDP_RESHARD_AFTER_FORWARD", "false"),
        ("FSDP_OFFLOAD_PARAMS", "true"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true"),
    ],
)
def test_another_fsdp_than_this_is_refused(name, value):
    distributed.refuse_fallbacks({name: value})  # nobody asked for FSDP
    with pytest.raises(WorkbenchError, match=f"{name}={value}"):
        distributed.refuse_fallbacks({"ACCELERATE_USE_FSDP": "true", name: value})


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](Path(sys.argv[2]))
