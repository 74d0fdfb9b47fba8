"""The folder of a run, ``runs/NAME/``: started with one configuration, and resumed only with the same.

``config.yaml`` holds the configuration with which the run was started. Keys that change the result (model, data, seed,
batch, …) must stay the same; those that do not (lengths, intervals, workers, …) may change when the run is resumed.
Data and weights may be moved: once there is a checkpoint, it knows them by their fingerprints, not by their paths. If
a start failed before anything was logged or saved, the configuration of the next start replaces its own. A run that had
checkpoints and has none any more starts again from 0 samples only with ``restart=true``.

The start also removes what killed jobs have left (:func:`remove_leftovers`). :class:`SameFolder` notices when the
folder of a running job is moved away.
"""

import contextlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from mmldm_scale import config
from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.checkpoint_folders import FOLDER, find_checkpoints, newest_saved
from mmldm_scale.common.errors import UserError
from mmldm_scale.config.compose import read_yaml
from mmldm_scale.runs import run_log
from mmldm_scale.training.command_record import COMMANDS, record_command
from mmldm_scale.training.earlier_settings import in_present_terms

if TYPE_CHECKING:  # checking a folder before a job is submitted loads neither torch nor DeepSpeed
    from mmldm_scale.training.engine.distributed import World
    from mmldm_scale.training.resilience.run_lock import RunLock

CONFIG = "config.yaml"
# What a killed job leaves: checkpoints, and files of atomic_files.WholeFile, that were being written.
LEFTOVERS = (
    (FOLDER, re.compile(r"step-[0-9]{12,}\.tmp")),
    ("ema", re.compile(r"step-[0-9]{12}-0\.[0-9]+\.safetensors\.[0-9a-f]{8}\.tmp")),
    ("quarantine", re.compile(r"[0-9a-f]{8}-.+\.json\.[0-9a-f]{8}\.tmp")),
    (
        ".",
        re.compile(
            r"(config\.yaml|log\.jsonl|newest_checkpoint|skipped\.json|initial_weights\.json)\.[0-9a-f]{8}\.tmp|preview\.tmp"
        ),
    ),
)
FREE = {  # keys that may change when a run is resumed; so may all that begin with "preview."
    "run",
    "restart",
    "validation",
    "shared_recordings",
    "reading.stage",
    "reading.stage_gigabytes",
    "reading.damaged_share",
    "training.total_samples",
    "training.micro_batch",
    "training.workers",
    "training.log_every",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.preview_every",
    "training.preview_minutes",
    "training.validate_every",
    "training.validation_samples",
    "training.profile_steps",
    "training.keep_checkpoints",
    "training.keep_every",
    "training.ema_snapshot_every",
    "training.skip_limit",
    "training.spike_factor",
    "training.collective_timeout",
    "training.zero_stage",
    "training.offload_optimizer",
    "model.attention",
    "model.activation_checkpointing",
    "model.compile",
}

# Keys with paths of what a checkpoint knows by its fingerprint, or does not need any more.
MOVABLE = {"shards", "kl_vae", "autoencoder", "lpips", "unet", "init"}


def begin(run: Path, schema: Any, world: "World") -> None:
    """Write the configuration of ``run``, or check that ``schema`` can resume it; remove what killed jobs have left.

    The code and the command line of this start are recorded, too.

    All ranks call this together. The caller holds the run's lock.

    Raises:
        UserError: the run was started with other settings, its checkpoints are gone, or came without their
            configuration; or the folder cannot be written, or has a config.yaml of somebody else's.
    """
    problem = world.broadcast_from_rank0(_begin(run, schema) if world.is_rank0 else None)
    if problem:
        raise UserError(problem)
    if world.is_rank0:
        record_command(run, world.size)


@contextlib.contextmanager
def begun(run: Path, schema: Any, world: "World") -> Iterator[None]:
    """Call :func:`begin`, and take its configuration back if the block raises UserError before anything is logged.

    So a start that was refused leaves no run behind.
    """
    is_new = world.is_rank0 and not (run / CONFIG).exists()
    begin(run, schema, world)
    try:
        yield
    except UserError:
        if is_new and not _is_started(run):
            for name in (CONFIG, COMMANDS, run_log.LOG):  # the log is still empty
                (run / name).unlink(missing_ok=True)
        raise


class SameFolder:
    """The folder that ``run`` leads to when this is made; all ranks make it and call its method together.

    Args:
        lock: held on the folder; None: nobody else uses it.
    """

    def __init__(self, run: Path, world: "World", lock: "RunLock | None" = None) -> None:
        self._run, self._world, self._lock = run, world, lock
        self._place = _place(run) if world.is_rank0 else None

    def check(self) -> None:
        """Raise UserError if ``run`` leads to another folder by now, or to none, or if another job has taken its lock.

        What is written would be scattered, or mixed with what the other job writes.
        """
        problem = self._world.broadcast_from_rank0(self._problem() if self._world.is_rank0 else None)
        if problem:
            raise UserError(problem)

    def _problem(self) -> str | None:
        try:
            place = _place(self._run)
        except OSError:
            return None  # the file system fails; whoever writes to it reports that
        if place == self._place:
            return self._lock.problem() if self._lock else None
        event = "was moved away or removed" if place is None else "leads to another folder than at this job's start"
        return f"{self._run}: {event}; put it back and run the same command again to resume"


def _place(run: Path) -> tuple[int, int] | None:
    """Return what distinguishes the folder ``run`` from all others of this machine; None if there is none."""
    try:
        found = run.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def remove_leftovers(run: Path) -> None:
    """Remove the unfinished checkpoints and files of killed jobs, and print their names.

    The caller holds the run's lock.
    """
    removed = []
    for folder, name in LEFTOVERS:
        for path in sorted((run / folder).glob("*.tmp")):
            if not name.fullmatch(path.name) or path.is_symlink():
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            removed.append(path.name)
    if removed:
        shown = ", ".join(removed[:3]) + (", …" if len(removed) > 3 else "")
        print(f"{run}: removed what killed jobs have left unfinished: {shown}", file=sys.stderr, flush=True)


def check(run: Path, schema: Any) -> None:
    """Check, without changing ``run``, that ``schema`` can start or resume it.

    Raises:
        UserError: the run was started with other settings, or its checkpoints are gone.
    """
    if _is_started(run):
        _check_same(run / CONFIG, schema)
    _check_checkpoints(run, schema)


def _begin(run: Path, schema: Any) -> str | None:
    try:
        if _is_started(run):
            _check_same(run / CONFIG, schema)
        else:
            _check_own(run / CONFIG, schema)
            write_whole(run / CONFIG, config.dump(schema).encode())
        _check_checkpoints(run, schema)
        remove_leftovers(run)
    except OSError as error:
        return f"{run}: cannot be used as a run folder: {error.strerror}"
    except UserError as error:
        return str(error)
    return None


def _is_started(run: Path) -> bool:
    """Return whether ``run`` has a configuration and has logged or saved anything.

    Raises:
        UserError: there are checkpoints without the configuration that they were trained with.
    """
    has_checkpoints = bool(find_checkpoints(run))
    if not (run / CONFIG).exists():
        if has_checkpoints:
            raise UserError(f"{run / CONFIG}: missing; copy it from the run that its checkpoints are of")
        return False
    return has_checkpoints or next(run_log.read(run), None) is not None


def _check_own(file: Path, schema: Any) -> None:
    """Raise UserError if ``file`` exists and is not as :func:`begin` has written it: it would be replaced."""
    if not file.is_file():
        return
    stored = None
    with contextlib.suppress(UserError):
        stored = read_yaml(file)
    _check_trainable(file, stored, schema)
    with contextlib.suppress(UserError):
        if config.dump(config.load(type(schema), [file])) == file.read_text(errors="replace"):
            return
    raise UserError(f"{file}: was not written by this program; move it away, or set another run=")


def _check_checkpoints(run: Path, schema: Any) -> None:
    """Raise UserError if ``run`` had checkpoints and has none: from 0 samples, training would replace its log."""
    if schema.restart or find_checkpoints(run):
        return
    saved, logged = newest_saved(run), max((record["samples_seen"] for record in run_log.read(run)), default=0)
    if saved:
        lost = f"{saved} and all other checkpoints are gone"
    elif logged >= 2 * schema.training.checkpoint_every:  # a run waits for one checkpoint before it writes the next
        lost = f"the log reaches {logged:,} samples, but all checkpoints are gone"
    else:
        return
    raise UserError(
        f"{run / FOLDER}: {lost}; restore them or mount their disk, or give restart=true to start again from 0 samples"
    )


def _check_trainable(file: Path, stored: Any, schema: Any) -> None:
    """Raise UserError if ``stored``, read from ``file``, is the configuration of another trainable's run."""
    own = getattr(schema, "trainable", None)
    other = stored.get("trainable") if OmegaConf.is_dict(stored) else None
    if own and other and other != own:
        raise UserError(f"{file.parent}: is a run of `mmldm train {other}`, not of {own}; set another run=")


def _check_same(file: Path, schema: Any) -> None:
    content = read_yaml(file)
    _check_trainable(file, content, schema)
    stored = config.restore(type(schema), in_present_terms(content, schema, file.parent), str(file))
    old, new = (_flat(OmegaConf.to_container(OmegaConf.structured(c))) for c in (stored, schema))
    free = FREE | MOVABLE if find_checkpoints(file.parent) else FREE
    for key in sorted(old.keys() | new.keys()):
        if key not in free and not key.startswith("preview.") and old.get(key) != new.get(key):
            change = f"{key}={old.get(key)}, not {new.get(key)}"
            raise UserError(f"{file}: the run was started with {change}; set the same value, or another run=")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested dictionaries by their dotted keys."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{key}" if prefix else key).items()}
