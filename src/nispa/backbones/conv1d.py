"""Convolutions over time, for series.

Wang, Yan and Oates, Time Series Classification from Scratch with Deep Neural Networks, IJCNN 2017;
kernels of odd length, so that the length is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nispa.backbones.shapes import series_shape


class Conv1dNet(nn.Module):
    """Convolution, batch norm and ReLU for each size, the mean over time, then the head."""

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        *,
        channels: Sequence[int] = (128, 256, 128),
        kernels: Sequence[int] = (7, 5, 3),
    ) -> None:
        """For series of ``shape``, with the ``channels`` and the odd ``kernels`` of each layer."""
        super().__init__()
        before, _ = series_shape("conv1d", shape)
        if len(channels) != len(kernels):
            raise ValueError(
                f"channels={tuple(channels)} and kernels={tuple(kernels)} must be equally many"
            )
        layers: list[nn.Module] = []
        for after, kernel in zip(channels, kernels, strict=True):
            layers.append(nn.Conv1d(before, after, kernel, padding=kernel // 2, bias=False))
            layers += [nn.BatchNorm1d(after), nn.ReLU()]
            before = after
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(batch, classes)`` of series ``(batch, channels, length)``."""
        logits: Tensor = self.head(self.features(x).mean(2))
        return logits
