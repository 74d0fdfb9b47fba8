"""Goodput, and reading a log with incomplete lines."""

import json
from pathlib import Path

import pytest

from mmldm_scale.runs.run_log import Goodput, parse, read


def share(records: list[dict]) -> float:
    goodput = Goodput()
    for record in records:
        goodput.add(record)
    return goodput.share


def logged(samples: int, time: float, start: float, **more: float) -> dict:
    return {"samples_seen": samples, "time": time, "time_of_start": start, "time_of_first_start": 1000.0, **more}


def test_goodput_excludes_lost_steps_waiting_starting_and_pauses() -> None:
    """100 samples in 50 s, 10 s of them paused; then it trains and dies without a record; from 1400 it trains again."""
    first = [logged(50, 1020, 1000.0), logged(100, 1050, 1000.0, **{"time/saving": 6.0, "time/preview": 4.0})]
    assert share(first) == pytest.approx(40 / 50)
    second = [logged(150, 1430, 1400.0), logged(200, 1460, 1400.0)]
    assert share(first + second) == pytest.approx((40 + 60) / 460)


def test_time_before_the_first_kept_record_counts_as_lost() -> None:
    assert share([logged(50, 1120, 1100.0)]) == pytest.approx(20 / 120)


def test_goodput_stays_a_share_if_the_clock_goes_backwards() -> None:
    assert share([]) == 0
    assert 0 <= share([logged(1, 1010, 1000.0), logged(2, 1005, 1004.0), logged(3, 1020, 1030.0)]) <= 1


def test_lines_that_are_no_records_are_skipped(tmp_path: Path) -> None:
    good = {"samples_seen": 1, "time": 2.0, "loss": 3.0}
    bad = [
        "",
        "[]",
        "null",
        '{"samples_seen": 1, "ti',
        '{"time": 1}',
        '{"samples_seen": "a", "time": 1}',
        "[" * 100_000,
    ]
    bad += ['{"samples_seen": 1, "time": NaN}', '{"samples_seen": 1, "time": 1, "time/saving": "long"}', "\x00\xff"]
    assert [parse(line) for line in bad] == [None] * len(bad)
    (tmp_path / "log.jsonl").write_text("\n".join([*bad, json.dumps(good), *bad]))
    assert list(read(tmp_path)) == [good]
    assert list(read(tmp_path / "nothing")) == []
