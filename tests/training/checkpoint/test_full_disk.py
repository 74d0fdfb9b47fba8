"""A disk that is full while a run saves: the run continues, keeps the older checkpoint and prints a line."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmldm_scale.training.monitoring.logger import Logger
from tests.support.run_results import Finished, assert_same_checkpoint
from tests.support.small_disk import mount_small_disk

LINE = re.compile(
    r"/\S+/step-\d{12}\.tmp\S*: the disk is full after [\d,]+ bytes of this checkpoint, which is removed; "
    "the older ones remain: make room"
)
OPTIONS = ("training.checkpoint_every=16", "training.preview_every=16000", "training.keep_checkpoints=100")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte in memory."""
    with mount_small_disk(tmp_path / "disk", 512) as folder:
        yield folder


def test_a_run_on_a_full_disk_continues_and_ends_once_there_is_room(disk: Path, forks, undisturbed) -> None:
    """Ten checkpoints are more than fit."""

    def on_disk() -> Finished:
        return Finished(disk / "run", *forks(2, "train", f"run={disk / 'run'}", *OPTIONS))

    full = on_disk()
    assert full.status != 0
    lines = [line for line in full.output.splitlines() if LINE.fullmatch(line)]
    kept = [path.name for path in full.checkpoints()]
    assert len(kept) + len(lines) == 10, full.output
    assert len(kept) > 0 < len(lines)
    assert not [name for name in kept if name.endswith(".tmp")]
    assert [record["samples_seen"] for record in full.log()] == list(range(16, 161, 16))
    assert "run: the end is not saved; run the same command again to resume" in full.output
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    finished = on_disk()
    assert finished.status == 0, finished.output
    assert "resuming from" in finished.output
    assert finished.values() == undisturbed.values()
    assert_same_checkpoint(finished.checkpoints()[-1], undisturbed.checkpoints()[-1])


def test_records_logged_while_the_disk_is_full_are_written_later(disk: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (disk / "tensorboard").symlink_to(tmp_path / "elsewhere")
    logger = Logger(disk, 0, 160)
    with (disk / "filling").open("wb", buffering=0) as filling:
        filling.write(bytes(1 << 20))  # as much of it as there is room for
    for samples_seen in (16, 32):
        logger.scalars(samples_seen, {"loss": 1.0})
    assert (disk / "log.jsonl").read_text() == ""
    (disk / "filling").unlink()
    logger.scalars(48, {"loss": 1.0})
    assert [record["samples_seen"] for record in Finished(disk, 0, "").log()] == [16, 32, 48]
    logger.close()
