"""What a training takes of each GPU's memory, predicted without one.

    predict(dit_step(config, audio_shape, video_shape), config.training, processes=8).total  # bytes

States, that is weights, gradients, master weights, moments and averages, are what
:mod:`~mmldm_scale.training.engine.deepspeed_engine` has DeepSpeed hold, by ZeRO stage. What lives during a step is
counted by running one on shapes alone, backward pass and recomputation included
(:mod:`~mmldm_scale.planning.allocations`). Not in it are what CUDA, NCCL and cuDNN take for themselves and what
PyTorch's allocator cannot put to use.
"""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from mmldm_scale.config import MediaConfig, TrainingConfig
from mmldm_scale.config.media import Shape
from mmldm_scale.diffusion.contrastive import PARTNERS
from mmldm_scale.models.autoencoder import kl_vae
from mmldm_scale.models.autoencoder.discriminator import AudioVideoDiscriminator
from mmldm_scale.models.precision import DTYPES
from mmldm_scale.planning.allocations import Allocations
from mmldm_scale.trainables.adversarial_loss import AdversarialLoss
from mmldm_scale.trainables.autoencoder.config import AutoencoderTraining
from mmldm_scale.trainables.autoencoder.loss import Reconstruction, fake_arrangements
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.trainables.dit.trainable import NoisePrediction
from mmldm_scale.training.trainable import StepInfo

MASTER = 4  # bytes of a number in float32
BUCKET, GATHERED = 500_000_000, 1_000_000_000  # DeepSpeed's defaults, in numbers


@dataclass(frozen=True)
class States:
    """Bytes on each GPU that hold a model and its optimizer."""

    parameters: int  # in working precision, frozen ones and buffers included
    gradients: int
    optimizer: int  # float32: master weights, Adam's two moments, the averages
    communication: int  # DeepSpeed's buckets, and with ZeRO-3 the weights gathered from the other GPUs
    update: int  # only while the optimizer steps, when nothing of the forward pass is left: gradients in float32

    def __add__(self, other: "States") -> "States":
        return States(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True)
class Prediction:
    """Bytes on each GPU.

    Attributes:
        states: of all engines together.
        activations: at most, of all that lives only during a forward and backward pass.
    """

    states: States
    activations: int

    @property
    def total(self) -> int:
        """The most that is needed at any instant."""
        states = self.states
        working = max(states.communication + self.activations, states.update)
        return states.parameters + states.gradients + states.optimizer + working


def states(module: nn.Module, config: TrainingConfig, processes: int, averaged: bool = True) -> States:
    """Return what DeepSpeed holds for ``module``, already in working precision, on each of ``processes``.

    ``averaged``: its optimizer keeps averages of the weights (EMA).
    """
    stage, number = config.zero_stage, DTYPES[config.precision].itemsize
    trained = [p.numel() for p in module.parameters() if p.requires_grad]
    share = _share(trained, stage, processes)
    held = {0: sum(trained), 1: share * processes, 2: share * processes, 3: share}[stage]
    split = processes if stage == 3 else 1  # frozen weights
    still = sum(math.ceil(p.numel() / split) * p.element_size() for p in module.parameters() if not p.requires_grad)
    masters = int(stage > 0 or number < MASTER)  # else the parameters themselves are the master weights
    averages = len(config.ema_lengths) if averaged else 0
    return States(
        parameters=number * held + still + _bytes(module.buffers()),
        gradients=number * (share if stage >= 2 else sum(trained)),
        optimizer=0 if config.offload_optimizer else MASTER * share * (masters + 2 + averages),
        communication=_communication(config, sum(trained)) * number,
        update=masters * share * (MASTER + (number if stage in (1, 2) and number < MASTER else 0)),
    )


def _share(trained: list[int], stage: int, processes: int) -> int:
    """Return how many of the ``trained`` numbers of each parameter have their states on one process."""
    if stage == 0:
        return sum(trained)
    if stage == 3:
        return sum(math.ceil(count / processes) for count in trained)
    pairs = math.ceil(sum(trained) / (2 * processes))  # partitions of an even length
    return 2 * pairs


def _communication(config: TrainingConfig, trained: int) -> int:
    """Return how many numbers DeepSpeed's buckets and gathered weights are."""
    given = config.deepspeed.get("zero_optimization", {})
    if config.zero_stage == 0:
        return 0
    bucket = given.get("reduce_bucket_size", BUCKET)
    return bucket + (min(given.get("stage3_max_live_parameters", GATHERED), trained) if config.zero_stage == 3 else 0)


@dataclass(frozen=True)
class MicroStep:
    """What a process computes at once; on shapes alone if everything is on the device "meta".

    Attributes:
        module: of a trainable.
        batch: a micro-batch for it.
        discriminator: of the trainable, if the module returns "exhibits".
        beside: what the trainable needs and no engine holds, in its own precision.
    """

    module: nn.Module
    batch: dict[str, Tensor]
    discriminator: nn.Module | None = None
    beside: nn.Module | None = None


def predict(step: MicroStep, config: TrainingConfig, processes: int) -> Prediction:
    """Return what a training takes of each GPU's memory, whose ``processes``, one a GPU, take such steps."""
    return Prediction(held(step, config, processes), activations(step))


def held(step: MicroStep, config: TrainingConfig, processes: int) -> States:
    """Return what all engines hold on each of ``processes``; gives the networks their working precision."""
    total = States(_bytes(step.beside.parameters()) + _bytes(step.beside.buffers()) if step.beside else 0, 0, 0, 0, 0)
    for module, settings in engines(step, config):
        total += states(cast(module, config), settings, processes, averaged=module is step.module)
    return total


def engines(step: MicroStep, config: TrainingConfig) -> list[tuple[nn.Module, TrainingConfig]]:
    """Return the networks that engines train in ``step``, and how."""
    found = [(step.module, config)]
    if step.discriminator is not None:  # as training/engine/discriminator_engine.py has it
        found.append((step.discriminator, replace(config, zero_stage=min(config.zero_stage, 2))))
    return found


def activations(step: MicroStep) -> int:
    """Return the bytes that live at most during ``step``: the module's passes, then the discriminator's own."""
    networks = [network for network in (step.module, step.discriminator) if network is not None]
    with Allocations([p for network in networks for p in network.parameters()]) as memory:
        take(step)
    return memory.peak


def take(step: MicroStep) -> None:
    """Take ``step``, forward and backward, and then the discriminator's own if it takes part."""
    discriminator = step.discriminator
    results = step.module(step.batch)
    loss = results["loss"].mean()
    exhibits = results.get("exhibits")
    if exhibits:
        discriminator.requires_grad_(False)
        results["term/adversarial"] = exhibits["weight"] * discriminator.generator_loss(exhibits["fake"])
        discriminator.requires_grad_(True)
        loss = loss + results["term/adversarial"].mean()
    _measure_gradients(results)
    loss.backward()
    if exhibits:
        shown = [exhibits[name].detach() for name in ("real", "fake", "weight")]
        del results, exhibits, loss
        discriminator(*shown)["loss"].mean().backward()


def _measure_gradients(results: dict) -> None:
    """Go back from each term as on a logged step, when the graph is kept (``training/engine/step_module.py``)."""
    through = [tensor for entry in results.get("through", {}).values() for tensor in entry]
    for name in [name for name in results if name.startswith("term/")] if through else []:
        torch.autograd.grad(results[name].sum(), through, retain_graph=True, allow_unused=True, materialize_grads=True)


def dit_step(config: DiTTraining, audio_shape: Shape, video_shape: Shape, device: str = "meta") -> MicroStep:
    """Return a micro-step of the DiT on latents of ``audio_shape`` and ``video_shape``, on shapes alone or for real."""
    batch = config.training.micro_batch
    backend = config.model.attention if config.model.attention == "math" else "sdpa"  # "meta" has no other
    model = replace(config.model, attention=backend, compile=False)
    with torch.device(device):
        classes = int(config.context.kind == "class")  # one, as how many there are is nothing beside the model
        module = NoisePrediction(replace(config, model=model), audio_shape, video_shape, classes)
        latents = {"audio": torch.zeros(batch, *audio_shape), "video": torch.zeros(batch, *video_shape)}
        noises = {f"{name}_noise": torch.zeros_like(latent) for name, latent in latents.items()}
        given = {f"{name}_given": torch.zeros(batch, dtype=torch.bool) for name in latents}
        time = {"time": torch.zeros(batch, dtype=torch.long)}
        named = {name: latents[name.partition("_")[2]] for name in PARTNERS} if config.contrastive.weight else {}
        partners = {name: torch.zeros_like(latent) for name, latent in named.items()}
        conditions = _conditions(config, latents)
    return MicroStep(module, {**latents, **noises, **given, **time, **partners, **conditions})


def _conditions(config: DiTTraining, latents: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what a batch with ``latents`` holds of the clips before and of contexts, as ``config`` asks for them."""
    batch, model, found = config.training.micro_batch, config.model, {}
    if config.diffusion.continued:
        found |= {f"previous_{name}": torch.zeros_like(latent) for name, latent in latents.items()}
        found |= {f"previous_{name}_given": torch.zeros(batch, dtype=torch.bool) for name in latents}
    if config.context.kind == "class":
        found["label"] = torch.zeros(batch, dtype=torch.long)
    if config.context.kind == "text":
        found["context"] = torch.zeros(batch, model.context_tokens, model.context_width)
        found["context_length"] = torch.zeros(batch, dtype=torch.long)
    return found


def autoencoder_step(
    config: AutoencoderTraining, media: MediaConfig, vae: AutoencoderKL, classes: list[str], device: str = "meta"
) -> MicroStep:
    """Return a micro-step of the autoencoder that takes most: a logged one, its discriminator, if any, taking part.

    ``vae``: the KL-VAE, on ``device`` too.
    """
    batch, shown = config.training.micro_batch, min(config.frames_per_clip, media.frames) + 1
    kl_vae.set_precision(vae, config.training.precision)
    adversarial = bool(config.adversarial.weight)
    with torch.device(device):
        module = Reconstruction(_compared_alone(config), media, vae, classes)
        module.group = batch
        model = module.autoencoder
        inputs = {
            "frames": torch.zeros(batch, media.frames, media.size, media.size, 3, dtype=torch.uint8),
            "waveform": torch.zeros(batch, media.audio_samples),
            "label": torch.zeros(batch, dtype=torch.long),
            "targets": torch.zeros(batch, shown - 1, dtype=torch.long),
            "time": torch.zeros(batch, shown, dtype=torch.long),
            "noise": torch.zeros(batch, shown, *model.noise_shape),
            "dropped": torch.zeros(batch, shown, dtype=torch.bool),
            "audio_noise": torch.zeros(batch, *model.audio_shape),
            "video_noise": torch.zeros(batch, *model.video_shape),
        }
        network = AdversarialLoss(AudioVideoDiscriminator(config.discriminator), fake_arrangements, "log")
    module.begin_step(StepInfo(samples_seen=0, logged=True, adversarial=adversarial))
    return MicroStep(module, inputs, network if adversarial else None, beside=vae)


def _compared_alone(config: AutoencoderTraining) -> AutoencoderTraining:
    """Return ``config`` for one process with no others to compare clips with, which takes little of its memory."""
    return replace(config, contrastive_batch=2, training=TrainingConfig(global_batch=2, micro_batch=2))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def cast(module: nn.Module, config: TrainingConfig) -> nn.Module:
    """Give the parameters of ``module`` the working precision, as DeepSpeed does; it leaves buffers as they are."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(DTYPES[config.precision])
    return module
