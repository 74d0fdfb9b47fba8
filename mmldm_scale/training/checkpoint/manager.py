"""Checkpoints of a run: whole or absent, verified before they are used.

    checkpoints = Checkpoints(run, world, settings, trainable.inputs, states={"step_skipping": skipping})
    checkpoints.save(engines, samples_seen, write_weights)  # begins; finish() waits
    newest = checkpoints.newest()
    samples_seen = checkpoints.load(engines, newest)

``checkpoints/step-SAMPLES/`` holds DeepSpeed's files in ``engine/`` and, where there is one, ``discriminator/``, the
averaged weights in ``weights/``, every other state as ``states/NAME.json``, and the manifest (``manifest.py``). Saving
copies all that into the host's memory, and a thread of each rank writes it while training goes on. A checkpoint is
written as ``step-….tmp``: each rank syncs its part to disk; then all ranks meet, rank 0 writes the manifest and renames
the folder, and they meet again. So a name without ``.tmp`` means that the checkpoint is complete. Then all but
``keep_checkpoints`` whole ones are removed. Loading goes from the newest checkpoint to the oldest, to the
first that verifies.

No file is loaded that would run code (``safe_pickle.py``). A number of processes other than that which wrote a
checkpoint divides it anew (``reshard.py``).
"""

import functools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import deepspeed
import torch
from torch import Tensor

from mmldm_scale.common.atomic_files import sha256, sync
from mmldm_scale.common.checkpoint_folders import FOLDER, checkpoint_folder, find_checkpoints, record_saved
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import Precision, TrainingConfig
from mmldm_scale.training.checkpoint import safe_pickle
from mmldm_scale.training.checkpoint.async_writer import AsyncWriter, WriteFailure
from mmldm_scale.training.checkpoint.host_copy import HostCopy, State
from mmldm_scale.training.checkpoint.manifest import (
    DISCRIMINATOR,
    ENGINE,
    MANIFEST,
    SEAL,
    STATES,
    WEIGHTS,
    CheckpointManifest,
    DamagedCheckpoint,
    read_manifest,
    verify,
    write_manifest,
)
from mmldm_scale.training.checkpoint.migrations import UnsupportedFormat, migrate_state
from mmldm_scale.training.checkpoint.reshard import load_resharded
from mmldm_scale.training.engine.deepspeed_engine import averaged_state
from mmldm_scale.training.engine.deepspeed_internals import Engine
from mmldm_scale.training.engine.distributed import GRACE, World

Engines = dict[str, Engine]  # the model's as ENGINE, and where there is one a DISCRIMINATOR
WriteWeights = Callable[[Path, dict[str, Tensor]], None]


class HasState(Protocol):
    """Anything that a checkpoint holds besides engines and weights; rank 0's state is saved, all ranks load it.

    All ranks call the methods together.
    """

    def state_dict(self) -> dict[str, Any]:
        """Return the state as JSON values."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the ``state`` back; raise TypeError or ValueError if it is none."""


@dataclass(frozen=True)
class Content:
    """What a checkpoint is to hold, in memory that training does not touch."""

    samples_seen: int
    zero_stage: int
    precision: Precision
    averages: dict[str, Tensor]  # on rank 0
    engine_files: dict[Path, State]  # what DeepSpeed writes on this rank, by file
    states: dict[str, str]  # JSON by name
    tags: tuple[str, ...]
    write_weights: WriteWeights


class Checkpoints:
    """The checkpoints of one run folder.

    They are always written beside training, never in the loop: the host has room for the copies. A rank's part is at
    most what it holds on its GPU, and a small share of that where ZeRO divides it.

    Args:
        settings: ``keep_checkpoints``, ``keep_every`` and ``collective_timeout``.
        inputs: fingerprints of what the run learns from, by configuration key.
        states: what else a checkpoint holds, by name.
    """

    def __init__(
        self,
        run: Path,
        world: World,
        settings: TrainingConfig,
        inputs: dict[str, str],
        states: Mapping[str, HasState] | None = None,
    ) -> None:
        self._run, self.folder = run, run / FOLDER
        self._world, self._settings, self._inputs, self._states = world, settings, inputs, states or {}
        self._initial_states = {name: part.state_dict() for name, part in self._states.items()}
        self._verified: dict[str, str | UnsupportedFormat | None] = {}  # what is wrong with a checkpoint, by its name
        self._host_copy = HostCopy()
        self._writer: AsyncWriter[int | None] = AsyncWriter(world, settings.collective_timeout + GRACE)

    def save(self, engines: Engines, samples_seen: int, write_weights: WriteWeights) -> None:
        """Begin to write the checkpoint at ``samples_seen``; all ranks call this together, when none is being written.

        Args:
            write_weights: called on rank 0 as ``write_weights(folder, averages)``, in another thread.
        """
        content = Content(
            samples_seen,
            zero_stage=int(engines[ENGINE].zero_optimization_stage()),
            precision=_precision(engines[ENGINE]),
            averages=averaged_state(engines[ENGINE], self._world),
            engine_files=self._host_copy.states(engines, self._temporary(samples_seen)),
            states={name: json.dumps(part.state_dict()) for name, part in self._states.items()},
            tags=tuple(engines),
            write_weights=write_weights,
        )
        self._writer.begin(functools.partial(self._write, content))

    @property
    def failed(self) -> bool:
        """Whether :meth:`finish` would raise by now; ranks may see it at different times."""
        return self._writer.failed

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is being written; ranks may see its end at different times."""
        return self._writer.is_busy

    def finish(self) -> int | None:
        """Wait until the checkpoint that is being written is complete; return its ``samples_seen``, alike on all ranks.

        None if none is being written, or if the disk was full: then that was printed, the incomplete checkpoint is
        removed, and the older checkpoints remain.

        Raises:
            UserError: it could not be written.
        """
        return self._writer.wait()

    def close(self) -> None:
        """Wait until nothing is being written any more, whether that succeeds or not; no other save may follow."""
        self._writer.close()

    def newest(self) -> Path | None:
        """Return the newest checkpoint that verifies, the same on every rank; report those that are damaged.

        Raises:
            UserError: there are checkpoints, but all are damaged; or the newest undamaged one is of a format that this
                version does not read.
        """
        names = self._world.broadcast_from_rank0([path.name for path in find_checkpoints(self._run).values()])
        for name in reversed(names):
            problem = self._verify(name, self._world)
            if isinstance(problem, UnsupportedFormat):
                raise problem
            if problem is None:
                return self.folder / name
            if self._world.is_rank0:
                print(f"{self.folder / name}: skipped, {problem}", file=sys.stderr, flush=True)
        if names:
            raise UserError(
                f"{self.folder}: all {len(names)} checkpoints are damaged; restore one from a copy, or start another "
                "run with run="
            )
        return None

    def load(self, engines: Engines, folder: Path) -> int:
        """Load the verified checkpoint ``folder`` into ``engines`` and the states; return its ``samples_seen``.

        Raises:
            UserError: it was written with another precision, with ZeRO 0 instead of another stage or the other way
                round, by another model, with or without a discriminator unlike now, from other inputs, or refers to
                code; or a state in it is none.
        """
        manifest = read_manifest(folder)
        self._check_fit(engines, folder, manifest)
        problem = self._world.broadcast_from_rank0(
            safe_pickle.forbidden(folder, engines) if self._world.is_rank0 else None
        )
        if problem:
            raise UserError(problem)
        is_resharded = self._is_resharded(engines[ENGINE], manifest)
        for tag, engine in engines.items():
            try:
                if is_resharded:
                    load_resharded(engine, folder / tag, manifest.world_size, self._world)
                elif engine.load_checkpoint(str(folder), tag=tag)[0] is None:
                    raise FileNotFoundError("nothing to load")
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # of any type: DeepSpeed expects other content
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                raise UserError(f"{folder}: its {tag} is of another model or configuration: {reason}") from None
        self._load_states(folder, manifest)
        return manifest.samples_seen

    def _load_states(self, folder: Path, manifest: CheckpointManifest) -> None:
        for name, part in self._states.items():
            if name not in manifest.states:  # written by a version that had no such state
                part.load_state_dict(self._initial_states[name])
                continue
            file = folder / manifest.states[name]
            try:
                part.load_state_dict(migrate_state(name, json.loads(file.read_text())))
            except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"{file}: is no state of {name!r}: {reason}") from None

    def _path(self, samples_seen: int) -> Path:
        return checkpoint_folder(self._run, samples_seen)

    def _temporary(self, samples_seen: int) -> Path:
        return self._path(samples_seen).with_suffix(".tmp")

    def _write(self, content: Content, world: World) -> int | None:
        """Write this rank's part and, on rank 0, everything else; all ranks call this together, in their threads."""
        temporary, failure = self._temporary(content.samples_seen), WriteFailure()
        if world.is_rank0:
            shutil.rmtree(temporary, ignore_errors=True)
            with failure.recorded(temporary):
                self.folder.mkdir(exist_ok=True)
                temporary.mkdir()
                for name in (WEIGHTS, STATES, *content.tags):
                    (temporary / name).mkdir()
        if self._has_given_up(temporary, failure, world):
            return None
        if world.is_rank0:
            with failure.recorded(temporary / WEIGHTS):
                content.write_weights(temporary / WEIGHTS, content.averages)
            for name, text in content.states.items():
                with failure.recorded(temporary / STATES):
                    (temporary / STATES / f"{name}.json").write_text(text + "\n")
        for path, state in content.engine_files.items():
            # To a stream, not a path: torch hides the system's error message for a path.
            with failure.recorded(path), path.open("wb") as stream:
                torch.save(state, stream)
        digests: dict[str, tuple[int, str]] = {}
        with failure.recorded(temporary):
            digests = _digests(temporary, _own_files(temporary, world.rank))
        parts = world.gather(digests)
        if self._has_given_up(temporary, failure, world):
            return None
        if world.is_rank0:
            with failure.recorded(temporary):
                self._commit(content, {name: digest for part in parts for name, digest in part.items()})
        if self._has_given_up(temporary, failure, world):
            return None
        self._remove_old(content.samples_seen, world)
        return content.samples_seen

    def _has_given_up(self, temporary: Path, failure: WriteFailure, world: World) -> bool:
        """Return whether any rank found the disk full, after removing ``temporary``; all ranks call this together."""
        full = failure.exchange(world)
        if full and world.is_rank0:
            written = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
            shutil.rmtree(temporary, ignore_errors=True)
            print(
                f"{full} after {written:,} bytes of this checkpoint, which is removed; "
                "the older ones remain: make room",
                file=sys.stderr,
                flush=True,
            )
        world.barrier()
        return full is not None

    def _commit(self, content: Content, files: dict[str, tuple[int, str]]) -> None:
        """Complete the checkpoint that all ranks have written."""
        temporary, final = self._temporary(content.samples_seen), self._path(content.samples_seen)
        manifest = CheckpointManifest(
            samples_seen=content.samples_seen,
            world_size=self._world.size,
            zero_stage=content.zero_stage,
            precision=content.precision,
            inputs=self._inputs,
            versions={"torch": torch.__version__, "deepspeed": deepspeed.__version__},
            files=dict(sorted(files.items())),
            states={name: f"{STATES}/{name}.json" for name in content.states},
        )
        write_manifest(temporary, manifest)
        for name in (MANIFEST, SEAL, WEIGHTS, STATES, *content.tags, "."):
            sync(temporary / name)
        _remove(final)  # only a damaged one can be in the way
        os.rename(temporary, final)
        sync(self.folder)
        try:
            record_saved(self._run, content.samples_seen)
        except (OSError, UserError) as error:  # the checkpoint is complete without
            print(f"{error}; the run goes on", file=sys.stderr, flush=True)

    def _remove_old(self, samples_seen: int, world: World) -> None:
        """Remove the checkpoints that the one at ``samples_seen`` supersedes; all ranks call this together."""
        names, failure = self._superseded(samples_seen, world), WriteFailure()
        if world.is_rank0:
            for name in names:
                with failure.recorded(self.folder / name):
                    _remove(self.folder / name)
        failure.exchange(world)

    def _superseded(self, samples_seen: int, world: World) -> list[str]:
        """Return all but the ``keep_checkpoints`` whole ones that are kept, by name; all ranks call this together.

        The one at ``samples_seen``, just written, is kept. Of the older ones, those at multiples of
        ``checkpoint_every`` come first, then those saved by the clock or by a signal, the newest first of each: else
        the clock's would push out all others within the hour. What an earlier process wrote is verified once; what
        this one wrote is whole.
        """
        keep_every = self._settings.keep_every
        self._verified[self._path(samples_seen).name], whole = None, 1
        found = world.broadcast_from_rank0({n: path.name for n, path in find_checkpoints(self._run).items()})
        older = [(n, name) for n, name in found.items() if n < samples_seen]
        # Those at multiples of the interval come last, so that they are kept first.
        older.sort(key=lambda item: (item[0] % self._settings.checkpoint_every == 0, item[0]))
        while older and whole < self._settings.keep_checkpoints:
            name = older.pop()[1]
            problem = self._verified[name] if name in self._verified else self._verify(name, world)
            whole += problem is None
        return [name for n, name in older if not keep_every or n % keep_every]

    def _check_fit(self, engines: Engines, folder: Path, manifest: CheckpointManifest) -> None:
        stage, precision = int(engines[ENGINE].zero_optimization_stage()), _precision(engines[ENGINE])
        if (stage == 0) != (manifest.zero_stage == 0):
            allowed = "1, 2 or 3" if manifest.zero_stage else "0"
            raise UserError(
                f"{folder}: was written with training.zero_stage={manifest.zero_stage}; it must be {allowed}"
            )
        if precision != manifest.precision:
            raise UserError(f"{folder}: was written with training.precision={manifest.precision}, not {precision}")
        has, needs = any(name.startswith(f"{DISCRIMINATOR}/") for name in manifest.files), DISCRIMINATOR in engines
        if has != needs:
            held, resumed = ("a", "without") if has else ("no", "with")
            raise UserError(f"{folder}: holds {held} discriminator; a run {resumed} one cannot resume from it")
        for key, fingerprint in self._inputs.items():
            if manifest.inputs.get(key) != fingerprint:
                raise UserError(f"{folder}: was trained on other {key}; give the same, or another run=")

    def _is_resharded(self, engine: Engine, manifest: CheckpointManifest) -> bool:
        """Return whether ZeRO divided a checkpoint otherwise than it does in ``engine``; if so, print it."""
        size, stage = self._world.size, int(engine.zero_optimization_stage())
        if (size, stage) == (manifest.world_size, manifest.zero_stage):
            return False
        if self._world.is_rank0:
            now = f"{size} process{'es' * (size > 1)} (ZeRO-{stage})"
            before = f"{manifest.world_size} (ZeRO-{manifest.zero_stage})"
            print(f"resuming on {now} a run that {before} wrote", file=sys.stderr, flush=True)
        return stage > 0

    def _verify(self, name: str, world: World) -> str | UnsupportedFormat | None:
        """Return what is wrong with the checkpoint ``name``, None if it is whole; all ranks call this together."""
        problems = [problem for problem in world.gather(self._problem(self.folder / name)) if problem]
        unsupported = [problem for problem in problems if isinstance(problem, UnsupportedFormat)]
        self._verified[name] = next(iter([*unsupported, *problems]), None)
        return self._verified[name]

    def _problem(self, folder: Path) -> str | UnsupportedFormat | None:
        """Return what is wrong with this rank's share of the files in ``folder``."""
        try:
            manifest = read_manifest(folder)
            for name in sorted(manifest.files)[self._world.rank :: self._world.size]:
                verify(folder / name, *manifest.files[name])
        except DamagedCheckpoint as damage:
            return str(damage)
        except UnsupportedFormat as error:
            return error
        return None


def _remove(path: Path) -> None:
    """Remove the folder ``path`` if there is one; of a link, which somebody has made, only the link."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _own_files(folder: Path, rank: int) -> list[Path]:
    """Return the files in ``folder`` that ``rank`` wrote: its ZeRO partition; rank 0, all but the others'."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    owner = {path: re.search(r"zero_pp_rank_(\d+)_", path.name) for path in files}
    return [path for path in files if (int(match[1]) if (match := owner[path]) else 0) == rank]


def _digests(folder: Path, files: list[Path]) -> dict[str, tuple[int, str]]:
    """Sync ``files`` to disk; return their size and sha256 by their path in ``folder``."""
    result = {}
    for file in files:
        sync(file)
        result[file.relative_to(folder).as_posix()] = (file.stat().st_size, sha256(file))
    return result


def _precision(engine: Engine) -> Precision:
    return "bf16" if engine.bfloat16_enabled() else "fp16" if engine.fp16_enabled() else "fp32"
