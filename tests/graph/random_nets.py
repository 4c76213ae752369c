"""Random small networks of all kinds of operators, some of which mix units and must be refused."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[Tensor], Tensor]
Builder = Callable[["RandomNet", random.Random, Tensor], Step]
BUILDERS: dict[str, Builder] = {}


def builder(make: Builder) -> Builder:
    BUILDERS[make.__name__] = make
    return make


class RandomNet(nn.Module):
    """Steps on images ``(batch, channels, height, width)``, then a head.

    A step may look back at earlier maps: they are kept by their order.
    """

    def __init__(self, plan: Sequence[tuple[str, int]], shape: tuple[int, ...], end: int) -> None:
        super().__init__()
        self.made_of = plan, shape, end
        self.modules_made = nn.ModuleList()
        self.values = nn.ParameterList()
        self.steps: list[Step] = []
        self.earlier: list[Tensor] = []
        x = torch.randn(2, *shape)
        self.eval()
        with torch.no_grad():
            for name, number in plan:
                step = BUILDERS[name](self, random.Random(number), x)
                self.steps.append(step)
                self.earlier.append(x)
                x = step(x)
        flat = bool(end % 2) and x[0].numel() <= 512
        self.pool: Step = (lambda x: x.flatten(1)) if flat else (lambda x: x.mean((2, 3)))
        features = self.pool(x).shape[1]
        self.hidden = nn.Linear(features, 5)
        self.bn = nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 4)
        self.earlier.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> RandomNet:
        """The same steps on copies of the modules: steps know the net that they were made for."""
        with torch.random.fork_rng([]):
            made = RandomNet(*self.made_of)
        for name in ("_modules", "_parameters", "_buffers"):
            setattr(made, name, copy.deepcopy(getattr(self, name), memo))
        made.training = self.training
        return made

    def make(self, module: nn.Module) -> Callable[..., Any]:
        """Keeps a module of a step, and gives a way to whatever takes its place."""
        self.modules_made.append(module.eval())
        place = len(self.modules_made) - 1
        return lambda *given, **named: self.modules_made[place](*given, **named)

    def value(self, *shape: int) -> Callable[[], Tensor]:
        """Keeps a parameter of a step, and gives a way to it."""
        self.values.append(nn.Parameter(torch.randn(shape)))
        place = len(self.values) - 1
        return lambda: self.values[place]

    def forward(self, x: Tensor) -> Tensor:
        earlier: list[Tensor] = []
        self.earlier = earlier
        for step in self.steps:
            earlier.append(x)
            x = step(x)
        self.earlier = []
        logits: Tensor = self.head(F.relu(self.bn(self.hidden(self.pool(x)))))
        return logits


def divisor(number: int, draw: random.Random) -> int:
    return draw.choice([each for each in range(1, number + 1) if number % each == 0])


@builder
def start(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    return net.make(nn.Conv2d(x.shape[1], 6, 3, padding=1))


@builder
def convolution(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    kernel = draw.choice([1, 3])
    after = draw.choice([2, 4, 6])
    groups = draw.choice([each for each in (1, 1, 2) if x.shape[1] % each == 0])
    stride = draw.choice([1, 1, 2]) if min(x.shape[2:]) > 2 else 1
    return net.make(
        nn.Conv2d(
            x.shape[1], after, kernel, stride, kernel // 2, groups=groups, bias=draw.random() < 0.5
        )
    )


@builder
def spread(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    after, kernel = draw.choice([2, 4, 6]), draw.choice([1, 2, 3])
    stride = draw.choice([1, 2]) if max(x.shape[2:]) < 5 else 1
    return net.make(
        nn.ConvTranspose2d(
            x.shape[1], after, kernel, stride, padding=kernel // 2, output_padding=stride - 1
        )
        if kernel > 1
        else nn.ConvTranspose2d(x.shape[1], after, 1, bias=draw.random() < 0.5)
    )


@builder
def product(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    before, after = x.shape[1], draw.choice([2, 4, 6])
    how = draw.choice(["x @ w", "x @ w.T", "linear", "addmm"])
    weight = net.value(after, before) if how == "x @ w.T" else net.value(before, after)
    bias = net.value(after) if how in ("linear", "addmm") else weight

    def by(x: Tensor) -> Tensor:
        if how == "linear":
            return F.linear(x, weight().t(), bias())
        if how == "addmm":
            return torch.addmm(bias(), x.flatten(0, 1), weight()).view(*x.shape[:2], -1)
        return x @ (weight() if how == "x @ w" else weight().T)

    return lambda x: by(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])


@builder
def depthwise(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    channels = x.shape[1]
    return net.make(
        nn.Conv2d(channels, channels * draw.choice([1, 2]), 3, padding=1, groups=channels)
    )


@builder
def batch_norm(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    return net.make(nn.BatchNorm2d(x.shape[1], affine=draw.random() < 0.7))


@builder
def group_norm(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    groups = divisor(x.shape[1], draw)
    norm = net.make(nn.GroupNorm(groups, x.shape[1]))
    return norm if groups < x.shape[1] else lambda x: norm(x).relu()  # as behind an instance norm


@builder
def instance_norm(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    if x.shape[2] * x.shape[3] < 2:
        return lambda x: x
    norm = net.make(nn.InstanceNorm2d(x.shape[1], affine=draw.random() < 0.5))
    return lambda x: norm(x).relu()  # its means are 0, of which a norm behind a pool makes noise


@builder
def reordered(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    order = list(range(x.shape[1]))
    draw.shuffle(order)
    return lambda x: x[:, order]


@builder
def layer_norm(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    norm = net.make(draw.choice([nn.LayerNorm, nn.RMSNorm])(x.shape[1]))
    return lambda x: norm(x.movedim(1, -1)).movedim(-1, 1)


@builder
def activation(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    steps: list[Step] = [F.relu, F.gelu, F.silu, torch.sigmoid, F.hardswish]
    return draw.choice(steps)


@builder
def pool(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    if min(x.shape[2:]) < 2:
        return lambda x: x * 1.0
    return draw.choice([nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2)])


@builder
def residual(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    fits = [place for place, each in enumerate(net.earlier) if each.shape == x.shape]
    if not fits:
        return lambda x: x + 1
    place, product = draw.choice(fits), draw.random() < 0.3
    return lambda x: x * net.earlier[place] if product else x + net.earlier[place]


@builder
def in_place(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    fits = [place for place, each in enumerate(net.earlier) if each.shape == x.shape]
    place, half = draw.choice([*fits, -1]), x.shape[1] // 2

    def step(x: Tensor) -> Tensor:
        x = x.clone()
        x[:, :half] += net.earlier[place][:, :half] if place >= 0 else 1.0
        return x

    return step


@builder
def overwritten(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    fits = [place for place, each in enumerate(net.earlier) if each.shape == x.shape]
    if not fits:
        return lambda x: x
    place, half = draw.choice(fits), x.shape[1] // 2

    def step(x: Tensor) -> Tensor:
        room = torch.zeros_like(x)
        room[:, :half] = x[:, :half]
        room[:, half:] = net.earlier[place][:, half:]
        return room

    return step


@builder
def concatenated(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    fits = [n for n, each in enumerate(net.earlier) if each.shape[2:] == x.shape[2:]]
    if not fits or x.shape[1] > 8:
        return lambda x: x
    place = draw.choice(fits)
    return lambda x: torch.cat([x, net.earlier[place]], 1)


@builder
def shortcut_padded(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    fits = [
        place
        for place, each in enumerate(net.earlier)
        if each.shape[2:] == x.shape[2:] and each.shape[1] < x.shape[1]
    ]
    if not fits:
        return lambda x: x
    place = draw.choice(fits)
    more = x.shape[1] - net.earlier[place].shape[1]
    return lambda x: x + F.pad(net.earlier[place], (0, 0, 0, 0, more // 2, more - more // 2))


@builder
def shuffle(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    groups = divisor(x.shape[1], draw)
    return lambda x: x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


@builder
def mirrored(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    return lambda x: x + x.flip(1)  # two rows each


@builder
def gate(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    squeeze = net.make(nn.Conv2d(x.shape[1], 3, 1))
    excite = net.make(nn.Conv2d(3, x.shape[1], 1))
    return lambda x: x * excite(squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


@builder
def halves(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    if x.shape[1] % 2:
        return lambda x: x
    return lambda x: F.glu(x, 1)


@builder
def scale(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    factor = net.value(*draw.choice([(x.shape[1], 1, 1), ()]))  # for each channel, or one for all
    return lambda x: x * factor()


@builder
def positions(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    added = net.value(*x.shape[1:])
    return lambda x: x + added()


@builder
def twice(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    layer = net.make(nn.Conv2d(x.shape[1], x.shape[1], 3, padding=1))
    return lambda x: layer(layer(x).relu())


@builder
def attention(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    width, heads = x.shape[1], divisor(x.shape[1], draw)
    packed, out = net.make(nn.Linear(width, 3 * width)), net.make(nn.Linear(width, width))
    by_hand = draw.choice(["matmul", "einsum", "function"])

    def step(x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = packed(tokens).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if by_hand == "function":
            y = F.scaled_dot_product_attention(q, k, v)
        elif by_hand == "einsum":
            weights = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
            y = torch.einsum("bhij,bhjd->bhid", weights, v)
        else:
            y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        tokens = tokens.add(out(y.transpose(1, 2).flatten(2)))
        return tokens.transpose(1, 2).reshape(x.shape)

    return step


@builder
def standard_attention(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    layer = net.make(nn.MultiheadAttention(x.shape[1], divisor(x.shape[1], draw), batch_first=True))
    how = draw.choice(["crossed", "causal", "plain", "without weights"])

    def step(x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        read = tokens[:, :1] if how == "crossed" else tokens
        steps = tokens.shape[1]
        mask = torch.ones(steps, steps, dtype=torch.bool).triu(1) if how == "causal" else None
        weights = how != "without weights"
        y, _ = layer(tokens, read, read, attn_mask=mask, need_weights=weights)
        return tokens.add(y).transpose(1, 2).reshape(x.shape)

    return step


# What mixes units: it must be refused, wherever it stands.


@builder
def spatial_gate(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    layer = net.make(nn.Conv2d(x.shape[1], 1, 1))
    return lambda x: x * layer(x).sigmoid()


@builder
def mixed(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    return draw.choice(
        [
            lambda x: x.softmax(1),
            lambda x: x - x.mean(1, keepdim=True),
            lambda x: x.cumsum(1),
            lambda x: x + x.roll(1, 1),
            lambda x: x * x.amax(1, keepdim=True),
            lambda x: F.normalize(x, dim=1),
        ]
    )


@builder
def token_mixing(net: RandomNet, draw: random.Random, x: Tensor) -> Step:
    tokens = x[0, 0].numel()
    layer = net.make(nn.Linear(tokens, tokens))
    return lambda x: x + layer(x.flatten(2)).reshape(x.shape)
