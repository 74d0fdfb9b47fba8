"""Measures every candidate of a source: one row of a table each.

``measure(source, output, config, workers, timeout)`` fills a folder with the table of :mod:`.filters.table`. Any number
of processes may share the folder: each leases parts, and all return when the whole table exists. Stopped at any moment
and started again, it measures only what is missing.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import restore
from mmldm_scale.media.clip import MediaError
from mmldm_scale.shards.manifest import PLAN, differences

from .. import COMMAND
from ..config import MeasureConfig
from ..filters.measure_candidate import CandidateMeasurer
from ..filters.table import KIND, SCHEMA, part_name, part_rows, part_sizes, write_part
from ..launching import process_pool
from ..launching.process_pool import batched, in_parts
from ..launching.progress import Progress
from ..sources import Source
from ..sources.source import entries
from ..sources.video import Video
from .shard_set import begin, read_plan, remove_asides
from .share_out import share_out

MAX_PARTS = 10_000_000  # AudioSet's two million candidates are 2,000 parts


@dataclass(frozen=True)
class Summary:
    """Counts of a table of measures: candidates, those without a fault, and the others by reason.

    Attributes:
        others: files of the input that are no candidates, since their names say that they are no videos, by kind.
    """

    rows: int
    measured: int
    reasons: dict[str, int]  # the most frequent first
    others: dict[str, int]


def measure(source: Source, output: Path, config: MeasureConfig, workers: int, timeout: float) -> Summary:
    """Measure every video of ``source`` into the folder ``output``.

    Args:
        source: what ``config.source`` describes.
        workers: decoding processes; 0 decodes here.
        timeout: seconds for one candidate, after which its decoder counts as hung.

    Raises:
        UserError: the folder holds something else, or was begun with other videos or another configuration.
    """
    found = entries(source, output)
    videos = [video for video in found if not video.dropped_by_name]
    plan = {"folder": str(source.folder.resolve()), "rows": len(videos), "videos": _digest(videos)}
    plan["measurement"] = asdict(config)
    parts = batched(videos, config.rows_per_part)
    with Leases(output) as leases:
        stored, _ = begin(output, KIND, leases, lambda: plan)
        _check(stored, plan, output)
        measurer = CandidateMeasurer(source, config)
        measured = functools.partial(process_pool.map, measurer, workers=workers, timeout=timeout)
        with Progress(len(videos), "measuring", "videos") as bar:
            for numbers in _missing(output, part_sizes(len(videos), config.rows_per_part), leases, bar):
                _make(output, parts, numbers, measured, leases, bar)
        if leases.take("finish"):  # else another process is just doing this
            leases.clear()
            remove_asides(output, "")
            leases.release("finish")
    return summarise(output, len(parts), Counter(video.detail for video in found if video.dropped_by_name))


def summarise(folder: Path, parts: int, others: Counter[str]) -> Summary:
    """Return what the finished table of ``parts`` parts in ``folder`` holds, with the count of ``others``."""
    reasons: Counter[str] = Counter()
    for number in range(parts):
        column = pq.read_table(folder / f"{part_name(number)}.parquet", columns=["reason"])["reason"]
        reasons.update(column.to_pylist())
    measured = reasons.pop("", 0)
    frequent = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    return Summary(measured + reasons.total(), measured, dict(frequent), dict(others.most_common()))


def read_table(folder: Path) -> pa.Table:
    """Return the whole table in ``folder``.

    Raises:
        UserError: there is none, it is unfinished or damaged.
    """
    plan = read_plan(folder, KIND) if folder.is_dir() else None
    if plan is None:
        raise UserError(f"{folder}: holds no measures; give the output folder of `{COMMAND} measure`")
    try:
        rows, rows_per_part = int(plan["rows"]), int(plan["measurement"]["rows_per_part"])
        if not 0 <= rows <= rows_per_part * MAX_PARTS:
            raise ValueError(rows)
        sizes = part_sizes(rows, rows_per_part)
    except (KeyError, TypeError, ValueError, OverflowError):
        raise UserError(f"{folder / PLAN}: is not a plan of measures; measure again into another folder") from None
    bad = [number for number, size in enumerate(sizes) if part_rows(folder, number) != size]
    if bad:
        raise UserError(
            f"{folder}: {len(bad)} of {len(sizes)} parts are missing or damaged, such as {part_name(bad[0])}.parquet; "
            "run the command that began it again to finish it"
        )
    files = [folder / f"{part_name(number)}.parquet" for number in range(len(sizes))]
    try:
        return pa.concat_tables([pq.ParquetFile(file).read() for file in files]).cast(SCHEMA)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{folder}: cannot be read: {' '.join(str(error).split())[:200]}") from None


def _digest(videos: list[Video]) -> str:
    """Return a hash of everything known about ``videos`` before they are opened."""
    digest = blake2b(digest_size=16)
    for video in videos:
        digest.update(repr(video).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _check(stored: dict[str, Any], plan: dict[str, Any], folder: Path) -> None:
    begun_with = restore(MeasureConfig, stored["measurement"], str(folder / PLAN))
    changed = differences(asdict(begun_with), plan["measurement"], ("begun with", "now"))
    if changed:
        text = "; ".join(changed)
        raise UserError(f"{folder}: was begun with another configuration ({text}); use that, or another output folder")
    if (stored["rows"], stored["videos"]) != (plan["rows"], plan["videos"]):
        raise UserError(
            f"{folder}: was begun with other videos ({stored['rows']} of {stored['folder']}) than there are now "
            f"({plan['rows']} of {plan['folder']}); put the input back as it was, or give another output folder"
        )


def _missing(folder: Path, sizes: list[int], leases: Leases, bar: Progress) -> Iterator[Iterator[int]]:
    """Yield iterators over the numbers of parts to make, until all parts exist; see :func:`leases.share_out`."""

    def cleared(number: int) -> int:
        remove_asides(folder, part_name(number))
        return number

    names = [part_name(number) for number in range(len(sizes))]
    for numbers in share_out(names, sizes, lambda number: part_rows(folder, number) == sizes[number], leases, bar):
        yield map(cleared, numbers)


def _make(
    output: Path,
    parts: list[list[Video]],
    numbers: Iterator[int],
    measured: Callable[[Iterator[Video]], Iterator[dict[str, Any] | MediaError]],
    leases: Leases,
    bar: Progress,
) -> None:
    """Make the parts ``numbers``, drawn early, each as soon as all its candidates have been measured."""

    def candidates(number: int) -> list[Video]:
        return [video for video in parts[number] if not _fault(video)]

    def write(number: int, results: Iterator[dict[str, Any] | MediaError]) -> None:
        """Write part ``number`` with the next of ``results`` for each of its candidates."""
        rows = []
        for video in parts[number]:
            rows.append(_row(video, {} if _fault(video) else next(results)))
            bar.update()
        if leases.holds(part_name(number)):  # else this process counted as dead, and another one makes it
            with leases.finishing(part_name(number)):
                write_part(output, number, rows)
        leases.release(part_name(number))

    def with_candidates() -> Iterator[int]:
        for number in numbers:
            if candidates(number):
                yield number
            else:
                write(number, iter(()))

    for number, results in in_parts(with_candidates(), candidates, measured):
        write(number, results)


def _fault(video: Video) -> tuple[str, str] | None:
    """Return why ``video`` cannot be measured, as far as is known without opening it."""
    if video.reason:
        return video.reason, video.detail
    if not _is_text(video.path) or not _is_text(video.audio):
        return "bad_name", "the name is not UTF-8 and cannot be stored in a table; rename the file"
    return None


def _row(video: Video, result: dict[str, Any] | MediaError) -> dict[str, Any]:
    """Return the row of ``video``: its fields, then the ``result`` of measuring it."""
    if isinstance(result, MediaError):  # its decoding process crashed or hung
        result = {"reason": result.reason, "detail": result.detail}
    reason, detail = _fault(video) or ("", "")
    row = {field.name: getattr(video, field.name) for field in fields(video)} | {"reason": reason, "detail": detail}
    return {name: _text(value) if isinstance(value, str) else value for name, value in (row | result).items()} | {
        "labels": [_text(label) for label in video.labels]
    }


def _is_text(name: str) -> bool:
    return _text(name) == name


def _text(name: str) -> str:
    """Return ``name`` with whatever cannot be written as UTF-8 spelt out."""
    return name.encode("utf-8", "backslashreplace").decode()
