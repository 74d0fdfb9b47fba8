"""Imports latents that somebody has already: files of another program become a latent set, without encoding.

``import_latents(folder, output, autoencoder, options)`` reads the tensors of each clip (:mod:`.latent_files`). It makes
the set, resumes a stopped run, or helps other processes that work on the same output. The latents must be those of
``autoencoder``: their shapes are compared, and its fingerprint where the statistics state one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.common.modalities import Modality
from mmldm_scale.config.media import Shape
from mmldm_scale.media.find_files import find_files
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.gaussian import LOGVAR_RANGE
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.shards.index import ShardIndex, shard_name
from mmldm_scale.shards.latents import (
    PARTS,
    LatentSample,
    Part,
    Posterior,
    decode_latents,
    encode_latents,
    parts_of,
    statistics,
)
from mmldm_scale.shards.manifest import Manifest, differences, read_media
from mmldm_scale.shards.writer import ShardWriter

from ..launching.process_pool import batched
from ..launching.progress import Progress
from ..sources.keys import unique_keys
from .latent_files import LatentNames, OtherShape, UnreadableLatents, read_tensor
from .latents import commit_latents, squared_errors
from .shard_set import begin, finish, missing_shards, read_plan

META = ("path", "start", "label", "labels", "origin", "split")  # what is taken of a clip's own JSON
META_LIMIT = 1 << 16  # bytes of it
AGREEMENT = 0.1  # of a standard deviation, in which stated statistics and those of the latents have to agree

Moments = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class ImportOptions:
    """Settings of ``shard.py import-latents``.

    Attributes:
        names: how the files are called.
        statistics: JSON file {"audio": {"mean": [C], "std": [C]}, "video": {…}}, perhaps with "autoencoder", the
            fingerprint of the weights that encoded them; "": none.
        normalised: the latents were normalised by these statistics, which is undone; else they are only compared.
        without_mirrored: there are no latents of mirrored videos, and those of the videos stand in for them.
        samples_per_shard: clips of a shard.
    """

    names: LatentNames = field(default_factory=LatentNames)
    statistics: str = ""
    normalised: bool = False
    without_mirrored: bool = False
    samples_per_shard: int = 256

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1:
            raise UserError(f"--samples-per-shard {self.samples_per_shard}: must be at least 1")
        if self.normalised and not self.statistics:
            raise UserError("--normalised: needs --statistics FILE, by which the latents were normalised")


def import_latents(folder: Path, output: Path, autoencoder: Path, options: ImportOptions) -> Manifest:
    """Make the latent set ``output`` of the files in ``folder``, or finish it; return its manifest.

    Raises:
        UserError: there are no latents; they are not those of ``autoencoder``; statistics cannot be read or do not
            agree; ``output`` was begun with other things; the disk is full.
    """
    weights = pretrained.find(autoencoder, "autoencoder")
    read_plan(output, "latents")  # refuses another content before anything is loaded
    model = Autoencoder.from_pretrained(autoencoder)
    shapes = model.shapes
    origin = {"path": str(weights.resolve()), "fingerprint": pretrained.fingerprint(weights)}
    stated = _read_statistics(options.statistics, shapes, origin["fingerprint"])
    with Leases(output) as leases:
        wanted = {"folder": str(folder.resolve()), "options": asdict(options), "autoencoder": origin}
        parts = parts_of(model.modalities)
        if options.without_mirrored:
            parts = [part for part in parts if part != "mirrored"]
        plan, new = begin(output, "latents", leases, lambda: {**wanted, **_plan(folder, output, options.names, parts)})
        if not new:
            _check(plan, {**wanted, **_plan(folder, output, options.names, parts)}, output)
        reader = _Reader(folder, options, shapes, stated)
        shards = batched(plan["clips"], options.samples_per_shard)
        with Progress(len(plan["clips"]), "importing", "clips") as bar:
            for numbers in missing_shards(output, [len(shard) for shard in shards], leases, bar):
                for number in numbers:
                    _write_shard(output, number, shards[number], plan["classes"], reader, leases)
                    bar.update(len(shards[number]))

        def describe(indexes: list[ShardIndex]) -> dict[str, Any]:
            """Return the fields of the set's manifest that only this stage knows."""
            moments = statistics(index.statistics for index in indexes if index.statistics is not None)
            if moments and not options.normalised:
                _compare(options.statistics, stated, moments)
            return {
                "kind": "latents",
                "media": read_media(pretrained.read_config(weights, "autoencoder")["media"]),
                "classes": plan["classes"],
                "videos": len(plan["clips"]) + len(plan["failed"]),
                "candidates": len(plan["clips"]),
                "autoencoder": origin,
                "audio_shape": model.audio_shape,
                "video_shape": model.video_shape,
                "statistics": moments,
            }

        return finish(output, len(shards), leases, plan["failed"], describe)


# --- the plan --------------------------------------------------------------------------------------------------------


def _plan(folder: Path, output: Path, names: LatentNames, parts: list[Part]) -> dict[str, Any]:
    """Return the clips with the files of all ``parts``, the drop rows of what is left over, and the classes."""
    paths = find_files(folder)
    if output.resolve().is_relative_to(folder.resolve()):
        made = f"{output.resolve().relative_to(folder.resolve())}/"
        paths = [path for path in paths if not path.startswith(made)]
    found = names.find(paths)
    clips: list[dict[str, Any]] = []
    failed: list[dict[str, str]] = []
    used: set[str] = set()
    for key, name in zip(found, unique_keys([f"{key}.x" for key in found]), strict=True):
        files = {part: found[key][part] for part in parts if part in found[key]}
        used.update([*files.values(), f"{key}.json"])
        missing = [part for part in parts if part not in files]
        if missing:
            text = f"there are no latents of {' and '.join(missing)}"
            failed.append({"key": name, "path": key, "reason": "incomplete", "detail": text})
        else:
            clips.append({"key": name, "files": files, "meta": _meta(folder, key)})
    if not clips:
        wanted = ", ".join(getattr(names, part) for part in parts)
        raise UserError(f"{folder}: holds no clip with all of {wanted} (.npy, .pt, .safetensors); see --help")
    others = [path for path in paths if path not in used]
    failed += [
        {"key": key, "path": path, "reason": "not_a_latent", "detail": "no name of --audio, --video or --mirrored fits"}
        for path, key in zip(others, unique_keys(others), strict=True)
    ]
    labels = {clip["meta"]["label"] for clip in clips}
    return {"clips": clips, "failed": failed, "classes": sorted(label for label in labels if label is not None)}


def _meta(folder: Path, key: str) -> dict[str, Any]:
    """Return the meta of a clip: what the file KEY.json beside it says, with defaults for the rest."""
    meta: dict[str, Any] = {"path": key, "start": 0.0, "label": None, "labels": [], "origin": key, "split": ""}
    file = folder / f"{key}.json"
    if file.is_file() and file.stat().st_size <= META_LIMIT:
        try:
            stated = json.loads(file.read_bytes())
        except (ValueError, RecursionError):
            raise UserError(f"{file}: is not JSON") from None
        for name in META if isinstance(stated, dict) else ():
            value, default = stated.get(name), meta[name]
            if isinstance(value, str if default is None else int | float if name == "start" else type(default)):
                meta[name] = value
    meta["labels"] = [str(label) for label in meta["labels"]] or ([meta["label"]] if meta["label"] else [])
    return meta


def _check(plan: dict[str, Any], wanted: dict[str, Any], output: Path) -> None:
    """Raise UserError if ``plan``, which ``output`` was begun with, is not ``wanted``."""
    settings = ("folder", "options", "autoencoder")
    then, now = ({name: each.get(name) for name in settings} for each in (plan, wanted))
    changed = differences(then, now, ("begun with", "now"))
    if changed:
        raise UserError(f"{output}: was begun with other things ({'; '.join(changed)}); give another output folder")
    if (plan["clips"], plan["failed"]) != (wanted["clips"], wanted["failed"]):
        raise UserError(
            f"{output}: was begun with other files than {wanted['folder']} holds now; put them back, or give another "
            "output folder"
        )


# --- the statistics --------------------------------------------------------------------------------------------------


def _read_statistics(name: str, shapes: Mapping[Modality, Shape], fingerprint: str) -> Moments:
    """Return what the file ``name`` states, {} if there is none; refuse those of another autoencoder."""
    if not name:
        return {}
    try:
        content = json.loads(Path(name).read_bytes())
        moments: Moments = {
            part: {moment: [float(value) for value in content[part][moment]] for moment in ("mean", "std")}
            for part in shapes
        }
    except OSError as error:
        raise UserError(f"--statistics {name}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        text = '{"audio": {"mean": […], "std": […]}, "video": {…}}'
        raise UserError(f"--statistics {name}: must be JSON such as {text}") from None
    stated = content.get("autoencoder", fingerprint)
    if stated != fingerprint:
        raise UserError(
            f"--statistics {name}: the latents are of another autoencoder ({str(stated)[:12]}…) than the given one "
            f"({fingerprint[:12]}…)"
        )
    for part, shape in shapes.items():
        lengths = {len(values) for values in moments[part].values()}
        if lengths != {shape[0]}:
            raise UserError(f"--statistics {name}: {part} must have {shape[0]} channels, as the autoencoder has")
        if not np.isfinite(list(moments[part].values())).all() or min(moments[part]["std"]) <= 0:
            raise UserError(f"--statistics {name}: {part}: must be finite, with standard deviations above 0")
    return moments


def _compare(name: str, stated: Moments, found: Moments) -> None:
    """Raise UserError if the statistics ``found`` are not those that the file ``name`` states."""
    for part, moments in stated.items():
        std = np.array(moments["std"])
        for moment in ("mean", "std"):
            off = np.abs(np.array(found[part][moment]) - moments[moment]) / std
            worst = int(off.argmax())
            if off[worst] > AGREEMENT:
                raise UserError(
                    f"--statistics {name}: channel {worst} of the {part} latents has {moment} "
                    f"{found[part][moment][worst]:.3g}, where the file says {moments[moment][worst]:.3g}; are the "
                    "latents normalised (--normalised), or of another autoencoder?"
                )


# --- the shards ------------------------------------------------------------------------------------------------------


class _Reader:
    """Reads the latents of a clip."""

    def __init__(self, folder: Path, options: ImportOptions, shapes: Mapping[Modality, Shape], stated: Moments) -> None:
        self._folder, self._names, self._shapes = folder, options.names, shapes
        self._scale = stated if options.normalised else {}

    def __call__(self, files: dict[str, str]) -> LatentSample:
        """Return the sample of a clip with these files by part.

        Raises:
            UnreadableLatents: a file cannot be used.
            UserError: the shapes are not the autoencoder's.
        """
        posteriors = {part: self._part(part, files[part]) for part in parts_of(self._shapes) if part in files}
        if "video" in posteriors:
            posteriors.setdefault("mirrored", posteriors["video"])
        return LatentSample.of(posteriors)

    def _part(self, part: Part, path: str) -> Posterior:
        """Return mean and log-variance, each (C, H, W)."""
        modality = PARTS[part]
        shape = self._shapes[modality]
        channels, *sides = shape
        try:
            array = read_tensor(
                self._folder, path, self._names.of(part)[1], {shape, (2 * channels, *sides), (2, *shape)}
            )
        except UnreadableLatents as error:
            raise UnreadableLatents(f"{path}: {error}") from None
        except OtherShape as error:
            raise UserError(
                f"{self._folder / path}: {part} latents of shape {error}, not {'×'.join(map(str, shape))} (mean alone, "
                "or with log-variance): they are not of the given autoencoder"
            ) from None
        if not np.isfinite(array).all():
            raise UnreadableLatents(f"{path}: contains NaN or infinity")
        mean, logvar = array.reshape(2, *shape) if array.shape != shape else (array, np.full(shape, LOGVAR_RANGE[0]))
        if self._scale:
            centre, std = (np.array(self._scale[modality][name])[:, None, None] for name in ("mean", "std"))
            mean, logvar = mean * std + centre, logvar + 2 * np.log(std)
        return mean, np.clip(logvar, *LOGVAR_RANGE)


def _write_shard(
    output: Path, number: int, clips: list[dict[str, Any]], classes: list[str], reader: _Reader, leases: Leases
) -> None:
    """Make shard ``number``, which is leased, of its ``clips``."""
    written: list[LatentSample] = []
    errors: list[dict[str, np.ndarray]] = []
    with ShardWriter(output, number) as writer:
        for clip in clips:
            label = clip["meta"]["label"]
            meta = {**clip["meta"], "class": None if label is None else classes.index(label)}
            try:
                sample = reader(clip["files"])
                members = encode_latents(sample)
            except (UnreadableLatents, ValueError) as error:
                writer.drop(clip["key"], clip["meta"]["path"], "unreadable_latents", str(error))
                continue
            writer.add(clip["key"], members, meta)
            written.append(decode_latents(members))
            errors.append(squared_errors(sample, written[-1]))
        commit_latents(writer, output, number, written, errors, leases)
    leases.release(shard_name(number))
