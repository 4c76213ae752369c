"""Operators that compute from elements at several places: these become one unit."""

from __future__ import annotations

from torch import Tensor

from nispa.graph.found import Call
from nispa.graph.operators.pointwise import together
from nispa.graph.operators.registry import operators
from nispa.graph.walk import Walk

INSTEAD = (
    "use nn.Linear or a convolution, whose weights can be dead, and nn.LayerNorm or nn.RMSNorm for "
    "norms"
)


def pooled_sides(name: str) -> int:
    """How many dimensions an operator such as ``avg_pool2d`` pools, as its name says."""
    return next(int(letter) for letter in name if letter.isdigit())


@operators(
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "_upsample_bilinear2d_aa", "upsample_bicubic2d",
    "_upsample_bicubic2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d",
    does="pooling and resizing: the pixels of a channel are one unit",
)  # fmt: skip
def pool(walk: Walk, call: Call) -> Tensor:
    """Over the last dimensions, as many as the name says."""
    x = walk.numbers(next(iter(call.arguments.values())))
    sides = pooled_sides(call.name)
    kept = walk.of_one_unit(call, x, range(x.dim() - sides, x.dim()), "pools", INSTEAD)
    return kept.expand(call.shape).clone()


@operators(
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    does="max-pools that give indices, too",
)  # fmt: skip
def pool_with_indices(walk: Walk, call: Call) -> list[Tensor]:
    """Values and indices are of the same units."""
    x = walk.numbers(next(iter(call.arguments.values())))
    sides = pooled_sides(call.name)
    kept = walk.of_one_unit(call, x, range(x.dim() - sides, x.dim()), "pools", INSTEAD)
    return [kept.expand(shape).clone() for shape in call.shapes]


@operators("col2im", does="patches summed up to an image: those of a channel are one unit")
def folded(walk: Walk, call: Call) -> Tensor:
    """Rows of a patch lie channel by channel."""
    x = walk.numbers(call["self"]).unflatten(-2, (call.shape[-3], -1))
    return walk.of_one_unit(call, x, [-2, -1], "sums", INSTEAD).expand(call.shape).clone()


@operators(
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "prod", "logsumexp", "norm",
    "linalg_vector_norm", "all", "any",
    does="means, sums, extremes over pixels, tokens or a few units, which become one; over all "
    "units of a layer they are refused",
)  # fmt: skip
def reduce(walk: Walk, call: Call) -> Tensor | list[Tensor]:
    """What lies along the dimensions reduced is of one unit."""
    x: Tensor = walk.numbers(call["self"])
    if "other" in call.arguments:  # the larger of two tensors
        return together(walk, call)
    given = call["dim"]
    dims = [given] if isinstance(given, int) else list(given or range(x.dim()))
    dims = sorted({dim % x.dim() for dim in dims}) if x.dim() else []
    kept = walk.of_one_unit(call, x, dims, f"takes the {call.name} over", INSTEAD)
    result = kept if call["keepdim"] else kept.squeeze(dims)
    pair = call.name in ("max", "min") and given is not None
    return [result.clone(), result.clone()] if pair else result.clone()


LOGITS_INSTEAD = (
    "if these are the logits, return them as they are, as the loss takes the soft-max; gates that "
    "stand for themselves can use sigmoid"
)


@operators(
    "softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp",
    does="softmax and running sums over tokens or a few units, which become one; over all units of "
    "a layer they are refused",
)  # fmt: skip
def softmax(walk: Walk, call: Call) -> Tensor:
    """What lies along the dimension is of one unit, and so are all results."""
    x = walk.numbers(call["self"])
    may_be_logits = x.dim() == 2 and "softmax" in call.name
    kept = walk.of_one_unit(
        call,
        x,
        [call["dim"] % x.dim()],
        f"takes the {call.name} over",
        LOGITS_INSTEAD if may_be_logits else INSTEAD,
    )
    return kept.expand(call.shape).clone()
