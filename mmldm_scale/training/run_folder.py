"""The folder of a run, ``runs/NAME/``: begun once with a configuration, carried on only with the same.

``config.yaml`` is what the run was begun with. What changes a result (model, data, seed, batch, …) must stay; what does
not (lengths, intervals, workers, …) may change when the run is carried on. A start that failed before it had logged or
saved anything, such as one on the wrong data, has begun nothing: the next one's configuration takes its place.
"""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmldm_scale import config
from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.errors import UserError
from mmldm_scale.runs import run_log
from mmldm_scale.training.engine.distributed import World

CONFIG = "config.yaml"
FREE = {  # keys that may change when a run is resumed; so may all that begin with "preview."
    "run",
    "validation",
    "reading.stage",
    "reading.stage_gigabytes",
    "reading.damaged_share",
    "training.total_samples",
    "training.micro_batch",
    "training.workers",
    "training.log_every",
    "training.checkpoint_every",
    "training.preview_every",
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


def begin(run: Path, schema: Any, world: World) -> None:
    """Write the configuration of ``run``, or check that ``schema`` carries on what it holds; all ranks call this.

    Hold the run's lock.

    Raises:
        UserError: the run was begun with other settings, or the folder cannot be written.
    """
    problem = world.broadcast_from_rank0(_begin(run, schema) if world.is_rank0 else None)
    if problem:
        raise UserError(problem)


def check(run: Path, schema: Any) -> None:
    """Look, without touching ``run``, whether ``schema`` can begin it or carries on what it holds.

    Raises:
        UserError: the run was begun with other settings.
    """
    if _begun(run):
        _check_same(run / CONFIG, schema)


def _begin(run: Path, schema: Any) -> str | None:
    try:
        if _begun(run):
            _check_same(run / CONFIG, schema)
        else:
            write_whole(run / CONFIG, config.dump(schema).encode())
    except OSError as error:
        return f"{run}: cannot be used as a run folder: {error.strerror}"
    except UserError as error:
        return str(error)
    return None


def _begun(run: Path) -> bool:
    if not (run / CONFIG).exists():
        return False
    return any((run / "checkpoints").glob("step-*[0-9]")) or next(run_log.read(run), None) is not None


def _check_same(file: Path, now: Any) -> None:
    begun = config.load(type(now), [file])
    old, new = (_flat(OmegaConf.to_container(OmegaConf.structured(c))) for c in (begun, now))
    for key in sorted(old.keys() | new.keys()):
        if key not in FREE and not key.startswith("preview.") and old.get(key) != new.get(key):
            was = f"{key}={old.get(key)}, now {new.get(key)}"
            raise UserError(f"{file}: the run was begun with {was}; give that or another run=")


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {k: v for key, sub in tree.items() for k, v in _flat(sub, f"{prefix}.{key}" if prefix else key).items()}
