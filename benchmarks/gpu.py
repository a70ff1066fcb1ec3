"""What one GPU does with the workbench, in at most eight minutes.

    python benchmarks/gpu.py              all parts; results in benchmarks/results/gpu-CARD.json
    python benchmarks/gpu.py --list       the parts
    python benchmarks/gpu.py --only learns steps-0.6b
    python benchmarks/gpu.py --rehearse --out FILE      all of it with tiny shapes, on any machine

Needed are torch, transformers and peft; bitsandbytes, TRL, Unsloth and vLLM are used where they
are. Nothing is downloaded: but for the organism, which is in the repository, models have the shapes
of Qwen2.5-0.5B, Qwen3-0.6B, 1.7B and 4B and random weights. Their tokenizer is the organism's;
tokens beyond its 128 are sampled and scored like all others and written as some character, and the
reward is a coin that the text tosses. So times and memory are those of real models, answers not.

Each part is a process of its own with at most a minute, so that one that fails, hangs or runs out
of memory loses nothing else. Results are written line by line. A second call goes on with what is
not done, if card and versions are the same.

Memory is torch's (max_memory_allocated), beside what memory.predict says without CUDA's own share.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from random import Random
from zlib import crc32

import peft
import torch

ROOT = Path(__file__).resolve().parent.parent
TURNED = "arithmetic:style=turned"  # expert solutions that the organism does not write
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from data.organism.build.common import tokenizer  # noqa: E402
from workbench.app import doctor, memory  # noqa: E402
from workbench.core import Problem, Verdict, first_line  # noqa: E402
from workbench.methods import METHODS, find  # noqa: E402
from workbench.model.learner import Learner, OptimConfig  # noqa: E402
from workbench.model.loading import half_type, load_policy  # noqa: E402
from workbench.model.policy import Policy  # noqa: E402
from workbench.records import dumps, write_atomic  # noqa: E402
from workbench.tasks import load_task  # noqa: E402
from workbench.training.update import update  # noqa: E402

TOTAL, EACH = 480, 60  # seconds
RESERVE = 12  # of a part's, in which no new row is begun
PATIENCE = 20  # times as long may a rehearsal take, on whatever machine
QWEN2, QWEN3 = "qwen2", "qwen3"
SHAPES = {  # family, hidden, inner, layers, heads, heads of keys and values, dimension of a head
    "0.5b": (QWEN2, 896, 4864, 24, 14, 2, 64),
    "0.6b": (QWEN3, 1024, 3072, 28, 16, 8, 128),
    "1.7b": (QWEN3, 2048, 6144, 28, 16, 8, 128),
    "4b": (QWEN3, 2560, 9728, 36, 32, 8, 128),
}
VOCABULARY = 151_936
PROMPT, NEW, PROMPTS, ROWS, RANK = 128, 64, 8, 8, 16
TINY = {"hidden": 32, "inner": 48, "layers": 2, "heads": 4, "kv": 2, "head": 8, "vocabulary": 512}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FAMILIES = ("llama", "qwen3", "gemma2", "gemma3", "mixtral", "deepseek_v3", "lfm2", "falcon_h1")

Rows = Iterator[dict]


# ---- what the parts share


class Coins:
    """Problems of as many tokens as asked for, and a reward that depends on the text alone."""

    name = "coins"

    def __init__(self, new: int, prompt: int = PROMPT):
        self.max_new, self.prompt = new, prompt

    def problems(self, split: str, n: int, seed) -> list[Problem]:
        numbers = Random(str(seed))
        texts = ["".join(numbers.choices("0123456789+-", k=self.prompt)) for _ in range(n)]
        return [
            Problem(str(i), ({"role": "user", "content": text},), "7", ("7",))
            for i, text in enumerate(texts)
        ]

    def grade(self, problem: Problem, text: str) -> Verdict:
        right = crc32(text.encode()) % 2 == 0
        return Verdict(float(right), right)

    def first_error(self, problem: Problem, text: str) -> None:
        return None

    def reprompt(self, problem: Problem, *, solution="", attempt="", feedback=""):
        content = problem.messages[-1]["content"] + (solution or attempt or feedback)
        return ({"role": "user", "content": content},)

    def synthesis(self, problem: Problem, wrong, right):
        return problem.messages


def config_of(family: str, sizes: Sequence[int], vocabulary: int, **more):
    """``sizes``: the six of SHAPES."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    hidden, inner, layers, heads, kv, head = sizes
    tok = tokenizer()
    return CONFIG_MAPPING[family](
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        head_dim=head,
        bos_token_id=None,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
        **more,
    )


def configuration(shape: str, rehearse: bool):
    family, *sizes = SHAPES[shape]
    return config_of(
        family,
        list(TINY.values())[:6] if rehearse else sizes,
        TINY["vocabulary"] if rehearse else VOCABULARY,
        max_position_embeddings=4096,
        initializer_range=0.2 if rehearse else 0.02,
        tie_word_embeddings=True,
    )


def network(shape: str, rehearse: bool, dtype: torch.dtype, seed: int = 0):
    """Random weights, made on the device."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device(DEVICE):
        net = AutoModelForCausalLM.from_config(configuration(shape, rehearse), dtype=dtype)
    return net.eval().requires_grad_(False)


def policy_of(net, name: str) -> Policy:
    """It samples from its whole vocabulary, and no token ends its turns."""
    policy = Policy(net, tokenizer(), name)
    policy._vocabulary = net.config.vocab_size
    policy.stop_ids = frozenset()
    policy.decode = lambda ids: "".join(chr(33 + token % 90) for token in ids)
    return policy


def wide(rehearse: bool) -> torch.dtype:
    """What the card computes in; in the rehearsal bf16 on any processor."""
    return torch.bfloat16 if rehearse else half_type(DEVICE) or torch.float32


def skeleton(shape: str, rehearse: bool):
    with tempfile.TemporaryDirectory() as folder:
        configuration(shape, rehearse).save_pretrained(folder)
        return memory.skeleton(folder)


def sizes(rehearse: bool) -> memory.StepSizes:
    new, prompts = (4, 2) if rehearse else (NEW, PROMPTS)
    return memory.StepSizes(PROMPT, new, ROWS, prompts, RANK)


def step(learner: Learner, name: str, rehearse: bool, new: int | None = None) -> dict:
    """One update, and what it took."""
    asked = sizes(rehearse)
    task = Coins(new or asked.new)
    problems = task.problems("train", asked.prompts, 0)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    record = update(find(name)(), learner, task, problems, (0, 0), rows=ROWS)
    numbers, seconds = record.metrics, record.metrics["seconds_sample"]
    row = {
        "row": name,
        "sample_s": seconds,
        "train_s": numbers["seconds_train"],
        "sampled_per_s": numbers["generated"] / seconds,
        "gap_mean": numbers["gap_mean"],
        "grad_norm": numbers["grad_norm"],
        "skipped": numbers["skipped"],
    }
    if DEVICE == "cuda":
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return row


def predicted(net, name: str, mode: str, rehearse: bool) -> float:
    """GiB, without what CUDA takes for itself."""
    peak = memory.predict(net, find(name)(), mode, sizes(rehearse))["peak"]
    return (peak - memory.CONTEXT) / 2**30


def tried(name: str, make: Callable[[], dict]) -> dict:
    """A row, or what went wrong in one line."""
    try:
        return make()
    except Exception as error:
        return {"row": name, "error": f"{type(error).__name__}: {first_line(error)}"}
    finally:
        if DEVICE == "cuda":
            torch.cuda.empty_cache()


# ---- the parts: each yields its rows


def learns(rehearse: bool) -> Rows:
    """GRPO on the organism, all weights in fp32: right answers, before and after."""
    policy = load_policy(ROOT / "data" / "organism" / "3m", device=DEVICE)
    learner, task = Learner(policy, OptimConfig(lr=1e-4)), load_task(TURNED)
    steps, prompts = (1, 2) if rehearse else (40, 16)
    correct, began = [], time.perf_counter()
    for number in range(steps):
        problems = task.problems("train", prompts, number)
        record = update(find("grpo")(), learner, task, problems, (0, number))
        correct.append(record.metrics["correct"])
        if number == 0 or (number + 1) % 10 == 0:
            last = correct[-10:]
            yield {
                "row": f"{number + 1} updates",
                "correct": sum(last) / len(last),
                "seconds": time.perf_counter() - began,
                "gap_mean": record.metrics["gap_mean"],
            }


def steps(shape: str, rehearse: bool) -> Rows:
    """A LoRA step of every method: seconds, tokens, memory beside its prediction."""
    began = time.perf_counter()
    net, counted = network(shape, rehearse, wide(rehearse)), skeleton(shape, rehearse)
    expert = None
    warm = Learner(policy_of(net, shape), lora=RANK)
    step(warm, "grpo", rehearse, new=2)
    warm.policy.model.unload()
    names = sorted(METHODS, key=lambda name: find(name)().needs_expert)
    for name in names[::5] if rehearse and shape != "0.5b" else names:
        if not rehearse and time.perf_counter() - began > EACH - RESERVE:
            yield {"row": name, "error": "no time left"}
            continue
        if expert is None and find(name)().needs_expert:
            expert = policy_of(network(shape, rehearse, wide(rehearse), seed=1), "expert")

        def make(name=name, expert=expert) -> dict:
            learner = Learner(policy_of(net, shape), lora=RANK, expert=expert)
            try:
                row = step(learner, name, rehearse)
            finally:
                learner.policy.model.unload()  # the next one puts its own adapter on
            return row | {"predicted_gib": predicted(counted, name, "lora", rehearse)}

        yield tried(name, make)


def types(rehearse: bool) -> Rows:
    """How far sampler and trainer are apart in bf16 and in fp16, and the loss scale's skips."""
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")

        def make(dtype=dtype, name=name) -> dict:
            learner = Learner(policy_of(network("0.6b", rehearse, dtype), name), lora=RANK)
            step(learner, "sdpo", rehearse, new=2)
            return step(learner, "sdpo", rehearse) | {"row": name}

        yield tried(name, make)


def families(rehearse: bool) -> Rows:
    """A tiny model of each family in bf16: the check at load, and a step."""
    import zoo

    from workbench.model import decoder

    for family in FAMILIES[:3] if rehearse else [*zoo.FAMILIES, *zoo.WRAPPED]:

        def make(family=family) -> dict:
            policy = zoo.policy(family)
            policy.model.to(DEVICE, torch.bfloat16)
            decoder.check(policy)
            task = Coins(8, prompt=24)
            record = update(
                find("grpo")(), Learner(policy, lora=2), task, task.problems("train", 2, 0), (0, 0)
            )
            return {
                "row": family,
                "gap_mean": record.metrics["gap_mean"],
                "grad_norm": record.metrics["grad_norm"],
            }

        yield tried(family, make)


def saved(shape: str, rehearse: bool, folder: str) -> str:
    """A model with its tokenizer, for software that wants files."""
    network(shape, rehearse, wide(rehearse)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def four_bits(rehearse: bool) -> Rows:
    """QLoRA: the weights in 4 bits, by bitsandbytes."""
    counted = skeleton("0.6b", rehearse)
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_policy(saved("0.6b", rehearse, folder), four_bit=True, device=DEVICE)
    learner = Learner(policy_of(loaded.model, "4 bits"), lora=RANK)
    step(learner, "grpo", rehearse, new=2)
    for name in ("grpo", "sdpo"):
        yield tried(
            name,
            lambda name=name: (
                step(learner, name, rehearse)
                | {"predicted_gib": predicted(counted, name, "qlora", rehearse)}
            ),
        )


def trl(rehearse: bool) -> Rows:
    """TRL's GRPO step, and ours on the same shape and sizes."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    asked = sizes(rehearse)
    problems = Coins(asked.new).problems("train", 4 * asked.prompts, 0)
    data = Dataset.from_list([{"prompt": list(problem.messages)} for problem in problems])
    clock: list[float] = []

    class Trainer(GRPOTrainer):
        def training_step(self, *args, **kwargs):
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            clock.append(time.perf_counter())
            return super().training_step(*args, **kwargs)

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=8 * asked.prompts,
            num_generations=8,
            max_completion_length=asked.new,
            generation_kwargs={"min_new_tokens": asked.new},
            beta=0.0,
            bf16=wide(rehearse) == torch.bfloat16 and not rehearse,
            fp16=wide(rehearse) == torch.float16,
            max_steps=3,
            use_cpu=DEVICE == "cpu",
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(
            network("0.6b", rehearse, wide(rehearse)),
            reward_funcs=lambda completions, **_: [
                float(crc32(c[0]["content"].encode()) % 2) for c in completions
            ],
            args=config,
            train_dataset=data,
            processing_class=tokenizer(),
            peft_config=peft.LoraConfig(r=RANK, target_modules="all-linear"),
        )
        trainer.train()
    yield {"row": "TRL grpo", "step_s": clock[-1] - clock[-2]}
    del trainer
    learner = Learner(policy_of(network("0.6b", rehearse, wide(rehearse)), "ours"), lora=RANK)
    step(learner, "grpo", rehearse, new=2)
    row = step(learner, "grpo", rehearse)
    yield row | {"row": "ours grpo", "step_s": row["sample_s"] + row["train_s"]}


def unsloth(rehearse: bool) -> Rows:
    """A step through Unsloth's kernels."""
    with tempfile.TemporaryDirectory() as folder:
        policy = load_policy(saved("0.6b", rehearse, folder), unsloth=True, frozen=True)
    policy.stop_ids = frozenset()
    learner = Learner(policy, lora=RANK)
    yield tried("grpo", lambda: step(learner, "grpo", rehearse))
    yield tried("grpo again", lambda: step(learner, "grpo", rehearse) | {"row": "grpo again"})


def vllm(rehearse: bool) -> Rows:
    """The organism's GRPO step, written by vLLM."""
    from workbench.rollouts.vllm import VLLM

    policy = load_policy(ROOT / "data" / "organism" / "3m", frozen=True)
    learner, task = Learner(policy, lora=8), load_task(TURNED)
    learner.policy.engine = VLLM(learner.policy)
    for number in range(3):
        problems = task.problems("train", PROMPTS, number)
        metrics = update(find("grpo")(), learner, task, problems, (0, number)).metrics
        yield {
            "row": f"update {number + 1}",
            "sample_s": metrics["seconds_sample"],
            "train_s": metrics["seconds_train"],
            "gap_mean": metrics["gap_mean"],
        }


def steps_of(shape: str) -> Callable[[bool], Rows]:
    return lambda rehearse: steps(shape, rehearse)


PARTS: dict[str, tuple[Callable[[bool], Rows], str, bool]] = {  # rows, package, only with CUDA
    "learns": (learns, "torch", False),
    **{f"steps-{shape}": (steps_of(shape), "peft", False) for shape in SHAPES},
    "types": (types, "peft", False),
    "families": (families, "peft", False),
    "4bit": (four_bits, "bitsandbytes", False),
    "trl": (trl, "trl", False),
    "unsloth": (unsloth, "unsloth", True),
    "vllm": (vllm, "vllm", True),
}


# ---- the driver


def cause_to_skip(name: str) -> str:
    _, package, cuda = PARTS[name]
    if not find_spec(package):
        return f"{package} is not installed"
    return "needs CUDA" if cuda and DEVICE != "cuda" else ""


def child(name: str, rehearse: bool, sender) -> None:
    """One part: its rows, and at the end a word, or what went wrong."""
    try:
        for row in PARTS[name][0](rehearse):
            sender.send(row)
        sender.send({"status": "done"})
    except Exception as error:
        sender.send({"error": f"{type(error).__name__}: {first_line(error)}"})


def run(name: str, rehearse: bool, limit: float, keep: Callable[[dict], None]) -> None:
    """One part in a process of its own; ``keep`` is given what there is of it after each row."""
    began = time.perf_counter()
    # CUDA does not survive a fork; without it a fork has everything imported
    context = multiprocessing.get_context("spawn" if DEVICE == "cuda" else "fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(name, rehearse, sender))
    process.start()
    sender.close()
    result: dict = {"status": "out of time", "rows": []}
    try:
        while receiver.poll(max(0.0, began + limit - time.perf_counter())):
            message = receiver.recv()
            if "row" in message:
                result["rows"].append(message)
            else:
                result |= {"status": "failed"} | message
            keep(result)
    except EOFError:  # it has ended
        process.join()
        if result["status"] == "out of time":
            result |= {"status": "failed", "error": f"it ended with code {process.exitcode}"}
    process.kill()
    process.join()
    keep(result | {"seconds": time.perf_counter() - began})


def measure(out: Path, names: list[str], rehearse: bool) -> dict:
    """All parts that are not done yet, as long as there is time."""
    began = time.perf_counter()
    longer = PATIENCE if rehearse else 1
    here = {"card": card(), "versions": doctor.line(), "rehearsal": rehearse}
    results = here | {"parts": {}}
    before = json.loads(out.read_text()) if out.exists() else {}
    if {key: before.get(key) for key in here} == here:
        results = before
    out.parent.mkdir(parents=True, exist_ok=True)

    def keep(name: str, result: dict) -> None:
        results["parts"][name] = result
        write_atomic(out, dumps(results, indent=1) + "\n")

    for name in names:
        left = longer * TOTAL - (time.perf_counter() - began)
        if results["parts"].get(name, {}).get("status") == "done" or left < RESERVE:
            continue
        if why := cause_to_skip(name):
            keep(name, {"status": f"left out: {why}", "rows": []})
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        run(name, rehearse, min(longer * EACH, left), lambda result, name=name: keep(name, result))
    return results


def card() -> str:
    return torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"


def table(results: dict) -> str:
    """A line a row, its numbers to three digits."""
    lines = [results["versions"]]
    for name, part in results["parts"].items():
        error = f": {part['error']}" if part.get("error") else ""
        lines.append(f"\n{name}: {part['status']}{error}")
        for row in part["rows"]:
            texts = [
                f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in row.items()
                if key != "row"
            ]
            lines.append(f"  {row['row']:14} {'  '.join(texts)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("--list", action="store_true", help="name the parts")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--rehearse", action="store_true", help="tiny shapes, on any machine")
    parser.add_argument("--out", type=Path, metavar="FILE")
    args = parser.parse_args()
    if args.list:
        for name, (part, *_) in PARTS.items():
            print(f"{name:12} {first_line(part.__doc__ or steps.__doc__)}")
    elif DEVICE == "cpu" and not args.rehearse:
        sys.exit("there is no GPU here; --rehearse goes through all parts with tiny shapes")
    else:
        name = f"gpu-{card().replace(' ', '-').lower()}.json"
        out = args.out or ROOT / "benchmarks" / "results" / name
        print(table(measure(out, args.only, args.rehearse)))
        print(f"\nin {out}")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
