"""What the U-Net's cross-attention sees of one modality's pictures (section 3.1, Figure 3b).

These are the other modality's semantic tokens, the class and the modality, one after the other: their order does not
matter to cross-attention. Pictures drawn without context, by which guidance learns and leads, get learned tokens in
place of semantics and class.
"""

import torch
from torch import Tensor, nn


class Context(nn.Module):
    """The learned tokens of one modality's context, and how a context is put together.

    Args:
        semantics: T, how many semantic tokens the other modality has; 0: the modality is all that is told.
        width: D.
    """

    def __init__(self, semantics: int, width: int) -> None:
        super().__init__()
        self.semantics = semantics
        self.modality = nn.Parameter(0.02 * torch.randn(1, width))
        if semantics:
            self.null = nn.Parameter(0.02 * torch.randn(semantics + 1, width))

    def forward(self, pictures: int, told: Tensor | None = None, dropped: Tensor | None = None) -> Tensor:
        """Return the tokens (N, T + 2, D) of N = ``pictures``, or (N, 1, D) where the modality is all that is told.

        Args:
            told: (N, T + 1, D), the other modality's semantics and the class; None: nothing, and learned tokens.
            dropped: (N,) bool, the pictures that get learned tokens nevertheless; None: none of them.
        """
        modality = self.modality.expand(pictures, -1, -1)
        if not self.semantics:
            return modality
        tokens = self.null.expand(pictures, -1, -1) if told is None else told
        if told is not None and dropped is not None:
            tokens = torch.where(dropped[:, None, None], self.null, told)
        return torch.cat([tokens, modality], dim=1)
