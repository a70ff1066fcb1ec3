"""Two processes make the run of one: the same rollouts, metrics, credit and parameters; and what
cannot be shared is refused.

Run as a script this file is the program of the processes: a function of ``PROGRAMS`` by name, and a
folder for what it leaves.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import toys

from workbench.core import Verdict, WorkbenchError
from workbench.evaluation.metrics import evaluate
from workbench.methods.grpo import GRPO
from workbench.methods.scope import SCOPE
from workbench.methods.sdpo import SDPO
from workbench.methods.tapo import TAPO
from workbench.methods.trapo import TRAPO
from workbench.model import distributed
from workbench.model.learner import Learner, OptimConfig
from workbench.records import read_run
from workbench.training.run import TrainConfig, fit
from workbench.training.update import update

ROOT = Path(__file__).parents[1]
PLAN = TrainConfig(
    steps=4,
    prompts=3,
    rows=32,
    eval_every=2,
    eval_problems=3,
    eval_samples=2,
    checkpoint_every=2,
    keep_groups=3,
)


@dataclass(frozen=True)
class Halves(toys.FirstCharacter):
    """Half of what a random model writes is right; with feedback, an expert's solution, and a
    synthesis prompt whose any answer can be read.
    """

    wanted: str = toys.HALF
    max_new: int = 6

    def grade(self, problem, text):
        right = text[:1] in self.wanted and text != ""
        return Verdict(float(right), right, "" if right else "begin otherwise")

    def reprompt(self, problem, *, solution="", attempt="", feedback=""):
        return (
            {
                "role": "user",
                "content": f"{problem.messages[0]['content']} {solution} {attempt} {feedback}",
            },
        )


class Broken(GRPO):
    """One rank's share of the gradient is not finite."""

    def loss(self, scores, batch):
        loss = super().loss(scores, batch)
        return replace(loss, value=loss.value * (float("nan") if distributed.rank() == 1 else 1.0))


METHODS = {
    "grpo": (GRPO(k=4, beta=0.1), {}),
    "lora": (GRPO(k=4), {"lora": 4}),
    "again": (GRPO(k=4), {"updates": 2, "rows": None}),
    "sdpo": (SDPO(k=4), {}),
    "trapo": (TRAPO(), {}),
    "scope": (SCOPE(k=4, normalise="paper"), {}),
    # its weights are counted over all groups of the step
    "tapo": (TAPO(k=6, n_pos=1, n_neg=1, prefix="none"), {}),
}


def learner_of(lora: int = 0, seed: int = 0) -> Learner:
    return Learner(
        toys.tiny_policy(),
        OptimConfig(lr=1e-3),
        lora=lora,
        seed=seed,
        expert=toys.tiny_policy(seed=1),
    )


def updates(out: Path) -> None:
    """Two steps of every method, and an evaluation."""
    found = {}
    for name, (method, options) in METHODS.items():
        learner, task, options = (
            learner_of(options.get("lora", 0)),
            Halves(),
            {k: v for k, v in options.items() if k != "lora"},
        )
        options = {"rows": 5, **options}
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
        measured = evaluate(learner.policy, task, task.problems("test", 5, 0), 2, 0)
        found[name] = (
            records,
            {n: p.detach().clone() for n, p in learner._weights().items()},
            learner.fingerprint(),
            measured,
        )
    same = [part == found["grpo"][2] for part in distributed.gather(found["grpo"][2])]
    assert all(same), "the ranks have other weights"
    if distributed.main():
        (out / "found.pickle").write_bytes(pickle.dumps(found))


def run(out: Path, **how) -> None:
    fit(
        SDPO(k=4),
        learner_of(),
        Halves(),
        PLAN,
        out / "run",
        config={"model": "tiny"},
        progress=False,
        **how,
    )


def cut(out: Path) -> None:
    """Half of the steps: what is resumed."""
    fit(
        SDPO(k=4),
        learner_of(),
        Halves(),
        replace(PLAN, steps=2),
        out / "run",
        config={"model": "tiny"},
        progress=False,
    )


def resumed(out: Path) -> None:
    run(out, resume=True)


def slow(out: Path) -> None:
    """A run that is killed by the test: a rank says where it is."""
    distributed.start()
    (out / f"rank{distributed.rank()}").write_text(str(os.getpid()))
    fit(
        GRPO(k=4),
        learner_of(),
        Halves(),
        replace(PLAN, steps=10**6, eval_every=0),
        out / "run",
        progress=False,
    )


def apart(out: Path) -> None:
    """What ranks do not agree about, and what one of them cannot do, is one sentence on all."""
    me, said = distributed.rank(), []

    def refused(do) -> None:
        try:
            do()
            said.append("nothing")
        except WorkbenchError as error:
            said.append(str(error))

    def failing(mine):
        if me == 1:
            raise WorkbenchError("rank 1 has no more paper")
        return mine

    def begin(draw: int = 0, **how) -> None:
        fit(
            GRPO(k=4),
            learner_of(lora=4, seed=draw),
            Halves(),
            replace(PLAN, **how),
            out / "run",
            progress=False,
        )

    refused(lambda: begin(seed=me))
    refused(lambda: begin(draw=me))
    refused(lambda: begin(prompts=1))
    refused(lambda: distributed.spread([1, 2, 3], failing))
    refused(lambda: distributed.spread([1, 2, 3] if me else [1, 2], lambda mine: mine))
    learner = learner_of()
    before = learner.fingerprint()
    update(Broken(k=4), learner, Halves(), Halves().problems("train", 3, 0), (0,), rows=4)
    said.append(f"skipped: {learner.skipped}, moved: {learner.fingerprint() != before}")
    everybody = distributed.gather(said)
    if distributed.main():
        (out / "said.json").write_text(json.dumps(everybody))


def together(out: Path) -> None:
    """In one start, which is most of the time."""
    updates(out)
    apart(out)


PROGRAMS = {f.__name__: f for f in (together, run, cut, resumed, slow)}


# ---- the test's side


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(*command: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    launcher = launcher or (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-addr=127.0.0.1",
        f"--master-port={free_port()}",
    )
    return started([*launcher, *command])


def started(command: list[str]) -> subprocess.Popen:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def program(name: str, out: Path) -> subprocess.Popen:
    out.mkdir(parents=True, exist_ok=True)
    return launch(__file__, name, str(out))


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    try:
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, out, err


# what torchrun says of a process that ended in native code
CRASH = re.compile(r"Signal \d+ \((SIGABRT|SIGBUS|SIGFPE|SIGILL|SIGSEGV)\) received")


def well(process: subprocess.Popen) -> str:
    """Its stdout.

    A process that native code ended (gloo's memory was seen corrupted once, in torch 2.13) is no
    failure of ours: the program starts once more, with a warning. One that had begun a run is
    refused then, and fails.
    """
    code, out, err = ended(process)
    crash = CRASH.search(err)
    if code and crash:
        warnings.warn(f"native code ended a process ({crash[1]}): once more", stacklevel=2)
        port = f"--master-port={free_port()}"
        command = [port if "--master-port=" in word else word for word in process.args]
        code, out, err = ended(started(command))
    assert code == 0, err
    return out


LAUNCHER = """import pathlib, sys
tried = pathlib.Path(sys.argv[1])
tried.write_text(tried.read_text() + "x" if tried.exists() else "x")
if len(tried.read_text()) <= int(sys.argv[2]):
    sys.exit(sys.argv[3])
print("done")"""


def test_a_native_crash_starts_a_program_once_more_and_a_failure_does_not(tmp_path):
    def tries(name: str, crashes: int, message: str) -> subprocess.Popen:
        words = (str(tmp_path / name), str(crashes), message)
        return launch(*words, launcher=(sys.executable, "-c", LAUNCHER))

    aborted = "  traceback : Signal 6 (SIGABRT) received by PID 15"
    with pytest.warns(UserWarning, match="SIGABRT"):
        assert well(tries("crash", 1, aborted)) == "done\n"
    with pytest.raises(AssertionError), pytest.warns(UserWarning):
        well(tries("crashes", 2, aborted))
    ordinary = "Signal 9 (SIGKILL) received by PID 15, Signal 15 (SIGTERM) received by PID 16"
    with pytest.raises(AssertionError, match="SIGKILL"):
        well(tries("failure", 1, ordinary))
    counts = {path.name: len(path.read_text()) for path in tmp_path.iterdir()}
    assert counts == {"crash": 2, "crashes": 2, "failure": 1}


def lines(run: Path) -> list[dict]:
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("seconds")}
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ]


def close(got: dict, want: dict, what: str) -> None:
    assert got.keys() == want.keys(), what
    for name, value in want.items():
        if not name.startswith("seconds"):
            assert got[name] == pytest.approx(value, rel=1e-4, abs=2e-6, nan_ok=True), (
                f"{what}: {name}"
            )


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """What two processes found, what one, and what two said that they refuse."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    process = program("together", two)
    updates(one)
    well(process)
    assert not (two / "run").exists()
    return *(
        pickle.loads((folder / "found.pickle").read_bytes()) for folder in (two, one)
    ), json.loads((two / "said.json").read_text())


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_make_the_update_of_one(pair, name):
    """Rollouts are equal, token by token.

    Sums are made in another order, which moves the last bits of a gradient (1e-7 of it). AdamW
    divides by the gradient's size: where that is near 0, the last bits are all of it, and a weight
    may move by a share of the learning rate, 1e-3.
    """
    (records, weights, _, measured), (alone, want, _, expected) = (
        found[name] for found in pair[:2]
    )
    for record, other in zip(records, alone, strict=True):
        assert [
            [(r.completion_ids, r.origin, r.verdict) for r in g.rollouts] for g in record.groups
        ] == [[(r.completion_ids, r.origin, r.verdict) for r in g.rollouts] for g in other.groups]
        close(record.metrics, other.metrics, name)
        for ours, theirs in zip(record.credit, other.credit, strict=True):
            assert all(a == pytest.approx(b, abs=1e-4) for a, b in zip(ours, theirs, strict=True))
        assert any(any(row) for group in record.credit for row in group)
    start = {n: p.detach() for n, p in learner_of(4 * (name == "lora"))._weights().items()}
    for key, weight in weights.items():
        torch.testing.assert_close(weight, want[key], atol=2e-5, rtol=0)
    # two steps of the learning rate: what is compared has moved
    assert max((want[key] - start[key]).abs().max() for key in want) > 1e-3
    assert measured == expected


@pytest.mark.slow
def test_a_run_of_two_processes_is_the_run_of_one_and_can_be_resumed(tmp_path):
    two, part = program("run", tmp_path / "two"), program("cut", tmp_path / "part")
    (tmp_path / "one").mkdir()
    run(tmp_path / "one")
    well(two), well(part)
    well(program("resumed", tmp_path / "part"))
    want, got, again = (lines(tmp_path / name / "run") for name in ("one", "two", "part"))
    assert [line["step"] for line in got] == [0, 1, 2, 3]
    for ours, theirs in zip(got, want, strict=True):
        close(ours, theirs, "a run of two")
    assert [line["step"] for line in again] == [0, 1, 2, 3]
    for ours, theirs in zip(again, got):
        # bit for bit; the one that was cut has a final evaluation after its half
        assert {k: v for k, v in ours.items() if k in theirs} == theirs
    found = read_run(tmp_path / "two" / "run")
    assert (
        found.env["processes"] == 2
        and len(found.groups) == len(read_run(tmp_path / "one" / "run").groups) == 9
    )
    assert sorted(p.name for p in (tmp_path / "two" / "run").iterdir()) == sorted(
        p.name for p in (tmp_path / "one" / "run").iterdir()
    )


def test_what_ranks_cannot_do_together_is_one_sentence_on_all(pair):
    first, second = pair[2]
    assert first == second
    for said, part in zip(
        first,
        (
            "different settings and problems",
            "different weights",
            "2 processes cannot share the 1 problems",
            "no more paper",
            "come apart: 2 items in",
            "skipped: 1, moved: False",
        ),
        strict=True,
    ):
        assert part in said


def test_a_killed_rank_ends_the_other(tmp_path):
    process = program("slow", tmp_path)
    metrics, deadline = tmp_path / "run" / "metrics.jsonl", time.time() + 120
    while (
        not (metrics.exists() and metrics.read_bytes().count(b"\n") > 2)
        and process.poll() is None
        and time.time() < deadline
    ):
        time.sleep(0.05)
    pids = [int((tmp_path / f"rank{i}").read_text()) for i in (0, 1)]
    os.kill(pids[1], signal.SIGKILL)
    code, _, _ = ended(process)
    assert code != 0
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    assert len(read_run(tmp_path / "run").metrics) > 2  # what was written can be read


# ---- the command line, and what launchers do without a word

TRAIN = (
    "train",
    "grpo",
    "--task",
    "arithmetic",
    "--steps",
    "2",
    "--set",
    "prompts=2",
    "--set",
    "k=2",
    "--set",
    "eval_problems=2",
    "--set",
    "eval_samples=2",
)


@pytest.mark.slow
def test_the_command_line_in_two_processes(tmp_path, tiny_folder):
    command = (
        "-m",
        "workbench",
        *TRAIN,
        "--model",
        str(tiny_folder),
        "--out",
        str(tmp_path / "run"),
    )
    said = well(launch(*command))
    assert said.count("The run is in") == 1
    made = read_run(tmp_path / "run")
    assert (
        list(made.metrics["step"]) == [0, 1]
        and made.env["processes"] == 2
        and (tmp_path / "run" / "model" / "config.json").is_file()
    )
    accelerate = (
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--mixed_precision=no",
        "--num_machines=1",
        f"--main_process_port={free_port()}",
    )
    again, study = (
        launch(*command, launcher=accelerate),
        launch("-m", "workbench", "study", "--out", str(tmp_path / "study")),
    )
    code, _, err = ended(again)
    # one sentence, of the rank that was first
    assert code != 0 and err.count("already holds a run") == 1
    code, _, err = ended(study)
    assert code != 0 and "workbench study runs in one process" in err


def test_accelerate_that_starts_one_process_is_refused(tmp_path, tiny_folder):
    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2")
    code, _, err = ended(
        launch(
            "-m",
            "workbench",
            *TRAIN,
            "--model",
            str(tiny_folder),
            "--out",
            str(tmp_path / "run"),
            launcher=launcher,
        )
    )
    assert code != 0 and "asked for several processes and started one" in err and "torchrun" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "environment, message",
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE=many"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "x"},
            "MASTER_PORT is not set",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "torchrun"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "4 processes"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "2 processes"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "DEEPSPEED"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "mixed precision"),
    ],
)
def test_silent_fall_backs_are_refused(environment, message):
    with pytest.raises(WorkbenchError, match=message):
        distributed.refuse_fallbacks(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"MASTER_ADDR": "127.0.0.1"},
        {"ACCELERATE_MIXED_PRECISION": "no"},
        # that is for a learner to do, or to refuse
        {"ACCELERATE_USE_FSDP": "true", "FSDP_OFFLOAD_PARAMS": "false"},
        {"SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_one_process_that_was_asked_for_is_left_alone(environment):
    assert distributed.refuse_fallbacks(environment) is None
    with pytest.raises(WorkbenchError, match="DEEPSPEED"):  # it was looked at
        distributed.refuse_fallbacks(environment | {"ACCELERATE_USE_DEEPSPEED": "true"})


def test_alone_everything_is_the_identity():
    p = torch.zeros(2, requires_grad=True)
    distributed.sum_gradients([p])
    assert (distributed.size(), distributed.rank(), distributed.main(), p.grad) == (
        1,
        0,
        True,
        None,
    )
    assert distributed.gather(7) == [7] and distributed.share([1, 2, 3]) == [1, 2, 3]
    assert distributed.spread((1, 2), lambda mine: [2 * x for x in mine]) == [2, 4]
    distributed.agree(lambda: pytest.fail("nobody to agree with"))


def test_a_fingerprint_sees_a_single_bit():
    tensors = [
        torch.zeros(3),
        torch.ones(2, 2, dtype=torch.bfloat16),
        torch.zeros((), dtype=torch.int8),
    ]
    before = distributed.fingerprint(tensors)
    tensors[0][1] = torch.finfo(torch.float32).smallest_normal
    assert before == [0, 4 * 0x3F80, 0] and distributed.fingerprint(tensors)[0] != 0


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](Path(sys.argv[2]))
