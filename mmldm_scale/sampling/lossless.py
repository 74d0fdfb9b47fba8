"""``mmldm sample --lossless``: the samples of a task as a shard set, without the losses of H.264 and AAC.

The set is the folder ``lossless/TASK`` of the output folder: plain WebDataset tars with an index each and a manifest
(:mod:`mmldm_scale.shards`). A sample has its frames as PNGs, its waveform as 32-bit floats, and a JSON that says what
it was made from. Shard k holds block k of the job's samples, so its bytes do not depend on which jobs share the blocks.
A shard exists once its index does. The manifest is written when no sample is missing, and removed before a shard is
made again.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from mmldm_scale.common.atomic_files import remove_leftovers, write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.clip import Clip
from mmldm_scale.shards.clips import encode_lossless
from mmldm_scale.shards.index import FORMAT, ShardIndex, shard_name
from mmldm_scale.shards.json_files import DamagedSet, read_json, write_json
from mmldm_scale.shards.manifest import DROPPED, MANIFEST, PLAN, Manifest, ShardEntry, differences
from mmldm_scale.shards.verify import shard_faults
from mmldm_scale.shards.writer import ShardWriter

FOLDER = "lossless"  # in the output folder, with a set for each task

RATES = ("frames", "fps", "sample_rate")  # keys of a sample's JSON in its tar besides those of its record

Record = Mapping[str, Any]  # the JSON of a sample, or what all samples were made with


class LosslessSet:
    """The shard set of the samples of one task.

    Args:
        output: the job's output folder.
        task: the samples' task.
        media: their format.
        size: samples of a block, and so of a shard; the last one may have fewer.
    """

    def __init__(self, output: Path, task: str, media: MediaConfig, size: int) -> None:
        self.folder = output / FOLDER / task
        self._task, self._media, self._size = task, media, size

    def missing(self, block: range) -> bool:
        """Return whether a sample of ``block`` is missing."""
        index = self._index(self._number(block))
        return index is None or len(index) < len(block)

    def index_file(self, block: range) -> Path:
        """Return the file that appears when the shard of ``block`` is complete."""
        return self.folder / f"{shard_name(self._number(block))}.json"

    def begin(self, made_with: Record, leases: Leases) -> None:
        """Make the folder and write the plan of the set, or compare the plan that is there.

        Args:
            made_with: what all samples are made with.
            leases: on the output folder.

        Raises:
            UserError: the set that was begun here has samples that were made with something else.
        """
        file = self.folder / PLAN
        plan = {
            "format": FORMAT,
            "kind": "samples",
            "task": self._task,
            "samples_per_shard": self._size,
            "preparation": dict(made_with),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        with leases.writing(file):
            try:
                earlier = read_json(file)
            except DamagedSet:  # or there is none
                write_json(file, plan, indent=1)
                return
        if earlier != plan:
            lines = differences(earlier, plan, ("in the folder", "now"))
            raise UserError(f"{self.folder}: contains other samples ({'; '.join(lines)[:300]}); give another --output")

    def write(self, block: range, clips: Sequence[Clip], records: Sequence[Record], leases: Leases, lease: str) -> None:
        """Write the shard of ``block``: ``clips``, one for each sample, and what each was made from.

        Args:
            leases, lease: the caller's lease on the block. If it was lost, another process writes the same shard.

        Raises:
            UserError: the disk is full.
        """
        self._remove(block)
        rate = self._media.audio.sample_rate
        with ShardWriter(self.folder, self._number(block)) as shard:
            for clip, record in zip(clips, records, strict=True):
                shard.add(record["name"], encode_lossless(clip, rate), self._meta(clip, record))
            with leases.finishing(lease):
                shard.commit()

    def finish(self, samples: int, made_with: Record, leases: Leases) -> None:
        """Write the manifest, unless it is there, or some of the first ``samples`` samples are missing."""
        indexes = self._indexes()
        if sum(map(len, indexes)) < samples:
            return
        manifest = self._manifest(indexes, made_with)
        with leases.writing(self.folder / MANIFEST):
            try:
                if Manifest.read(self.folder) == manifest:
                    return
            except UserError:  # there is none yet, or it is damaged
                pass
            write_whole(self.folder / DROPPED, b"")
            manifest.write(self.folder)

    def remove_damaged(
        self,
        blocks: Sequence[range],
        problem: Callable[[int, bytes, Sequence[str]], str],
        leases: Leases,
        lease: Callable[[range], str],
    ) -> None:
        """Remove those shards of ``blocks`` that are damaged, so that they are made again; print their names.

        Args:
            problem: returns what is wrong with the JSON of a sample; its last argument are further keys that it has.
            leases, lease: on the output folder; the name of a block's lease. A shard that another process is making
                is left to it.
        """
        for block in blocks:
            if self.index_file(block).exists() and leases.take(lease(block)):
                damage = self._damage(block, problem)
                if damage:
                    tar = self.index_file(block).with_suffix(".tar")
                    print(f"{tar}: damaged, is made again: {damage}", file=sys.stderr, flush=True)
                    self._remove(block)
                leases.release(lease(block))

    def _number(self, block: range) -> int:
        return block.start // self._size

    def _index(self, number: int) -> ShardIndex | None:
        """Return the index of shard ``number``; None if there is no such shard, or its tar has another size."""
        try:
            index = ShardIndex.read(self.folder, number)
            index.check_tar(self.folder)
        except DamagedSet:
            return None
        return index

    def _indexes(self) -> list[ShardIndex]:
        """Return the indexes of the shards from the first one on that have all samples up to the last of them."""
        indexes: list[ShardIndex] = []
        for number in count():
            index = self._index(number)
            if index is None:
                break
            indexes.append(index)
            if len(index) < self._size:
                break
        return indexes

    def _remove(self, block: range) -> None:
        """Remove the shard of ``block`` and what a killed process has left of it."""
        index = self.index_file(block)
        (self.folder / MANIFEST).unlink(missing_ok=True)  # a set with a shard missing is unfinished
        for file in (index, index.with_suffix(".tar")):  # the index first: without it there is no shard
            file.unlink(missing_ok=True)
            remove_leftovers(file)

    def _meta(self, clip: Clip, record: Record) -> dict[str, Any]:
        """Return the JSON of a sample in its tar: ``record``, and the rates that a reader needs to play it."""
        fps = self._media.fps if len(clip.frames) else None
        sample_rate = self._media.audio.sample_rate if len(clip.waveform) else None
        return {**record, **dict(zip(RATES, (len(clip.frames), fps, sample_rate), strict=True))}

    def _damage(self, block: range, problem: Callable[[int, bytes, Sequence[str]], str]) -> str:
        """Return what is wrong with the shard of ``block``; empty if nothing is."""
        try:
            index = ShardIndex.read(self.folder, self._number(block))
            faults = shard_faults(self.folder, self._manifest([index], {}), index)
        except DamagedSet as error:
            return str(error)
        if faults:
            return faults[0]
        column = index.members.index("json")
        with (self.folder / f"{index.name}.tar").open("rb") as tar:
            places = zip(index.keys, index.offsets[:, column].tolist(), index.sizes[:, column].tolist(), strict=True)
            for number, (key, offset, size) in enumerate(places, block.start):
                tar.seek(offset)
                if text := problem(number, tar.read(size), RATES):
                    return f"the JSON of {key}: {text}"
        return ""

    def _manifest(self, indexes: Sequence[ShardIndex], made_with: Record) -> Manifest:
        samples = sum(map(len, indexes))
        return Manifest(
            kind="samples",
            media=self._media,
            classes=[],
            videos=0,
            failed_files=0,
            candidates=samples,
            samples=samples,
            dropped=0,
            reasons={},
            shards=[ShardEntry.of(index) for index in indexes],
            preparation=dict(made_with),
        )
