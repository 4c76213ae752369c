"""Norms whose statistics stay what they are for units that are kept.

A batch norm counts by the channel: a stable channel uses its running statistics in training, too.
LayerNorm, RMSNorm and GroupNorm count over units. Here each unit has a *generation*: 1 for the
first that became stable, and so on, 0 while it is plastic. A unit of generation g uses statistics
over generations 1 to g, a plastic one over all. So what is learned later never reaches it, and no
task needs to be known. Sums are merged generation by generation (Chan, Golub and LeVeque, 1979),
each over an index that is fixed when its units are, so that their bits stay, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

AnyBatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
Mixing = nn.LayerNorm | nn.RMSNorm | nn.GroupNorm


class UnitBatchNorm(nn.Module):
    """A batch norm that takes the place of one of PyTorch's.

    Attributes:
        stable: Channels whose statistics stay, ``(channels,)`` bool.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    stable: Tensor

    def __init__(self, norm: AnyBatchNorm) -> None:
        """With the parameters and statistics of ``norm``."""
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        self.eps, self.momentum = norm.eps, norm.momentum
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)
        self.register_buffer("running_mean", norm.running_mean.clone())
        self.register_buffer("running_var", norm.running_var.clone())
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked.clone())
        self.register_buffer("stable", torch.zeros_like(norm.running_mean, dtype=torch.bool))
        self.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, channels, ...)`` to the same."""
        lying = (1, -1, *[1] * (x.dim() - 2))
        mean, square = self.running_mean, self.running_var
        if self.training:
            over = [dim for dim in range(x.dim()) if dim != 1]
            count = x.numel() // x.shape[1]
            now, spread = x.mean(over), x.var(over, unbiased=False)
            mean = torch.where(self.stable, self.running_mean, now)
            square = torch.where(self.stable, self.running_var, spread)
            with torch.no_grad():
                self._follow(now.detach(), spread.detach() * (count / max(count - 1, 1)))
        y = (x - mean.view(lying)) * (square + self.eps).rsqrt().view(lying)
        if self.weight is not None:
            y = y * self.weight.view(lying)
        return y if self.bias is None else y + self.bias.view(lying)

    def _follow(self, mean: Tensor, square: Tensor) -> None:
        self.num_batches_tracked += 1
        share = self.momentum
        if share is None:
            share = 1.0 / float(self.num_batches_tracked)
        for kept, now in ((self.running_mean, mean), (self.running_var, square)):
            kept.copy_(torch.where(self.stable, kept, kept.lerp(now, share)))


class GenerationNorm(nn.Module):
    """A norm over units that takes the place of a LayerNorm, an RMSNorm or a GroupNorm.

    Attributes:
        generation: Of each normalised entry, ``(sets, entries)`` int64; 0 is plastic.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    generation: Tensor

    def __init__(self, norm: Mixing) -> None:
        """With the parameters of ``norm``."""
        super().__init__()
        self.centred = not isinstance(norm, nn.RMSNorm)
        self.eps = norm.eps if norm.eps is not None else torch.finfo(torch.float32).eps
        self.sets = norm.num_groups if isinstance(norm, nn.GroupNorm) else 1
        self.channels = isinstance(norm, nn.GroupNorm)
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", getattr(norm, "bias", None))
        if isinstance(norm, nn.GroupNorm):
            self.dims, entries = 0, norm.num_channels // norm.num_groups
        else:
            self.dims = len(norm.normalized_shape)
            entries = int(torch.Size(norm.normalized_shape).numel())
        device = norm.weight.device if norm.weight is not None else None
        self.register_buffer(
            "generation", torch.zeros(self.sets, entries, dtype=torch.int64, device=device)
        )

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        if self.channels:
            parts = x.flatten(2).unsqueeze(3).unflatten(1, (self.sets, -1)) if x.dim() > 2 else (
                x[:, :, None, None].unflatten(1, (self.sets, -1))
            )  # fmt: skip
            done = [
                self._normalised(part.flatten(2), generation)
                for part, generation in zip(parts.unbind(1), self.generation, strict=True)
            ]
            y = torch.stack(done, 1).reshape(x.shape)
            lying: tuple[int, ...] = (-1, *[1] * (x.dim() - 2))
        else:
            flat = x.flatten(-self.dims)
            y = self._normalised(flat.reshape(-1, flat.shape[-1], 1), self.generation[0])
            y, lying = y.reshape(x.shape), tuple(x.shape[-self.dims :])
        if self.weight is not None:
            y = y * self.weight.view(lying)
        return y if self.bias is None else y + self.bias.view(lying)

    def _normalised(self, x: Tensor, generation: Tensor) -> Tensor:
        """``(samples, entries, pixels)``, statistics over the last two; to the same."""
        result = torch.zeros_like(x)
        count, mean, squares = 0, x.new_zeros(len(x), 1, 1), x.new_zeros(len(x), 1, 1)
        for number in [*range(1, int(generation.max()) + 1), 0]:
            index = (generation == number).nonzero().flatten()
            if not len(index):
                continue
            part = x.index_select(1, index)
            more = part.shape[1] * part.shape[2]
            centre = part.mean((1, 2), keepdim=True) if self.centred else mean
            away, total = centre - mean, count + more
            squares = squares + (part - centre).square().sum((1, 2), keepdim=True)
            squares = squares + away.square() * (count * more / total)
            mean, count = mean + away * (more / total), total
            scaled = (part - mean) * (squares / count + self.eps).rsqrt()
            result = result.index_copy(1, index, scaled)
        return result
