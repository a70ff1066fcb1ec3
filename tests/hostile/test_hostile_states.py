"""Damaged, foreign and half-written state: each outcome is a run that goes on to the last digit, or
one sentence with nothing lost.

Run as a script this file is the program of its own processes: a function of ``PROGRAMS`` by name,
and a folder for what it leaves.
"""

from __future__ import annotations

import builtins
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from test_distributed import Halves

from workbench import records
from workbench.app.cli import main
from workbench.core import Interrupted, WorkbenchError, printable
from workbench.methods.grpo import GRPO
from workbench.methods.kd import KD
from workbench.methods.luffy import LUFFY
from workbench.methods.opd import OPD
from workbench.methods.scope import SCOPE
from workbench.methods.sdpo import SDPO
from workbench.methods.sft import SFT
from workbench.methods.tapo import TAPO
from workbench.methods.trapo import TRAPO
from workbench.model import gguf
from workbench.model.learner import Learner, OptimConfig
from workbench.model.loading import load_policy
from workbench.records import read_run
from workbench.tasks.tools import Tools
from workbench.training import resume as resuming
from workbench.training.run import TrainConfig, fit

TESTS = Path(__file__).parents[1]
PLAN = TrainConfig(
    steps=4,
    prompts=2,
    rows=8,
    eval_every=2,
    eval_problems=2,
    eval_samples=2,
    checkpoint_every=2,
    keep_groups=1,
)
METHODS = {
    "grpo": GRPO(k=4),
    "kd": KD(k=2),
    "luffy": LUFFY(k=4),
    "opd": OPD(k=4),
    "scope": SCOPE(k=4, normalise="paper"),
    "sdpo": SDPO(k=4),
    "sft": SFT(),
    "tapo": TAPO(k=6, n_pos=1, n_neg=1, prefix="none"),
    "trapo": TRAPO(),
}


def learner_of(lora: int = 0, seed: int = 0, **options) -> Learner:
    optimizer = OptimConfig(**{"lr": 1e-2, **options})
    return Learner(toys.tiny_policy(seed), optimizer, lora=lora, expert=toys.tiny_policy(seed=9))


def run(
    out: Path, lora: int = 0, method="grpo", plan=PLAN, resume=False, writers=(), seed=0, **options
) -> Path:
    learner = learner_of(lora, seed, **options)
    how = {"progress": False, "resume": resume, "writers": writers}
    return fit(METHODS[method], learner, Halves(), plan, out, **how)


def traces(out: Path) -> dict[str, object]:
    """All that a run leaves, without its clocks: metrics, groups, weights, the best policy."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    left = {"metrics": [{k: v for k, v in x.items() if "seconds" not in k} for x in lines]}
    for path in sorted(out.rglob("*")):
        if path.suffix == ".safetensors" or path.name == "groups.jsonl":
            left[str(path.relative_to(out))] = path.read_bytes()
    left["names"] = sorted(path.name for path in out.iterdir())
    return left


# ---- programs: runs that are killed, in processes forked from one that has all imported


def forked(work) -> int:
    """The pid of a process that does ``work`` and ends without any cleaning up."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except WorkbenchError as error:
        os.write(2, f"{error}\n".encode())
        os._exit(2)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count_writes(limit: float, tell: Path | None = None) -> None:
    """From now on the ``limit``-th change of the disk ends this process, half-way through."""
    done = 0

    def dies(now) -> None:
        nonlocal done
        done += 1
        if tell:
            tell.write_text(str(done))
        if done == limit:
            now()
            os._exit(9)

    def wrap(module, name, half=lambda *args: None):
        real = getattr(module, name)

        def counted(*args, **how):
            dies(lambda: half(*args))
            return real(*args, **how)

        setattr(module, name, counted)

    real_open, write_bytes = builtins.open, Path.write_bytes

    def appending(path, mode="r", **how):
        file = real_open(path, mode, **how)
        if mode == "a":
            dies(lambda: (file.write('{"step": 2, "los'), file.flush()))
        return file

    wrap(Path, "write_bytes", lambda path, data: write_bytes(path, bytes(data)[: len(data) // 2]))
    wrap(Path, "unlink"), wrap(Path, "mkdir"), wrap(os, "replace"), wrap(os, "fsync")
    wrap(shutil, "rmtree", lambda path, **how: [os.unlink(x) for x in [*Path(path).glob("*")][:1]])
    records.open = appending


def warm_up() -> None:
    """What a run imports is imported once, and nothing is computed: a fork has no threads."""
    import tqdm.auto  # noqa: F401

    for lora in (0, 4):
        Learner(toys.tiny_policy(), lora=lora)


def at_every_write(out: Path, stride: int = 1) -> None:
    warm_up()
    failures, tried = [], 0
    for lora in (0, 4):
        whole, tell = out / f"whole{lora}", out / "count"

        def counting(whole=whole, tell=tell, lora=lora):
            count_writes(float("inf"), tell)
            run(whole, lora)

        assert ended(forked(counting)) == 0
        want, last = traces(whole), int(tell.read_text())
        assert last > 40, last
        for n in range(1 + lora % stride, last + 1, stride):
            cut = out / f"cut{lora}-{n}"

            def dying(cut=cut, n=n, lora=lora):
                count_writes(n)
                run(cut, lora)

            killed = ended(forked(dying)) == 9
            again = ended(forked(lambda cut=cut, lora=lora: run(cut, lora, resume=True)))
            if not killed or again or traces(cut) != want:
                failures.append((lora, n, killed, again))
            tried += 1
            shutil.rmtree(cut)
    (out / "said.json").write_text(json.dumps([tried, failures]))


def at_some_writes(out: Path) -> None:
    at_every_write(out, 16)


def at_random_moments(out: Path) -> None:
    """Each method with all weights and with an adapter, then any: 30 kills."""
    kinds = [(method, lora) for method in METHODS for lora in (0, 4)]
    warm_up()
    wholes, failures, killed = {}, [], 0
    for number, (method, lora) in enumerate([*kinds, *random.choices(kinds, k=12)]):
        whole = out / f"{method}{lora}"
        if (method, lora) not in wholes:
            began = time.perf_counter()
            assert ended(forked(lambda: run(whole, lora, method))) == 0, (method, lora)
            wholes[method, lora] = time.perf_counter() - began
        cut, moment = out / f"cut{number}", random.uniform(0, wholes[method, lora])
        pid = forked(lambda: run(cut, lora, method))
        time.sleep(moment)
        os.kill(pid, signal.SIGKILL)
        killed += ended(pid) == -signal.SIGKILL
        again = ended(forked(lambda: run(cut, lora, method, resume=True)))
        if again or traces(cut) != traces(whole):
            failures.append((method, lora, moment, again))
    (out / "said.json").write_text(json.dumps([killed, failures]))


def ranks(out: Path) -> None:
    run(out / "run", 4, "sdpo", replace(PLAN, steps=12), resume=True)


PROGRAMS = {f.__name__: f for f in (at_every_write, at_some_writes, at_random_moments, ranks)}


def start(name: str, out: Path, *launcher: str) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    out.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(
        [sys.executable, *launcher, __file__, name, str(out)],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,  # killed as one, with what a launcher started
    )


def well(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=3000)
    assert process.returncode == 0, errors.decode()


fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@fork
def test_killed_half_way_through_a_write_the_run_goes_on_to_the_last_digit(tmp_path):
    """Every 16th of the writes; the slow test below, every one."""
    well(start("at_some_writes", tmp_path))
    tried, failures = json.loads((tmp_path / "said.json").read_text())
    assert tried >= 6 and failures == []


@fork
@pytest.mark.slow
def test_killed_half_way_through_any_write_the_run_goes_on_to_the_last_digit(tmp_path):
    well(start("at_every_write", tmp_path))
    tried, failures = json.loads((tmp_path / "said.json").read_text())
    assert tried > 100 and failures == []


@fork
@pytest.mark.slow
def test_30_kills_at_random_moments_each_method_with_all_weights_and_an_adapter(tmp_path):
    well(start("at_random_moments", tmp_path))
    killed, failures = json.loads((tmp_path / "said.json").read_text())
    assert killed > 20 and failures == []


@fork
@pytest.mark.slow
def test_two_processes_killed_at_a_random_moment_go_on_to_the_last_digit(tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    well(start("ranks", tmp_path / "whole", *launcher))
    cut = start("ranks", tmp_path / "cut", *launcher)
    metrics, deadline = tmp_path / "cut" / "run" / "metrics.jsonl", time.time() + 300
    target = random.randint(1, 9)
    while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= target):
        assert cut.poll() is None and time.time() < deadline
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.2))
    os.killpg(cut.pid, signal.SIGKILL)
    cut.communicate()
    well(start("ranks", tmp_path / "cut", *launcher))
    assert traces(tmp_path / "cut" / "run") == traces(tmp_path / "whole" / "run")


# ---- two trainings, one folder


class Meanwhile:
    """A writer that does something in the middle of a run."""

    def __init__(self, work, step: int = 1):
        self.work, self.step = work, step

    def write(self, record) -> None:
        if record.step == self.step:
            self.work()


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_second_training_in_the_folder_is_refused(tmp_path, resume, elsewhere):
    out, said = tmp_path / "run", []

    def second():
        try:
            run(out, resume=resume)
        except WorkbenchError as error:
            said.append(str(error))

    def work():
        if not elsewhere:
            return second()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    run(out, writers=[Meanwhile(work)])
    assert said == [f"another training is writing to {out}: wait for it, or name another folder"]
    assert read_run(out).metrics["step"].tolist() == [0, 1, 2, 3]
    run(tmp_path / "alone")
    assert traces(out) == traces(tmp_path / "alone")


def test_the_lock_of_a_killed_process_does_not_block(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from filelock import FileLock\n"
            "lock = FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True)\n"
            "time.sleep(600)",
            str(out / ".lock"),
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(WorkbenchError, match="another training is writing to"):
        run(out)
    holder.kill()
    holder.communicate()
    assert (out / ".lock").exists()
    run(out)
    assert not (out / ".lock").exists()


def test_what_is_refused_before_it_began_leaves_no_folder(tmp_path):
    out = tmp_path / "some" / "where" / "run"
    with pytest.raises(WorkbenchError, match="do not fit the model's context"):
        fit(GRPO(k=2), learner_of(), Halves(max_new=5000), PLAN, out, progress=False)
    assert list(tmp_path.iterdir()) == []


# ---- signals


@pytest.fixture(autouse=True)
def _listens():
    """A job in the background of a shell ignores SIGINT; these tests do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["sampling", "after the update"])
def test_a_signal_leaves_a_checkpoint_and_a_sentence(tmp_path, number, moment, monkeypatch):
    run(tmp_path / "whole")
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    out, done = tmp_path / "run", 1 if moment == "sampling" else 2

    class Asking(GRPO):
        def sample(self, learner, task, problems, seed):
            if moment == "sampling" and seed[1] == 1:
                with learner.weights("teacher"):
                    raise_in(learner)
            return super().sample(learner, task, problems, seed)

    def raise_in(learner):
        # not while another set of weights is in the network, but at the end of this
        signal.raise_signal(number)

    writers = [Meanwhile(lambda: signal.raise_signal(number))] if done == 2 else []
    monkeypatch.setitem(METHODS, "grpo", Asking(k=4))
    with pytest.raises(Interrupted, match=f"stopped by {signal.Signals(number).name}") as stop:
        run(out, writers=writers, plan=replace(PLAN, checkpoint_every=4))
    assert stop.value.number == number
    made = read_run(out).metrics["step"].tolist()
    # asked while other weights were lent, it went on to the end of its step
    assert made == [0, 1] and "2 of 4 steps" in str(stop.value)
    assert (out / "checkpoint.pt").is_file() and not (out / "model").exists()
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    monkeypatch.setitem(METHODS, "grpo", GRPO(k=4))
    shutil.copy(tmp_path / "whole" / "config.json", out / "config.json")
    rewrite_checkpoint(out, method="GRPO")
    run(out, resume=True)
    assert traces(out) == traces(tmp_path / "whole")


def rewrite_checkpoint(out: Path, method: str) -> None:
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    saved["config"]["method"] = method
    torch.save(saved, out / "checkpoint.pt")


@pytest.mark.parametrize("at", ["grade", "evaluation"])
def test_while_nothing_has_changed_a_run_stops_at_once(tmp_path, at):
    """Before a step's update its weights are those of the step before, and they are kept."""

    class Asking(Halves):
        def grade(self, problem, text):
            counts["grade"] += 1
            wanted = {"grade": 8 + 4, "evaluation": 8 * 2 + 4 + 1}[at]
            if counts["grade"] == wanted and threading.current_thread():
                os.kill(os.getpid(), signal.SIGINT)
            return super().grade(problem, text)

    counts, out = {"grade": 0}, tmp_path / "run"
    plan = replace(PLAN, checkpoint_every=4, eval_every=2)
    learner = learner_of()
    with pytest.raises(Interrupted, match="stopped by SIGINT with") as stop:
        fit(METHODS["grpo"], learner, Asking(), plan, out, progress=False)
    steps = len(read_run(out).metrics) if (out / "metrics.jsonl").stat().st_size else 0
    assert f"with {steps} of 4 steps" in str(stop.value) and steps < 4
    assert all(p.grad is None for p in learner.parameters)
    resumed = run(out, resume=True)
    run(tmp_path / "whole")
    assert traces(resumed) == traces(tmp_path / "whole")


def test_at_a_prompt_ctrl_c_gives_the_run_back(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    writers = [Meanwhile(lambda: signal.raise_signal(signal.SIGINT))]
    with pytest.warns(UserWarning, match="stopped by SIGINT with 2 of 4 steps made"):
        out = run(tmp_path / "run", writers=writers)
    assert len(read_run(out).metrics) == 2 and (out / "checkpoint.pt").is_file()
    with pytest.raises(Interrupted):  # a terminal that is closed is no prompt
        run(
            tmp_path / "other",
            writers=[Meanwhile(lambda: signal.raise_signal(signal.SIGTERM))],
        )


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_command_line_says_how_to_go_on(
    tmp_path, capsys, monkeypatch, tiny_folder, number, code
):
    from workbench.training import update

    words = ["train", "grpo", "--model", str(tiny_folder)]
    words += ["--steps", "2", "--out", str(tmp_path / "run")]
    words += ["--set", "prompts=2", "k=2", "eval_every=0"]

    real = update.by_group

    def once(groups, *rest):  # after the weights have changed
        signal.raise_signal(number)
        return real(groups, *rest)

    monkeypatch.setattr(update, "by_group", once)
    assert main(words) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"workbench: stopped by {signal.Signals(number).name} with 1 of 2 steps")
    assert "--resume" in said
    monkeypatch.undo()
    assert main([*words, "--resume"]) == 0
    assert len(read_run(tmp_path / "run").metrics) == 2


# ---- checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 4 steps. Read only."""
    return run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


LONGER = replace(PLAN, steps=5)


def refused(out: Path, sentence: str, **how) -> None:
    """Resuming is refused in a sentence, and nothing in the folder has changed."""
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(WorkbenchError, match=sentence) as error:
        run(out, resume=True, plan=LONGER, **how)
    assert "\n" not in str(error.value)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_flipped_bit_in_a_checkpoint_is_seen(copied):
    """Wherever it is: what loads all the same is the same."""
    path = copied / "checkpoint.pt"
    whole, draw, seen = path.read_bytes(), random.Random(0), 0
    before = torch.load(path, weights_only=True)
    # in what an adapter or AdamW holds, and anywhere: names, sizes, the archive's own tables
    for place in [*(draw.randrange(len(whole)) for _ in range(24)), *range(-1200, -1, 50)]:
        bytes_ = bytearray(whole)
        bytes_[place] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes_)
        learner = learner_of()
        try:
            step = resuming._load(path, learner, before["config"])
        except WorkbenchError as error:
            assert "checkpoint" in str(error)
            seen += 1
            continue
        state = learner.state()
        assert step == before["step"]
        for name, weight in before["learner"]["trainable"].items():
            assert torch.equal(state["trainable"][name], weight)
    assert seen > 35


@pytest.mark.parametrize(
    "step, sentence",
    [
        (-1, "of step -1 in a run of 4"),
        (99, "of step 99 in a run of 4"),
        (5, "of step 5 in a run of 4"),
        (True, "of step True"),
        (2.0, "of step 2.0"),
        ("2", "is not a checkpoint|of step 2"),
        (None, "of step None|is not a checkpoint"),
    ],
)
def test_a_step_that_cannot_be_is_refused(copied, step, sentence):
    saved = torch.load(copied / "checkpoint.pt", weights_only=True)
    torch.save(saved | {"step": step}, copied / "checkpoint.pt")
    refused(copied, sentence)


@pytest.mark.parametrize(
    "what", ["learner", "trainable", "optimiser", "teacher", "skipped", "plan"]
)
@pytest.mark.parametrize("value", [None, [], 3, "x", {}])
def test_a_checkpoint_of_another_form_is_refused(copied, what, value):
    saved = torch.load(copied / "checkpoint.pt", weights_only=True)
    holder = {"learner": saved, "plan": saved["config"]}.get(what, saved["learner"])
    if (what, value) in (("teacher", None), ("skipped", 3)):
        pytest.skip("that is its form")
    holder[what] = value
    torch.save(saved, copied / "checkpoint.pt")
    refused(copied, "checkpoint")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(copied, value):
    saved = torch.load(copied / "checkpoint.pt", weights_only=True)
    next(iter(saved["learner"]["trainable"].values())).view(-1)[0] = value
    torch.save(saved, copied / "checkpoint.pt")
    refused(copied, "are no numbers any more")


def test_fewer_steps_than_were_made_are_refused(copied):
    with pytest.raises(WorkbenchError, match="has made 4 steps already, 3 are asked for"):
        run(copied, resume=True, plan=replace(PLAN, steps=3))


@pytest.mark.parametrize("lora", [0, 4])
def test_a_checkpoint_of_other_weights_of_the_same_shape_is_refused(tmp_path, lora):
    """Also where the configuration names no model; an older checkpoint does not say."""
    out = run(tmp_path / "run", lora)
    with pytest.raises(WorkbenchError, match="belongs to another model"):
        run(out, lora, resume=True, plan=LONGER, seed=1)
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    del saved["learner"]["origin"]
    torch.save(saved, out / "checkpoint.pt")
    run(out, lora, resume=True, plan=LONGER)


def test_a_frozen_base_may_be_kept_in_fewer_bits():
    """A run goes on with the weights in bf16 that began in fp32: they are of the same model."""
    first, half = toys.tiny_policy(), toys.tiny_policy()
    half.model.bfloat16()
    assert Learner(first, lora=4)._origin == Learner(half, lora=4)._origin


# ---- the other files of a run


@pytest.mark.parametrize(
    "name, change, sentence",
    [
        ("metrics.jsonl", None, "do not hold each of the 4 steps"),
        ("groups.jsonl", None, "do not hold each of the 4 steps"),
        ("metrics.jsonl", lambda lines: lines[1:], "do not hold each of the 4 steps"),
        ("metrics.jsonl", lambda lines: lines[:2] + lines[3:], "do not hold each of the 4"),
        ("metrics.jsonl", lambda lines: lines[:2] + lines[1:], "do not hold each of the 4"),
        ("metrics.jsonl", lambda lines: lines[::-1], "do not hold each of the 4"),
        ("metrics.jsonl", lambda lines: ["[]", *lines], "line 1 is damaged"),
        ("metrics.jsonl", lambda lines: ["3", *lines], "line 1 is damaged"),
        ("metrics.jsonl", lambda lines: ['{"step": "0"}', *lines], "line 1 is damaged"),
        ("metrics.jsonl", lambda lines: ['{"step": true}', *lines], "line 1 is damaged"),
        ("metrics.jsonl", lambda lines: ["[" * 100_000, *lines], "line 1 is not JSON"),
        ("metrics.jsonl", lambda lines: ["\udcff", *lines], "line 1 is not JSON"),
        ("metrics.jsonl", lambda lines: ['{"step": 0, "x": "1"}', *lines], "x is no number"),
        ("metrics.jsonl", lambda lines: ['{"step": 0, "x": [1]}', *lines], "x is no number"),
    ],
)
def test_files_that_do_not_fit_the_checkpoint_are_refused(copied, name, change, sentence):
    path = copied / name
    lines = path.read_text().splitlines()
    path.unlink()
    if change:
        text = "".join(line + "\n" for line in change(lines))
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(copied, sentence)


@pytest.mark.parametrize("name", ["config.json", "env.json"])
def test_what_can_be_written_again_is(copied, name):
    (copied / name).unlink()
    run(copied, resume=True, plan=LONGER)
    assert len(read_run(copied).metrics) == 5


@pytest.mark.parametrize("text", ["{", "[]", "3", "{}", '{"plan": 3}', '{"plan": {}, "model": 3}'])
def test_a_damaged_configuration_of_a_run_without_a_checkpoint_is_refused(copied, text):
    (copied / "checkpoint.pt").unlink()
    (copied / "config.json").write_text(text)
    refused(copied, "config.json is damaged|other settings")


@pytest.mark.parametrize("files", range(5))
def test_a_run_that_was_killed_as_it_began_can_be_resumed(finished, tmp_path, files):
    """With any number of its first files; and as older versions began, with env.json."""
    out = tmp_path / "run"
    out.mkdir()
    for name in ("config.json", "env.json", "metrics.jsonl", "groups.jsonl")[:files]:
        whole = name.endswith(".json")
        (out / name).write_bytes((finished / name).read_bytes() if whole else b"")
    (out / ".config.json.partial").write_text("{")
    if files == 4:
        (out / "config.json").unlink()
        (out / "metrics.jsonl").unlink(), (out / "groups.jsonl").unlink()
    run(out, resume=True)
    (out / ".config.json.partial").unlink(missing_ok=True)
    assert traces(out) == traces(finished)


def test_what_a_run_without_configuration_holds_is_not_thrown_away(copied):
    (copied / "checkpoint.pt").unlink()
    (copied / "config.json").unlink()
    refused(copied, "no checkpoint to resume from")


@pytest.mark.parametrize("old", [False, True])
def test_a_folder_is_replaced_whole(tmp_path, monkeypatch, old):
    """Killed at any moment there is the old one or the new one, not a part."""
    new, place = tmp_path / "new", tmp_path / "place"
    new.mkdir()
    (new / "x").write_text("new")
    if old:
        place.mkdir()
        (place / "x").write_text("old")

    def looking(path, **how):
        assert not place.exists() or (place / "x").read_text() in ("old", "new")
        assert Path(path) != place
        return rmtree(path, **how)

    rmtree = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", looking)
    records.replace_folder(new, place)
    assert (place / "x").read_text() == "new" and list(tmp_path.iterdir()) == [place]


# ---- models


def test_flipped_bits_in_saved_weights_are_seen(finished, tmp_path):
    adapter = run(tmp_path / "lora", 4) / "adapter"
    plain = toys.saved(toys.tiny_policy(), tmp_path / "plain")
    for source, file, load in (
        (finished / "model", "model.safetensors", load_policy),
        (finished / "best", "model.safetensors", load_policy),
        (adapter, "adapter_model.safetensors", lambda f: load_policy(plain, adapter=f)),
    ):
        if not source.exists():
            continue
        load(source)
        folder = shutil.copytree(source, tmp_path / f"damaged-{source.name}")
        whole = (folder / file).read_bytes()
        for place in np.random.default_rng(0).integers(8, len(whole), 12):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            (folder / file).write_bytes(damaged)
            with pytest.raises(WorkbenchError, match="is damaged: its checksum") as error:
                load(folder)
            assert "\n" not in str(error.value)
        (folder / records.CHECKSUMS).unlink()  # as an older one: taken as it is
        (folder / file).write_bytes(whole)
        load(folder)


@pytest.mark.parametrize("text", ["", "[", "3", "[1]", '"x"', "[" * 50_000, "\udcff"])
def test_damaged_checksums_are_one_sentence(finished, tmp_path, text):
    folder = shutil.copytree(finished / "model", tmp_path / "model")
    (folder / records.CHECKSUMS).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(WorkbenchError, match=r"checksums.json is damaged"):
        load_policy(folder)


def test_checksums_name_no_other_files(finished, tmp_path, monkeypatch):
    folder = shutil.copytree(finished / "model", tmp_path / "model")
    (folder / records.CHECKSUMS).write_text('{"../../../dev/zero": "crc32:0", "/dev/zero": 3}')
    opened = []
    monkeypatch.setattr(records, "_checksum", lambda path: opened.append(path) or "")
    load_policy(folder)
    assert opened == []


ASKED = "comes with program code of its own, which is never run here"


@pytest.fixture
def remote(tmp_path, monkeypatch):
    """A model folder; what it may not leave; and a standard input that answers yes."""
    folder = toys.saved(toys.tiny_policy(), tmp_path / "model")
    mark = tmp_path / "executed"
    (folder / "code.py").write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("it asks on standard input"))
    yield folder
    assert not mark.exists()


def changed(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


MAP = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}


@pytest.mark.parametrize(
    "file, values, sentence",
    [
        ("config.json", {"model_type": "new", "auto_map": MAP}, ASKED),
        ("config.json", {"model_type": "new", "auto_map": {"AutoConfig": "a/b--code.C"}}, ASKED),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "New", "auto_map": {"AutoTokenizer": ["code.T", None]}},
            ASKED,
        ),
        (
            "tokenizer_config.json",
            {"tokenizer_class": "New", "auto_map": {"AutoTokenizer": [None, "code.T"]}},
            ASKED,
        ),
        # an architecture that transformers has is loaded by its own code
        ("config.json", {"auto_map": MAP}, None),
    ],
)
@pytest.mark.parametrize("where", ["model", "doctor"])
def test_code_of_a_model_is_never_run_and_nobody_is_asked(remote, file, values, sentence, where):
    from workbench.app.memory import skeleton

    if where == "doctor" and file != "config.json":
        pytest.skip("it reads the configuration alone")
    changed(remote / file, **values)
    load = load_policy if where == "model" else skeleton
    if sentence is None:
        load(remote)
        return
    with pytest.raises(WorkbenchError, match=sentence) as error:
        load(remote)
    assert "\n" not in str(error.value)


def test_code_beside_an_adapter_is_never_run(remote, tmp_path):
    adapter = run(tmp_path / "lora", 4) / "adapter"
    shutil.copy(remote / "code.py", adapter / "code.py")
    mapping = {"base_model_class": "M", "parent_library": "code"}
    changed(adapter / "adapter_config.json", auto_mapping=mapping)
    load_policy(remote, adapter=adapter)


def test_a_gguf_file_is_loaded_without_code(tmp_path, monkeypatch):
    import transformers

    asked = []

    def loading(*args, **how):
        asked.append(how.get("trust_remote_code"))
        raise ValueError("no")

    for kind in ("AutoTokenizer", "AutoModelForCausalLM", "AutoConfig"):
        monkeypatch.setattr(getattr(transformers, kind), "from_pretrained", loading)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(gguf.gguf_metadata, "check_file", lambda fields: None)
    writer = pytest.importorskip("gguf").GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(WorkbenchError, match="could not convert"):
        gguf.folder(tmp_path / "x.gguf")
    assert asked == [False]


class Program:
    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"junk"),
        lambda path: path.write_bytes(b"PK\x03\x04junk"),
        lambda path: path.write_bytes(pickle.dumps({"a": Program()})),
        lambda path: torch.save({"a": Program()}, path),
        lambda path: torch.save([1], path),
        lambda path: torch.save({"model.embed_tokens.weight": 3}, path),
    ],
    ids=["empty", "junk", "torn", "pickled", "zipped", "list", "no tensors"],
)
def test_bin_weights_that_are_none_are_one_sentence(tmp_path, make, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = toys.saved(toys.tiny_policy(), tmp_path / "model")
    (folder / "model.safetensors").unlink()
    make(folder / "pytorch_model.bin")
    with pytest.raises(WorkbenchError, match=r"model") as error:
        load_policy(folder)
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1/0 }}",
        "{{ messages + 1 }}",
        "{% for",
        "{{ messages[0].x.y }}",
        "{% for i in range(10**9) %}a{% endfor %}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
        "{{ nothing }}",
        "{{ [].__class__ }}",
        "\ud800",
        "{{ '\\ud800' }}",
        {"rag": "x"},
        [1],
        5,
    ],
)
def test_an_odd_template_is_one_sentence(template):
    policy = toys.tiny_policy()
    policy.tokenizer.chat_template = template
    with pytest.raises(WorkbenchError, match="the chat template of tiny") as error:
        policy.prompt_ids(({"role": "user", "content": "1+1"},))
    assert "\n" not in str(error.value)


# ---- numbers that are none


@pytest.mark.parametrize("method", ["grpo", "sdpo", "tapo", "scope"])
def test_a_rate_that_destroys_the_policy_is_one_sentence(tmp_path, method):
    with pytest.raises(WorkbenchError, match=r"no numbers any more|no probabilities") as error:
        run(tmp_path / "run", method=method, lr=1e30)
    assert "lower lr" in str(error.value)
    if (tmp_path / "run" / "checkpoint.pt").exists():
        saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
        assert all(p.isfinite().all() for p in saved["learner"]["trainable"].values())


def test_a_saved_policy_of_no_numbers_is_one_sentence(tmp_path):
    policy = toys.tiny_policy()
    with torch.no_grad():
        policy.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(WorkbenchError, match="gives no probabilities"):
        load_policy(toys.saved(policy, tmp_path / "model"))


@pytest.mark.parametrize("depth", [10, 500, 900, 990, 994, 998, 2000, 30_000])
def test_arguments_nested_deep_are_wrong(tmp_path, depth):
    right = [{"Action": "a", "Action_Input": {"a": 1}}]
    record = {"prompt": "p", "system": None, "answer": json.dumps(right)}
    (tmp_path / "tools.jsonl").write_text(json.dumps(record) + "\n")
    task = Tools(str(tmp_path / "tools.jsonl"), split="train")
    [problem] = task.problems("train", 1, 0)
    nested = '{"a": ' * depth + "1" + "}" * depth
    for level in range(0, 60, 20):  # however deep the caller is

        def at(level, text):
            return at(level - 1, text) if level else task.grade(problem, text)

        assert at(level, f"Action: a\nAction Input: {nested}").reward == 0
    assert task.grade(problem, 'Action: a\nAction Input: {"a": 1}').correct


# ---- what reaches a terminal or a figure

ESCAPES = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil\r\x08"


def obeyed(text: str) -> list[str]:
    return [c for c in text if c in "\x1b\x07\x9b\u202e\r\x08\x00\x7f" or "\ud800" <= c <= "\udfff"]


def test_printable_leaves_words_and_writes_out_the_rest():
    assert printable("a\tb\nü 数 🙂 −") == "a\tb\nü 数 🙂 −"
    assert printable(ESCAPES + "\ud800") == (
        r"\x1b[2J\x1b]0;owned\x07\x9b31m\u202eevil\x0d\x08\ud800".replace(r"\x0d", r"\r")
    )


@pytest.mark.parametrize("key", ["method", "model"])
def test_a_foreign_configuration_says_nothing_to_the_terminal(copied, key, capsys):
    changed(copied / "config.json", **{key: ESCAPES})
    assert main(["compare", str(copied)]) == 0
    said = capsys.readouterr()
    assert "owned" in said.out and not obeyed(said.out + said.err)
    changed(copied / "config.json", schema_version=ESCAPES)
    assert main(["compare", str(copied)]) == 2
    said = capsys.readouterr()
    assert "owned" in said.err and not obeyed(said.out + said.err)
    with pytest.raises(SystemExit):
        main(["compare", "--" + ESCAPES])
    assert not obeyed(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["$$", "a$x^{$b"])
def test_a_name_is_no_formula(copied, name, tmp_path):
    from workbench.app.compare import write_page

    copied.rename(tmp_path / name)
    other = shutil.copytree(tmp_path / name, tmp_path / "other")
    write_page([tmp_path / name, other], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("<svg") >= 1


# ---- clocks


def test_grading_is_timed_beside_sampling(tmp_path):
    class Slow(Halves):
        def grade(self, problem, text):
            time.sleep(0.02)
            return super().grade(problem, text)

    plan = replace(PLAN, steps=1, eval_every=0)
    out = fit(GRPO(k=4), learner_of(), Slow(), plan, tmp_path / "run", progress=False)
    [line] = read_run(out).metrics.to_dict("records")
    # 8 attempts, several at a time: a wait is counted once
    workers = os.cpu_count() or 1
    assert 0.02 * -(-8 // workers) * 0.9 <= line["seconds_grade"] <= line["seconds_sample"]
    assert line["seconds_grade"] < 8 * 0.02 + 0.5 and line["seconds_train"] > 0


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](Path(sys.argv[2]))
