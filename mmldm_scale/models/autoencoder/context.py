"""The tokens that the U-Net's cross-attention reads for pictures of one modality (section 3.1, Figure 3b).

They are the other modality's semantic tokens, the class and the modality; cross-attention does not depend on their
order. For classifier-free guidance learned null tokens replace semantics and class.
"""

import torch
from torch import Tensor, nn


class Context(nn.Module):
    """Assembles the context of one modality's pictures, and holds its learned tokens.

    Args:
        semantics: T, number of the other modality's semantic tokens; 0: the context is the modality's token alone.
        width: D, channels of a token.
    """

    def __init__(self, semantics: int, width: int) -> None:
        super().__init__()
        self.semantics = semantics
        self.modality = nn.Parameter(0.02 * torch.randn(1, width))
        if semantics:
            self.null = nn.Parameter(0.02 * torch.randn(semantics + 1, width))

    def forward(self, pictures: int, semantics: Tensor | None = None, dropped: Tensor | None = None) -> Tensor:
        """Return the tokens (N, T + 2, D) of N = ``pictures``, or (N, 1, D) if the model has no semantics.

        Args:
            semantics: (N, T + 1, D), the other modality's semantic tokens and the class; None: null tokens.
            dropped: (N,) bool, the pictures that get null tokens in place of ``semantics``; None: none of them.
        """
        modality = self.modality.expand(pictures, -1, -1)  # (N, 1, D)
        if not self.semantics:
            return modality
        tokens = self.null.expand(pictures, -1, -1) if semantics is None else semantics  # (N, T + 1, D)
        if semantics is not None and dropped is not None:
            tokens = torch.where(dropped[:, None, None], self.null, semantics)
        return torch.cat([tokens, modality], dim=1)  # (N, T + 2, D)
