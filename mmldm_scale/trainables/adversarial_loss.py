"""The adversarial losses of discriminator and model: Eq. 2 in its log form, and the hinge form of the public code.

An :class:`AdversarialLoss` is the module of a trainable's discriminator (``training.trainable.Discriminator``). It
wraps a network that distinguishes real pictures from the model's. The training loop calls the module for the
discriminator's loss, and its ``generator_loss`` for the adversarial term of the model's loss.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Arrangements = Callable[[Tensor, Tensor], list[Tensor]]


class AdversarialLoss(nn.Module):
    """A discriminator with its own loss and the model's.

    Eq. 2 prints L_D = log(1 − D(real)) + Σ log D(fake) and L_AE = log(1 − D(fake)). The two oppose each other only if D
    is the probability of being *fake* and both are log-likelihoods to be maximised; they are read so here. With l the
    logit of being *real* (D = sigmoid(−l)), their negatives, which are minimised, are

    ======  =================================  ================
    loss    discriminator                      model
    ======  =================================  ================
    log     softplus(−l_real) + Σ softplus(l)  softplus(−l)
    hinge   relu(1 − l_real) + Σ relu(1 + l)   −l
    ======  =================================  ================

    The sum is over the fakes that ``arrangements`` returns: the four of Eq. 2, or the single one of a KL-VAE.

    Args:
        network: Maps pictures (B, P, 3, S, S) to logits of being real, (B,), or (B, n) for n patches, whose losses are
            averaged. A sample's logits must not depend on the other samples.
        arrangements: ``arrangements(real, fake)`` combines real pictures and the model's, both (B, P, 3, S, S), into
            the fakes of the discriminator's loss, each (B, P, 3, S, S); the first one is ``fake`` itself.
        loss: Which of the two forms to use.
    """

    def __init__(self, network: nn.Module, arrangements: Arrangements, loss: Literal["log", "hinge"]) -> None:
        super().__init__()
        self.network, self.arrangements, self.loss = network, arrangements, loss

    def forward(self, real: Tensor, fake: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """Return the discriminator's loss and its mean logits of the real and of the model's pictures.

        Args:
            real: Real pictures, (B, P, 3, S, S) in [-1, 1].
            fake: The model's reconstructions of them, (B, P, 3, S, S).
            weight: Weight of each sample's loss, (B,).

        Returns:
            "loss", "logit_real" and "logit_fake", each (B,) float32.
        """
        fakes = self.arrangements(real, fake)
        real_logits, *fake_logits = self._logits(torch.cat([real, *fakes])).split(len(real))
        if self.loss == "log":
            losses = [functional.softplus(-real_logits), *map(functional.softplus, fake_logits)]
        else:
            losses = [functional.relu(1 - real_logits), *(functional.relu(1 + logits) for logits in fake_logits)]
        loss = torch.stack([part.mean(dim=1) for part in losses]).sum(dim=0)  # (B, n) each -> (B,)
        return {
            "loss": weight * loss,
            "logit_real": real_logits.detach().mean(dim=1),
            "logit_fake": fake_logits[0].detach().mean(dim=1),
        }

    def generator_loss(self, fake: Tensor) -> Tensor:
        """Return the model's loss, (B,) float32, for its pictures ``fake`` (B, P, 3, S, S) in [-1, 1]."""
        logits = self._logits(fake)
        return (functional.softplus(-logits) if self.loss == "log" else -logits).mean(dim=1)

    def _logits(self, pictures: Tensor) -> Tensor:
        """Return float32 logits (N, n) of ``pictures`` (N, P, 3, S, S); the network runs in its own precision."""
        dtype = next(self.network.parameters()).dtype
        logits: Tensor = self.network(pictures.to(dtype)).float()
        return logits.reshape(len(pictures), -1)  # (N,) or (N, n) -> (N, n)
