"""The DiT with its loss (sections 3.2 and 3.3): maps a batch of :class:`~.dataset.LatentDataset` to a StepOutput."""

from torch import nn

from mmldm_scale.config import DiTConfig
from mmldm_scale.config.media import Shape
from mmldm_scale.diffusion import loss as diffusion_loss
from mmldm_scale.diffusion.conditions import shares
from mmldm_scale.diffusion.noise_process import noise_process
from mmldm_scale.models.dit import DiT
from mmldm_scale.trainables.dit.config import DiTTraining
from mmldm_scale.training.monitoring import metric_means
from mmldm_scale.training.trainable import Batch, StepInfo, StepOutput


class NoisePrediction(nn.Module):
    """The DiT with its loss.

    Attributes:
        term_weights: weights of the loss's terms besides the two modalities' errors.
    """

    def __init__(
        self,
        config: DiTTraining,
        audio_shape: Shape | None,
        video_shape: Shape | None,
        classes: int = 0,
        model: DiTConfig | None = None,
    ) -> None:
        """Build the network.

        Args:
            audio_shape: (C, H, W) of the audio latents; without effect in a model without audio.
            video_shape: (C, H, W) of the video latents, likewise.
            classes: number of classes of the class context; 0: none.
            model: the network's configuration; None: that of ``config``.
        """
        super().__init__()
        self.dit = DiT(model or config.model, audio_shape, video_shape, classes)
        self.process = noise_process(config.diffusion)
        self.contrastive, self.loss_weights = config.contrastive, config.loss_weights
        self.term_weights = {"contrastive": config.contrastive.weight} if config.contrastive.weight else {}
        self.steps, self.logged = config.diffusion.steps, False

    def begin_step(self, step: StepInfo) -> None:
        """Take note of the optimizer step that begins."""
        self.logged = step.logged

    def forward(self, batch: Batch) -> StepOutput:
        """Return the losses of :func:`diffusion.loss.losses`, each (B,).

        The metrics are "loss/audio" and "loss/video", on logged steps and in validation also by quarter of the
        schedule; and, if the configuration has such conditions, the shares of samples that have them: "data/continued"
        (a preceding clip), "data/context" (a context) and "data/displaced" (another window of their video).
        """
        values = diffusion_loss.losses(self.dit, self.process, batch, self.contrastive, self.loss_weights)
        metrics = {name: value for name, value in values.items() if name.startswith("loss/")}
        if self.logged or not self.training:
            metrics |= metric_means.by_time(metrics, batch["time"], self.steps)
        terms = {name: values[f"term/{name}"] for name in self.term_weights}
        return StepOutput(values["loss"], terms, metrics | shares(batch))
