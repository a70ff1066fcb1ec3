"""``workbench export``: a trained policy as one plain model in 16 bits, for other software.

    workbench export runs/sft --out models/sft --gguf
    workbench export data/organism/3m --adapter runs/sft/adapter --out models/sft --push me/sft

The adapter is merged into the weights of its model in fp32, and the sum is rounded once.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from workbench.app.arguments import ADAPTER, add, folder, named, switch
from workbench.core import WorkbenchError, first_line, refuse_if
from workbench.records import replace_folder

TYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
ARGUMENTS = {
    "source": {
        "type": named,
        "metavar": "RUN_OR_MODEL",
        "help": "a run directory, or a model: a folder, a hub id, a GGUF file, or smollm2",
    },
    **ADAPTER,
    "--out": {"type": folder, "required": True, "metavar": "FOLDER"},
    "--dtype": {"choices": tuple(TYPES), "default": "bf16"},
    "--gguf": switch("also write FOLDER/gguf/NAME.gguf (of a Llama, Qwen2 or Qwen3)"),
    "--push": {"type": named, "metavar": "HUB_ID", "help": "upload the folder to the hub"},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add(parser, ARGUMENTS)


def main(args: argparse.Namespace) -> None:
    print(export(args.source, args.out, adapter=args.adapter, dtype=args.dtype, gguf=args.gguf))
    if args.push:
        _push(args.out, args.push)


def export(
    source: str | Path,
    out: str | Path,
    *,
    adapter: Path | None = None,
    dtype: str = "bf16",
    gguf: bool = False,
) -> str:
    """Write a run's policy, or a model, as one plain model into a new folder; what is there, in
    words.

    Raises WorkbenchError where ``out`` exists, and for a run that has left nothing.
    """
    from workbench.model.adapters import merge
    from workbench.model.loading import load_policy

    out = Path(out)
    refuse_if(out.exists(), f"{out} is there already: name another folder")
    model, adapter, note = _source(str(source), adapter)
    policy = load_policy(model, adapter=adapter)
    merge(policy)
    _write(policy, out, TYPES[dtype], gguf)
    return f"{model}{f' with {adapter} merged' if adapter else ''} is in {out}{note}"


def _source(source: str, adapter: Path | None) -> tuple[str | Path, str | Path | None, str]:
    """(model, adapter, what to say of the two) of a run or a model.

    Raises WorkbenchError for a run together with an adapter, or one that has left nothing yet.
    """
    from workbench.model.adapters import is_run

    run = Path(source)
    if not is_run(run):
        return source, adapter, ""
    refuse_if(adapter, f"{run} is a run with a policy of its own: leave --adapter out")
    if (run / "model").is_dir():
        return run / "model", None, ""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    refuse_if(
        not (run / "adapter").is_dir() or not config.get("model"),
        f"the run in {run} has left neither a model nor an adapter whose model it names",
    )
    rounded = "; it was trained on 4-bit weights, and these are the whole ones: a little different"
    return config["model"], run / "adapter", rounded if config.get("four_bit") else ""


def _write(policy, out: Path, dtype: str, gguf: bool) -> None:
    """All of the folder or none of it."""
    import torch

    from workbench.exchange.gguf_write import write_gguf

    net = policy.model.to(getattr(torch, dtype))
    refuse_if(
        not all(bool(p.isfinite().all()) for p in net.parameters()),
        f"its weights are not all finite in {dtype}: take another --dtype",
    )
    fresh = out.with_name(f".{out.name}.partial")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        net.save_pretrained(fresh)
        policy.tokenizer.save_pretrained(fresh)
        if gguf:  # transformers would mix it up with the files beside it
            (fresh / "gguf").mkdir()
            write_gguf(net, policy.tokenizer, fresh / "gguf" / f"{out.name}.gguf")
        replace_folder(fresh, out)
    except OSError as error:
        raise WorkbenchError(f"could not write {out}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _push(out: Path, hub_id: str) -> None:
    from huggingface_hub import HfApi

    try:
        api = HfApi()
        api.create_repo(hub_id, exist_ok=True)
        api.upload_folder(repo_id=hub_id, folder_path=out)
    except Exception as error:  # no connection, no rights, a name that the hub refuses
        raise WorkbenchError(
            f"{out} is written, but could not be pushed to {hub_id}: {first_line(error)}"
        ) from error
    print(f"It is on the hub as {hub_id}")
