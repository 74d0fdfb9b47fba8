"""The quarantine: a record of the damaged samples of a run, one JSON file each in ``runs/NAME/quarantine/``.

Every process of a run adds the damaged samples that it reads. A sample is one file however often it is added, so the
number of files is the number of samples, also after the run resumed. A full disk ends no run here: a sample that cannot
be recorded is printed, and counted by the process that read it.
"""

import json
import sys
from pathlib import Path

from mmldm_scale.common.atomic_files import full_disk, write_whole
from mmldm_scale.common.errors import Outage, UserError
from mmldm_scale.shards.reader import ShardSet


class Quarantine:
    """The quarantine of one run in ``folder``, at most ``limit`` samples."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._in_new_run = not folder.parent.exists()  # a run folder that was moved away is not made again
        self._unrecorded: set[Path] = set()  # files for which the disk was full

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.json")) + len(self._unrecorded)

    def add(self, shards: ShardSet, index: int, detail: str) -> None:
        """Record that sample ``index`` of ``shards`` is damaged; ``detail`` says how.

        Raises:
            UserError: there are now more than ``limit`` samples, or the folder cannot be written (Outage).
        """
        key, shard = shards.key(index), shards.shard_of(index)
        file = self.folder / f"{shards.fingerprint[:8]}-{key}.json"
        detail = detail.removeprefix(f"{shards.location}: sample {key} in {shard}: ")
        if not file.exists():
            if file not in self._unrecorded:
                print(
                    f"quarantined sample {key} of {shard} in {shards.location}: {detail}", file=sys.stderr, flush=True
                )
            self._record(file, {"set": shards.location, "shard": shard, "key": key, "detail": detail})
        if len(self) > self.limit:
            raise UserError(
                f"{self.folder}: {len(self)} damaged samples, reading.damaged_share allows {self.limit}; repair the "
                f"set {shards.location} (`data_tools/shard.py repair`) and remove this folder"
            )

    def _record(self, file: Path, row: dict[str, str]) -> None:
        """Write ``row`` to ``file``, or remember that the disk is full."""
        try:
            with full_disk(file):
                self.folder.mkdir(exist_ok=True, parents=self._in_new_run)
            write_whole(file, json.dumps(row).encode() + b"\n")
        except UserError:
            self._unrecorded.add(file)
        except OSError as error:
            raise Outage(f"{file}: cannot be written: {error.strerror}") from None
        else:
            self._unrecorded.discard(file)
