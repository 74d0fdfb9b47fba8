"""Encodes clip shards into latent shards: one latent shard for each clip shard, with the same keys.

``make_latents(clips, output, autoencoder, …)`` encodes a finished clip set, resumes a stopped run, or helps other
processes that work on the same output. Processes decode batches of clips; this one encodes and writes them. Batches
never cross a shard, so each shard is a function of its clip shard, the autoencoder and the batch size, which changes
nothing but the rounding.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmldm_scale.common.atomic_files import sha256
from mmldm_scale.common.device import choose_device
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.common.modalities import MODALITIES, Modality
from mmldm_scale.config import MediaConfig
from mmldm_scale.media.audio_image import AudioImage
from mmldm_scale.media.pixels import to_signal
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.gaussian import Gaussian
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.index import ShardIndex, shard_name
from mmldm_scale.shards.latents import LatentSample, Part, decode_latents, encode_latents, statistics, sums
from mmldm_scale.shards.manifest import MANIFEST, Manifest, differences
from mmldm_scale.shards.reader import DamagedSample, ShardSet
from mmldm_scale.shards.writer import ShardWriter

from ..launching.process_pool import as_is, ignore_interrupts, in_parts
from ..launching.progress import Progress
from .shard_set import begin, finish, missing_shards, read_plan

ROUNDING = 0.01  # largest RMS error of float16, in standard deviations of a channel; 0.0003 is usual


@dataclass(frozen=True)
class ClipBatch:
    """Some clips of one shard: frames (B, F, H, W, 3) uint8, waveforms (B, N) float32, keys and meta of each.

    What the autoencoder does not encode has F = 0 or N = 0.
    """

    keys: list[str]
    meta: list[dict[str, Any]]
    frames: Tensor
    waveforms: Tensor
    fault: str = ""  # why there are none: a damaged sample


def check_autoencoder(path: Path, media: MediaConfig, owner: str) -> None:
    """Raise UserError if there is no autoencoder at ``path``, or not one for clips cut as ``media`` says.

    Args:
        owner: what was, or will be, cut so; for the message.
    """
    weights = pretrained.find(path, "autoencoder")
    trained = pretrained.read_config(weights, "autoencoder").get("media", {})
    changed = differences(asdict(media), trained, (owner, "the autoencoder"))
    if changed:
        raise UserError(f"{path}: was trained on other clips ({'; '.join(changed)}); cut the clips as it needs them")


def check_inputs(clips: Path, output: Path, autoencoder: Path) -> ShardSet:
    """Return the clip set ``clips``, if the latent set ``output`` can be made of it with ``autoencoder``.

    Raises:
        UserError: as :func:`make_latents`.
    """
    source = ShardSet(clips, "clips")
    if not len(source):
        raise UserError(f"{clips}: holds no clips; {source.manifest.dropped} drops are in its dropped.jsonl")
    check_autoencoder(autoencoder, source.manifest.media, "the clips")
    read_plan(output, "latents")  # refuses another content before anything is loaded
    return source


def make_latents(clips: Path, output: Path, autoencoder: Path, batch_size: int, device: str, workers: int) -> Manifest:
    """Make the latent set ``output`` of the clip set ``clips``, or finish it; return its manifest.

    Args:
        autoencoder: an autoencoder's run, checkpoint or weights folder.
        batch_size: clips encoded at once.
        device: "auto" (cuda if there is one), "cpu" or "cuda".
        workers: processes that decode clips; 0 decodes in this one.

    Raises:
        UserError: ``clips`` is no finished, whole clip set or an empty one; the autoencoder is missing or was trained
            on other clips; ``output`` was begun from other clips or with another autoencoder; the disk is full.
        ValueError: a latent is not finite, or too large for float16; the message names the sample.
    """
    place = choose_device(device)
    source = check_inputs(clips, output, autoencoder)
    sizes = [len(source.shard_range(number)) for number in range(len(source.manifest.shards))]
    with Leases(output) as leases:
        plan = _begin(clips, output, pretrained.find(autoencoder, "autoencoder"), leases)
        model = Autoencoder.from_pretrained(autoencoder).eval()
        encoder = Encoder(model, source.manifest.media, place)
        with Progress(len(source), "encoding", "clips") as bar:
            for numbers in missing_shards(output, sizes, leases, bar):
                for number, batches in _load(source, numbers, batch_size, workers, model.modalities):
                    _write_shard(output, number, batches, encoder, bar, leases)
        return finish(output, len(sizes), leases, [], lambda indexes: _describe(source, plan, model, indexes))


class Encoder:
    """Clips in, posteriors of sound, picture and mirrored picture out, on one device and in float32.

    An autoencoder of one modality alone gives that modality's.
    """

    def __init__(self, autoencoder: Autoencoder, media: MediaConfig, device: torch.device) -> None:
        torch.backends.cudnn.deterministic = True  # the same clips give the same bytes again
        self._autoencoder = autoencoder.to(device)
        self._audio_image = AudioImage(media) if "audio" in autoencoder.modalities else None
        self._device = device

    @torch.inference_mode()
    def __call__(self, batch: ClipBatch) -> list[LatentSample]:
        """Return a LatentSample, still float32, for each clip of ``batch``."""
        if not batch.keys:
            return []
        frames: Tensor | None = None
        image: Tensor | None = None
        if self._audio_image is not None:
            image = self._audio_image.encode(batch.waveforms.to(self._device))  # (B, 3, S, S)
        if "video" in self._autoencoder.modalities:
            frames = to_signal(batch.frames.to(self._device))  # (B, F, 3, S, S)
        posteriors: dict[Part, Gaussian] = {}
        for name, posterior in self._autoencoder.encode(frames, image).present.items():
            posteriors[name] = posterior
        if frames is not None:
            posteriors["mirrored"] = self._autoencoder.encode_frames(frames.flip(-1))
        arrays = {
            part: [moment.float().cpu().numpy() for moment in (posterior.mean, posterior.logvar)]  # (B, C, H, W) each
            for part, posterior in posteriors.items()
        }
        return [
            LatentSample.of({part: (mean[row], logvar[row]) for part, (mean, logvar) in arrays.items()})
            for row in range(len(batch.keys))
        ]


def _begin(clips: Path, output: Path, weights: Path, leases: Leases) -> dict[str, Any]:
    """Return the plan of the set ``output``, written now if it is new; refuse one that was begun from other things."""
    plan = {
        "source": {"path": os.path.relpath(clips, output), "manifest": sha256(clips / MANIFEST)},
        "autoencoder": {"path": str(weights.resolve()), "fingerprint": pretrained.fingerprint(weights)},
    }
    begun, _ = begin(output, "latents", leases, lambda: plan)
    identities = {"source": ("manifest", "other clips"), "autoencoder": ("fingerprint", "another autoencoder")}
    for name, (identity, text) in identities.items():
        then, now = begun.get(name, {}), plan[name]
        if then.get(identity) != now[identity]:
            raise UserError(
                f"{output}: was begun with {text} ({then.get('path')}, {str(then.get(identity))[:12]}…) than "
                f"{now['path']} ({now[identity][:12]}…); use those, or another output folder"
            )
    return begun


def _describe(source: ShardSet, plan: dict[str, Any], model: Autoencoder, indexes: list[ShardIndex]) -> dict[str, Any]:
    return {
        "kind": "latents",
        "media": source.manifest.media,
        "classes": source.manifest.classes,
        "videos": source.manifest.videos,
        "candidates": len(source),
        "source": plan["source"],
        "autoencoder": plan["autoencoder"],
        "audio_shape": model.audio_shape,
        "video_shape": model.video_shape,
        "statistics": statistics(index.statistics for index in indexes if index.statistics is not None),
    }


def _load(
    source: ShardSet, numbers: Iterable[int], batch_size: int, workers: int, modalities: Sequence[Modality]
) -> Iterator[tuple[int, Iterator[ClipBatch]]]:
    """Yield each of the shards ``numbers``, drawn early, with its clips in batches."""

    def batches_of(number: int) -> list[range]:
        clips = source.shard_range(number)
        return [clips[first : first + batch_size] for first in range(0, len(clips), batch_size)] or [range(0)]

    def load(batches: Iterator[range]) -> DataLoader:
        """Return a loader of the clips in ``batches``, ranges of their indices."""
        return DataLoader(
            _Clips(source, modalities),
            sampler=batches,
            batch_size=None,
            num_workers=workers,
            collate_fn=as_is,
            worker_init_fn=ignore_interrupts,
        )

    return in_parts(numbers, batches_of, load)


def _write_shard(
    output: Path, number: int, batches: Iterator[ClipBatch], encoder: Encoder, bar: Progress, leases: Leases
) -> None:
    """Make latent shard ``number``, which is leased, of the ``batches`` of its clip shard."""
    written: list[LatentSample] = []
    errors: list[dict[str, np.ndarray]] = []
    with ShardWriter(output, number) as writer:
        for batch in batches:
            if batch.fault:
                raise UserError(f"{batch.fault}; run verify on that set, and make it again")
            for key, meta, sample in zip(batch.keys, batch.meta, encoder(batch), strict=True):
                try:
                    members = encode_latents(sample)
                except ValueError as error:
                    raise ValueError(f"sample {key}: {error}") from None
                writer.add(key, members, meta)
                written.append(decode_latents(members))
                errors.append(squared_errors(sample, written[-1]))
                bar.update()
        commit_latents(writer, output, number, written, errors, leases)
    leases.release(shard_name(number))


def commit_latents(
    writer: ShardWriter,
    output: Path,
    number: int,
    written: list[LatentSample],
    errors: list[dict[str, np.ndarray]],
    leases: Leases,
) -> None:
    """Complete the leased shard ``number``, which holds ``written``, after a check of its rounding.

    Args:
        errors: of each sample, by :func:`squared_errors`.

    Raises:
        UserError: as :func:`check_rounding`.
    """
    name = shard_name(number)
    if leases.holds(name):  # else this process counted as dead, and another one makes it
        totals = sums(written)
        check_rounding(output, number, errors, statistics([totals]))
        with leases.finishing(name):
            writer.commit(totals)


def squared_errors(exact: LatentSample, rounded: LatentSample) -> dict[str, np.ndarray]:
    """Return by modality the mean squared error (C,) of the ``rounded`` means against the ``exact`` ones."""
    pairs = {name: (rounded.parts[name][0], exact.parts[name][0]) for name in MODALITIES if name in exact.parts}
    return {name: ((near.astype(np.float64) - mean) ** 2).mean((1, 2)) for name, (near, mean) in pairs.items()}


def check_rounding(
    output: Path, number: int, errors: list[dict[str, np.ndarray]], stored: dict[str, dict[str, list[float]]]
) -> None:
    """Raise UserError if float16 blurs a channel of this shard by more than :data:`ROUNDING` of its own spread."""
    for modality, moments in stored.items():
        blur = np.sqrt(np.mean([error[modality] for error in errors], axis=0)) / np.maximum(moments["std"], 1e-30)
        worst = int(np.argmax(blur))
        if blur[worst] > ROUNDING:
            raise UserError(
                f"{output}: in {shard_name(number)}, float16 keeps channel {worst} of the {modality} latents only to "
                f"{blur[worst]:.1%} of its standard deviation ({ROUNDING:.0%} is allowed): mean "
                f"{moments['mean'][worst]:.3g}, standard deviation {moments['std'][worst]:.3g}; this autoencoder's "
                "latents lie too far from zero: train it with a larger kl_weight"
            )


class _Clips(Dataset):
    """Item ``indices``: those clips of the set, as a batch; only their ``modalities`` are decoded."""

    def __init__(self, source: ShardSet, modalities: Sequence[Modality]) -> None:
        self._source, self._modalities = source, modalities

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, indices: range) -> ClipBatch:
        samples, clips = [], []
        for index in indices:
            try:
                samples.append(self._source[index])
                clips.append(decode_clip(samples[-1].members, modalities=self._modalities))
            except DamagedSample as error:
                return ClipBatch([], [], torch.empty(0), torch.empty(0), str(error))
            except ValueError as error:
                fault = f"{self._source.folder}: sample {self._source.key(index)}: {error}"
                return ClipBatch([], [], torch.empty(0), torch.empty(0), fault)
        if not clips:  # a clip shard that everything was dropped from
            return ClipBatch([], [], torch.empty(0), torch.empty(0))
        frames = torch.from_numpy(np.stack([clip.frames for clip in clips]))  # (B, F, H, W, 3)
        waveforms = torch.from_numpy(np.stack([clip.waveform for clip in clips]))  # (B, N)
        return ClipBatch([sample.key for sample in samples], [sample.meta for sample in samples], frames, waveforms)
