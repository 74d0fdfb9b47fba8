"""Kinds of GPU clusters for the planner: figures of data sheets, and assumptions about the speed of training on them.

``CLUSTERS["a800"]`` is what ``mmldm plan --gpu a800`` plans for. This module imports no torch, so that the command line
can list the names at once. Dense peaks are in ``training/monitoring/throughput.py``, which the training loop uses, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mmldm_scale.config import Precision


@dataclass(frozen=True)
class Cluster:
    """A kind of GPU, and the links between GPUs and nodes.

    Attributes:
        name: as the vendor calls it; begins with its key in PEAK_TFLOPS.
        gibibytes: memory of a GPU in GiB.
        precision: the one to train in.
        memory: GB/s that a GPU reads or writes of its own memory.
        link: GB/s that a GPU sends to another of its node (NVLink, one direction).
        network: GB/s that a node sends to another, all its adapters together.
        transformers: assumed share of the dense peak at which a transformer computes, by its width.
        convolutions: assumed share of the dense peak at which convolutional networks compute.
        float32: assumed share of float32's peak, for networks that compute in it beside a lower precision (the KL-VAE
            beside fp16).
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


# Assumed shares of the peak: of transformers by width, of convolutions, and of float32 beside a lower precision.
AMPERE = {768: 0.38, 1024: 0.46, 1536: 0.53}, 0.30, 0.30
HOPPER = {768: 0.28, 1024: 0.35, 1536: 0.41}, 0.22, 0.22
VOLTA = {768: 0.22, 1024: 0.27, 1536: 0.32}, 0.20, 0.60  # no matrix units for float32: a large share of a small peak
CLUSTERS = {
    "v100": Cluster("V100 32 GB", 31.7, "fp16", 900, 150, 25, *VOLTA),
    "v100-16": Cluster("V100 16 GB", 15.8, "fp16", 900, 150, 25, *VOLTA),
    "a100": Cluster("A100 80 GB", 79.2, "bf16", 2039, 300, 100, *AMPERE),
    "a800": Cluster("A800 80 GB", 79.2, "bf16", 2039, 200, 100, *AMPERE),
    "h100": Cluster("H100 80 GB", 79.2, "bf16", 3350, 450, 400, *HOPPER),
    "h800": Cluster("H800 80 GB", 79.2, "bf16", 3350, 200, 400, *HOPPER),
    "h200": Cluster("H200 141 GB", 139.8, "bf16", 4800, 450, 400, *HOPPER),
}
