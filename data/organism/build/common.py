"""What the builders of the small models share.

The tokenizer, training rows, the training loop, folders that are written whole, and the table of
what was measured.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from workbench.core import Task
from workbench.evaluation.statistics import bootstrap
from workbench.records import replace_folder, seal
from workbench.tasks.arithmetic import PHRASES

PAD, UNK, END = "<|pad|>", "<|unk|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
ROWS = 64
TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + "
    "'<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
Say = Callable[[str], None]  # where the progress goes


def say_now(text: str) -> None:
    print(text, flush=True)


def prefixed(say: Say, words: str) -> Say:
    return lambda text: say(f"{words} {text}")


@dataclass(frozen=True)
class Size:
    hidden: int
    layers: int
    heads: int
    share: float = 1.0  # of the tokens of the stages that have no target


# ---- tokenizer


def tokenizer(fixed: tuple[str, ...] = PHRASES):
    """One token a character (printable ASCII and the line break), one for each ``fixed`` phrase of
    the task and its prompts, and the chat template's marks.

    Then spare ones up to a multiple of ROWS, which say nothing and no text is made of: the shipped
    models have that many rows, and the recorded runs counted them all.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [PAD, UNK, END, *ROLES, "\n", *map(chr, range(32, 127)), *fixed]
    pieces += [f"<|{len(pieces) + i}|>" for i in range(-len(pieces) % ROWS)]
    phrases = "|".join(_escape(p) for p in sorted(fixed, key=len, reverse=True))
    core = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNK))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(rf"{phrases}|[\s\S]"), "isolated")
    silent = decoders.Replace(Regex(r"^<\|\d+\|>$"), "")
    core.decoder = decoders.Sequence([silent, decoders.Fuse()])
    tok = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tok.chat_template = TEMPLATE
    return tok


def _escape(text: str) -> str:
    return "".join("\\" + c if c in r"\.+*?()|[]{}^$/-" else c.replace("\n", "\\n") for c in text)


# ---- training rows

# training rows are padded to the next of these: few shapes, so that each is compiled once
WIDTHS = (64, 112, 192, 256, 320)
TOKENS = 6144  # in a step


def rows_by_width(tok, rng: Random, draw_example):
    """Endless training batches of like-sized rows.

    (ids, targets), lists of [rows, width]; -100 where nothing is learned. ``draw_example(rng)``
    gives the messages, the reply, and how many leading characters of it are given, not learned.
    """
    end, pad = tok.convert_tokens_to_ids([END, PAD])
    waiting: dict[int, list] = {width: [] for width in WIDTHS}
    while True:
        messages, reply, given = draw_example(rng)
        before = tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompt = tok(before + reply[:given])["input_ids"]
        learned = [*tok(reply[given:])["input_ids"], end]
        length = len(prompt) + len(learned)
        width = next((width for width in WIDTHS if width >= length), None)
        if width is None:
            continue
        padding = width - length
        ids = prompt + learned + [pad] * padding
        targets = [-100] * (len(prompt) - 1) + learned + [-100] * (padding + 1)
        waiting[width].append((ids, targets))
        if len(waiting[width]) == TOKENS // width:
            yield tuple(zip(*waiting[width]))
            waiting[width] = []


# ---- training


@dataclass(frozen=True)
class Stage:
    """Part of the training: at most ``most`` tokens of conversations by ``draw``, or until the
    greedy accuracy on validation reaches ``until``.
    """

    name: str
    draw: Callable[[Random], tuple]
    most: int
    rate: float  # peak learning rate
    # not reachable: the whole budget, its second half with a rate falling to zero
    until: float = 2.0


def begin(size: Size, tok, seed: int, start: Path | None = None, vocabulary: int = 128):
    """A model with random weights, or the one saved in ``start``; fp32."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    if start:
        return AutoModelForCausalLM.from_pretrained(start).float()
    config = LlamaConfig(
        vocab_size=vocabulary,
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
    return LlamaForCausalLM(config).float()


def train(model, tok, stage: Stage, seed: int, say: Say, task: Task) -> None:
    """One stage, in place. ``task``: of the greedy accuracy."""
    import torch
    import torch.nn.functional as F

    from workbench.model.policy import Policy

    # compiled, as plain matrix products: the fastest of what was measured on a CPU
    model.set_attn_implementation("eager")

    @partial(torch.compile, dynamic=False)
    def loss_of(ids, target):
        logits = model(input_ids=ids, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=-100)

    policy = Policy(model, tok)
    batches = rows_by_width(tok, Random(seed), stage.draw)
    optimizer = _optimizer(model, stage.rate)
    began = time.time()
    tokens = step = 0
    smooth = None
    while tokens < stage.most:
        ids, target = map(torch.tensor, next(batches))
        for group in optimizer.param_groups:
            group["lr"] = _rate(stage, tokens, step)
        loss = loss_of(ids, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        step += 1
        smooth = loss.item() if smooth is None else 0.97 * smooth + 0.03 * loss.item()
        if step % 75 == 0 or tokens >= stage.most:
            accuracy = greedy_accuracy(policy, task)
            say(
                f"step {step}  {tokens / 1e6:.2f}M tokens  {time.time() - began:.0f} s  loss "
                f"{smooth:.3f}  greedy accuracy {accuracy:.2f}"
            )
            if accuracy >= stage.until:
                break


def _optimizer(model, rate: float):
    """AdamW; only matrices decay."""
    import torch

    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def _rate(stage: Stage, tokens: int, step: int) -> float:
    """The learning rate: rises over 50 steps; without a target it falls to zero at the end."""
    falling = min(1.0, 2 * (1 - tokens / stage.most)) if stage.until > 1 else 1.0
    return stage.rate * falling * min(1.0, (step + 1) / 50)


def greedy_accuracy(policy, task, n: int = 100) -> float:
    """On validation problems, plain prompt, temperature 0."""
    from workbench.rollouts.sampling import sample_groups

    groups = sample_groups(
        policy, task, task.problems("validation", n, 0), 1, ("greedy",), temperature=0.0
    )
    return sum(group.rollouts[0].verdict.correct for group in groups) / n


# ---- folders


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder to write to, put in the place of ``folder`` when all is written."""
    fresh = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    yield fresh
    replace_folder(fresh, folder)


def save(model, tok, folder: Path) -> None:
    """In Hugging Face format, bf16; the model that goes on learning stays in fp32."""
    import torch

    with whole(folder) as fresh:
        copy.deepcopy(model).to(torch.bfloat16).save_pretrained(fresh)
        tok.save_pretrained(fresh)
        seal(fresh)


# ---- what was measured

Measured = dict[str, tuple[float, float, float]]  # row -> mean, low, high


def with_intervals(values: Mapping[str, Sequence[float]]) -> Measured:
    """Means over problems with their 95 % bootstrap intervals."""
    return {name: (sum(row) / len(row), *bootstrap(row)) for name, row in values.items()}


def markdown(head: str, rows: Mapping[str, str], models: Mapping[str, Measured]) -> str:
    """A table under ``head``: a column a model, a line for each of ``rows`` (key -> its words)."""
    lines = [f"| | {' | '.join(models)} |", "|---" * (len(models) + 1) + "|"]
    for key, words in rows.items():
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(*model[key]) for model in models.values()]
        lines.append(f"| {words} | {' | '.join(cells)} |")
    return head + "\n".join(lines) + "\n"
