"""peft adapters on a policy: made, loaded, trained further, merged into the weights, saved.

A policy that was loaded with an adapter is that adapter on its model. What is trained next starts
from there, and so do the reference and the teacher (learner.py):

    Learner(policy, lora=R)    trains the same adapter further, whatever its own rank. So the saved
                               one is again an adapter for the model that it was made for, also on
                               4-bit weights, where merging would not be exact
    Learner(policy)            merges it first and trains all weights
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.core import WorkbenchError, refuse_if, refuse_on
from workbench.model import families
from workbench.model.policy import Policy
from workbench.records import check_seal

# either of them makes a folder with adapter_config.json an adapter
_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
# What depends on more than a layer's own input: the policy's passes do not know of it.
_UNKNOWN = ("alora_invocation_tokens", "arrow_config", "layer_replication", "monteclora_config")
_TOLERANCE = 1e-3  # of logits, between an adapter on a model and the two merged


def peft_adapter(model: nn.Module, rank: int) -> nn.Module:
    """The model with a fresh LoRA adapter on every linear layer but the head, routers, other
    towers, and what Mamba's kernels pass by.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=families.with_adapter(model),
        exclude_modules=families.without_adapter(model) or None,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)  # peft's
        return get_peft_model(model, config)


# ---- saved adapters


def read_config(folder: Path, model: str | Path, unsloth: bool = False) -> dict:
    """An adapter's adapter_config.json, before anything is loaded.

    Raises WorkbenchError where ``folder`` holds no adapter, a damaged one, one of a kind that
    cannot be used here, or one that was made for another model than the run's own ``model``.
    """
    refuse_if(
        unsloth,
        "Unsloth's kernels take only adapters that it made: leave --unsloth or --adapter out",
    )
    present = any((folder / name).is_file() for name in _WEIGHTS)
    if not (folder / "adapter_config.json").is_file() or not present:
        raise WorkbenchError(_no_adapter(folder))
    damaged = f"the adapter in {folder} is damaged: its adapter_config.json cannot be read"
    with refuse_on((OSError, ValueError, TypeError, KeyError, AttributeError), damaged):
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind = str(config["peft_type"])
        base = Path(config.get("base_model_name_or_path") or "")
    unknown = [name for name in _UNKNOWN if config.get(name)]
    refuse_if(
        unknown or "PROMPT" in kind or kind in ("PREFIX_TUNING", "P_TUNING", "XLORA", "CPT"),
        f"the adapter in {folder} is of a kind that is not supported ({kind}"
        f"{''.join(f', {name}' for name in unknown)}): LoRA and its variants are",
    )
    # (only the last two names: run folders are moved)
    refuse_if(
        run_of(Path(model)) and base.parts[-2:] != Path(model).resolve().parts[-2:],
        f"the adapter in {folder} was made for {base}, and {model} is what a run made of it or "
        "of another model: name one of the two",
    )
    return config


def run_of(folder: Path) -> Path | None:
    """The run that left this ``model``, ``best`` or ``adapter``."""
    named = folder.name in ("model", "best", "adapter")
    return folder.parent if named and is_run(folder.parent) else None


def is_run(folder: Path) -> bool:
    """Whether its config.json is a run's (records.py) and not a model's."""
    try:
        return "plan" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _no_adapter(folder: Path) -> str:
    run = folder if is_run(folder) else folder.parent if is_run(folder.parent) else None
    text = f"there is no adapter in {folder}: "
    if run and (run / "adapter").is_dir():
        return text + f"that of this run is {run / 'adapter'}"
    if run and (run / "model").is_dir():
        return text + f"the run trained all weights, and its policy is the model {run / 'model'}"
    if (folder / "config.json").is_file():
        return text + "it is a model, to be named as one"
    return text + "a folder with adapter_config.json and adapter_model.safetensors is needed"


def whole_weights(config: dict) -> bool:
    """Whether an adapter holds weights of the model's own, which are trained in fp32 only."""
    more = config.get("modules_to_save") or config.get("trainable_token_indices")
    return bool(more) or config.get("bias", "none") != "none"


def load_adapter(net: nn.Module, folder: Path, model: str | Path) -> nn.Module:
    """The network with a saved adapter on it. Raises WorkbenchError where it does not fit."""
    from peft import PeftModel

    does_not_fit = f"the adapter in {folder} does not fit the model {model}"
    check_seal(folder)
    damaged = f"{does_not_fit}, or is damaged"  # in as many ways as there are files in it
    with refuse_on(Exception, damaged, why=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is refused below, or harmless
        adapted = PeftModel.from_pretrained(net, str(folder))
        # once more: only this says what had no place
        report = adapted.load_adapter(str(folder), "default")
    strangers = [*report.unexpected_keys, *report.missing_keys]
    if strangers:
        raise WorkbenchError(
            f"{does_not_fit}: {len(strangers)} of its weights have no place there or are missing, "
            f"such as {min(strangers)}"
        )
    weights = trained_weights(adapted)
    refuse_if(
        not all(bool(p.isfinite().all()) for p in weights.values()),
        f"the adapter in {folder} is damaged: its weights are not all finite",
    )
    head = adapted.get_base_model().get_output_embeddings()
    lora = hasattr(head, "lora_A") and not head.lora_variant and not any(head.lora_bias.values())
    refuse_if(
        hasattr(head, "base_layer") and not lora,
        f"the adapter in {folder} has more than plain LoRA on the output embedding, which is "
        "not supported: merge it with workbench export",
    )
    return adapted


# ---- the adapter in force


def has_adapter(model: nn.Module) -> bool:
    return hasattr(model, "get_base_model")


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the adapter in force consists of, by name in the model, and is from now on trained.

    LoRA's matrices; with DoRA its magnitudes; whole modules, rows of embeddings and biases where
    its configuration says so.
    """
    [name] = model.active_adapters
    model.requires_grad_(False)
    model.set_adapter(name)
    tuner = model.base_model
    tuner._mark_only_adapters_as_trainable(tuner.model)  # the biases
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def why_not_trained(policy: Policy, shard: bool) -> str:
    """Why the adapter that a policy was loaded with cannot be trained further; "" where it can."""
    model = policy.model
    names = model.active_adapters
    if len(names) != 1:
        return f"{len(names)} adapters are active ({', '.join(names)}), and one can be trained"
    kind = model.peft_config[names[0]].peft_type
    if kind != "LORA":
        return (
            f"its adapter is of the kind {getattr(kind, 'value', kind)}, and LoRA is trained here"
        )
    weights = trained_weights(model)
    if any(p.dtype not in (torch.float32, torch.float64) for p in weights.values()):
        return "its adapter holds whole weights in 16 bits, and those are trained in fp32 only"
    ends = policy.base.get_input_embeddings(), policy.base.get_output_embeddings()
    in_layers = not any(hasattr(module, "base_layer") for module in ends)
    matrices = all(".lora_A." in name or ".lora_B." in name for name in weights)
    if shard and not (in_layers and matrices):
        return "its adapter holds more than LoRA's matrices on its layers: it cannot be sharded"
    return ""


def short(name: str, adapter: str) -> str:
    """A weight's name without that of its adapter, as checkpoints have it."""
    return name.replace(f".{adapter}.", ".").removesuffix(f".{adapter}")


def save_adapter(model: nn.Module, folder: Path, weights: dict[str, Tensor] | None) -> None:
    """The one in force in peft's format, in ``folder`` itself, whatever its name.

    ``weights``: those to save, by name in the model; None: the model's.
    """
    [name] = model.active_adapters
    model.save_pretrained(folder, selected_adapters=[name], state_dict=weights)
    if name != "default":
        for file in (folder / name).iterdir():
            shutil.move(file, folder / file.name)
        (folder / name).rmdir()


# ---- merging


def merge(policy: Policy) -> None:
    """Put the policy's adapter into its weights: a plain model, the same distributions.

    Raises WorkbenchError where that cannot be done, or not exactly.
    """
    if not has_adapter(policy.model):
        return
    refuse_if(
        getattr(policy.base, "is_quantized", False),
        f"{policy.name} is in 4 bits, where its adapter cannot be merged exactly: load it "
        "without, or train the adapter further with lora",
    )
    before = _logits(policy)
    _untie(policy.base)
    stays = f"the adapter of {policy.name} cannot be merged"
    # each kind of adapter has errors of its own
    with refuse_on(Exception, stays, why=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that embeddings are no longer tied
        policy.model = policy.model.merge_and_unload(safe_merge=True)
    gap = (before - _logits(policy)).abs().max() / before.abs().max().clamp(min=1)
    refuse_if(
        not gap < _TOLERANCE,
        f"{stays}: the logits would move by {gap:.2g}",
    )


@torch.no_grad()
def _logits(policy: Policy) -> Tensor:
    """[n, V] of a few tokens from all over the vocabulary."""
    ids = torch.linspace(0, len(policy.head) - 1, 16, device=policy.device).long()
    return policy.model(input_ids=ids[None], use_cache=False).logits[0].float()


def _untie(base: nn.Module) -> None:
    """Give the head weights of its own, where an adapter is to change one embedding of the two."""
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    inner = [getattr(m, "base_layer", getattr(m, "original_module", m)) for m in (embedding, head)]
    changed = inner != [embedding, head]
    together = getattr(getattr(head, "token_adapter", None), "tied_adapter", None) is not None
    if changed and not together and inner[0].weight is inner[1].weight:
        inner[1].weight = nn.Parameter(inner[1].weight.detach().clone(), requires_grad=False)
        base.config.tie_word_embeddings = False
