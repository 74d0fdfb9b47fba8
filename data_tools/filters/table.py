"""The table of measures: its columns, and how it lies in a folder as Parquet files of consecutive rows.

One row is one candidate: first the fields of its ``Video``, then the measures below, null where they could not be
taken; ``reason`` then says why. ``plan.json`` fixes how many rows there are and in which file each stands.
"""

import dataclasses
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmldm_scale.common.atomic_files import write_whole

from ..sources.video import Video
from .perceptual_hash import BYTES

KIND = "measures"  # in plan.json
REPEATED = ["labels.list.element", "split", "source_split", "reason", "detail", "audio"]  # columns of few values


@dataclass(frozen=True)
class Measure:
    """A column: its Arrow type, unit (with its range where that is not obvious) and meaning."""

    type: pa.DataType
    unit: str
    meaning: str


MEASURES: dict[str, Measure] = {
    "has_video": Measure(pa.bool_(), "", "there is a video stream (cover art is none)"),
    "has_audio": Measure(pa.bool_(), "", "there is an audio stream, or a sound file of its own"),
    "duration": Measure(pa.float64(), "s", "of the stretch, as far as there are both picture and sound"),
    "width": Measure(pa.int32(), "pixels", "of the picture as coded"),
    "height": Measure(pa.int32(), "pixels", "of the picture as coded"),
    "fps": Measure(pa.float32(), "1/s", "mean number of frames a second"),
    "sample_rate": Measure(pa.int32(), "Hz", "of the sound"),
    "loudness": Measure(pa.float32(), "LUFS, from -70", "integrated loudness of the mono mix"),
    "silent_fraction": Measure(pa.float32(), "0–1", "share of 50 ms blocks below silence_db"),
    "clipped_fraction": Measure(pa.float32(), "0–1", "share of samples at 99 % of full scale or more"),
    "black_fraction": Measure(pa.float32(), "0–1", "share of black pictures"),
    "frozen_fraction": Measure(pa.float32(), "0–1", "share of the time in which nothing changes for 0.5 s or more"),
    "sharpness": Measure(pa.float32(), "0–1", "1 − Crété-Roffet's blur at 256 × 256 pixels, median"),
    "motion": Measure(pa.float32(), "levels, 0–255", "mean change of luma in 0.1 s, cuts left out"),
    "cuts_per_minute": Measure(pa.float32(), "1/min", "changes of scene"),
    "letterbox": Measure(pa.float32(), "0–1", "share of the centre crop's area that black bars take"),
    "still_bars": Measure(pa.float32(), "0–1", "the same of all bars in which nothing moves, with text or without"),
    "onset_agreement": Measure(pa.float32(), "0–1", "share of the onsets in picture and sound that meet within 0.1 s"),
    "onset_surplus": Measure(pa.float32(), "−1–1", "onset_agreement above what the same onsets reach by chance"),
    "onset_offset": Measure(pa.float32(), "s, −0.5–0.5", "by how much the sound's onsets follow the picture's"),
    "hash": Measure(pa.binary(BYTES), "", "perceptual hash of picture (24 bytes) and sound (8 bytes)"),
}

_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    bool: pa.bool_(),
    float: pa.float64(),
    float | None: pa.float64(),
    tuple[str, ...]: pa.list_(pa.string()),
}

SCHEMA = pa.schema(
    [pa.field(field.name, _TYPES[field.type]) for field in dataclasses.fields(Video)]
    + [pa.field(name, measure.type) for name, measure in MEASURES.items()]
)


def part_name(number: int) -> str:
    """Return the name of the file that holds part ``number``, without its suffix."""
    return f"part-{number:06d}"


def write_part(folder: Path, number: int, rows: list[dict[str, Any]]) -> None:
    """Write part ``number`` whole or not at all; ``rows`` hold values by column, and missing ones are null."""
    write_whole(folder / f"{part_name(number)}.parquet", parquet(pa.Table.from_pylist(rows, SCHEMA)))


def parquet(table: pa.Table) -> bytes:
    """Return ``table`` as a Parquet file."""
    stream = io.BytesIO()
    pq.write_table(table, stream, compression="zstd", use_dictionary=REPEATED, write_statistics=False)
    return stream.getvalue()


def part_rows(folder: Path, number: int) -> int | None:
    """Return how many rows part ``number`` has, or None if it does not exist or is damaged."""
    try:
        metadata = pq.read_metadata(folder / f"{part_name(number)}.parquet")
    except (OSError, pa.ArrowException):
        return None
    return metadata.num_rows


def part_sizes(rows: int, rows_per_part: int) -> list[int]:
    """Return how many rows each part has."""
    return [min(rows_per_part, rows - first) for first in range(0, rows, rows_per_part)]
