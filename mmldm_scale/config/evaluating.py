"""Settings of `mmldm evaluate`, which change no figure (a protocol has the choices that do), and of `mmldm table`."""

from dataclasses import dataclass, field
from typing import Any

from mmldm_scale.common.addresses import path_key


@dataclass
class Evaluating:
    """Settings of ``mmldm evaluate``."""

    # path of each network's pretrained weights, such as weights.i3d=weights/i3d_pretrained_400.pt
    weights: dict[str, str] = field(default_factory=dict)
    # folder that keeps the features of reference sets, for other evaluations, too; null: features/ in the output folder
    reference_features: str | None = path_key(None)


@dataclass
class MakingTables:
    """Settings of ``mmldm table``."""

    # path of each network's pretrained weights, such as weights.i3d=weights/i3d_pretrained_400.pt
    weights: dict[str, str] = field(default_factory=dict)
    # tables 1 and 4: the run, checkpoint or weights folder of each DiT, such as runs.landscape=runs/landscape/dit_L
    runs: dict[str, str] = field(default_factory=dict)
    # the training clips of each data set, which some protocols take as reference; default: DATA/NAME/clips
    clips: dict[str, str] = field(default_factory=dict)
    # other clips, the reference of other protocols; tables 5 and 6 reconstruct them; default: DATA/NAME/clips_test
    held_out: dict[str, str] = field(default_factory=dict)
    # files that a2v and v2a start from, by data set, such as inputs.landscape=data/landscape/videos/test
    inputs: dict[str, str] = field(default_factory=dict)
    sample: dict[str, Any] = field(default_factory=dict)  # settings of `mmldm sample`, such as sample.steps=25
    # tables 5 and 6: presets or YAML files for the autoencoder's training, laid over the table's own: cluster/a800
    train_presets: list[str] = field(default_factory=list)
    # tables 5 and 6: settings of the autoencoder's training, such as train.kl_vae=weights/sd15
    train: dict[str, Any] = field(default_factory=dict)
    finetune: dict[str, Any] = field(default_factory=dict)  # tables 5 and 6: likewise, of the KL-VAE's fine-tuning
    reconstruct: dict[str, Any] = field(default_factory=dict)  # tables 5 and 6: settings of `mmldm reconstruct`
