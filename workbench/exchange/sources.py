"""Records of files that need not fit in memory: read once from end to end, then by their place.

A ``Source`` has ``scan()``, which gives (place, Row) for every record, and ``at(place)``, which
reads one again. JSON lines are read line by line and Parquet by row group; .json lists and .gz
files are held whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from workbench.core import WorkbenchError, first_line, needed, refuse_if, refuse_on
from workbench.tasks import loading
from workbench.tasks.loading import INSTALL, Row

_UNREADABLE = (OSError, ValueError)  # pyarrow's errors are ValueErrors
SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")


class Lines(NamedTuple):
    """JSON lines; a place is (line number, byte at which the line begins)."""

    path: Path

    def scan(self) -> Iterator[tuple[Any, Row]]:
        start = 0
        with _opened(self.path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield (number, start), self._row(number, line)
                start += len(line)

    def at(self, place: Any) -> Row:
        number, start = place
        with _opened(self.path) as file:
            file.seek(start)
            return self._row(number, file.readline())

    def _row(self, number: int, line: bytes) -> Row:
        where = f"{self.path}, line {number}"
        # the last line of a writer that was killed has no line break
        torn = "" if line.endswith(b"\n") else "; it is the last line, perhaps cut off"
        try:
            return Row(where, loading.parse(line.decode("utf-8-sig")))
        except UnicodeDecodeError as error:
            raise WorkbenchError(f"{where} is not JSON: it is no UTF-8{torn}") from error
        except ValueError as error:
            raise WorkbenchError(f"{where} is {first_line(error)}{torn}") from error


def _opened(path: Path):
    with refuse_on(OSError, f"could not read {path}", why=True):
        return open(path, "rb")


class Table(NamedTuple):
    """A Parquet file; a place is (row group, row in it, number of the record)."""

    path: Path

    def scan(self) -> Iterator[tuple[Any, Row]]:
        _row_group.cache_clear()  # of a file that may have been written anew
        number = 0
        for part in range(_parquet(self.path).num_row_groups):
            for i, record in enumerate(_row_group(self.path, part)):
                number += 1
                yield (part, i, number), self._row(number, record)

    def at(self, place: Any) -> Row:
        part, i, number = place
        return self._row(number, _row_group(self.path, part)[i])

    def _row(self, number: int, record: dict) -> Row:
        return Row(f"{self.path}, record {number}", record)


def _parquet(path: Path):
    parquet = needed("pyarrow.parquet", f"{path} is read by pyarrow, {INSTALL}")
    with refuse_on(_UNREADABLE, f"could not read {path}", why=True):
        return parquet.ParquetFile(path)


@lru_cache(maxsize=2)
def _row_group(path: Path, part: int) -> list[dict]:
    with refuse_on(_UNREADABLE, f"could not read {path}", why=True):
        return _parquet(path).read_row_group(part).to_pylist()


class Held(NamedTuple):
    """A file that is held whole; a place is the record's own."""

    path: Path

    def scan(self) -> Iterator[tuple[Any, Row]]:
        _held.cache_clear()
        yield from enumerate(_held(self.path))

    def at(self, place: Any) -> Row:
        return _held(self.path)[place]


@lru_cache(maxsize=2)
def _held(path: Path) -> list[Row]:
    return loading.local(path)


Source = Lines | Table | Held


def sources(path: Path) -> list[Source]:
    """One for a file; for a folder, one for every file in it, in the order of their numbers.

    Raises WorkbenchError where there is none, or none of a kind that is read.
    """
    if (path / "groups.jsonl").is_file():  # a run of ours
        return [Lines(path / "groups.jsonl")]
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.name.lower().endswith(SUFFIXES)]
        refuse_if(not files, f"there is no {', '.join(SUFFIXES)} file in the folder {path}")
        return list(map(_source, sorted(files, key=_natural)))
    refuse_if(
        not path.name.lower().endswith(SUFFIXES),
        f"rollouts are read from {', '.join(SUFFIXES)}, not from {path}",
    )
    return [_source(path)]


def _source(path: Path) -> Source:
    by_suffix = {".jsonl": Lines, ".parquet": Table}
    return by_suffix.get(path.suffix.lower(), Held)(path)


def _natural(path: Path) -> list[tuple[str, int]]:
    """step_9 before step_10."""
    return [(word, int(part or 0)) for word, part in re.findall(r"(\D*)(\d*)", str(path))]
