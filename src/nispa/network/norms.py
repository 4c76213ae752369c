"""Norms whose statistics stay what they are for units that are kept.

A batch norm counts by the channel: a stable channel uses its running statistics in training, too,
by the kernel that computes it in evaluation.
LayerNorm, RMSNorm and GroupNorm count over units. Here each unit has a *generation*: 1 for the
first that became stable, and so on, 0 while it is plastic. A unit of generation g uses statistics
over generations 1 to g, a plastic one over all. So what is learned later never reaches it, and no
task needs to be known. Sums are merged generation by generation (Chan, Golub and LeVeque, 1979),
each over an index that is fixed when its units are, so that their bits stay, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nispa.kernels.convolved import norm_of
from nispa.network.laid_out import LaidOut

AnyBatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
Mixing = nn.LayerNorm | nn.RMSNorm | nn.GroupNorm


def _check_marks(
    state_dict: Mapping[str, Any], prefix: str, stable: Tensor, problems: list[str]
) -> None:
    """Whether a saved set of stable entries is one."""
    found = state_dict.get(prefix + "stable")
    if found is not None and found.dtype != stable.dtype:
        problems.append(f"{prefix}stable must say yes or no, not {found.dtype}")


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
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        self._kind = next(kind for kind in kinds if isinstance(norm, kind))
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", norm.bias)
        self.register_buffer("running_mean", norm.running_mean.clone())
        self.register_buffer("running_var", norm.running_var.clone())
        self.register_buffer("num_batches_tracked", norm.num_batches_tracked.clone())
        self.register_buffer("stable", torch.zeros_like(norm.running_mean, dtype=torch.bool))
        self._batches: tuple[Tensor, int, int] | None = None  # how many were tracked
        self._known: tuple[Tensor, int, bool] | None = None  # whether any channel is stable
        self.train(norm.training)

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        """``(batch, channels, ...)`` to the same, by whatever name it was called with.

        A batch with one number for each channel has no statistics; it takes the running ones.
        """
        (x,) = (*given, *named.values())
        if isinstance(x, LaidOut):
            normed = self._behind(x)
            if normed is not None:
                return normed
            x = x.plain()
        if not self.training or x.numel() == x.shape[1]:
            return self._held(x)
        share = self._share()
        if not self._any_stable():
            return self._batch(x, self.running_mean, self.running_var, share)
        mean, square = self.running_mean.clone(), self.running_var.clone()
        now = self._batch(x, mean, square, share)
        with torch.no_grad():
            self.running_mean.copy_(torch.where(self.stable, self.running_mean, mean))
            self.running_var.copy_(torch.where(self.stable, self.running_var, square))
        lying = self.stable.view(1, -1, *[1] * (x.dim() - 2))
        return torch.where(lying, self._held(x), now)

    def _behind(self, x: LaidOut) -> LaidOut | None:
        """The same behind a convolution whose output compiled kernels hold."""
        done, values = x.convolved, (self.running_mean, self.running_var, self.weight, self.bias)
        if done is None or any(v is not None and v.dtype != torch.float32 for v in values):
            return None
        fresh = self.training and x.numel() > x.shape[1]
        if fresh and done.moments is None:
            return None
        norm = norm_of(
            done,
            (self.running_mean, self.running_var),
            (self.weight, self.bias),
            self.stable if fresh and self._any_stable() else None,
            self.eps,
            self._share() if fresh else None,
        )
        if fresh:
            with torch.no_grad():
                self.running_mean.copy_(norm.values[4])
                self.running_var.copy_(norm.values[5])
        return x.normed(norm, self.weight, self.bias)

    def _held(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *more: Any) -> None:
        square, tracked = (
            state_dict.get(prefix + name) for name in ("running_var", "num_batches_tracked")
        )
        for name, value in (("running_var", square), ("num_batches_tracked", tracked)):
            if value is not None and bool((value < 0).any()):
                more[-1].append(f"{prefix}{name} holds a negative number")
        _check_marks(state_dict, prefix, self.stable, more[-1])
        super()._load_from_state_dict(state_dict, prefix, *more)

    def _batch(self, x: Tensor, mean: Tensor, square: Tensor, share: float) -> Tensor:
        return functional.batch_norm(x, mean, square, self.weight, self.bias, True, share, self.eps)

    def _share(self) -> float:
        """The share of the present batch in running statistics.

        They are plain means at first, so that few batches suffice after a restart.
        """
        known, tracked = self._batches, self.num_batches_tracked
        if known is None or known[0] is not tracked or known[1] != tracked._version:
            known = tracked, tracked._version, int(tracked)  # on a GPU, this waits for it
        with torch.no_grad():
            tracked += 1
        self._batches = tracked, tracked._version, known[2] + 1
        return max(self.momentum or 0.0, 1.0 / self._batches[2])

    def _any_stable(self) -> bool:
        known, version = self._known, self.stable._version
        if known is None or known[0] is not self.stable or known[1] != version:
            known = self._known = self.stable, version, bool(self.stable.any())
        return known[2]

    def plain(self) -> AnyBatchNorm:
        """A norm of PyTorch's that computes the same in evaluation."""
        made = self._kind(len(self.running_mean), self.eps, affine=self.weight is not None)
        made.running_mean, made.running_var = self.running_mean.clone(), self.running_var.clone()
        made.weight, made.bias = self.weight, self.bias  # type: ignore[assignment]
        return made.eval()

    def hold(self, channels: Tensor) -> None:
        """Keeps the statistics of more channels, ``(channels,)`` bool."""
        self.stable |= channels.to(self.stable.device)

    def thaw(self, channels: Tensor) -> None:
        """No longer keeps the statistics of some channels."""
        self.stable &= ~channels.to(self.stable.device)

    def renew(self, channels: Tensor) -> None:
        """Forgets the statistics of some channels."""
        chosen = channels.to(self.stable.device) & ~self.stable
        self.running_mean.masked_fill_(chosen, 0.0)
        self.running_var.masked_fill_(chosen, 1.0)

    def restart(self) -> None:
        """Forgets the statistics of the other channels."""
        self.running_mean.masked_fill_(~self.stable, 0.0)
        self.running_var.masked_fill_(~self.stable, 1.0)
        self.num_batches_tracked.zero_()


class GenerationNorm(nn.Module):
    """A norm over units that takes the place of a LayerNorm, an RMSNorm or a GroupNorm.

    Attributes:
        generation: Of each normalised entry, ``(sets, entries)`` int64; 0 is plastic.
        stable: The entries whose generation is final, bool.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    generation: Tensor
    stable: Tensor

    def __init__(self, norm: Mixing) -> None:
        """With the parameters of ``norm``."""
        super().__init__()
        self.centred = not isinstance(norm, nn.RMSNorm)
        self.eps = norm.eps if norm.eps is not None else torch.finfo(torch.float32).eps
        self.sets = norm.num_groups if isinstance(norm, nn.GroupNorm) else 1
        self.channels = isinstance(norm, nn.GroupNorm)
        self.register_parameter("weight", norm.weight)
        self.register_parameter("bias", getattr(norm, "bias", None))
        self._shape: tuple[int, ...] = ()
        if isinstance(norm, nn.GroupNorm):
            self.dims, entries = 0, norm.num_channels // norm.num_groups
        else:
            self._shape = tuple(norm.normalized_shape)
            self.dims = len(self._shape)
            entries = int(torch.Size(norm.normalized_shape).numel())
        device = norm.weight.device if norm.weight is not None else None
        self.register_buffer(
            "generation", torch.zeros(self.sets, entries, dtype=torch.int64, device=device)
        )
        self.register_buffer("stable", torch.zeros_like(self.generation, dtype=torch.bool))
        self._parts: tuple[Tensor, int, list[list[Tensor]]] | None = None

    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        """The same shape; by whatever name it was called with, as norms name it differently."""
        (x,) = (*given, *named.values())
        x, generations = x.float(), self._generations()
        if self.channels:
            parts = x.flatten(2).unsqueeze(3).unflatten(1, (self.sets, -1)) if x.dim() > 2 else (
                x[:, :, None, None].unflatten(1, (self.sets, -1))
            )  # fmt: skip
            done = [
                self._normalised(part.flatten(2), generation)
                for part, generation in zip(parts.unbind(1), generations, strict=True)
            ]
            y = torch.stack(done, 1).reshape(x.shape)
            lying: tuple[int, ...] = (-1, *[1] * (x.dim() - 2))
        else:
            flat = x.flatten(-self.dims)
            y = self._normalised(flat.reshape(-1, flat.shape[-1], 1), generations[0])
            y, lying = y.reshape(x.shape), tuple(x.shape[-self.dims :])
        if self.weight is not None:
            y = y * self.weight.view(lying)
        return y if self.bias is None else y + self.bias.view(lying)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *more: Any) -> None:
        found = state_dict.get(prefix + "generation")
        if found is not None:
            most = self.generation.numel()  # each has an entry of its own, at least
            if found.dtype != torch.int64 or bool(((found < 0) | (found > most)).any()):
                more[-1].append(f"{prefix}generation must hold whole numbers from 0 to {most}")
        _check_marks(state_dict, prefix, self.stable, more[-1])
        super()._load_from_state_dict(state_dict, prefix, *more)

    def plain(self) -> Mixing:
        """A norm of PyTorch's in its place, which knows no generations."""
        made: Mixing
        if self.channels:
            made = nn.GroupNorm(self.sets, self.generation.numel(), self.eps)
        else:
            kind = nn.LayerNorm if self.centred else nn.RMSNorm
            made = kind(self._shape, self.eps)
        for name in ("weight", "bias"):
            if hasattr(made, name):
                setattr(made, name, getattr(self, name))
        return made.eval()

    def settle(self, entries: Tensor) -> None:
        """Makes entries the next generation, in place of those that were so and are not stable.

        Args:
            entries: ``(sets, entries)`` bool.
        """
        latest = torch.where(self.stable, self.generation, 0).amax() + 1
        chosen = torch.where(entries.to(self.generation.device), latest, 0)
        self.generation.copy_(torch.where(self.stable, self.generation, chosen))

    def hold(self, entries: Tensor) -> None:
        """Makes the generation of more entries final."""
        self.stable |= entries.to(self.stable.device)

    def thaw(self, entries: Tensor) -> None:
        """Makes entries plastic again; no stable one may be of their generation or a later one."""
        chosen = entries.to(self.stable.device)
        self.stable &= ~chosen
        self.generation.masked_fill_(chosen, 0)

    def counted(self, entries: Tensor) -> Tensor:
        """The stable entries whose statistics count for some, ``(sets, entries)`` bool."""
        chosen = entries.to(self.stable.device) & self.stable
        latest = torch.where(chosen, self.generation, 0).amax(1, keepdim=True)
        return (self.stable & (self.generation <= latest)).cpu()

    def restart(self) -> None:
        """Nothing: it has no statistics of its own."""

    def _generations(self) -> list[list[Tensor]]:
        """The entries of each generation of each set, older ones first, plastic ones last."""
        known, version = self._parts, self.generation._version
        if known is None or known[0] is not self.generation or known[1] != version:
            found = []
            for row in self.generation:
                numbers = [*range(1, int(row.max()) + 1), 0]
                index = [(row == number).nonzero().flatten() for number in numbers]
                found.append([each for each in index if len(each)])
            known = self._parts = self.generation, version, found
        return known[2]

    def _normalised(self, x: Tensor, generations: list[Tensor]) -> Tensor:
        """``(samples, entries, pixels)``, statistics over the last two; to the same."""
        result = torch.zeros_like(x)
        count, mean, squares = 0, x.new_zeros(len(x), 1, 1), x.new_zeros(len(x), 1, 1)
        for index in generations:
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
