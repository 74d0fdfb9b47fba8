"""Events and logs on a disk that fills up and has room again: nothing is raised, and every record is accounted for."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import summary

from mmldm_scale.runs import record_file
from mmldm_scale.runs.event_file import EventFile
from tests.support.small_disk import mount_small_disk

TEXT = "x" * 4000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mount_small_disk(tmp_path / "disk", 64) as folder:
        yield folder


def add(events: EventFile, steps: range) -> None:
    for step in steps:
        events.add(summary.text("text", f"{step} {TEXT}"), step)
        events.flush()


def steps(folder: Path) -> list[int]:
    reader = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    reader.Reload()
    return [event.step for event in reader.Tensors("text/text_summary")]


def test_events_that_found_no_room_are_written_once_there_is_some(disk: Path, capfd) -> None:
    filling = disk / "filling"
    filling.write_bytes(bytes(30_000))
    events = EventFile(disk / "tensorboard")
    add(events, range(12))
    assert 0 < len(steps(disk / "tensorboard")) < 12  # and the last one that was begun does not disturb
    filling.unlink()
    add(events, range(12, 13))
    assert steps(disk / "tensorboard") == list(range(13))
    events.close()
    assert capfd.readouterr().err.splitlines() == [
        f"{disk}/tensorboard: cannot be written: No space left on device; the run goes on, and records wait in memory",
        f"{disk}/tensorboard: is written again; records left out: 0",
    ]


def test_events_begun_on_a_full_disk_are_complete_once_there_is_room(disk: Path) -> None:
    with (disk / "filling").open("wb", buffering=0) as filling:
        filling.write(bytes(64 << 10))
    with EventFile(disk / "tensorboard", 7) as events:
        add(events, range(8, 10))
        (disk / "filling").unlink()
    assert steps(disk / "tensorboard") == [8, 9]


def test_records_that_fit_neither_disk_nor_memory_are_counted(disk: Path, capfd, monkeypatch) -> None:
    monkeypatch.setattr(record_file, "MAX_WAITING", 20_000)
    events = EventFile(disk / "tensorboard")
    add(events, range(40))
    events.close()
    written = steps(disk / "tensorboard")
    assert written == list(range(len(written)))
    (lost,) = re.findall(r"records not written: ([\d,]+) \(No space left on device\)", capfd.readouterr().err)
    assert len(written) + int(lost) == 40
