"""The adversarial losses of discriminator and model: Eq. 2 in its log form, the public code's and latent diffusion's.

An :class:`AdversarialLoss` is the module of a trainable's discriminator (``training.trainable.Discriminator``). It
wraps a network that distinguishes real pictures from the model's. The training loop calls the module for the
discriminator's loss, and its ``generator_loss`` for the adversarial term of the model's loss.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmldm_scale.config import AdversarialForm

Arrangements = Callable[[Tensor, Tensor], list[Tensor]]


class AdversarialLoss(nn.Module):
    """A discriminator with its own loss and the model's.

    Eq. 2 prints L_D = log(1 − D(real)) + Σ log D(fake) and L_AE = log(1 − D(fake)). The two oppose each other only if D
    is the probability of being *fake* and both are log-likelihoods to be maximised; they are read so here. With l the
    logit of being *real* (D = sigmoid(−l)), their negatives, which are minimised, are

    ============  ============================================  ============
    loss          discriminator                                 model
    ============  ============================================  ============
    log           softplus(−l_real) + Σ softplus(l)             softplus(−l)
    hinge         (relu(1 − l_real) + Σ relu(1 + l)) / (1 + n)  relu(1 − l)
    hinge_linear  relu(1 − l_real) + Σ relu(1 + l)              −l
    ============  ============================================  ============

    The sum is over the n fakes that ``arrangements`` returns: the four of Eq. 2, or the single one of a KL-VAE. "hinge"
    is the public code's: a mean over the stacked real pictures and fakes, and for the model no gradient once the logit
    exceeds 1. "hinge_linear" is the form with which latent diffusion trains its KL-VAEs.

    Args:
        network: Maps pictures (B, P, 3, S, S) to logits of being real, (B,), or (B, n) for n patches, whose losses are
            averaged. A sample's logits must not depend on the other samples.
        arrangements: ``arrangements(real, fake)`` combines real pictures and the model's, both (B, P, 3, S, S), into
            the fakes of the discriminator's loss, each (B, P, 3, S, S); the first one is ``fake`` itself.
        loss: Which of the three forms to use.
    """

    def __init__(self, network: nn.Module, arrangements: Arrangements, loss: AdversarialForm) -> None:
        super().__init__()
        self.network, self.arrangements, self.loss = network, arrangements, loss

    def forward(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """Return the discriminator's loss, its mean logits of the real and of the model's pictures, and its accuracy.

        Args:
            real: Real pictures, (B, P, 3, S, S) in [-1, 1].
            fake: The model's reconstructions of them, (B, P, 3, S, S).

        Returns:
            "loss", "logit_real", "logit_fake" and "accuracy", each (B,) float32. The accuracy is the share of logits
            on the right side of those of a discriminator that cannot tell them apart, of the real and of the model's
            pictures in equal parts: 0.5 for such a one.
        """
        fakes = self.arrangements(real, fake)
        real_logits, *fake_logits = self._logits(torch.cat([real, *fakes])).split(len(real))
        if self.loss == "log":
            losses = [functional.softplus(-real_logits), *map(functional.softplus, fake_logits)]
        else:
            losses = [functional.relu(1 - real_logits), *(functional.relu(1 + logits) for logits in fake_logits)]
        parts = torch.stack([part.mean(dim=1) for part in losses])  # (B, n) each -> (1 + fakes, B)
        even = self._even_logit(len(fakes))
        right = torch.stack([real_logits > even, fake_logits[0] < even]).float()  # (2, B, n)
        return {
            "loss": parts.mean(dim=0) if self.loss == "hinge" else parts.sum(dim=0),
            "logit_real": real_logits.detach().mean(dim=1),
            "logit_fake": fake_logits[0].detach().mean(dim=1),
            "accuracy": right.mean(dim=(0, 2)),
        }

    def generator_loss(self, fake: Tensor) -> Tensor:
        """Return the model's loss, (B,) float32, for its pictures ``fake`` (B, P, 3, S, S) in [-1, 1]."""
        logits = self._logits(fake)
        if self.loss == "log":
            losses = functional.softplus(-logits)
        else:
            losses = functional.relu(1 - logits) if self.loss == "hinge" else -logits
        return losses.mean(dim=1)

    def _even_logit(self, fakes: int) -> float:
        """Return the logit that has the least loss where a picture is as likely real as each of ``fakes`` fakes.

        In the hinge forms all logits in -1..1 are alike with one fake; with more, -1 is the best.
        """
        if self.loss == "log":
            return -math.log(fakes)
        return -1.0 if fakes > 1 else 0.0

    def _logits(self, pictures: Tensor) -> Tensor:
        """Return float32 logits (N, n) of ``pictures`` (N, P, 3, S, S); the network runs in its own precision."""
        dtype = next(self.network.parameters()).dtype
        logits: Tensor = self.network(pictures.to(dtype)).float()
        return logits.reshape(len(pictures), -1)  # (N,) or (N, n) -> (N, n)
