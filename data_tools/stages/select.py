"""Selects from the table of measures: lists of what to train on and what to hold out.

``select(measures, output, config)`` decides by the table alone. A row that passes all filters goes to ``train.parquet``
or ``heldout.parquet``, lists that ``shard.py clips --list`` takes; every other row goes to ``dropped.parquet`` with its
reason. ``report.json`` and ``report.html`` have counts and histograms; the page also has examples of what was kept and
dropped, with pictures, if the media are still where they were measured.
"""

from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmldm_scale.common.atomic_files import TEMPORARY_SUFFIX, write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import restore
from mmldm_scale.media.clip import MediaError
from mmldm_scale.shards.json_files import DamagedSet, read_json, write_json
from mmldm_scale.shards.manifest import PLAN

from ..config import MeasureConfig, Selection, ValidationSet
from ..filters.apply_filters import FilteredRows, apply_filters
from ..filters.ranking import stable_hashes
from ..filters.selection_examples import choose_examples
from ..filters.selection_report import SelectionReport, describe
from ..filters.table import KIND as KIND_OF_MEASURES
from ..filters.table import parquet
from ..launching import process_pool
from ..launching.progress import Progress
from ..reports.example_pictures import Picture, PictureMaker
from ..reports.selection_page import Examples, page
from ..sources import open_source
from ..sources.video import Video
from .measure import read_table
from .shard_set import read_plan, remove_asides

KIND = "selection"  # in report.json
REPORT = "report.json"


def select(
    measures: Path, output: Path, config: Selection, examples: int = 0, workers: int = 0, timeout: float = 60.0
) -> SelectionReport:
    """Cut a selection from the table in the folder ``measures`` and write it to the folder ``output``.

    A selection that the folder already holds is replaced. The same table and configuration give the same files.

    Args:
        examples: how many candidates that were dropped, and that were kept, the page shows for each filter.
        workers: processes that decode their pictures; 0 decodes here.
        timeout: seconds for one of them, after which its decoder counts as hung.

    Raises:
        UserError: there is no finished table; the configuration names a column that does not hold numbers; the output
            holds other things; everything selected would be held out.
        RuntimeError: the rows written do not add up to those read.
    """
    _check_output(output)
    table = read_table(measures)
    filtered = apply_filters(table, config)
    apart = _held_out(table, filtered.inside, config.held_out, config.seed)
    if filtered.inside.any() and apart[filtered.inside].all():
        raise UserError("held_out: holds out all that was selected; reduce splits, share or count")
    lists = {
        "train": _list(table, filtered, filtered.inside & ~apart, "train"),
        "heldout": _list(table, filtered, filtered.inside & apart, "heldout"),
        "dropped": _dropped(table, filtered),
    }
    counts = {name: rows.num_rows for name, rows in lists.items()}
    if sum(counts.values()) != table.num_rows:
        raise RuntimeError(f"{output}: {counts} do not add up to the {table.num_rows} rows of {measures}")
    report = describe(measures, config, table, filtered, apart)
    groups = choose_examples(table, filtered, config, examples)
    rows = list(dict.fromkeys(example.row for group in groups for example in (*group.dropped, *group.kept)))
    videos = {row: _video(table, row) for row in rows}
    pictures, problem = _pictures(measures, list(videos.values()), workers, timeout)
    shown = Examples(groups, videos, dict(zip(rows, pictures, strict=True)), problem)
    _write(output, lists, report, shown)
    return report


def _video(table: pa.Table, row: int) -> Video:
    """Return the stretch of a row, as its source had it."""
    values = table.slice(row, 1).select([field.name for field in fields(Video)]).to_pylist()[0]
    return Video(**{**values, "labels": tuple(values["labels"]), "reason": "", "detail": ""})


def _pictures(measures: Path, videos: list[Video], workers: int, timeout: float) -> tuple[list[Picture], str]:
    """Return a picture of each of ``videos``, and why all of them lack one ("" if they need not)."""
    plan = read_plan(measures, KIND_OF_MEASURES) or {}
    folder = Path(str(plan.get("folder", "")))
    none = [Picture(b"")] * len(videos)
    if not videos:
        return none, ""
    if not plan.get("folder") or not folder.is_dir():
        return none, f"the media are not in {folder} any more"
    options = restore(MeasureConfig, plan["measurement"], str(measures / PLAN)).source
    try:
        source = open_source(options, folder)
    except UserError as error:
        return none, str(error)
    make = PictureMaker(source, options.audio_stream)
    pictures = []
    with Progress(len(videos), "pictures", "examples") as bar:
        for made in process_pool.map(make, videos, min(workers, len(videos)), timeout):
            pictures.append(Picture(b"", made.reason) if isinstance(made, MediaError) else made)
            bar.update()
    return pictures, ""


def _held_out(table: pa.Table, inside: np.ndarray, config: ValidationSet, seed: int) -> np.ndarray:
    """Return which of the rows ``inside``, as (N,) bool, belong to recordings that are held out."""
    origins = pc.if_else(pc.equal(table["origin"], ""), table["path"], table["origin"])
    listed = pc.unique(origins.filter(pc.is_in(table["split"], value_set=pa.array(config.splits, pa.string()))))
    coded = origins.filter(pa.array(inside)).combine_chunks().dictionary_encode()
    of, names = coded.indices.to_numpy(), coded.dictionary
    chosen = np.array(pc.is_in(names, value_set=listed))
    if config.share or config.count:
        hashes = stable_hashes(names.to_pylist(), seed)
    if config.share:
        chosen |= hashes / 2.0**64 < config.share
    if config.count:
        order = np.lexsort((hashes, ~chosen))  # those of the splits count too, and come first
        sizes = np.bincount(of, minlength=len(names))[order]
        chosen[order[np.cumsum(sizes) - sizes < config.count]] = True
    held_out = np.zeros(len(inside), bool)
    held_out[inside] = chosen[of]
    return held_out


def _list(table: pa.Table, filtered: FilteredRows, chosen: np.ndarray, split: str) -> pa.Table:
    """Return the rows ``chosen`` with their score; ``split`` takes the place of the source's own, kept beside it."""
    rows = table.filter(pa.array(chosen)).drop_columns(["reason", "detail"])
    own = rows["split"]
    rows = rows.set_column(rows.schema.get_field_index("split"), "split", pa.array([split] * len(rows), pa.string()))
    rows = rows.append_column("source_split", own)
    return rows.append_column("score", pa.array(filtered.score[chosen]))


def _dropped(table: pa.Table, filtered: FilteredRows) -> pa.Table:
    """Return the rows that are not inside, without their measures, with the reason and detail of their drop."""
    gone = ~filtered.inside
    rows = table.select(["path", "start", "end", "labels", "origin", "split"]).filter(pa.array(gone))
    for name, texts in (("reason", filtered.reason), ("detail", filtered.detail)):
        rows = rows.append_column(name, pa.array(texts[gone], pa.string()))
    return rows.append_column("score", pa.array(filtered.score[gone], from_pandas=True))


def _check_output(folder: Path) -> None:
    """Raise UserError if ``folder`` holds anything but a selection, finished or not."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; give a new or empty folder, or an older selection, as output")
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if all(name.endswith(TEMPORARY_SUFFIX) for name in names):
        return
    try:
        ours = read_json(folder / REPORT).get("kind") == KIND
    except DamagedSet:
        ours = False
    if not ours:
        raise UserError(
            f"{folder}: holds other files ({names[0]}, …); give a new or empty folder, or an older selection, as output"
        )


def _write(folder: Path, lists: dict[str, pa.Table], report: SelectionReport, examples: Examples) -> None:
    """Write the selection, replacing an older one; until it is complete, ``report.json`` says unfinished."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / REPORT, {"kind": KIND, "finished": False})
    for name in lists:
        (folder / f"{name}.parquet").unlink(missing_ok=True)
    remove_asides(folder, "")
    for name, rows in lists.items():
        write_whole(folder / f"{name}.parquet", parquet(rows))
    write_whole(folder / "report.html", page(report, examples).encode())
    write_json(folder / REPORT, {"kind": KIND, "finished": True, **report.as_json()}, indent=1)
