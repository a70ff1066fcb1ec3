"""Records of problem sets, from a file or from the hub, and their splits.

What the columns mean is the tasks' business.

A file is .jsonl, .json (a list, or JSON lines under the wrong name: both are about), .parquet, the
first two also .gz. On the hub, ``owner/name`` is read by ``datasets``, and
``hf://datasets/owner/name/FILE`` is one file as it lies there, for sets whose loading script
``datasets`` no longer runs.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from workbench.core import Problem, WorkbenchError

SPLITS = ("train", "validation", "test")
FILES = re.compile(r".*\.(jsonl|json)(\.gz)?|.*\.parquet", re.IGNORECASE)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILE = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)/(.+)")
INSTALL = "which is not installed (pip install -e '.[data]')"


class Row(NamedTuple):
    """``where`` names the record in messages; ``split`` is the data set's own, "" where it has
    none.
    """

    where: str
    record: Any
    split: str = ""


def check_dials(task: str, split: str, max_new: int, more: tuple[str, ...] = ()) -> None:
    """Raises WorkbenchError for a split that is none of "", ``SPLITS`` and ``more``, or no room to
    write.
    """
    if split not in ("", *more, *SPLITS):
        raise WorkbenchError(
            f"the task {task} takes split={', '.join((*more, *SPLITS))}, not split={split}"
        )
    if max_new < 1:
        raise WorkbenchError(f"the task {task} takes max_new from 1")


def read(source: str, config: str = "") -> list[Row]:
    """All records of a file or a data set on the hub.

    Raises WorkbenchError, in one sentence, where that cannot be done.
    """
    file = HUB_FILE.fullmatch(source)
    if file:
        rows = local(_download(source, *file.groups()))
    elif FILES.fullmatch(source) or Path(source).exists() or not HUB_ID.fullmatch(source):
        rows = local(Path(source))
    else:
        rows = hub(source, config)
    if not rows:
        raise WorkbenchError(f"the problem file {source} is empty")
    return rows


# --- files ----------------------------------------------------------------------------------------


def local(path: Path) -> list[Row]:
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    text = _text(path)
    if path.name.lower().endswith((".json", ".json.gz")):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError):  # JSON lines, perhaps
            pass
        else:
            return [
                Row(f"{path}, record {i}", record)
                for i, record in enumerate(whole if isinstance(whole, list) else [whole], 1)
            ]
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                rows.append(Row(where, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise WorkbenchError(
                    f"{where} is not JSON: {getattr(error, 'msg', error)}"
                ) from error
    return rows


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise WorkbenchError(
            f"could not read the problem file {path}: {getattr(error, 'strerror', None) or error}"
        ) from error


def _parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise WorkbenchError(f"{path} is read by pyarrow, {INSTALL}") from error
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise WorkbenchError(
            f"could not read the problem file {path}: {str(error).splitlines()[0]}"
        ) from error
    return [Row(f"{path}, record {i}", record) for i, record in enumerate(table.to_pylist(), 1)]


# --- the hub --------------------------------------------------------------------------------------


def hub(name: str, config: str) -> list[Row]:
    """Every split of a data set.

    Checked offline: what ``load_dataset`` returns is stood in for by the tests; its errors are its
    own.
    """
    try:
        import datasets
    except ImportError as error:
        raise WorkbenchError(
            f"{name} is read from the hub by datasets, {INSTALL}; a local file needs it not"
        ) from error
    try:
        splits = datasets.load_dataset(name, config or None)
        return [
            Row(f"{name}, {split} record {i}", record, split)
            for split, records in splits.items()
            for i, record in enumerate(records, 1)
        ]
    except Exception as error:  # of many libraries, without a common base
        raise WorkbenchError(_why(name, error)) from error


def _download(source: str, name: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, repo_type="dataset"))
    except Exception as error:
        raise WorkbenchError(_why(source, error)) from error


def _why(name: str, error: BaseException) -> str:
    """What went wrong on the way to the hub, as far as the errors' names and words say."""
    chain, words = error, []
    while chain is not None and len(words) < 10:
        words.append(f"{type(chain).__name__}: {chain}")
        chain = chain.__cause__ or chain.__context__
    said = " ".join(words)
    first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if "gated" in said.lower():
        return (
            f"{name} is gated: ask for access on its page on the hub, and log in with `hf "
            "auth login`"
        )
    if "Offline" in said or "offline mode" in said.lower():
        return (
            f"{name} is not in this machine's cache, and HF_HUB_OFFLINE keeps the hub from "
            "being asked; a local file works too"
        )
    if "NotFoundError:" in said and ("DatasetNotFound" in said or "RepositoryNotFound" in said):
        return f"there is no data set {name} on the hub, or it is private"
    if re.search(r"Connect(ion)?(Error|Timeout)|Max retries|LocalEntryNotFound|Timeout:", said):
        return (
            f"{name} is not in this machine's cache, and the hub could not be reached; a "
            "local file works too"
        )
    return f"{name} could not be read from the hub: {first}"


# --- splits ---------------------------------------------------------------------------------------


def split_of(question: str) -> str:
    """By the question's own hash, so that it is on the same side whoever draws it: a tenth each for
    test and validation.
    """
    bucket = hashlib.blake2b(question.encode("utf-8", "replace"), digest_size=2).digest()[0]
    return "test" if bucket < 26 else "validation" if bucket < 52 else "train"


def draw(problems: Sequence[Problem], split: str, n: int, seed: int, name: str) -> list[Problem]:
    """``n`` different problems of ``split``, drawn with ``seed``."""
    pool = [problem for problem in problems if problem.meta["split"] in (split, "all")]
    if len(pool) < n:
        raise WorkbenchError(f"{name} has {len(pool)} problems in its {split} split, {n} wanted")
    return Random(seed).sample(pool, n)
