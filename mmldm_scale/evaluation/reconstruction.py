"""``mmldm reconstruct``: how close a trained autoencoder brings clips back, in numbers and to look at and listen to.

Clips spread evenly over a set go through the encoders (the posteriors' means) and back. The folder gets ``strip.png``
with originals above their reconstructions, pairs of mp4 with sound of a few clips, and at last ``reconstruction.json``:
the means of these metrics over the clips, each clip's own, and what they were measured with.

- psnr (dB), ssim, lpips (where its weights are given): of the frames, the mean over a clip's;
- audio_image_psnr (dB): of the audio image;
- image_mel_l1 (dB): mean absolute error of the mel spectrogram that the audio image stands for;
- mel_l1 (dB): the same of the mel spectrogram of the sound, after the vocoder;
- mrstft: Parallel WaveGAN's multi-resolution STFT distance of the sound.

The same of KL-VAE and vocoder alone ("ceiling") stands beside them and, where it is asked for, of clips that are
decoded with another clip's semantics ("swapped_semantics").
"""

import argparse
import dataclasses
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mmldm_scale.common.atomic_files import full_disk, write_whole
from mmldm_scale.common.device import choose_device
from mmldm_scale.common.errors import UserError
from mmldm_scale.config import Reconstructing, load
from mmldm_scale.evaluation.metrics.distances import mean_absolute, multi_resolution_stft, psnr, ssim
from mmldm_scale.evaluation.restore import Rendition, Restorer
from mmldm_scale.media.clip import Clip
from mmldm_scale.media.encode import write_video
from mmldm_scale.media.pixels import strips, to_frames
from mmldm_scale.models import lpips, pretrained
from mmldm_scale.models.autoencoder.decoding import sampler
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.manifest import differences
from mmldm_scale.shards.reader import DamagedSample, ShardSet

RESULTS = "reconstruction.json"
SHOWN_CLIPS, SHOWN_FRAMES = 4, 8
RESTORED, CEILING, SWAPPED = "metrics", "ceiling", "swapped_semantics"  # what is measured, as the results call it


def run(args: argparse.Namespace) -> int:
    """Run the job that ``args`` (of :mod:`mmldm_scale.evaluation.arguments`) ask for; return the exit status.

    Raises:
        UserError: arguments, weights, clips or the output folder cannot work.
    """
    settings = load(Reconstructing, args.config, args.overrides)
    sampler(settings.decoding)  # says at once what cannot work
    device = choose_device(args.device)
    shards = ShardSet(args.input, "clips")
    chosen = _choose(args, shards)
    folder = pretrained.find(args.checkpoint, "autoencoder")
    model = Autoencoder.from_pretrained(folder, DTYPES[settings.precision], device)
    _check(args, settings, shards, model)
    _begin(args.output)
    torch.backends.cudnn.deterministic = True  # measured again it is the same
    measured = ClipMeasurements(Restorer(model, settings, device), shards, args.swap_semantics)
    measured.take(chosen, settings.batch_size)
    results = {
        "samples": len(chosen),
        **measured.means(),
        "checkpoint": {"path": str(folder.resolve()), "fingerprint": pretrained.fingerprint(folder)},
        "clips": {"path": str(args.input.resolve()), "fingerprint": shards.fingerprint},
        "settings": dataclasses.asdict(settings),
        "by_clip": measured.rows,
    }
    measured.show(args.output)
    write_whole(args.output / RESULTS, json.dumps(results, indent=1, allow_nan=False).encode() + b"\n")
    print(_table(results))
    print(f"{len(chosen)} clips; look at {args.output / 'strip.png'}, all numbers are in {args.output / RESULTS}")
    return 0


class ClipMeasurements:
    """Measures clips batch by batch and keeps a few of them to be shown.

    Attributes:
        rows: each clip's key and metrics, in order.
    """

    def __init__(self, restorer: Restorer, shards: ShardSet, swap: bool) -> None:
        self.restorer, self.shards, self.swap = restorer, shards, swap
        path = restorer.settings.lpips
        self.lpips = lpips.load_lpips(path) if path else None
        self.rows: list[dict[str, Any]] = []
        self._shown: dict[int, list[Rendition]] = {}  # by index: the original and what was made of it, one clip each

    def take(self, chosen: Sequence[int], batch_size: int) -> None:
        """Measure the clips ``chosen`` of the set; with ``swap``, each also with the semantics of one far from it."""
        others = [*chosen[len(chosen) // 2 :], *chosen[: len(chosen) // 2]]
        shown = {chosen[i * len(chosen) // SHOWN_CLIPS] for i in range(SHOWN_CLIPS)}
        with tqdm(total=len(chosen), desc="reconstructing", unit=" clips", mininterval=1) as progress:
            for start in range(0, len(chosen), batch_size):
                batch = slice(start, start + batch_size)
                self._measure(chosen[batch], others[batch], shown)
                progress.update(len(chosen[batch]))

    def means(self) -> dict[str, dict[str, float]]:
        """Return the mean of each metric over all clips."""
        return {
            name: {metric: sum(row[name][metric] for row in self.rows) / len(self.rows) for metric in values}
            for name, values in self.rows[0].items()
            if isinstance(values, dict)
        }

    def show(self, output: Path) -> None:
        """Write ``strip.png`` and the mp4s of the clips that are shown."""
        lines, media = [], self.restorer.model.media
        for index, (original, *made) in self._shown.items():
            lines += [_line(rendition) for rendition in (original, *made)]
            for name, rendition in zip(("original", "restored"), (original, made[0]), strict=True):
                file = output / f"{index:06d}_{name}.mp4"
                frames, sound = to_frames(rendition.frames[0]).numpy(), rendition.waveform[0].numpy()
                with full_disk(file):
                    write_video(file, frames, media.fps, sound, media.audio.sample_rate)
        strip = (strips(lines) * 255).round().byte().permute(1, 2, 0)  # (H, W, 3)
        png = io.BytesIO()
        Image.fromarray(strip.numpy()).save(png, "PNG")
        write_whole(output / "strip.png", png.getvalue())

    def _measure(self, indices: Sequence[int], others: Sequence[int], shown: set[int]) -> None:
        originals = self.restorer.original([self._clip(index) for index in indices])
        made = {
            RESTORED: self.restorer.restore(originals, indices),
            CEILING: self.restorer.ceiling(originals),
        }
        if self.swap:
            strangers = self.restorer.original([self._clip(index) for index in others])
            made[SWAPPED] = self.restorer.restore(originals, indices, semantics_of=strangers)
        values = {name: self._metrics(rendition, originals) for name, rendition in made.items()}
        for i, index in enumerate(indices):
            row = {name: {metric: float(v[i]) for metric, v in found.items()} for name, found in values.items()}
            key = self.shards.key(index)
            if not all(math.isfinite(value) for found in row.values() for value in found.values()):
                raise UserError(f"clip {key}: is not decoded to numbers ({row}); precision=fp32 may fit")
            told = {"semantics_of": self.shards.key(others[i])} if self.swap else {}
            self.rows.append({"index": index, "key": key, **told, **row})
            if index in shown:
                kept = (originals, made[RESTORED], *([made[SWAPPED]] if self.swap else []))
                self._shown[index] = [_one(rendition, i) for rendition in kept]

    def _metrics(self, made: Rendition, wanted: Rendition) -> dict[str, Tensor]:
        """Return each metric of B clips, (B,)."""
        image = self.restorer.audio_image
        mels = image.decibels(wanted.waveform)  # (B, n_mels, T)
        values = {"psnr": psnr(made.frames, wanted.frames), "ssim": ssim(made.frames, wanted.frames)}
        if self.lpips:
            pictures = (made.frames.flatten(0, 1), wanted.frames.flatten(0, 1))
            values["lpips"] = self.lpips(*pictures).unflatten(0, wanted.frames.shape[:2]).mean(dim=1)
        return {
            **values,
            "audio_image_psnr": psnr(made.audio_image[:, None], wanted.audio_image[:, None]),
            "image_mel_l1": mean_absolute(image.to_decibels(made.audio_image), mels),
            "mel_l1": mean_absolute(image.decibels(made.waveform), mels),
            "mrstft": multi_resolution_stft(made.waveform, wanted.waveform),
        }

    def _clip(self, index: int) -> Clip:
        try:
            return decode_clip(self.shards[index].members, media=self.shards.manifest.media)
        except DamagedSample as error:
            raise UserError(f"{error}; data_tools/shard.py repair makes the set whole again") from None
        except ValueError as error:
            raise UserError(f"{self.shards.location}: sample {self.shards.key(index)}: {error}") from None


def _choose(args: argparse.Namespace, shards: ShardSet) -> list[int]:
    """Return the indices of the clips to measure, spread evenly over the set."""
    least = 2 if args.swap_semantics else 1
    if not least <= args.num_samples <= len(shards):
        raise UserError(f"--num-samples {args.num_samples}: {least} to {len(shards)} fit, the clips of {args.input}")
    return [i * len(shards) // args.num_samples for i in range(args.num_samples)]


def _check(args: argparse.Namespace, settings: Reconstructing, shards: ShardSet, model: Autoencoder) -> None:
    """Raise UserError if ``model`` is not for the clips of ``shards``, or has not what is asked of it."""
    cut, trained = dataclasses.asdict(shards.manifest.media), dataclasses.asdict(model.media)
    if cut != trained:
        changed = "; ".join(differences(cut, trained, ("the clips", "the autoencoder")))
        raise UserError(f"{args.input}: is not cut as the autoencoder needs it ({changed})")
    if args.swap_semantics and not model.config.semantics:
        raise UserError(f"--swap-semantics: {args.checkpoint} was trained without semantics")
    if settings.lpips and model.media.size < lpips.SMALLEST:
        raise UserError(f"lpips: needs pictures of at least {lpips.SMALLEST} pixels, these are {model.media.size}")


def _begin(output: Path) -> None:
    """Make the folder ``output``; raise UserError if it holds results already or cannot be made."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be used as output folder: {error.strerror}") from None
    if (output / RESULTS).exists():
        raise UserError(f"{output}: holds {RESULTS} already; another --output fits")


def _one(rendition: Rendition, i: int) -> Rendition:
    """Return the ``i``-th clip of ``rendition`` alone, on the CPU."""
    parts = (rendition.frames, rendition.audio_image, rendition.waveform)
    return Rendition(*(part[i : i + 1].float().cpu() for part in parts))


def _line(rendition: Rendition) -> Tensor:
    """Return some frames of one clip and its audio image, to be laid side by side: (N, 3, S, S)."""
    frames = rendition.frames[0]
    picked = torch.linspace(0, len(frames) - 1, min(SHOWN_FRAMES, len(frames))).long()
    return torch.cat([frames[picked], rendition.audio_image])


def _table(results: dict[str, Any]) -> str:
    names = [name for name in (RESTORED, CEILING, SWAPPED) if name in results]
    lines = [f"{'':18}" + "".join(f"{name:>20}" for name in names)]
    for metric in results[RESTORED]:
        lines.append(f"{metric:18}" + "".join(f"{results[name][metric]:20.4f}" for name in names))
    return "\n".join(lines)
