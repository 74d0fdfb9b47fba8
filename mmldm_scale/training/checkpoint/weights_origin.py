"""Weights that say where they are from: ``provenance.json`` beside those that a checkpoint holds."""

from pathlib import Path

from torch import Tensor

from mmldm_scale.cluster.code_snapshot import code_version
from mmldm_scale.common import provenance
from mmldm_scale.common.provenance import Provenance
from mmldm_scale.config import TrainingConfig
from mmldm_scale.models import pretrained
from mmldm_scale.training.trainable import Trainable


def write_weights(
    trainable: Trainable, config: TrainingConfig, samples_seen: int, folder: Path, averages: dict[str, Tensor]
) -> None:
    """Write the ``averages`` at ``samples_seen`` to ``folder`` as ``trainable`` does, and their provenance."""
    trainable.write_weights(folder, averages)
    origin = Provenance(samples_seen, config.ema_lengths[0], trainable.shard_sets, trainable.inputs, code_version())
    provenance.write(folder, origin)
    pretrained.add_sum(folder, folder / provenance.PROVENANCE)
