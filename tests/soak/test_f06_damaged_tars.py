"""F6: a damaged tar is detected before its samples are used: on opening, or when the sample is read."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mmldm_scale.config import ReadingConfig
from mmldm_scale.shards.json_files import DamagedSet
from mmldm_scale.shards.reader import DamagedSample, ShardSet
from mmldm_scale.shards.verify import verify_set
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.training.data.sample_stream import SampleStream
from tests.support.datasets.clip_sets import write_clips
from tests.support.datasets.latent_sets import write_latents
from tests.support.faults import fault_trials

KINDS = ("cut anywhere", "cut at 512", "cut at 4096", "cut at a member", "flip", "swapped", "swapped whole", "zeroed")
SIZES = (6, 7, 7)


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> list[Path]:
    """A set of latents, two of its shards of one size, and a set of clips."""
    folder = tmp_path_factory.mktemp("originals")
    return [write_latents(folder / "latents", SIZES), write_clips(folder / "clips")]


def samples_of(folder: Path) -> dict[str, dict[str, bytes]]:
    """Return every sample that can be read, by its key; raise DamagedSet if the set is refused."""
    shards, found = ShardSet(folder), {}
    for index in range(len(shards)):
        try:
            found[shards.key(index)] = {name: bytes(data) for name, data in shards[index].members.items()}
        except DamagedSample as error:
            fault_trials.one_line(error, names=shards.key(index))
    return found


def harm(folder: Path, kind: str, rng: np.random.Generator) -> int:
    """Damage one tar of the set in ``folder``; return its shard's number."""
    shards = ShardSet(folder)
    number = int(rng.integers(len(shards.sizes)))
    tar = folder / f"shard-{number:06d}.tar"
    if kind.startswith("swapped"):
        return swap(folder, number, rng, whole=kind == "swapped whole")
    data = bytearray(tar.read_bytes())
    if kind == "flip":
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    elif kind == "zeroed":  # what some file systems leave after a power cut: the length is right, the end is not
        used = len(data.rstrip(b"\0"))
        start = 4096 * int(rng.integers(-(-used // 4096)))
        data[start:] = bytes(len(data) - start)
    else:
        members = shards._ranges[list(shards.shard_range(number)), :, 0].reshape(-1) - 512  # where a header begins
        steps = {"cut anywhere": range(len(data)), "cut at 512": range(0, len(data), 512)}
        steps |= {"cut at 4096": range(0, len(data), 4096), "cut at a member": members.tolist()}
        del data[rng.choice(steps[kind]) :]
    tar.write_bytes(data)
    return number


def swap(folder: Path, number: int, rng: np.random.Generator, whole: bool) -> int:
    """Exchange a tar, and its index if ``whole``, with another of the set; in a set of one, exchange two samples."""
    others = [path.stem for path in folder.glob("*.tar") if path.stem != f"shard-{number:06d}"]
    if not others:
        tar = folder / "shard-000000.tar"
        first, second = ShardSet(folder)._spans[:2].tolist()
        data = tar.read_bytes()
        tar.write_bytes(data[second[0] : second[1]] + data[first[0] : first[1]] + data[second[1] :])
        return 0
    other = rng.choice(others)
    for suffix in (".tar", ".json")[: 1 + whole]:
        one, two = (folder / f"{name}{suffix}" for name in (f"shard-{number:06d}", other))
        one.rename(folder / "aside")
        two.rename(one)
        (folder / "aside").rename(two)
    return number


def learned_from(folder: Path, count: int) -> dict[str, bytes]:
    """Return key and sound of what a training run reads from the latents in ``folder``, however much is damaged."""
    config = DiTTraining(shards=[str(folder)], run=str(folder.parent / "run"), reading=ReadingConfig(damaged_share=0.9))
    samples = SampleStream(config, "latents")
    return dict(samples.read(range(count), lambda found: [(s.key, bytes(s.members["audio.npy"])) for s in found]))


@fault_trials.counts(full=1000, short=24)
def test_damaged_tars_are_detected_before_use(count, originals, tmp_path):
    expected = [samples_of(folder) for folder in originals]

    def trial(number: int) -> str:
        rng = np.random.default_rng([6, number])
        kind, which = KINDS[number % len(KINDS)], number // len(KINDS) % 2
        folder = tmp_path / str(number) / "set"
        shutil.copytree(originals[which], folder)
        shard = harm(folder, kind, rng)
        assert shard in verify_set(folder).shards
        try:
            found = samples_of(folder)
        except DamagedSet as error:
            fault_trials.one_line(error, names=str(folder))
            outcome = "refused at opening"
        else:
            whole = expected[which]
            assert all(found[key] == whole[key] for key in found)  # bit for bit, whatever was damaged beside them
            outcome = "refused when read" if len(found) < len(whole) else "of the archive's end, seen by verify"
            if which == 0 and found:
                learned = learned_from(folder, len(whole))
                assert all(whole[key]["audio.npy"] == sound for key, sound in learned.items())
                assert learned.keys() <= found.keys()
        shutil.rmtree(tmp_path / str(number))
        return f"{kind} {outcome}"

    fault_trials.run("F6 damaged tars are noticed before use", count, trial)
