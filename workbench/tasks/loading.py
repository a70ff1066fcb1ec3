"""Records of problem sets, from a file or from the hub.

What the columns mean is the tasks' business.

A file is .jsonl, .json (a list, or JSON lines under the wrong name: both are about), .parquet, the
first two also .gz. On the hub, ``owner/name`` is read by ``datasets``, and
``hf://datasets/owner/name/FILE`` is one file as it lies there, for sets whose loading script
``datasets`` no longer runs.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from workbench.core import WorkbenchError

FILES = re.compile(r".*\.(jsonl|json)(\.gz)?|.*\.parquet", re.IGNORECASE)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILE = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)/(.+)")
INSTALL = "which is not installed (pip install -e '.[data]')"


class Row(NamedTuple):
    """One record. ``where`` names it in messages, and ends with its number.

    ``split`` is the data set's own, "" where it has none.
    """

    where: str
    record: Any
    split: str = ""

    @property
    def columns(self) -> dict[str, Any]:
        """The record by column; no columns where it is something else than an object."""
        return self.record if isinstance(self.record, dict) else {}

    @property
    def column_names(self) -> str:
        return ", ".join(map(str, self.columns)) or "none"

    @property
    def number(self) -> str:
        """Of the line in the file, or of the record where lines are none."""
        return self.where.rsplit(" ", 1)[1]


def has_text(value: Any) -> bool:
    """Is it text, and more than blanks?"""
    return isinstance(value, str) and bool(value.strip())


def check_text(where: str, *texts: str) -> None:
    """Raises WorkbenchError for text that no file could be written with."""
    if re.search("[\\ud800-\\udfff]", "".join(texts)):
        raise WorkbenchError(
            f"{where} holds half of a surrogate pair (\\ud800 to \\udfff alone), which is no text"
        )


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
    """The records of a file that is here."""
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    text = _text(path)
    if path.name.lower().endswith((".json", ".json.gz")):
        with contextlib.suppress(ValueError, RecursionError):  # JSON lines, perhaps
            whole = json.loads(text)
            return _numbered(path, whole if isinstance(whole, list) else [whole])
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                rows.append(Row(where, json.loads(line)))
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", error)
                raise WorkbenchError(f"{where} is not JSON: {reason}") from error
    return rows


def _numbered(path: Path, records: list) -> list[Row]:
    return [Row(f"{path}, record {i}", record) for i, record in enumerate(records, 1)]


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WorkbenchError(f"could not read the problem file {path}: {reason}") from error


def _parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise WorkbenchError(f"{path} is read by pyarrow, {INSTALL}") from error
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        reason = str(error).splitlines()[0]
        raise WorkbenchError(f"could not read the problem file {path}: {reason}") from error
    return _numbered(path, table.to_pylist())


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
            Row(f"{name}, {split} record {number}", record, split)
            for split, records in splits.items()
            for number, record in enumerate(records, 1)
        ]
    except Exception as error:  # of many libraries, without a common base
        raise WorkbenchError(_why(name, error)) from error


def _download(source: str, name: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file, repo_type="dataset"))
    except Exception as error:
        raise WorkbenchError(_why(source, error)) from error


# what the errors' names and words say, and what that means; the first that fits
_REASONS = {
    r"(?i)gated": (
        "{name} is gated: ask for access on its page on the hub, and log in with `hf auth login`"
    ),
    r"Offline|(?i:offline mode)": (
        "{name} is not in this machine's cache, and HF_HUB_OFFLINE keeps the hub from being "
        "asked; a local file works too"
    ),
    r"(?s)(?=.*NotFoundError:).*(Dataset|Repository)NotFound": (
        "there is no data set {name} on the hub, or it is private"
    ),
    r"Connect(ion)?(Error|Timeout)|Max retries|LocalEntryNotFound|Timeout:": (
        "{name} is not in this machine's cache, and the hub could not be reached; a local file "
        "works too"
    ),
}


def _why(name: str, error: BaseException) -> str:
    """What went wrong on the way to the hub."""
    cause, errors = error, []
    while cause is not None and len(errors) < 10:
        errors.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__
    for pattern, sentence in _REASONS.items():
        if re.search(pattern, " ".join(errors)):
            return sentence.format(name=name)
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    return f"{name} could not be read from the hub: {first_line}"
