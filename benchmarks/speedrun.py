"""A clock to a target: how long until the organism solves .85 of 400 held-out problems, by each
method, and by TRL's GRPOTrainer on the same model, problems, reward and target in the same run.

    python benchmarks/speedrun.py                 every method and TRL, two seeds
    python benchmarks/speedrun.py --only grpo trl
    python benchmarks/speedrun.py --quick --out FILE   two steps of two entries: does it work?

Run it alone on an idle machine. What has a line in benchmarks/results/speedrun.json is not run
again; TRL's own environment is that of vs_trl.py.

The target is reached when the lower end of avg@8's 95 % interval over 400 problems of the test
split is at least .85. The driver asks after every second step, from saved weights, with one sampler
for all: neither that nor loading is on the clock. It does not ask where 100 validation problems x 4
are below .85 themselves: most of the waiting. An entry is one seed's time; the other seed must
reach the target too, or it is void. All have one rate, that of the study, and every step is 16
problems x 8 rollouts of the standard dial (SFT: 128 problems x 1 solution); TRL in its fastest
setting on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

from vs_trl import PINS, ROOT, Worker, environment, machine, say

sys.path.insert(0, str(ROOT))

MODEL = ROOT / "data" / "organism" / "3m"
TEACHER = MODEL.with_name("teacher")
RESULTS = ROOT / "benchmarks" / "results" / "speedrun.json"
METHODS = ("grpo", "sdpo", "tapo", "trapo", "scope", "opd", "kd", "luffy", "sft")
NAMES = (*METHODS, "trl")
SEEDS = (0, 1)
RATE = 1e-4
TARGET, EVERY, LAST = 0.85, 2, 80
PROMPTS, GROUP = 16, 8
SETTLE = 0.3  # seconds until the idle threads of the evaluation stop spinning


# ---- the two sides: a line on the standard input is "step", or a folder to save the weights in ---


def ours(name: str, seed: int) -> None:
    from workbench.core import coordinates
    from workbench.model.learner import Learner, OptimConfig
    from workbench.model.loading import load_policy
    from workbench.tasks.arithmetic import Arithmetic
    from workbench.training.update import update

    method, count = method_of(name)
    expert = load_policy(TEACHER) if method.needs_expert else None
    learner = Learner(load_policy(MODEL), OptimConfig(lr=RATE), seed=seed, expert=expert)
    task = Arithmetic()
    numbers = itertools.count()
    say({"ready": True})
    for line in sys.stdin:
        if line.strip() != "step":
            learner.policy.model.save_pretrained(line.strip())
            say({"saved": True})
            continue
        number = next(numbers)
        problems = task.problems("train", count, coordinates(seed, number))
        began = time.perf_counter()
        record = update(method, learner, task, problems, (seed, number), step=number)
        seconds = time.perf_counter() - began
        say({"seconds": seconds, "tokens": record.metrics["generated"]})


def method_of(name: str) -> tuple:
    """The method, and how many problems it gets a step."""
    from workbench import methods

    method = methods.find(name)(**{"k": GROUP} if name in ("opd", "kd") else {})
    return method, PROMPTS * GROUP if name == "sft" else PROMPTS


def theirs(seed: int) -> None:
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    from workbench.core import coordinates
    from workbench.tasks.arithmetic import Arithmetic

    task = Arithmetic()
    batches = [task.problems("train", PROMPTS, coordinates(seed, number)) for number in range(LAST)]
    problems = {problem.id: problem for batch in batches for problem in batch}
    rows = [{"prompt": list(p.messages), "problem": p.id} for batch in batches for p in batch]
    clock = {"tokens": 0.0}

    def reward(completions, problem, **_) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [task.grade(problems[name], text).reward for name, text in zip(problem, texts)]

    class Trainer(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            made = super()._generate_and_score_completions(inputs)
            clock["tokens"] = float(made["completion_mask"].sum())
            return made

    class Turns(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            for line in sys.stdin:
                if line.strip() == "step":
                    break
                model.save_pretrained(line.strip())
                say({"saved": True})
            clock["began"] = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            say({"seconds": time.perf_counter() - clock["began"], "tokens": clock["tokens"]})

    data = Dataset.from_list(rows)
    trainer = Trainer(
        str(MODEL),
        reward_funcs=reward,
        args=trl_settings(seed, task.max_new),
        train_dataset=data,
        callbacks=[Turns()],
    )
    say({"ready": True})
    trainer.train()


def trl_settings(seed: int, longest: int):
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=longest,
        beta=0.0,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_steps=LAST + 1,
        shuffle_dataset=False,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
        seed=seed,
    )


# ---- the driver ----------------------------------------------------------------------------------


def race(python, name: str, seed: int, last: int, problems: int, least: float) -> dict:
    """One entry with one seed: its curve, and whether and when the target was reached."""
    words = ("--worker", name, "--seed", seed)
    worker = Worker(python, *words, script=__file__)
    curve, laps = [], []
    try:
        worker.hear()
        with tempfile.TemporaryDirectory() as folder:
            while len(laps) < last and not at_target(curve):
                time.sleep(SETTLE)
                laps += [worker.ask("step") for _ in range(EVERY)]
                worker.ask(folder)
                point = {"steps": len(laps)} | measured(folder, problems, least)
                point |= {key: sum(lap[key] for lap in laps) for key in ("seconds", "tokens")}
                curve.append(point)
                print(f"{name} seed {seed}: {point}", flush=True)
    finally:
        worker.process.kill()
        worker.process.wait()
    return {"name": name, "seed": seed, "reached": at_target(curve), "curve": curve}


def at_target(curve: list[dict]) -> bool:
    return bool(curve) and curve[-1].get("low", 0.0) >= TARGET


def measured(folder: str, problems: int, least: float) -> dict:
    """avg@8 of saved weights, if a look at others has ``least``; the same for all, whoever trained
    them.
    """
    import shutil

    from workbench.evaluation.metrics import evaluate
    from workbench.model.loading import load_policy
    from workbench.tasks.arithmetic import Arithmetic

    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (MODEL / name).exists():
            shutil.copy(MODEL / name, folder)
    policy, task = load_policy(folder), Arithmetic()
    look = evaluate(policy, task, task.problems("validation", 100, 0), 4, 0).avg
    if look < least:
        return {"look": look}
    result = evaluate(policy, task, task.problems("test", problems, 0), 8, 0)
    return {"look": look, "avg": result.avg, "low": result.low}


def standings(lines: list[dict]) -> dict[str, dict | None]:
    """The seeds' mean of each entry; None is void: not every seed reached the target."""
    entries = {}
    for name in NAMES:
        runs = [line for line in lines if line["name"] == name]
        ends = [line["curve"][-1] for line in runs if line["reached"]]
        if len(ends) == len(SEEDS):
            keys = ("seconds", "tokens", "steps")
            entries[name] = {key: statistics.mean(end[key] for end in ends) for key in keys}
        elif runs:
            entries[name] = None
    return entries


def table(entries: dict[str, dict | None]) -> str:
    rows = [f"{'':8}{'seconds':>10}{'tokens':>10}{'steps':>8}{'of TRL':>8}"]
    rival = entries.get("trl")
    for name, mean in entries.items():
        if mean is None:
            rows.append(f"{name:8}      void: not every seed reached the target")
            continue
        ratio = f"{mean['seconds'] / rival['seconds']:8.2f}" if rival else ""
        row = f"{name:8}{mean['seconds']:10.1f}{mean['tokens']:10.0f}{mean['steps']:8.1f}{ratio}"
        rows.append(row)
    return "\n".join(rows)


def refuse_another_machine(result: dict, out: Path) -> None:
    for key, here in (("machine", machine()), ("versions", versions())):
        if result[key] != here:
            raise SystemExit(f"{out} was measured with another {key}: give another --out")


def versions() -> dict:
    return {
        **{name: metadata.version(name) for name in ("torch", "transformers")},
        "trl": dict(pin.split("==") for pin in PINS),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="two entries, two steps, 8 problems")
    parser.add_argument("--worker", choices=NAMES, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return theirs(args.seed) if args.worker == "trl" else ours(args.worker, args.seed)
    if args.quick and args.out == RESULTS:
        parser.error("--quick needs an --out of its own")
    names = ("grpo", "trl") if args.quick else args.only
    last, problems, least, seeds = LAST, 400, TARGET, SEEDS
    if args.quick:
        last, problems, least, seeds = EVERY, 8, 0.0, SEEDS[:1]
    kept = []
    if args.out.exists():
        before = json.loads(args.out.read_text())
        refuse_another_machine(before, args.out)
        kept = before["runs"]
    for seed, name in itertools.product(seeds, names):
        if any((line["name"], line["seed"]) == (name, seed) for line in kept):
            continue
        # the test's own environment has TRL too, of whichever version
        python = environment() if name == "trl" and not args.quick else sys.executable
        kept.append(race(python, name, seed, last, problems, least))
        result = {"target": TARGET, "quick": args.quick, "standings": standings(kept)}
        result |= {"machine": machine(), "versions": versions(), "runs": kept}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        partial = args.out.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(args.out)
    print(table(standings(kept)))


if __name__ == "__main__":
    main()
