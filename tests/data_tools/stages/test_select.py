"""The second pass on small tables of measures, against what can be counted by hand."""

import base64
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools.config import Limits, MeasureConfig, Selection, ValidationSet
from data_tools.demo.corpus import make_corpus
from data_tools.filters.table import KIND, part_sizes, write_part
from data_tools.sources import open_source
from data_tools.sources.folder import FolderOptions
from data_tools.stages.select import select
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import load
from mmldm_scale.shards.json_files import write_json

ROOT = Path(__file__).parents[3]
FIELDS = {"bytes": 1, "labels": [], "start": 0.0, "maybe_trimmed": False, "split": "", "audio": "", "detail": ""}


def write_table(folder: Path, rows: list[dict[str, Any]], rows_per_part: int = 4) -> Path:
    """Write a finished table of ``rows``; what they leave out is as of a plain sound file."""
    folder.mkdir(parents=True)
    config = dataclasses.asdict(MeasureConfig(rows_per_part=rows_per_part))
    write_json(folder / "plan.json", {"format": 1, "kind": KIND, "rows": len(rows), "measurement": config})
    whole = [{**FIELDS, "origin": row["path"], "reason": "", **row} for row in rows]
    first = 0
    for number, size in enumerate(part_sizes(len(rows), rows_per_part)):
        write_part(folder, number, whole[first : first + size])
        first += size
    return folder


def candidates(count: int, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {
            "path": f"{number:04d}.mp4",
            "labels": [f"label{number % 3}", f"label{3 + number % 4}"],
            "origin": f"recording{number // 2}",
            "seconds": 10.0,
            "motion": float(random.normal(5, 2)),
            "loudness": float(random.normal(-20, 5)),
            "hash": random.bytes(32),
        }
        for number in range(count)
    ]


def paths(output: Path, name: str) -> list[str]:
    return pq.read_table(output / f"{name}.parquet")["path"].to_pylist()


def reasons(output: Path) -> dict[str, tuple[str, str]]:
    rows = pq.read_table(output / "dropped.parquet").to_pylist()
    return {row["path"]: (row["reason"], row["detail"]) for row in rows}


def test_limits_and_faults(tmp_path):
    rows = [
        {"path": "good", "motion": 5.0, "loudness": -20.0},
        {"path": "edge", "motion": 1.0, "loudness": -10.0},
        {"path": "still", "motion": 0.25, "loudness": -20.0},
        {"path": "loud and still", "motion": 0.5, "loudness": -5.0},
        {"path": "loud", "motion": 2.0, "loudness": -9.0},
        {"path": "unknown", "motion": None, "loudness": -20.0},
        {"path": "broken", "reason": "corrupt", "detail": "at 3 s"},
    ]
    limits = {"motion": Limits(min=1.0), "loudness": Limits(min=-50.0, max=-10.0)}
    report = select(write_table(tmp_path / "m", rows), tmp_path / "s", Selection(limits=limits))
    assert paths(tmp_path / "s", "train") == ["good", "edge"]
    assert reasons(tmp_path / "s") == {
        "still": ("low_motion", "0.25, below 1"),
        "loud and still": ("low_motion", "0.5, below 1"),
        "loud": ("high_loudness", "-9, above -10"),
        "unknown": ("no_motion", "it could not be measured"),
        "broken": ("corrupt", "at 3 s"),
    }
    assert report.reasons == {"low_motion": 2, "corrupt": 1, "high_loudness": 1, "no_motion": 1}
    assert report.outside == {
        "motion": {"low": 2, "high": 0, "no": 1},
        "loudness": {"low": 0, "high": 2, "no": 0},
    }
    assert (report.rows, report.train, report.heldout, report.dropped) == (7, 2, 0, 5)


def test_the_best_by_a_weighted_sum_of_percentiles(tmp_path):
    rows = candidates(50)
    rows[7]["motion"] = None  # counts as the least
    report = select(
        write_table(tmp_path / "m", rows), tmp_path / "s", Selection(rank={"motion": 2.0, "loudness": -1.0}, top=10)
    )

    def percentile(name: str, sign: int) -> np.ndarray:
        values = [-np.inf if row[name] is None else sign * row[name] for row in rows]
        known = sum(np.isfinite(values))
        return np.array([sum(other < value for other in values if np.isfinite(other)) for value in values]) / (
            known - 1
        )

    score = (2 * percentile("motion", 1) + percentile("loudness", -1)) / 3
    best = sorted(f"{number:04d}.mp4" for number in np.argsort(-score)[:10])
    assert paths(tmp_path / "s", "train") == best
    written = pq.read_table(tmp_path / "s" / "train.parquet")["score"].to_pylist()
    assert written == pytest.approx(np.sort(score)[::-1][:10][np.argsort(np.argsort(-score)[:10])].tolist())
    assert report.reasons == {"below_top": 40}


def test_the_best_of_each_label(tmp_path):
    rows = candidates(60)
    rows += [{"path": f"bare{number}", "motion": float(number), "loudness": 0.0} for number in range(5)]
    select(write_table(tmp_path / "m", rows), tmp_path / "s", Selection(rank={"motion": 1.0}, top_per_label=3))
    best = set()
    for label in [f"label{number}" for number in range(7)]:
        own = [row for row in rows if label in row.get("labels", [])]
        best |= {row["path"] for row in sorted(own, key=lambda row: -row["motion"])[:3]}
    best |= {"bare4", "bare3", "bare2"}  # those without labels compete with each other
    assert set(paths(tmp_path / "s", "train")) == best
    assert {reason for reason, _ in reasons(tmp_path / "s").values()} == {"below_top_of_label"}


def test_of_near_duplicates_the_best_is_kept(tmp_path):
    rows = candidates(20)
    rows[3]["hash"] = bytes([rows[11]["hash"][0] ^ 3]) + rows[11]["hash"][1:]
    rows[3]["motion"], rows[11]["motion"] = 9.0, 1.0
    rows[12]["hash"] = rows[13]["hash"] = None
    select(write_table(tmp_path / "m", rows), tmp_path / "s", Selection(rank={"motion": 1.0}, near_duplicate_bits=4))
    assert reasons(tmp_path / "s") == {"0011.mp4": ("near_duplicate", "like 0003.mp4 from 0 s on")}


def test_held_out_recordings_are_whole_and_stay_when_others_come(tmp_path):
    config = Selection(held_out=ValidationSet(share=0.3), seed=5)
    select(write_table(tmp_path / "m", candidates(200)), tmp_path / "s", config)
    apart = pq.read_table(tmp_path / "s" / "heldout.parquet")
    train = pq.read_table(tmp_path / "s" / "train.parquet")
    assert not set(apart["origin"].to_pylist()) & set(train["origin"].to_pylist())
    assert 0.15 < apart.num_rows / 200 < 0.45
    assert set(apart["split"].to_pylist()) == {"heldout"}
    assert set(train["split"].to_pylist()) == {"train"}
    more = candidates(300)[::-1]  # in another order, with others between
    select(write_table(tmp_path / "m2", more), tmp_path / "s2", config)
    both = set(paths(tmp_path / "s2", "heldout"))
    assert {path for path in both if path < "0200"} == set(paths(tmp_path / "s", "heldout"))
    select(tmp_path / "m", tmp_path / "s3", dataclasses.replace(config, seed=6))
    assert paths(tmp_path / "s3", "heldout") != paths(tmp_path / "s", "heldout")


def test_held_out_by_count_and_by_the_sources_split(tmp_path):
    rows = candidates(40)
    rows[10]["split"] = "eval"  # rows 10 and 11 are of one recording
    measures = write_table(tmp_path / "m", rows)
    select(measures, tmp_path / "count", Selection(held_out=ValidationSet(count=7)))
    assert len(paths(tmp_path / "count", "heldout")) == 8  # recordings of two
    select(measures, tmp_path / "split", Selection(held_out=ValidationSet(splits=["eval"])))
    assert paths(tmp_path / "split", "heldout") == ["0010.mp4", "0011.mp4"]
    own = pq.read_table(tmp_path / "split" / "heldout.parquet")["source_split"].to_pylist()
    assert own == ["eval", ""]
    select(measures, tmp_path / "both", Selection(held_out=ValidationSet(splits=["eval"], count=4)))
    assert {"0010.mp4", "0011.mp4"} < set(paths(tmp_path / "both", "heldout"))
    assert len(paths(tmp_path / "both", "heldout")) == 4
    with pytest.raises(UserError, match="holds out all that was selected"):
        select(measures, tmp_path / "all", Selection(held_out=ValidationSet(share=1.0)))


def everything(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(output.iterdir())}


WHOLE = Selection(
    limits={"loudness": Limits(max=-15.0)},
    near_duplicate_bits=20,
    rank={"motion": 1.0},
    top=25,
    held_out=ValidationSet(share=0.2),
)


def test_the_same_files_whatever_the_parts_and_the_same_choice_whatever_the_order(tmp_path):
    rows = candidates(60)
    for row in rows[::2]:
        row["motion"] = 4.0  # equally ranked
    select(write_table(tmp_path / "m", rows), tmp_path / "a", WHOLE)
    first = everything(tmp_path / "a")
    (tmp_path / "m").rename(tmp_path / "first")
    select(write_table(tmp_path / "m", rows, rows_per_part=7), tmp_path / "b", WHOLE)
    assert everything(tmp_path / "b") == first
    select(write_table(tmp_path / "turned", rows[::-1]), tmp_path / "c", WHOLE)
    for name in ("train", "heldout"):
        assert sorted(paths(tmp_path / "c", name)) == sorted(paths(tmp_path / "a", name))


def test_another_cut_replaces_the_first_and_nothing_else(tmp_path):
    measures = write_table(tmp_path / "m", candidates(30))
    select(measures, tmp_path / "s", WHOLE)
    select(measures, tmp_path / "s", Selection(top=3))
    assert len(paths(tmp_path / "s", "train")) == 3
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert (report["kind"], report["finished"], report["selection"]["top"]) == ("selection", True, 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "train.parquet").write_bytes(b"somebody's")
    with pytest.raises(UserError, match="holds other files"):
        select(measures, tmp_path / "other", WHOLE)
    with pytest.raises(UserError, match="holds other files"):
        select(measures, measures, WHOLE)
    assert (tmp_path / "other" / "train.parquet").read_bytes() == b"somebody's"


def test_what_does_not_fit_is_said_in_a_line(tmp_path):
    measures = write_table(tmp_path / "m", candidates(3))
    with pytest.raises(UserError, match=r"limits.loudnes: no measure; did you mean 'loudness'\?"):
        select(measures, tmp_path / "s", Selection(limits={"loudnes": Limits()}))
    with pytest.raises(UserError, match=r"rank.hash: no measure"):
        select(measures, tmp_path / "s", Selection(rank={"hash": 1.0}))
    with pytest.raises(UserError, match="min 2 is above max 1"):
        load(Selection, overrides=["limits.motion.min=2", "limits.motion.max=1"])
    with pytest.raises(UserError, match="exclude each other"):
        load(Selection, overrides=["held_out.share=0.1", "held_out.count=5"])
    assert not (tmp_path / "s").exists()


def test_a_selection_is_a_list_of_clips_to_cut(tmp_path):
    """What is selected comes out of the listing as the source had it."""
    rows = candidates(4)
    rows[1] |= {"start": 30.0, "end": 40.0, "maybe_trimmed": True, "seconds": 10.1}
    select(write_table(tmp_path / "m", rows), tmp_path / "s", Selection())
    (tmp_path / "in").mkdir()
    for row in rows:
        (tmp_path / "in" / row["path"]).write_bytes(b"x")
    config = FolderOptions(list=str(tmp_path / "s" / "train.parquet"))
    videos = open_source(config, tmp_path / "in").videos()
    assert [video.path for video in videos] == [row["path"] for row in rows]
    assert [video.labels for video in videos] == [tuple(row["labels"]) for row in rows]
    assert [video.origin for video in videos] == [row["origin"] for row in rows]
    assert {video.split for video in videos} == {"train"}
    assert videos[1].stretch(videos[1].seconds) == (0.0, 10.1)
    assert not any(video.reason for video in videos)


def test_the_report_counts_and_draws(tmp_path):
    rows = candidates(100)
    rows[0]["labels"] = ["<b>&"]
    report = select(write_table(tmp_path / "m", rows), tmp_path / "s", WHOLE)
    assert report.rows == report.train + report.heldout + report.dropped == 100
    assert sum(report.reasons.values()) == report.dropped
    for name in ("motion", "loudness"):
        histogram = report.histograms[name]
        assert sum(histogram.measured) == 100
        assert sum(histogram.selected) == report.train + report.heldout
        assert histogram.edges[0] <= -15.0 <= histogram.edges[-1] or name == "motion"
    assert report.labels["label3"]["rows"] == sum("label3" in row["labels"] for row in rows)
    page = (tmp_path / "s" / "report.html").read_text()
    assert page.count("<svg") == len(report.histograms)
    assert page.count('class="limit"') == 1
    assert "&lt;b&gt;&amp;" in page
    assert "<b>&" not in page
    assert not re.search(r"(src|href)=", page)


def test_the_report_shows_what_lies_closest_to_a_limit_with_its_picture(tmp_path):
    videos = make_corpus(tmp_path / "in", videos=4, seconds=0.5, size=32)
    rows = candidates(20)
    for row, motion in zip(rows, np.linspace(1.0, 6.0, 20), strict=True):
        row["motion"] = float(motion)
    names = [video.relative_to(tmp_path / "in").as_posix() for video in videos]
    for number, name in zip((9, 10, 11), names, strict=False):
        rows[number] |= {"path": name, "seconds": 0.5}
    rows[15]["hash"] = rows[16]["hash"]
    rows[3] |= {"reason": "corrupt", "detail": "at <3> s"}
    measures = write_table(tmp_path / "m", rows)
    write_json(measures / "plan.json", json.loads((measures / "plan.json").read_text()) | {"folder": f"{tmp_path}/in"})
    config = Selection(limits={"motion": Limits(min=3.5)}, rank={"motion": 1.0}, near_duplicate_bits=4, top=8)
    select(measures, tmp_path / "s", config, examples=2)
    page = (tmp_path / "s" / "report.html").read_text()
    shown = re.findall(r"<h3>([^<]*)</h3>", page)
    assert shown == [
        "selected",
        "corrupt",
        "low_motion: motion must be at least 3.5 levels",
        "near_duplicate",
        "below_top",
    ]
    at_limit = page.split("low_motion: ")[1].split("<h3>")[0]
    assert re.findall(r"<b>([^<]*)</b>", at_limit)[:2] == [names[0], "0008.mp4"]
    assert re.findall(r"(dropped|kept): (motion \d\.\d+)", at_limit) == [
        ("dropped", "motion 3.37"),
        ("dropped", "motion 3.11"),
        ("kept", "motion 3.89"),
        ("kept", "motion 4.16"),
    ]
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', at_limit)
    assert len(pictures) == 2  # of the two whose videos are there
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0])))).shape == (96 + 64, 4 * 96, 3)
    assert "no picture: missing_file" in at_limit
    assert "dropped: like 0016.mp4 from 0 s on" in page
    assert "dropped: at &lt;3&gt; s" in page
    first = everything(tmp_path / "s")
    select(measures, tmp_path / "s", config, examples=2)
    assert everything(tmp_path / "s") == first
    (tmp_path / "in").rename(tmp_path / "gone")
    select(measures, tmp_path / "s", config, examples=2)
    assert f"No pictures: the media are not in {tmp_path}/in any more." in (tmp_path / "s" / "report.html").read_text()
    select(measures, tmp_path / "s", config)
    assert "<h3>" not in (tmp_path / "s" / "report.html").read_text()


def test_the_configurations_that_come_along_fit(tmp_path):
    rows = candidates(5)
    for file in sorted((ROOT / "configs" / "data").glob("*_select.yaml")):
        report = select(
            write_table(tmp_path / file.stem / "m", rows), tmp_path / file.stem / "s", load(Selection, [file])
        )
        assert report.rows == report.dropped == 5  # they know of no sharpness
    assert load(Selection, [ROOT / "configs" / "data" / "audioset_select.yaml"]).top == 100_000
