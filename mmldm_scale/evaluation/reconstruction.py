"""``mmldm reconstruct``: measures how close a trained autoencoder's reconstructions come to the original clips.

Clips spread evenly over a set go through the encoders (the means of the posteriors) and the decoder. The output folder
gets ``strip.png`` with originals above their reconstructions, pairs of mp4 files with sound of a few clips (wav files
where the autoencoder has audio alone), and last ``reconstruction.json``: the value of each metric of
:data:`~mmldm_scale.evaluation.metrics.METRICS` whose signals and weights there are, each clip's own values, and the
settings, clips and weights that they were measured with. With ``--lossless``, ``lossless/reconstructed/`` has the
reconstructions as a shard set whose keys are those of the originals.

Each metric is measured of the reconstructions ("metrics"), of the KL-VAE and the vocoder alone ("ceiling") and, with
``--swap-semantics``, of clips that are decoded with another clip's semantics ("swapped_semantics").
"""

import argparse
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mmldm_scale.common.atomic_files import write_whole
from mmldm_scale.common.device import choose_device
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.common.modalities import Modality
from mmldm_scale.config import Reconstructing, load
from mmldm_scale.evaluation.comparison import STRIP, as_clip, one_clip, write_comparison
from mmldm_scale.evaluation.metrics import METRICS, build_metrics
from mmldm_scale.evaluation.metrics.metric import Metric, MetricAccumulator, MetricBatch, MetricContext
from mmldm_scale.evaluation.reconstructor import ClipSignals, Reconstructor
from mmldm_scale.media.clip import Clip
from mmldm_scale.models import pretrained
from mmldm_scale.models.autoencoder.decoding import check_decoding
from mmldm_scale.models.autoencoder.distillation import Distillation
from mmldm_scale.models.autoencoder.model import Autoencoder
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.sampling.lossless import FOLDER, LosslessSet
from mmldm_scale.shards.clips import decode_clip
from mmldm_scale.shards.manifest import differences
from mmldm_scale.shards.reader import DamagedSample, ShardSet

RESULTS = "reconstruction.json"
LOSSLESS = Path(FOLDER) / "reconstructed"  # the set of reconstructions, in the output folder
SIGNALS: dict[Modality, tuple[str, ...]] = {"audio": ("audio_image", "waveform"), "video": ("frames",)}
SHOWN_CLIPS = 4  # in the strip and as mp4 files
RECONSTRUCTED, CEILING, SWAPPED = "metrics", "ceiling", "swapped_semantics"  # keys of the results
ARROWS = {"higher": "↑", "lower": "↓"}  # which direction is better, in the table


def run(args: argparse.Namespace) -> int:
    """Run the job that ``args`` (of :mod:`mmldm_scale.evaluation.arguments`) describe; return the exit status.

    Raises:
        UserError: arguments, weights, clips or the output folder cannot be used.
    """
    settings = load(Reconstructing, args.config, args.overrides)
    check_decoding(settings.decoding)  # raises UserError before the weights are loaded
    device = choose_device(args.device)
    shards = ShardSet(args.input, "clips")
    indices = _choose_clips(args, shards)
    folder = pretrained.find(args.checkpoint, "autoencoder")
    check_decoding(settings.decoding, Distillation.read(folder))
    model = Autoencoder.from_pretrained(folder, DTYPES[settings.precision], device)
    _check_clips(args, shards, model)
    metrics = _build_metrics(settings, model)
    _make_output(args.output)
    torch.backends.cudnn.deterministic = True  # so that a second measurement gives the same values
    origin: dict[str, Any] = {
        "checkpoint": {"path": str(folder.resolve()), "fingerprint": pretrained.fingerprint(folder)},
        "clips": {"path": str(args.input.resolve()), "fingerprint": shards.fingerprint},
        "settings": dataclasses.asdict(settings),
    }
    measurements = ClipMeasurements(Reconstructor(model, settings, device), shards, metrics, args.swap_semantics)
    with _keeping(args, shards, model, settings.batch_size, origin) as keep:
        measurements.measure(indices, settings.batch_size, keep)
    results = {
        "samples": len(indices),
        **measurements.values(),
        "units": {metric.name: metric.unit for metric in metrics},
        "directions": {metric.name: metric.direction for metric in metrics},
        **origin,
        "by_clip": measurements.rows,
    }
    write_comparison(args.output, measurements.shown, model.media)
    write_whole(args.output / RESULTS, json.dumps(results, indent=1, allow_nan=False).encode() + b"\n")
    print(_table(metrics, results))
    print(f"{len(indices)} clips; pictures are in {args.output / STRIP}, all values in {args.output / RESULTS}")
    return 0


Keep = Callable[[range, Sequence[int], ClipSignals], None]  # positions, indices and reconstructions of some clips


@contextmanager
def _keeping(
    args: argparse.Namespace, shards: ShardSet, model: Autoencoder, size: int, origin: dict[str, Any]
) -> Iterator[Keep | None]:
    """In the block, give what writes reconstructions to the lossless set; None without ``--lossless``.

    Raises:
        UserError: the folder holds other reconstructions, or the disk is full.
    """
    if not args.lossless:
        yield None
        return
    lossless = LosslessSet(args.output, LOSSLESS.name, model.media, size)
    with Leases(args.output) as leases:

        def keep(positions: range, indices: Sequence[int], signals: ClipSignals) -> None:
            clips = [as_clip(one_clip(signals, i)) for i in range(len(indices))]
            records = [{"name": shards.key(index), "task": LOSSLESS.name, "index": index} for index in indices]
            lossless.write(positions, clips, records, leases, lossless.index_file(positions).stem)

        made_with = json.loads(json.dumps({**origin, "samples": args.num_samples}))  # tuples become lists
        lossless.begin(made_with, leases)
        yield keep
        lossless.finish(args.num_samples, made_with, leases)


class ClipMeasurements:
    """Reconstructs and measures clips batch by batch.

    Attributes:
        rows: each clip's index, key and values, in order.
        shown: by index of the clip, for a few clips: the original and its reconstructions, one clip each, on the CPU.
    """

    def __init__(
        self, reconstructor: Reconstructor, shards: ShardSet, metrics: Sequence[Metric], swap_semantics: bool
    ) -> None:
        self.reconstructor, self.shards, self.swap_semantics = reconstructor, shards, swap_semantics
        self.rows: list[dict[str, Any]] = []
        self.shown: dict[int, list[ClipSignals]] = {}
        names = (RECONSTRUCTED, CEILING, SWAPPED) if swap_semantics else (RECONSTRUCTED, CEILING)
        self._accumulators = {name: MetricAccumulator(metrics) for name in names}

    def measure(self, indices: Sequence[int], batch_size: int, keep: Keep | None = None) -> None:
        """Measure the clips at ``indices`` of the set; a swap takes the semantics from half of them further on.

        Args:
            keep: gets the reconstructions, too, batch by batch.
        """
        donors = [*indices[len(indices) // 2 :], *indices[: len(indices) // 2]]
        shown = {indices[i * len(indices) // SHOWN_CLIPS] for i in range(SHOWN_CLIPS)}
        with tqdm(total=len(indices), desc="reconstructing", unit=" clips", mininterval=1) as progress:
            for start in range(0, len(indices), batch_size):
                batch = slice(start, start + batch_size)
                reconstructed = self._measure_batch(indices[batch], donors[batch], shown)
                if keep is not None:
                    keep(range(len(indices))[batch], indices[batch], reconstructed)
                progress.update(len(indices[batch]))

    def values(self) -> dict[str, dict[str, float]]:
        """Return each metric's value over all clips, of each version of them."""
        return {name: accumulator.values() for name, accumulator in self._accumulators.items()}

    def _measure_batch(self, indices: Sequence[int], donors: Sequence[int], shown: set[int]) -> ClipSignals:
        """Measure the clips at ``indices``; return their reconstructions."""
        originals = self.reconstructor.originals([self._clip(index) for index in indices])
        versions = {
            RECONSTRUCTED: self.reconstructor.reconstruct(originals, indices),
            CEILING: self.reconstructor.ceiling(originals),
        }
        if self.swap_semantics:
            semantics_of = self.reconstructor.originals([self._clip(index) for index in donors])
            versions[SWAPPED] = self.reconstructor.reconstruct(originals, indices, semantics_of)
        by_clip = {
            name: self._accumulators[name].update(MetricBatch(indices, signals.present, originals.present))
            for name, signals in versions.items()
        }
        for i, index in enumerate(indices):
            values = {
                name: {metric: by_index[index] for metric, by_index in by_metric.items()}
                for name, by_metric in by_clip.items()
            }
            self._check_finite(index, values)
            donor = {"semantics_of": self.shards.key(donors[i])} if self.swap_semantics else {}
            self.rows.append({"index": index, "key": self.shards.key(index), **donor, **values})
            if index in shown:
                pictured = [signals for name, signals in versions.items() if name != CEILING]
                self.shown[index] = [one_clip(signals, i) for signals in (originals, *pictured)]
        return versions[RECONSTRUCTED]

    def _check_finite(self, index: int, values: dict[str, dict[str, float]]) -> None:
        if not all(math.isfinite(value) for by_metric in values.values() for value in by_metric.values()):
            raise UserError(f"clip {self.shards.key(index)}: a value is not finite ({values}); try precision=fp32")

    def _clip(self, index: int) -> Clip:
        try:
            modalities = self.reconstructor.model.modalities
            return decode_clip(self.shards[index].members, None, self.shards.manifest.media, modalities)
        except DamagedSample as error:
            raise UserError(f"{error}; data_tools/shard.py repair writes its shard again") from None
        except ValueError as error:
            raise UserError(f"{self.shards.location}: sample {self.shards.key(index)}: {error}") from None


def _choose_clips(args: argparse.Namespace, shards: ShardSet) -> list[int]:
    """Return the indices of the clips to measure, spread evenly over the set."""
    minimum = 2 if args.swap_semantics else 1
    if not minimum <= args.num_samples <= len(shards):
        raise UserError(
            f"--num-samples {args.num_samples}: must be {minimum} to {len(shards)}, the number of clips in {args.input}"
        )
    return [i * len(shards) // args.num_samples for i in range(args.num_samples)]


def _check_clips(args: argparse.Namespace, shards: ShardSet, model: Autoencoder) -> None:
    """Raise UserError if the clips of ``shards`` do not fit ``model``, or if it has no semantics to swap."""
    clips, trained = dataclasses.asdict(shards.manifest.media), dataclasses.asdict(model.media)
    if clips != trained:
        changes = "; ".join(differences(clips, trained, ("the clips", "the autoencoder")))
        raise UserError(f"{args.input}: the format of the clips differs from the autoencoder's ({changes})")
    if args.swap_semantics and not (model.config.semantics and len(model.modalities) > 1):
        raise UserError(f"--swap-semantics: {args.checkpoint} was trained without the other modality's semantics")


def _build_metrics(settings: Reconstructing, model: Autoencoder) -> list[Metric]:
    """Return the metrics that can be computed of reconstructions with the weights that ``settings`` give."""
    keys = [key for metric in METRICS.values() for key in metric.weights]
    weights = {key: path for key in keys if (path := getattr(settings, key, None))}
    signals = [name for modality in model.modalities for name in SIGNALS[modality]]
    return build_metrics(signals, MetricContext(model.media, weights))


def _make_output(output: Path) -> None:
    """Make the folder ``output``; raise UserError if it holds results already or cannot be made."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be used as output folder: {error.strerror}") from None
    if (output / RESULTS).exists():
        raise UserError(f"{output}: holds {RESULTS} already; choose another --output")


def _table(metrics: Sequence[Metric], results: dict[str, Any]) -> str:
    names = [name for name in (RECONSTRUCTED, CEILING, SWAPPED) if name in results]
    lines = [f"{'':26}" + "".join(f"{name:>20}" for name in names)]
    for metric in metrics:
        label = f"{metric.name} {ARROWS[metric.direction]}" + (f" ({metric.unit})" if metric.unit else "")
        lines.append(f"{label:26}" + "".join(f"{results[name][metric.name]:20.4f}" for name in names))
    return "\n".join(lines)
