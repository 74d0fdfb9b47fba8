"""Checkpoints of a run: whole or absent, verified before they are used.

``checkpoints/step-SAMPLES/`` holds DeepSpeed's files in ``engine/`` and, where there is one, ``discriminator/``, the
averaged weights in ``weights/``, ``manifest.json`` with the size and sha256 of every file, and ``manifest.sha256`` with
its own, as sha256sum writes it: a bit that flips in ``samples_seen`` would go unseen else. Saving copies all that into
the host's memory, and a thread of each rank writes it while training goes on. A checkpoint is written as
``step-….tmp``: each rank its part, synced to disk; then all ranks meet, the first writes the manifest and renames, and
they meet again. So a name without ``.tmp`` means that everything is there. Loading goes from the newest to the oldest
checkpoint that verifies.

No file is loaded that would run code (``training/checkpoint/safe_pickle.py``). A number of processes other than that
which wrote a checkpoint cuts it anew (``training/checkpoint/reshard.py``).
"""

import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import deepspeed
import torch
from torch import Tensor

from mmldm_scale.common.atomic_files import sha256, sync
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import Precision
from mmldm_scale.shards.json_files import check_types
from mmldm_scale.training.checkpoint import safe_pickle
from mmldm_scale.training.checkpoint.async_writer import AsyncWriter, WriteFailure
from mmldm_scale.training.checkpoint.host_copy import HostCopy, State
from mmldm_scale.training.checkpoint.reshard import load_resharded
from mmldm_scale.training.engine.deepspeed_engine import averaged_state
from mmldm_scale.training.engine.distributed import World

MANIFEST, SEAL = "manifest.json", "manifest.sha256"
ENGINE, DISCRIMINATOR, WEIGHTS = "engine", "discriminator", "weights"
Engines = dict[str, deepspeed.DeepSpeedEngine]  # the model's as ENGINE, and where there is one a DISCRIMINATOR
FORMAT = 2


@dataclass(frozen=True)
class CheckpointManifest:
    """What ``manifest.json`` says of a checkpoint."""

    samples_seen: int
    world_size: int
    zero_stage: int
    precision: Precision
    inputs: dict[str, str]  # fingerprints of what the run learns from
    versions: dict[str, str]
    files: dict[str, tuple[int, str]]  # relative path: bytes, sha256
    format: int = FORMAT


class DamagedCheckpoint(Exception):
    """A checkpoint is not as its manifest says; the message names the file and the difference."""


@dataclass(frozen=True)
class Content:
    """What a checkpoint is to hold, in memory that training does not touch."""

    samples_seen: int
    zero_stage: int
    precision: Precision
    averages: dict[str, Tensor]  # on the first rank
    states: dict[Path, State]  # what DeepSpeed writes on this rank, by file
    tags: tuple[str, ...]
    write_weights: Callable[[Path, dict[str, Tensor]], None]


class Checkpoints:
    """The checkpoints of one run folder.

    They are always written beside training: there is no choice to write them in the loop, since the host has room for
    the copies. A rank's part is at most what it holds on its GPU, and a small share of that where ZeRO divides it.

    Args:
        keep: how many of the newest stay.
        keep_every: those at multiples of so many samples stay for good; 0: none does.
        timeout: seconds that a rank waits for the others to have written their parts.
    """

    def __init__(
        self,
        run: Path,
        world: World,
        keep: int,
        inputs: dict[str, str],
        keep_every: int = 0,
        timeout: float = 600.0,
    ) -> None:
        self.folder = run / "checkpoints"
        self._inputs = inputs
        self._world = world
        self._keep, self._keep_every = keep, keep_every
        self._timeout = timeout
        self._staging = HostCopy()
        self._background: AsyncWriter[int | None] | None = None  # from the first save on

    def save(
        self,
        engines: Engines,
        samples_seen: int,
        write_weights: Callable[[Path, dict[str, Tensor]], None],
    ) -> None:
        """Begin to write the checkpoint at ``samples_seen``; all ranks call this together, when no other is in flight.

        Args:
            write_weights: called on the first rank as ``write_weights(folder, averages)``, in another thread.
        """
        if self._background is None:
            self._background = AsyncWriter(self._world, self._timeout)
        content = Content(
            samples_seen,
            zero_stage=int(engines[ENGINE].zero_optimization_stage()),
            precision=_precision(engines[ENGINE]),
            averages=averaged_state(engines[ENGINE], self._world),
            states=self._staging.states(engines, self._aside(samples_seen)),
            tags=tuple(engines),
            write_weights=write_weights,
        )
        self._background.begin(functools.partial(self._write, content))

    @property
    def failed(self) -> bool:
        """Whether :meth:`finish` would raise by now; ranks may see it at different times."""
        return self._background is not None and self._background.failed

    def finish(self) -> int | None:
        """Wait until the checkpoint that is being written stands; return its ``samples_seen``, the same on all ranks.

        None if none is being written, or if the disk was full: then that was said, what had been written is removed,
        and the checkpoints that were there before stand.

        Raises:
            UserError: it could not be written.
        """
        return self._background.wait() if self._background else None

    def close(self) -> None:
        """Wait until nothing is being written any more, whatever comes of it."""
        if self._background:
            self._background.close()
            self._background = None

    def _path(self, samples_seen: int) -> Path:
        return self.folder / f"step-{samples_seen:012d}"

    def _aside(self, samples_seen: int) -> Path:
        return self._path(samples_seen).with_suffix(".tmp")

    def _write(self, content: Content, world: World) -> int | None:
        """Write this rank's part and, on the first, what makes it a checkpoint; in the background, on all ranks."""
        aside, failure = self._aside(content.samples_seen), WriteFailure()
        if world.is_rank0:
            shutil.rmtree(aside, ignore_errors=True)
            with failure.noted(aside):
                for name in (WEIGHTS, *content.tags):
                    (aside / name).mkdir(parents=True)
        if self._given_up(aside, failure, world):
            return None
        if world.is_rank0:
            with failure.noted(aside / WEIGHTS):
                content.write_weights(aside / WEIGHTS, content.averages)
        for path, state in content.states.items():
            # To a stream, not a path: torch hides what the system said of a path.
            with failure.noted(path), path.open("wb") as stream:
                torch.save(state, stream)
        digests: dict[str, tuple[int, str]] = {}
        with failure.noted(aside):
            digests = _digests(aside, _own_files(aside, world.rank))
        parts = world.gather(digests)
        if self._given_up(aside, failure, world):
            return None
        if world.is_rank0:
            with failure.noted(aside):
                self._commit(content, {name: digest for part in parts for name, digest in part.items()})
        return None if self._given_up(aside, failure, world) else content.samples_seen

    def _given_up(self, aside: Path, failure: WriteFailure, world: World) -> bool:
        """Return whether any rank found the disk full, after removing ``aside``; all ranks call this together."""
        path = failure.meet(world)
        if path and world.is_rank0:
            written = sum(file.stat().st_size for file in aside.rglob("*") if file.is_file())
            shutil.rmtree(aside, ignore_errors=True)
            print(
                f"{path}: the disk is full after {written:,} bytes of this checkpoint, which is removed; "
                "the last one stands: make room",
                file=sys.stderr,
                flush=True,
            )
        world.barrier()
        return path is not None

    def newest(self) -> Path | None:
        """Return the newest checkpoint that verifies, the same on every rank; report those that do not.

        Raises:
            UserError: there are checkpoints, but none is whole.
        """
        found = self._world.broadcast_from_rank0(
            [p.name for p in sorted(self.folder.glob("step-*[0-9]"), reverse=True)]
        )
        for name in found:
            problems = [p for p in self._world.gather(self._problem(self.folder / name)) if p]
            if not problems:
                return self.folder / name
            if self._world.is_rank0:
                print(f"{self.folder / name}: skipped, {problems[0]}", file=sys.stderr, flush=True)
        if found:
            raise UserError(f"{self.folder}: none of its {len(found)} checkpoints is whole; remove it to start over")
        return None

    def load(self, engines: Engines, folder: Path) -> int:
        """Load the verified checkpoint ``folder`` into ``engines``; return its ``samples_seen``.

        Raises:
            UserError: it was written with another precision, with ZeRO 0 instead of another stage or the other way
                round, by another model, with or without a discriminator unlike now, from other inputs, or refers to
                code.
        """
        manifest = read_manifest(folder)
        self._check_fit(engines, folder, manifest)
        problem = self._world.broadcast_from_rank0(
            safe_pickle.forbidden(folder, engines) if self._world.is_rank0 else None
        )
        if problem:
            raise UserError(problem)
        repartition = self._other_partitions(engines[ENGINE], manifest)
        for tag, engine in engines.items():
            try:
                if repartition:
                    load_resharded(engine, folder / tag, manifest.world_size, self._world)
                elif engine.load_checkpoint(str(folder), tag=tag)[0] is None:
                    raise FileNotFoundError("nothing to load")
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # whatever a pickle leads to that is not what DeepSpeed expects
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                raise UserError(f"{folder}: its {tag} is of another model or configuration: {reason}") from None
        return manifest.samples_seen

    def _commit(self, content: Content, files: dict[str, tuple[int, str]]) -> None:
        """Make a checkpoint of what all ranks have written, and remove those that are not to be kept."""
        aside, final = self._aside(content.samples_seen), self._path(content.samples_seen)
        manifest = CheckpointManifest(
            samples_seen=content.samples_seen,
            world_size=self._world.size,
            zero_stage=content.zero_stage,
            precision=content.precision,
            inputs=self._inputs,
            versions={"torch": torch.__version__, "deepspeed": deepspeed.__version__},
            files=dict(sorted(files.items())),
        )
        (aside / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
        seal(aside)
        for name in (MANIFEST, SEAL, WEIGHTS, *content.tags, "."):
            sync(aside / name)
        shutil.rmtree(final, ignore_errors=True)  # only a damaged one can be in the way
        os.rename(aside, final)
        sync(self.folder)
        for old in sorted(self.folder.glob("step-*[0-9]"))[: -self._keep]:
            if not self._keep_every or int(old.name.removeprefix("step-")) % self._keep_every:
                shutil.rmtree(old)

    def _check_fit(self, engines: Engines, folder: Path, manifest: CheckpointManifest) -> None:
        stage, precision = int(engines[ENGINE].zero_optimization_stage()), _precision(engines[ENGINE])
        if (stage == 0) != (manifest.zero_stage == 0):
            fits = "1, 2 or 3 fit" if manifest.zero_stage else "only 0 fits"
            raise UserError(f"{folder}: was written with training.zero_stage={manifest.zero_stage}; {fits}")
        if precision != manifest.precision:
            raise UserError(f"{folder}: was written with training.precision={manifest.precision}, not {precision}")
        has, needs = any(name.startswith(f"{DISCRIMINATOR}/") for name in manifest.files), DISCRIMINATOR in engines
        if has != needs:
            held, wanted = ("a", "without") if has else ("no", "with")
            raise UserError(f"{folder}: holds {held} discriminator; it cannot carry on a run {wanted} one")
        for key, fingerprint in self._inputs.items():
            if manifest.inputs.get(key) != fingerprint:
                raise UserError(f"{folder}: learned from other {key} than there are now; give those or another run=")

    def _other_partitions(self, engine: deepspeed.DeepSpeedEngine, manifest: CheckpointManifest) -> bool:
        """Return whether ZeRO divided a checkpoint otherwise than it does in ``engine``; if so, say it."""
        size, stage = self._world.size, int(engine.zero_optimization_stage())
        if (size, stage) == (manifest.world_size, manifest.zero_stage):
            return False
        if self._world.is_rank0:
            now, then = (
                f"{size} process{'es' * (size > 1)} (ZeRO-{stage})",
                f"{manifest.world_size} (ZeRO-{manifest.zero_stage})",
            )
            print(f"carrying on on {now} a run that {then} wrote", file=sys.stderr, flush=True)
        return stage > 0

    def _problem(self, folder: Path) -> str | None:
        """Say what is wrong with this rank's share of the files in ``folder``."""
        try:
            manifest = read_manifest(folder)
            for name in sorted(manifest.files)[self._world.rank :: self._world.size]:
                verify(folder / name, *manifest.files[name])
        except DamagedCheckpoint as damage:
            return str(damage)
        return None


def read_manifest(folder: Path) -> CheckpointManifest:
    """Return the manifest of the checkpoint ``folder``; raise DamagedCheckpoint if it cannot be read."""
    try:
        if (folder / SEAL).read_bytes() != _seal(folder):
            raise DamagedCheckpoint(f"{MANIFEST} differs from the sha256 in {SEAL}")
        fields = json.loads((folder / MANIFEST).read_text())
        files = {str(k): (int(v[0]), str(v[1])) for k, v in fields.pop("files").items()}
        manifest = CheckpointManifest(files=files, **fields)
        check_types(manifest)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedCheckpoint(f"{MANIFEST} cannot be read ({str(error)[:200]})") from None
    if manifest.format != FORMAT:
        raise DamagedCheckpoint(f"{MANIFEST} is of format {manifest.format}, this program reads {FORMAT}")
    outside = [name for name in files if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise DamagedCheckpoint(f"{MANIFEST} names {outside[0]}, outside the checkpoint")
    return manifest


def seal(folder: Path) -> None:
    """Write the checksum of the manifest in ``folder``."""
    (folder / SEAL).write_bytes(_seal(folder))


def _seal(folder: Path) -> bytes:
    return f"{sha256(folder / MANIFEST)}  {MANIFEST}\n".encode()


def verify(file: Path, size: int, digest: str) -> None:
    """Raise DamagedCheckpoint unless ``file`` has ``size`` bytes and the sha256 ``digest``."""
    found = file.stat().st_size if file.is_file() else None
    if found is None:
        raise DamagedCheckpoint(f"{file.name} is missing")
    if found != size:
        raise DamagedCheckpoint(f"{file.name} has {found:,} bytes instead of {size:,}")
    if sha256(file) != digest:
        raise DamagedCheckpoint(f"{file.name} differs from its sha256")


def _own_files(folder: Path, rank: int) -> list[Path]:
    """Return the files in ``folder`` that ``rank`` wrote: its ZeRO partition; the first rank, all but the others'."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    owner = {p: re.search(r"zero_pp_rank_(\d+)_", p.name) for p in files}
    return [p for p in files if (int(owner[p][1]) if owner[p] else 0) == rank]  # type: ignore[index]


def _digests(folder: Path, files: list[Path]) -> dict[str, tuple[int, str]]:
    result = {}
    for file in files:
        sync(file)
        result[file.relative_to(folder).as_posix()] = (file.stat().st_size, sha256(file))
    return result


def _precision(engine: deepspeed.DeepSpeedEngine) -> str:
    return "bf16" if engine.bfloat16_enabled() else "fp16" if engine.fp16_enabled() else "fp32"
