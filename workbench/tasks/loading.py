"""Records of problem sets, from a file or from the hub.

What the columns mean is the tasks' business.

A file is .jsonl, .json (a list, or JSON lines under the wrong name: both are about), .parquet, the
first two also .gz. On the hub, ``owner/name`` is read by ``datasets``, and
``hf://datasets/owner/name/FILE`` is one file as it lies there, for sets whose loading script
``datasets`` no longer runs.

A file is read line by line and within bounds: what a small one may unpack to, how long a line is,
how much of it is structure (a megabyte of brackets is twenty of lists). Anything that is no record
for sure is refused, in one sentence with the line.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import stat
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from workbench.core import Problem, WorkbenchError, needed, refuse_if, refuse_on

FILES = re.compile(r".*\.(jsonl|json)(\.gz)?|.*\.parquet", re.IGNORECASE)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILE = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)/(.+)")
INSTALL = "which is not installed (pip install -e '.[data]')"

# Bounds of a file, in bytes; LiveCodeBench's largest has 1.25 GB, in lines of some megabytes.
LARGEST = 2 << 30
DOCUMENT = 512 << 20  # of a .json file, which is read as a whole
LINE = 256 << 20
STRUCTURE = 8  # one of so many may be outside texts: brackets, commas, numbers
RECORD = 32  # bytes outside texts that the shortest record counts for
# What is packed unpacks to at most so many times its size; real records to some five times.
RATIO, UNPACKED = 50, 32 << 20
BATCH = 256  # records of a parquet file at a time


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

    def first(self, names: Sequence[str]) -> tuple[str, Any]:
        """(name, value) of the first of the columns that is there; ``a.b`` is b inside a.

        ("", None) where none is.
        """
        for name in names:
            value: Any = self.columns
            for part in name.split("."):
                value = value.get(part) if isinstance(value, dict) else None
            if value is not None:
                return name, value
        return "", None

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
    """Raises WorkbenchError for text that no file could be written with, or that is damaged."""
    bad = re.search("[\\ud800-\\udfff\\0]", "".join(texts))
    refuse_if(bad and bad[0] == "\0", f"{where} holds a NUL character (\\u0000), which is no text")
    refuse_if(
        bad, f"{where} holds half of a surrogate pair (\\ud800 to \\udfff alone), which is no text"
    )


def checked(where: str, problem: Problem) -> Problem:
    """The problem, where all its texts can be written."""
    contents = (message["content"] for message in problem.messages)
    check_text(where, problem.id, problem.answer, *contents, *problem.solutions)
    return problem


def limit(packed: int) -> int:
    """To how many bytes so many packed ones may unpack."""
    return min(LARGEST, max(UNPACKED, RATIO * packed))


def parse(text: str) -> Any:
    """JSON, no key of an object twice. Raises ValueError, in words that follow "is"."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {getattr(error, 'msg', error)}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    columns = dict(pairs)
    if len(columns) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return columns


def structured(data: bytes, most: int) -> int:
    """How many bytes of JSON are outside its texts.

    Raises ValueError where they are too many for a file of at most ``most`` bytes.
    """
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = RECORD + len(re.sub(rb'"[^"]*"', b"", plain))
    if STRUCTURE * outside > most:
        raise ValueError("mostly brackets and numbers, and too many of them")
    return outside


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
    refuse_if(not rows, f"the problem file {source} is empty")
    return rows


# --- files ----------------------------------------------------------------------------------------


def local(path: Path) -> list[Row]:
    """The records of a file that is here."""
    kinds = (OSError, EOFError, zlib.error, ValueError)  # ValueError: NUL in the name
    with refuse_on(kinds, f"could not read the problem file {path}", why=True):
        size = _size(path)
        if path.suffix.lower() == ".parquet":
            return _numbered(path, _parquet(path))
        packed = path.suffix.lower() == ".gz"
        with gzip.open(path) if packed else path.open("rb") as stream:
            most = limit(size) if packed else LARGEST
            if path.name.lower().endswith((".json", ".json.gz")):
                return _document(path, stream, min(most, DOCUMENT))
            return list(_lines(path, stream, most))


def _size(path: Path) -> int:
    """In bytes. Raises OSError for what is no file: a pipe waits for ever, a device has no end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        what = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or a device"
        raise OSError(f"it is a {what}, not a file")
    if status.st_size > LARGEST:
        raise OSError(f"it is larger than {LARGEST >> 30} GB")
    return status.st_size


def _document(path: Path, stream: BinaryIO, most: int) -> list[Row]:
    data = stream.read(most + 1).removeprefix(b"\xef\xbb\xbf")
    if len(data) > most:
        raise OSError(f"it has more than {most >> 20} MB; write it as .jsonl, a record a line")
    structured(data, most)
    with contextlib.suppress(ValueError):  # JSON lines, perhaps
        whole = parse(data.decode())
        return _numbered(path, whole if isinstance(whole, list) else [whole])
    return list(_lines(path, io.BytesIO(data), most))


def _lines(path: Path, stream: BinaryIO, most: int) -> Iterator[Row]:
    """A record a line, of ``most`` bytes in all; only \\n ends one."""
    unpacked = outside = 0
    longest = min(LINE, most)
    for number, line in enumerate(iter(lambda: stream.readline(longest + 1), b""), 1):
        where = f"{path}, line {number}"
        unpacked += len(line)
        refuse_if(
            len(line) > longest or unpacked > most,
            f"{where} is too much: beyond {longest >> 20} MB",
        )
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        try:
            outside += structured(line, most - STRUCTURE * outside)
            if line.strip():
                yield Row(where, parse(line.decode()))
        except UnicodeDecodeError as error:
            byte = f"byte 0x{line[error.start]:02x} at column {error.start + 1}"
            raise OSError(f"line {number}: {byte} is not UTF-8") from error
        except ValueError as error:
            raise WorkbenchError(f"{where} is {error}") from error


def _numbered(path: Path, records: list) -> list[Row]:
    return [Row(f"{path}, record {i}", record) for i, record in enumerate(records, 1)]


def _parquet(path: Path) -> list[dict]:
    """A batch at a time: a column of one value may be written in a few bytes."""
    missing = f"{path} is read by pyarrow, {INSTALL}"
    pyarrow, parquet = needed("pyarrow", missing), needed("pyarrow.parquet", missing)
    records: list[dict] = []
    most = limit(path.stat().st_size)
    try:
        for batch in parquet.ParquetFile(path).iter_batches(BATCH):
            most -= batch.nbytes
            if most < 0:
                raise OSError("it unpacks to more than such a file should hold")
            records += batch.to_pylist()
    except (pyarrow.ArrowException, ArithmeticError, UnicodeDecodeError) as error:
        reason = str(error).partition("\n")[0]
        raise OSError(f"after record {len(records)}: {reason}") from error
    return records


# --- the hub --------------------------------------------------------------------------------------


def hub(name: str, config: str) -> list[Row]:
    """Every split of a data set.

    Checked offline: what ``load_dataset`` returns is stood in for by the tests; its errors are its
    own.
    """
    missing = f"{name} is read from the hub by datasets, {INSTALL}; a local file needs it not"
    datasets = needed("datasets", missing)
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
