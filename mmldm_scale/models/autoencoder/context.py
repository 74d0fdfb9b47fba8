"""The tokens that the U-Net's cross-attention reads for pictures of one modality (section 3.1, Figure 3b).

They are the other modality's semantic tokens, the class and the modality; cross-attention does not depend on their
order. A model of one modality alone has no semantic tokens, and a class only where clips have classes. For
classifier-free guidance null tokens replace all of them but the class.
"""

import torch
from torch import Tensor, nn


class Context(nn.Module):
    """Assembles the context of one modality's pictures, and holds its learned tokens.

    Args:
        semantics: T, number of the other modality's semantic tokens; 0: there are none.
        width: D, channels of a token.
    """

    def __init__(self, semantics: int, width: int) -> None:
        super().__init__()
        self.semantics = semantics
        self.modality = nn.Parameter(0.02 * torch.randn(1, width))
        if semantics:
            self.null = nn.Parameter(0.02 * torch.randn(semantics + 1, width))

    def forward(self, tokens: Tensor, dropped: Tensor | None = None) -> Tensor:
        """Return the tokens of N pictures, (N, T + 2, D), or (N, T + 1, D) if there is no class.

        Args:
            tokens: (N, T + 1, D), the other modality's semantic tokens and, last, the class; (N, T, D) without class.
            dropped: (N,) bool, the pictures that get null tokens in place of semantics and modality; None: none. The
                null tokens are learned (ours; the public code's are zero), but without semantics zero.
        """
        context = torch.cat([tokens, self.modality.expand(len(tokens), 1, -1)], dim=1)
        if dropped is None:
            return context
        null = self.null if self.semantics else torch.zeros_like(self.modality)  # (T + 1, D)
        semantics, modality = null.expand(len(tokens), -1, -1).split([self.semantics, 1], dim=1)
        without = torch.cat([semantics, tokens[:, self.semantics :], modality], dim=1)
        return torch.where(dropped[:, None, None], without, context)
