"""What loss and sampling ask of a network that denoises audio and video latents together."""

from typing import Protocol

from torch import Tensor


class Network(Protocol):
    """Predicts what :meth:`noise_process.Diffusion.target` returns; :class:`mmldm_scale.models.dit.DiT` is one."""

    def __call__(
        self, audio: Tensor | None, video: Tensor | None, time: Tensor, **conditions: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the predictions for ``audio`` (B, C, Ha, Wa) and ``video`` (B, C, Hv, Wv), shaped like them.

        A network of one modality alone takes and returns None for the other.

        Args:
            time: (B,) integer, each sample's timestep.
            conditions: what :func:`mmldm_scale.diffusion.conditions.conditions` returns.
        """
        ...
