"""The damaged samples that a run came across: ``runs/NAME/quarantine/``, one small file each.

Every process of a run adds what it finds; a sample found twice is one file, so counting files is counting samples, and
a run that is carried on goes on counting.
"""

import json
import sys
from pathlib import Path

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.shards.reader import ShardSet


class Quarantine:
    """The folder of one run, which may hold as many as ``limit`` samples."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.json"))

    def add(self, shards: ShardSet, index: int, detail: str) -> None:
        """Record that sample ``index`` of ``shards`` is damaged, as ``detail`` says.

        Raises:
            UserError: with it there are more than ``limit``.
        """
        key, shard = shards.key(index), shards.shard_of(index)
        file = self.folder / f"{shards.fingerprint[:8]}-{key}.json"
        detail = detail.removeprefix(f"{shards.location}: sample {key} in {shard}: ")
        if not file.exists():
            row = {"set": shards.location, "shard": shard, "key": key, "detail": detail}
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(row).encode() + b"\n")
            print(f"quarantined sample {key} of {shard} in {shards.location}: {detail}", file=sys.stderr, flush=True)
        if len(self) > self.limit:
            raise UserError(
                f"{self.folder}: {len(self)} damaged samples, reading.damaged_share allows {self.limit}; repair "
                f"the set (`data_tools/shard.py repair`; the last was in {shards.location}) and remove this folder"
            )
