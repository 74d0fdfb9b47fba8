"""F17: hostile lists of videos and tables of measures give entries with reasons, or one line."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data_tools.config import MeasureConfig, Selection
from data_tools.sources import SourceOptions, open_source
from data_tools.sources.audioset import AudioSetOptions
from data_tools.sources.folder import FolderOptions
from data_tools.stages.measure import measure
from data_tools.stages.select import select
from mmldm_scale.shards.json_files import write_json
from tests.support.datasets.recordings import record
from tests.support.faults import fault_trials, guard, mutate
from tests.support.faults.fuzz_media import damaged

NAMES = ("--4gqARaEJE", "0VHVqjGXmBM_30", "Yes_no_may_")
SEGMENTS = "# Segments csv created Sun Mar  5 10:54:25 2017\n" + "".join(
    f'{name[:11]}, {10 * i}.000, {10 * i + 10}.000, "/m/a,/m/b"\n' for i, name in enumerate(NAMES)
)
CSV = "path,start,end,labels,split\n" + "".join(f'"{name}.mp4",{i},{i + 2},a;b,train\n' for i, name in enumerate(NAMES))
ROWS = [{"path": f"{name}.mp4", "start": 1, "end": 2.5, "labels": ["a"], "seconds": 3} for name in NAMES]
ONTOLOGY = [{"id": "/m/a", "name": "Music", "child_ids": ["/m/b"]}, {"id": "/m/b", "name": "Rock", "child_ids": []}]
INDEX = 'index,mid,display_name\n0,/m/a,"Music"\n1,/m/b,"Rock music, hard"\n'


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with ``videos``, ``measures`` of them, and the ``selection`` of them all."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "videos").mkdir()
    for name in NAMES:
        record(folder / "videos" / f"{name}.mp4", size=(32, 48))
    measure(open_source(FolderOptions(), folder / "videos"), folder / "measures", MeasureConfig(rows_per_part=2), 0, 60)
    select(folder / "measures", folder / "selection", Selection())
    return folder


def segments(good: Path, folder: Path, rng: np.random.Generator) -> SourceOptions:
    (folder / "eval_segments.csv").write_bytes(mutate.text(SEGMENTS, rng))
    return AudioSetOptions(list=str(folder / "eval_segments.csv"))


def ontology(good: Path, folder: Path, rng: np.random.Generator) -> SourceOptions:
    (folder / "eval_segments.csv").write_text(SEGMENTS)
    (folder / "ontology.json").write_text(json.dumps(mutate.value(ONTOLOGY, rng)))
    return AudioSetOptions(list=str(folder / "eval_segments.csv"), exclude=["Rock"])


def label_names(good: Path, folder: Path, rng: np.random.Generator) -> SourceOptions:
    (folder / "eval_segments.csv").write_text(SEGMENTS)
    (folder / "class_labels_indices.csv").write_bytes(mutate.text(INDEX, rng))
    return AudioSetOptions(list=str(folder / "eval_segments.csv"))


def csv(good: Path, folder: Path, rng: np.random.Generator) -> SourceOptions:
    (folder / "list.csv").write_bytes(mutate.text(CSV, rng))
    return FolderOptions(list=str(folder / "list.csv"))


def jsonl(good: Path, folder: Path, rng: np.random.Generator) -> SourceOptions:
    rows = "".join(json.dumps(row) + "\n" for row in mutate.value(ROWS, rng))
    (folder / "list.jsonl").write_bytes(mutate.text(rows, rng) if rows and rng.random() < 0.5 else rows.encode())
    return FolderOptions(list=str(folder / "list.jsonl"))


def parquet(good: Path, folder: Path, rng: np.random.Generator) -> SourceOptions:
    data = (good / "selection" / "train.parquet").read_bytes()
    (folder / "list.parquet").write_bytes(damaged([data], 0, int(rng.integers(1 << 40))))
    return FolderOptions(list=str(folder / "list.parquet"))


LISTS: tuple[Callable[[Path, Path, np.random.Generator], SourceOptions], ...]
LISTS = (segments, ontology, label_names, csv, jsonl, parquet)


def read(good: Path, folder: Path, number: int) -> str:
    """Read a hostile list; every entry of it has to lie in the folder of videos or have a reason."""
    make = LISTS[number % len(LISTS)]
    source = open_source(make(good, folder, np.random.default_rng([17, number])), good / "videos")
    found = source.videos()
    outside = [entry for entry in found if not (entry.reason or (source.folder / entry.path).is_file())]
    outside += [entry for entry in found if not entry.reason and ".." in Path(entry.path).parts]
    assert found
    assert not outside
    return make.__name__


def choose(good: Path, folder: Path, number: int) -> str:
    """Select from hostile measures: a damaged part, or a plan that is not what it says."""
    rng, measures = np.random.default_rng([17, number]), folder / "measures"
    shutil.copytree(good / "measures", measures)
    if rng.random() < 0.7:
        part = measures / f"part-00000{rng.integers(2)}.parquet"
        part.write_bytes(damaged([part.read_bytes()], 0, number))
    else:
        plan = json.loads((measures / "plan.json").read_bytes())
        del plan["checksum"]
        write_json(measures / "plan.json", mutate.value(plan, rng))
    report = select(measures, folder / "selection", Selection(rank={"motion": 1.0}, near_duplicate_bits=20))
    assert report.train + report.heldout + report.dropped == report.rows
    return "selected"


@fault_trials.counts(full=10_000, short=120)
def test_lists_give_entries_with_reasons_or_one_line(count, good, tmp_path):
    guard.run("F17 hostile lists", count, functools.partial(read, good), tmp_path)


@fault_trials.counts(full=2_000, short=20)
def test_measures_give_a_selection_or_one_line(count, good, tmp_path):
    guard.run("F17 hostile measures", count, functools.partial(choose, good), tmp_path)
