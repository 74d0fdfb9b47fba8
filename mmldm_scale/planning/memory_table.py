"""The memory that the packaged configurations take of each GPU, as predicted: ``print(memory_table())``."""

from collections.abc import Sequence
from dataclasses import dataclass

from mmldm_scale.config import TrainingConfig, presets
from mmldm_scale.planning.memory import GIB, Prediction, predict, working_outline
from mmldm_scale.planning.workload import load_config
from mmldm_scale.trainables.registry import registered

CONFIGS = presets.FOLDER


@dataclass(frozen=True)
class PackagedTraining:
    """Packaged configuration files, for the number of GPUs that they are made for.

    Attributes:
        label: name in the table.
        trainable: name of its record in the registry.
        gpu: kind of GPU, with its memory.
        gpus: number of GPUs.
        files: in :data:`CONFIGS`; later ones win.
    """

    label: str
    trainable: str
    gpu: str
    gpus: int
    files: tuple[str, ...]

    def load(self) -> tuple[TrainingConfig, Prediction]:
        """Return the settings of the training, and the memory that it takes of each GPU."""
        config = load_config(self.trainable, [CONFIGS / file for file in self.files])
        outline = working_outline(registered(self.trainable).outline, config)
        return config.training, predict(outline, config.training, self.gpus)


A800, V100 = "A800 80 GB", "V100 32 GB"
PACKAGED = [
    PackagedTraining(f"DiT-{size}", "dit", gpu, gpus, (f"dit/{size}.yaml", f"cluster/{cluster}.yaml"))
    for size, gpus in (("S", 8), ("B", 16), ("L", 16))
    for gpu, cluster in ((A800, "a800"), (V100, "v100"))
] + [
    PackagedTraining(
        f"autoencoder, {data}", "autoencoder", gpu, 8, (f"autoencoder/{data.lower()}.yaml", f"cluster/{cluster}.yaml")
    )
    for data, gpu, cluster in (
        ("Landscape", A800, "a800"),
        ("Landscape", V100, "v100_autoencoder"),
        ("AudioSet", A800, "a800"),
    )
]


def memory_table(trainings: Sequence[PackagedTraining] = PACKAGED) -> str:
    """Return a table of ``trainings``, in GiB, with the parts of :class:`~mmldm_scale.planning.memory.Prediction`."""
    rows = [
        "predicted GiB of each GPU, without what CUDA, NCCL and cuDNN take for themselves and fragmentation",
        f"{'':<25}{'GPUs':<18}{'precision':<14}{'micro-batch':>11}{'weights':>9}{'gradients':>11}{'optimizer':>11}"
        f"{'buckets':>9}{'activations':>13}{'total':>7}",
    ]
    for packaged in trainings:
        training, prediction = packaged.load()
        states = prediction.states
        parts = (
            states.parameters,
            states.gradients,
            states.optimizer,
            states.communication,
            prediction.activations,
            prediction.total,
        )
        weights, gradients, optimizer, buckets, activations, total = (part / GIB for part in parts)
        precision = f"{training.precision}, ZeRO-{training.zero_stage}"
        rows.append(
            f"{packaged.label:<25}{f'{packaged.gpus} × {packaged.gpu}':<18}{precision:<14}{training.micro_batch:>11}"
            f"{weights:>9.1f}{gradients:>11.1f}{optimizer:>11.1f}{buckets:>9.1f}{activations:>13.1f}{total:>7.1f}"
        )
    return "\n".join(rows)
