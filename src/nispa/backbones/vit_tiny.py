"""A vision transformer with many small heads: what is kept of attention is kept head by head.

Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; LayerScale as in Touvron et al., Going
Deeper with Image Transformers, ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nispa.backbones.shapes import image_shape


class Attention(nn.Module):
    """Each token reads all tokens, in ``heads`` ways."""

    def __init__(self, width: int, heads: int) -> None:
        """Over tokens of ``width`` numbers."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, width)`` to the same."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """Attention and two Linear layers, each with a norm before and a scale after, summed up."""

    def __init__(self, width: int, heads: int, dropout: float, scale: float) -> None:
        """A block whose branches begin with the factor ``scale``."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.scale1 = nn.Parameter(torch.full((width,), scale))
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.scale2 = nn.Parameter(torch.full((width,), scale))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, tokens, width)`` to the same."""
        x = x + self.dropout(self.attention(self.norm1(x)) * self.scale1)
        y: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x)))) * self.scale2
        total: Tensor = x + self.dropout(y)
        return total


class VitTiny(nn.Module):
    """Patches as tokens, a class token, positions, blocks, then the head on the class token."""

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        width: int = 192,
        heads: int = 12,
        blocks: int = 6,
        patch: int = 4,
        dropout: float = 0.0,
        scale: float = 0.1,
    ) -> None:
        """A transformer.

        Args:
            shape: Channels, height and width of an image; the sides are multiples of ``patch``.
            classes: Logits.
            width: Numbers of a token, a multiple of ``heads``.
            heads: Of attention.
            blocks: How many.
            patch: Side of a patch, in pixels.
            dropout: Share of each branch's numbers set to zero while learning.
            scale: First factor of each branch.
        """
        super().__init__()
        channels, height, side = image_shape("vit-tiny", shape)
        if height % patch or side % patch or width % heads:
            raise ValueError(
                f"patch={patch} must divide both sides of {height}x{side} pixels, and "
                f"heads={heads} width={width}; pass others, such as patch=4, heads=12, width=192"
            )
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        tokens = (height // patch) * (side // patch) + 1
        self.positions = nn.Parameter(torch.empty(1, tokens, width).normal_(std=0.02))
        self.blocks = nn.Sequential(*(Block(width, heads, dropout, scale) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of images ``(batch, channels, height, width)``."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        logits: Tensor = self.head(self.norm(self.blocks(x))[:, 0])
        return logits
