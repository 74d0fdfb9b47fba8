"""``manifest.json`` of a checkpoint: what it holds, with the size and sha256 of every file, and how it is verified.

Beside it ``manifest.sha256`` holds the manifest's own sha256, as sha256sum writes it: a bit that flips in
``samples_seen`` would go unnoticed without. A checkpoint is whole, damaged (:class:`DamagedCheckpoint`), or written in
a format that this version does not read (:class:`UnsupportedFormat`).
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.config import Precision
from mmldm_scale.shards.json_files import check_types
from mmldm_scale.training.checkpoint.migrations import FORMAT, UnsupportedFormat, check_layout, migrate

MANIFEST, SEAL = "manifest.json", "manifest.sha256"
ENGINE, DISCRIMINATOR, WEIGHTS, STATES = "engine", "discriminator", "weights", "states"  # sub-folders


@dataclass(frozen=True)
class CheckpointManifest:
    """The content of ``manifest.json``."""

    samples_seen: int
    world_size: int
    zero_stage: int
    precision: Precision
    inputs: dict[str, str]  # fingerprints of what the run learns from
    versions: dict[str, str]
    files: dict[str, tuple[int, str]]  # relative path: bytes, sha256
    states: dict[str, str] = field(default_factory=dict)  # name: relative path of its JSON file
    format: int = FORMAT


class DamagedCheckpoint(Exception):
    """A checkpoint differs from its manifest; the message names the file and the difference."""


def read_manifest(folder: Path) -> CheckpointManifest:
    """Return the manifest of the checkpoint ``folder``, brought to the present format.

    Raises:
        DamagedCheckpoint: it cannot be read.
        UnsupportedFormat: it is of a format, or of a layout of the model, that this version does not read.
    """
    try:
        if (folder / SEAL).read_bytes() != _seal(folder):
            raise DamagedCheckpoint(f"{MANIFEST} differs from the sha256 in {SEAL}")
        fields = migrate(json.loads((folder / MANIFEST).read_text()))
        files = {str(k): (int(v[0]), str(v[1])) for k, v in fields.pop("files").items()}
        manifest = CheckpointManifest(files=files, **fields)
        check_types(manifest)
        check_layout(folder / WEIGHTS)
    except UnsupportedFormat as error:
        raise UnsupportedFormat(f"{folder}: {error}") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedCheckpoint(f"{MANIFEST} cannot be read ({str(error)[:200]})") from None
    for name in (*files, *manifest.states.values()):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DamagedCheckpoint(f"{MANIFEST} names {name}, outside the checkpoint")
    return manifest


def write_manifest(folder: Path, manifest: CheckpointManifest) -> None:
    """Write ``manifest`` and its checksum into ``folder``."""
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    seal(folder)


def seal(folder: Path) -> None:
    """Write the checksum of the manifest in ``folder``."""
    (folder / SEAL).write_bytes(_seal(folder))


def verify(file: Path, size: int, digest: str) -> None:
    """Raise DamagedCheckpoint unless ``file`` has ``size`` bytes and the sha256 ``digest``."""
    actual = file.stat().st_size if file.is_file() else None
    if actual is None:
        raise DamagedCheckpoint(f"{file.name} is missing")
    if actual != size:
        raise DamagedCheckpoint(f"{file.name} has {actual:,} bytes instead of {size:,}")
    if sha256(file) != digest:
        raise DamagedCheckpoint(f"{file.name} differs from its sha256")


def _seal(folder: Path) -> bytes:
    return f"{sha256(folder / MANIFEST)}  {MANIFEST}\n".encode()
