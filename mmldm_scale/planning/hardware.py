"""Kinds of GPU clusters for the planner: what data sheets say, and how fast training is assumed to be on them.

``CLUSTERS["a800"]`` is what ``mmldm plan --gpu a800`` plans for. Nothing here needs torch, so that the command line
knows the names at once. Dense peaks stand in ``training/monitoring/throughput.py``, which the trainers use as well.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mmldm_scale.config import Precision


@dataclass(frozen=True)
class Cluster:
    """A kind of GPU, and how its nodes are joined.

    Attributes:
        name: as the vendor calls it; begins with its key in PEAK_TFLOPS.
        gibibytes: of memory.
        precision: the one to train in.
        memory: GB/s that a GPU reads or writes of its own memory.
        link: GB/s that a GPU sends to another of its node (NVLink, one direction).
        network: GB/s that a node sends to another, all its adapters together.
        transformers: share of the dense peak at which a DiT of some width computes, by width; assumed.
        convolutions: the same of the autoencoder's networks.
        float32: the same, of float32's peak, for what computes in it beside a lower precision (the KL-VAE beside fp16).
    """

    name: str
    gibibytes: float
    precision: Precision
    memory: float
    link: float
    network: float
    transformers: Mapping[int, float]
    convolutions: float
    float32: float


AMPERE = {768: 0.38, 1024: 0.46, 1536: 0.53}, 0.30, 0.30
HOPPER = {768: 0.28, 1024: 0.35, 1536: 0.41}, 0.22, 0.22
VOLTA = {768: 0.22, 1024: 0.27, 1536: 0.32}, 0.20, 0.60  # without matrix units for float32, nearly all of a small peak
CLUSTERS = {
    "v100": Cluster("V100 32 GB", 31.7, "fp16", 900, 150, 25, *VOLTA),
    "v100-16": Cluster("V100 16 GB", 15.8, "fp16", 900, 150, 25, *VOLTA),
    "a100": Cluster("A100 80 GB", 79.2, "bf16", 2039, 300, 100, *AMPERE),
    "a800": Cluster("A800 80 GB", 79.2, "bf16", 2039, 200, 100, *AMPERE),
    "h100": Cluster("H100 80 GB", 79.2, "bf16", 3350, 450, 400, *HOPPER),
    "h800": Cluster("H800 80 GB", 79.2, "bf16", 3350, 200, 400, *HOPPER),
    "h200": Cluster("H200 141 GB", 139.8, "bf16", 4800, 450, 400, *HOPPER),
}
