"""``runs/NAME/evaluation.jsonl``: the figures of a run's checkpoints, one JSON object for each evaluated one.

``mmldm evaluate-run`` writes it and ``mmldm status`` reads it. A record has "samples_seen" of the checkpoint, the Unix
time "time", "protocol", "figures" (by name: "title", "value", "low" and "high", the ends of its interval), the counts
"samples" and "reference", "not_protocol" (how the evaluation deviates from the protocol, in words, or ""), "settings"
(a digest of everything else that the figures depend on) and "weights" (a digest of the checkpoint's).
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmldm_scale.common.atomic_files import write_whole

FILE = "evaluation.jsonl"  # in the run folder
Record = dict[str, Any]


def read(run: Path) -> list[Record]:
    """Return the records of ``run`` in the order in which they were written, without damaged ones."""
    file = run / FILE
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    return [record for record in map(_parse, lines) if record]


def append(run: Path, record: Record) -> None:
    """Add ``record``; the file is replaced as a whole. The caller holds the lease on it.

    Raises:
        UserError: the disk is full.
    """
    file = run / FILE
    earlier = file.read_bytes() if file.is_file() else b""
    write_whole(file, earlier + json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def line(records: Sequence[Record]) -> str:
    """Return the last of ``records`` as a line for the user; empty if there is none."""
    if not records:
        return ""
    last = records[-1]
    figures = ", ".join(_figure(part) for part in last["figures"].values())
    same = {
        r["samples_seen"] for r in records if (r["protocol"], r["settings"]) == (last["protocol"], last["settings"])
    }
    name = last["not_protocol"] or f"protocol {last['protocol']}"
    count = f"{len(same)} checkpoint{'s' * (len(same) > 1)} evaluated"
    return f"{figures} at {last['samples_seen']:,} samples seen; {name}; {count}"


def _figure(part: Record) -> str:
    value, low, high = (part[key] for key in ("value", "low", "high"))
    if value is None:
        return f"{part['title']} none"
    interval = "" if low is None or high is None else f" ({low:.4g} to {high:.4g})"
    return f"{part['title']} {value:.4g}{interval}"


def _parse(text: str) -> Record | None:
    """Return the record in ``text``; None if it is damaged."""
    try:
        record: Record = json.loads(text)
        complete = math.isfinite(record["samples_seen"]) and all(map(_figure, record["figures"].values()))
        texts = all(isinstance(record[key], str) for key in ("protocol", "settings", "weights", "not_protocol"))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return None
    return record if complete and texts else None
