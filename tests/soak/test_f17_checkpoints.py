"""F17: hostile checkpoints and weights are refused in one line; nothing that they hold is run.

Most of what is damaged is made to fit its manifest, as somebody who means harm would do, so that only the look at the
pickles themselves stands between a file and its loading. The short forms are in
tests/training/checkpoint/test_manager.py and tests/models/test_pretrained.py.
"""

import functools
import io
import json
import pickletools
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import _weights_only_unpickler

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.config import TrainingConfig
from mmldm_scale.models import pretrained
from mmldm_scale.training.checkpoint import manifest, safe_pickle
from mmldm_scale.training.checkpoint.manager import Checkpoints
from tests.support.faults import fault_trials, guard, mutate
from tests.support.faults.fuzz_media import damaged
from tests.support.run_results import ENVIRONMENT, command

PLAIN = frozenset(_weights_only_unpickler._get_allowed_globals()) | safe_pickle.ALLOWED_GLOBALS
ALONE = SimpleNamespace(first=True, rank=0, size=1, gather=lambda value: [value], agree=lambda value: value)
ARGUMENT = b"X%s%s" % (len(guard.TRAP).to_bytes(4, "little"), guard.TRAP.encode())
CALLS = (  # of os.system, spelled in the ways that pickles know
    b"cos\nsystem\n" + ARGUMENT + b"\x85R0",
    b"cposix\nsystem\n(" + ARGUMENT + b"tR0",
    b"(" + ARGUMENT + b"ios\nsystem\n0",
    b"(cos\nsystem\n" + ARGUMENT + b"o0",
    b"\x8c\x02os\x8c\x06system\x93" + ARGUMENT + b"\x85R0",
    b"cbuiltins\neval\nX\x1c\0\0\0__import__('os').system('ls')\x85R0",
    b"c__builtin__\ngetattr\ncos\nX\x06\0\0\0system\x86R0",
)


class Engine:
    """Stands in for DeepSpeed's: it reads the same files in the same way, and makes nothing of them."""

    def load_checkpoint(self, folder: str, tag: str) -> tuple[str, dict]:
        for file in sorted((Path(folder) / tag).glob("*.pt")):
            torch.load(file, map_location="cpu", weights_only=False)
            safe_pickle.mapped(file)  # as for another number of processes
        return folder, {}

    def zero_optimization_stage(self) -> int:
        return 2

    def bfloat16_enabled(self) -> bool:
        return False

    fp16_enabled = bfloat16_enabled


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of one process with two checkpoints."""
    folder = tmp_path_factory.mktemp("good") / "run"
    steps = ("training.total_samples=32", "training.checkpoint_every=16", "training.preview_every=32")
    done = subprocess.run(command(folder, *steps, processes=1), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def harm(folder: Path, number: int) -> str:
    """Make something in the checkpoint ``folder`` hostile; return what."""
    rng, kind = np.random.default_rng([17, number]), number % 4
    if kind == 0:
        file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        file.write_bytes(damaged([file.read_bytes()], 0, number))
        return "damaged file"
    if kind == 1:
        fields = mutate.value(json.loads((folder / manifest.MANIFEST).read_text()), rng)
        (folder / manifest.MANIFEST).write_text(json.dumps(fields))
        manifest.seal(folder)
        return "hostile manifest"
    file = rng.choice(sorted(folder.glob("*/*.pt")))
    what = "call in a pickle" if kind == 2 else "damaged pickle"
    if rng.random() < 0.1:
        file.write_bytes(damaged([file.read_bytes()], 0, number))
        what = "damaged archive"
    else:
        _repack(file, lambda data: _hostile_pickle(data, rng, number, called=kind == 2))
    fields = json.loads((folder / manifest.MANIFEST).read_text())
    fields["files"][file.relative_to(folder).as_posix()] = [file.stat().st_size, sha256(file)]
    (folder / manifest.MANIFEST).write_text(json.dumps(fields))
    manifest.seal(folder)
    return what


def _repack(file: Path, change) -> None:
    """Write the archive ``file`` anew with another pickle in it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(packed, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(old.read(name)) if name.endswith("data.pkl") else old.read(name))
    file.write_bytes(packed.getvalue())


def _hostile_pickle(data: bytes, rng: np.random.Generator, number: int, called: bool) -> bytes:
    if not called:
        return damaged([data], 0, number)
    places = [place for operation, _, place in pickletools.genops(data)][1:]  # not before the protocol
    place = int(rng.choice(places))
    whole = data[:place] + CALLS[rng.integers(len(CALLS))] + data[place:]
    return whole if rng.random() < 0.8 else damaged([whole], 0, number)


def load(run: Path, folder: Path, number: int) -> str:
    shutil.copytree(run / "checkpoints", folder / "run" / "checkpoints")
    checkpoints = Checkpoints(folder / "run", ALONE, TrainingConfig(), inputs={})
    last = checkpoints.newest()
    what = harm(last, number)
    newest = checkpoints.newest()
    if newest == last:
        checkpoints.load({tag: Engine() for tag in (manifest.ENGINE, manifest.DISCRIMINATOR)}, newest)
    return f"{what}: {'loaded' if newest == last else 'the one before is used'}"


def load_weights(good: Path, folder: Path, number: int) -> str:
    rng, weights = np.random.default_rng([17, number]), folder / "weights"
    shutil.copytree(good, weights)
    if number % 2:
        file = weights / pretrained.CONFIG
        file.write_bytes(mutate.text(file.read_text(), rng))
    else:
        file = weights / pretrained.WEIGHTS
        file.write_bytes(damaged([file.read_bytes()], 0, number))
    found = pretrained.find(folder, "dit")
    pretrained.read_config(found, "dit")
    pretrained.load_into(torch.nn.Linear(9, 7), found)
    return "loaded"


@fault_trials.counts(full=10_000)
def test_no_checkpoint_runs_anything(count, run, tmp_path):
    guard.run("F17 hostile checkpoints", count, functools.partial(load, run), tmp_path, plain=PLAIN)


@fault_trials.counts(full=5_000)
def test_weights_are_loaded_or_one_line(count, tmp_path_factory, tmp_path):
    good = tmp_path_factory.mktemp("good") / "weights"
    pretrained.save(good, "dit", {"width": 9}, torch.nn.Linear(9, 7).state_dict())
    guard.run("F17 hostile weights", count, functools.partial(load_weights, good), tmp_path)
