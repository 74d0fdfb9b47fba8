"""Lists that users and other tools write: CSV with a header, Parquet, or JSON Lines, read row by row."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmldm_scale.common.errors import UserError

MAX_LINE = 1 << 20  # characters of a row: a file with longer ones is no list
SUFFIXES = (".csv", ".jsonl", ".parquet")

Row = dict[str, Any]


def read_rows(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Row | str]]:
    """Yield each row's number and its values in ``columns``, or the row's fault as text.

    The number is the row's last line in a text file, and the count of rows (from 1) in a Parquet file. A row has the
    columns that there are; in CSV an empty value counts as none. The first of ``columns`` is required.

    Raises:
        UserError: the file is missing, cannot be read, is of another kind, or lacks the column ``columns[0]``.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"{file}: unknown kind of list; must be one of {', '.join(SUFFIXES)}")
    try:
        yield from reader(file, columns)
    except OSError as error:
        text = " ".join(str(error.strerror or error).split())  # Arrow raises OSErrors of its own, several lines long
        raise UserError(f"{file}: {text[:200]}") from None


def _read_csv(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Row | str]]:
    # newline="": a quoted name may hold one. surrogateescape: names of files are bytes, UTF-8 or not.
    with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        lines = csv.reader(stream, strict=True)
        try:
            header = [name.strip() for name in next(lines, [])]
            _require_column(file, columns[0], header)
            for values in lines:
                if len(values) == len(header):
                    row = dict(zip(header, values, strict=True))
                    yield lines.line_num, {name: row[name] for name in columns if row.get(name)}
                elif values:
                    yield lines.line_num, f"{len(values)} columns, not the {len(header)} of the header"
        except csv.Error as error:
            raise UserError(f"{file}: line {lines.line_num}: {error}") from None


def _read_jsonl(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Row | str]]:
    with open(file, encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        number = 0
        while line := stream.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise UserError(f"{file}: line {number} is longer than {MAX_LINE} characters: no list")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                yield number, "no JSON"
                continue
            if isinstance(row, dict):
                yield number, {name: row[name] for name in columns if row.get(name) is not None}
            else:
                yield number, "no JSON object"


def _read_parquet(file: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Row | str]]:
    try:
        with pq.ParquetFile(file) as table:
            names = table.schema_arrow.names
            _require_column(file, columns[0], names)
            number = 0
            for batch in table.iter_batches(columns=[name for name in columns if name in names]):
                for row in batch.to_pylist():
                    number += 1
                    yield number, {name: value for name, value in row.items() if value is not None}
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as Parquet: {' '.join(str(error).split())[:200]}") from None


def _require_column(file: Path, column: str, names: list[str]) -> None:
    if column not in names:
        raise UserError(f"{file}: has no column {column!r}; its columns: {', '.join(names)[:200] or 'none'}")
