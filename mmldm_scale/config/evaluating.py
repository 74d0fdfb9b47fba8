"""Settings of `mmldm evaluate` that change no figure: where things are. A protocol has the choices that do."""

from dataclasses import dataclass, field

from mmldm_scale.common.addresses import path_key


@dataclass
class Evaluating:
    """Settings of ``mmldm evaluate``."""

    # path of each network's pretrained weights, such as weights.i3d=weights/i3d_torchscript.pt
    weights: dict[str, str] = field(default_factory=dict)
    # folder that keeps the features of reference sets, for other evaluations, too; null: features/ in the output folder
    reference_features: str | None = path_key(None)
