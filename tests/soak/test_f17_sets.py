"""F17: hostile shard sets are refused or named as damaged by all that reads them, in one line each.

What is damaged is made to fit its checksums in half of the trials, as somebody who means harm would do.
"""

import functools
import hashlib
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch._dynamo  # noqa: F401  (diffusers imports it late, and it makes a folder in /tmp: no trial is to be the first)

from data_tools import shard
from data_tools.reports.stats import stats
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import ReadingConfig
from mmldm_scale.shards.index import ShardIndex
from mmldm_scale.shards.json_files import read_json, write_json
from mmldm_scale.shards.latents import decode_latent_batch
from mmldm_scale.shards.manifest import Manifest, ShardEntry
from mmldm_scale.shards.reader import DamagedSample, ShardSet
from mmldm_scale.shards.verify import verify_set
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.training.data.sample_stream import SampleStream
from tests.support.datasets.latent_sets import write_latents
from tests.support.datasets.recordings import record
from tests.support.faults import fault_trials, guard, mutate
from tests.support.faults.fuzz_media import damaged

SMALL = ["media.frames=4", "media.size=16", "media.audio.sample_rate=8000", "media.audio.f_max=4000", "stride=4"]
DOCUMENTED = (UserError, DamagedSample)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with ``videos``, their ``clips`` (4 in 2 shards) and unrelated ``latents``."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "videos").mkdir()
    record(folder / "videos" / "a.mp4", size=(32, 48), pictures=np.arange(20) / 10)
    command = ["clips", "--input", str(folder / "videos"), "--output", str(folder / "clips"), "--workers", "0"]
    assert shard.main([*command, *SMALL, "samples_per_shard=2"]) == 0
    write_latents(folder / "latents", (3, 2))
    return folder


def harm(folder: Path, number: int) -> str:
    """Make something in the set ``folder`` hostile; return what."""
    rng = np.random.default_rng([17, number])
    file = rng.choice(sorted(folder.iterdir()))
    if rng.random() < 0.5:
        file.write_bytes(damaged([file.read_bytes()], 0, number))
        return f"damaged {file.suffix}"
    if file.suffix == ".tar":
        _harm_member(folder, int(file.stem[-6:]), rng)
        return "fitting .tar"
    if file.suffix == ".json":
        write_json(file, mutate.value(read_json(file), rng), indent=1)
        return "fitting .json"
    file.write_bytes(mutate.text(file.read_text() or "{}\n", rng))
    return f"text of {file.suffix}"


def _harm_member(folder: Path, number: int, rng: np.random.Generator) -> None:
    """Change the content of a member in its place, and all checksums with it."""
    index, tar = ShardIndex.read(folder, number), folder / f"shard-{number:06d}.tar"
    data, sample, member = bytearray(tar.read_bytes()), rng.integers(len(index)), rng.integers(len(index.members))
    first, size = int(index.offsets[sample, member]), int(index.sizes[sample, member])
    good = bytes(data[first : first + size])
    if index.members[member] == "json":
        bad = json.dumps(mutate.value(json.loads(good) or {"class": None}, rng)).encode()
    else:
        bad = damaged([good], 0, int(rng.integers(1 << 40)))
    data[first : first + size] = bad[:size].ljust(size)
    tar.write_bytes(data)
    start, end = index.spans[sample]
    index.crc32[sample] = zlib.crc32(data[start:end])
    index.sha256 = hashlib.sha256(data).hexdigest()
    index.write(folder)
    manifest = Manifest.read(folder)
    manifest.shards[number] = ShardEntry.of(index)
    manifest.write(folder)


def read(good: Path, folder: Path, number: int) -> str:
    kind = ("clips", "latents")[number % 2]
    shutil.copytree(good / kind, folder / "set")
    what = harm(folder / "set", number)
    doors = [_open, _verify, (_show, _learn if kind == "latents" else _repair)[number // 2 % 2]]
    refused = 0
    for door in doors:
        try:
            door(folder)
        except DOCUMENTED as error:
            fault_trials.one_line(error)
            refused += 1
    return f"{what}: {'used' if not refused else 'refused'}"


def _open(folder: Path) -> None:
    shards = ShardSet(folder / "set")
    for index in range(len(shards)):
        shards[index].meta.get("class")


def _verify(folder: Path) -> None:
    for fault in verify_set(folder / "set").faults:
        assert "\n" not in fault, fault


def _show(folder: Path) -> None:
    stats(folder / "set", folder / "sheet")


def _learn(folder: Path) -> None:
    reading = ReadingConfig(damaged_share=0.9)
    samples = SampleStream(
        DiTTraining(shards=[str(folder / "set")], run=str(folder / "run"), reading=reading), "latents"
    )
    samples.read(range(8), lambda found: decode_latent_batch([sample.members for sample in found]))


def _repair(folder: Path) -> None:
    """As a command, whose mistakes are one line and status 2, and faults that stay status 1."""
    assert shard.main(["repair", "--input", str(folder / "set"), "--workers", "0"]) in (0, 1, 2)


@fault_trials.counts(full=10_000, short=24)
def test_sets_are_refused_or_read_in_order(count, good, tmp_path):
    guard.run("F17 hostile shard sets", count, functools.partial(read, good), tmp_path)
