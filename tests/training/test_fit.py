from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nispa.base.seeding import stream
from nispa.data.tasks import JoinedSamples, Samples
from nispa.errors import ConfigError, DivergedError
from nispa.methods.base import Fitting
from nispa.network.models import NetworkConfig, build_network
from nispa.training.fit import (
    EVALUATION_BATCH,
    Batch,
    ClassMask,
    FitResult,
    OptimiserConfig,
    Term,
    accuracy,
    falling_rate,
    fit,
    gradient_of,
    gradient_step,
    make_optimiser,
)
from nispa.training.pausing import EpochEnd

CPU = torch.device("cpu")


def numbered(count: int) -> Samples:
    """Images of one pixel; each image's label is its number."""
    return Samples(torch.zeros(count, 1, 1, 1), torch.arange(count))


class Counter(nn.Module):
    """A network whose one value counts the steps taken."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.steps: Tensor


def drive(run: Fitting) -> tuple[list[EpochEnd], FitResult]:
    """The epochs of a fit and its result."""
    ends: list[EpochEnd] = []
    while True:
        try:
            event = next(run)
        except StopIteration as stop:
            return ends, stop.value
        if isinstance(event, EpochEnd):
            ends.append(event)


class Run:
    """A fit of a :class:`Counter` with scripted validation accuracies."""

    def __init__(
        self,
        accuracies: Sequence[float | None],
        *,
        samples: int = 5,
        batch_size: int = 2,
        keep: Literal["best", "last"] = "best",
        patience: int | None = None,
        losses: Sequence[float] = (),
    ) -> None:
        self.network = Counter()
        self.seen: list[list[int]] = []
        self.places: list[tuple[int, int]] = []
        left, loss = iter(accuracies), iter(losses)

        def validate() -> float | None:
            self.network.eval()
            return next(left)

        def step(batch: Batch) -> Tensor:
            assert self.network.training
            assert len(batch) == len(batch.images) == len(batch.labels)
            self.network.steps += 1
            self.seen.append(batch.labels.tolist())
            self.places.append((batch.epoch, batch.number))
            return torch.tensor(next(loss, 1.0))

        self.ends, self.result = drive(
            fit(
                self.network,
                step,
                numbered(samples),
                epochs=len(accuracies),
                batch_size=batch_size,
                order=lambda epoch: stream(0, "batches", epoch),
                validate=validate,
                keep=keep,
                patience=patience,
                optimiser=None,
            )
        )

    @property
    def epoch_kept(self) -> float:
        return float(self.network.steps) / 3  # five samples in batches of two: three steps


def test_fit_keeps_the_epoch_of_the_best_accuracy() -> None:
    run = Run([0.5, 0.75, 0.25])
    assert run.epoch_kept == 2
    assert run.result == FitResult(accuracy=0.75, epoch=2, epochs=3, samples=15)


def test_of_equal_epochs_the_first_is_kept() -> None:
    run = Run([0.5, 0.75, 0.75, 0.5])
    assert run.epoch_kept == 2
    assert run.result.epoch == 2


def test_an_accuracy_of_zero_is_an_accuracy() -> None:
    run = Run([0.0, 0.0])
    assert run.epoch_kept == 1
    assert run.result.accuracy == 0.0


def test_fit_can_keep_the_last_epoch() -> None:
    run = Run([0.75, 0.5], keep="last")
    assert run.epoch_kept == 2
    assert run.result == FitResult(accuracy=0.5, epoch=2, epochs=2, samples=10)


def test_without_validation_the_last_epoch_is_kept() -> None:
    run = Run([None, None, None], patience=1)
    assert run.epoch_kept == 3
    assert run.result == FitResult(accuracy=None, epoch=3, epochs=3, samples=15)


def test_patience_counts_epochs_without_a_better_accuracy() -> None:
    run = Run([0.5, 0.75, 0.75, 0.5, 1.0, 1.0], patience=2)
    assert run.result == FitResult(accuracy=0.75, epoch=2, epochs=4, samples=20)
    assert run.epoch_kept == 2
    assert len(run.ends) == 4


def test_patience_starts_anew_after_a_better_epoch() -> None:
    run = Run([0.5, 0.25, 0.75, 0.5, 1.0], patience=2)
    assert run.result == FitResult(accuracy=1.0, epoch=5, epochs=5, samples=25)


def test_each_epoch_reports_its_mean_loss_by_sample() -> None:
    # Batches of 2, 2 and 1 samples: (2 * 1 + 2 * 2 + 1 * 4) / 5 = 2
    run = Run([0.5, 1.0], losses=[1.0, 2.0, 4.0, 0.0, 0.0, 5.0])
    assert [(end.epoch, end.loss) for end in run.ends] == [(1, 2.0), (2, 1.0)]
    assert [end.validation_accuracy for end in run.ends] == [0.5, 1.0]
    assert [end.samples for end in run.ends] == [5, 5]
    assert all(end.seconds >= 0 for end in run.ends)


def test_every_epoch_sees_every_sample_once_in_an_order_of_its_own() -> None:
    run = Run([0.5, 0.5], samples=50, batch_size=16)
    assert [len(batch) for batch in run.seen] == [16, 16, 16, 2] * 2
    orders = [list(itertools.chain(*batches)) for batches in (run.seen[:4], run.seen[4:])]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])
    assert Run([0.5, 0.5], samples=50, batch_size=16).seen == run.seen


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_the_fit(loss: float) -> None:
    with pytest.raises(DivergedError, match=f"loss became {loss} in epoch 2; pass a smaller learn"):
        Run([0.5, 0.5, 0.5], losses=[1.0, 1.0, 1.0, 1.0, loss])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_last_update_that_no_loss_has_seen_stops_the_fit(keep: Literal["best", "last"]) -> None:
    network = Counter()

    def step(batch: Batch) -> Tensor:
        if batch.epoch == 2 and batch.number == 3:
            network.steps.fill_(torch.nan)
        return torch.tensor(1.0)

    with pytest.raises(DivergedError, match="no longer finite after epoch 2; pass a smaller learn"):
        drive(
            fit(
                network,
                step,
                numbered(5),
                epochs=2,
                batch_size=2,
                order=lambda epoch: stream(0, "batches", epoch),
                validate=lambda: 0.5 + float(network.steps.isnan()),
                keep=keep,
                optimiser=None,
            )
        )


def test_fit_takes_joined_samples() -> None:
    seen: list[int] = []

    def step(batch: Batch) -> Tensor:
        assert torch.equal(two.batch(batch.index)[1], batch.labels)
        seen.extend(batch.labels.tolist())
        return torch.tensor(1.0)

    two = JoinedSamples((numbered(3), numbered(2)))
    drive(
        fit(
            Counter(),
            step,
            two,
            epochs=1,
            batch_size=2,
            order=lambda epoch: stream(0, epoch),
            validate=lambda: None,
            optimiser=None,
        )
    )
    assert sorted(seen) == [0, 0, 1, 1, 2]


def test_fit_learns_and_puts_sparse_values_back() -> None:
    network = build_network(NetworkConfig(hidden=(8,), density=0.5), (1, 2, 2), 2, seed=0)
    images = torch.rand(40, 1, 2, 2, generator=stream(0, "x"))
    train = Samples(images, (images.flatten(1)[:, 0] > 0.5).long())
    mask = ClassMask((0, 1), 2, "slice", CPU)
    optimiser = make_optimiser(OptimiserConfig(learning_rate=0.05), network.parameters())
    accuracies: list[float] = []

    def validate() -> float | None:
        reached = accuracy(network, mask.predict, train)
        assert reached is not None
        accuracies.append(reached)
        return reached

    ends, result = drive(
        fit(
            network,
            gradient_step(lambda x, labels: mask.loss(network(x), labels), optimiser),
            train,
            epochs=25,
            batch_size=8,
            order=lambda epoch: stream(0, "batches", epoch),
            validate=validate,
            optimiser=optimiser,
        )
    )
    assert ends[-1].loss < ends[0].loss / 2
    assert result.accuracy == max(accuracies) > 0.9
    assert accuracy(network, mask.predict, train) == result.accuracy


# Steps and optimisers.


def given(images: Tensor) -> Batch:
    return Batch(images, torch.zeros(len(images)), torch.arange(len(images)), 1, 1)


def test_a_gradient_step_by_hand() -> None:
    value = nn.Parameter(torch.tensor([3.0]))
    config = OptimiserConfig(optimiser="sgd", learning_rate=0.1, momentum=0.5, weight_decay=0.2)
    step = gradient_step(lambda x, labels: (value * x).sum(), make_optimiser(config, [value]))
    loss = step(given(torch.tensor([2.0])))
    assert float(loss) == 6.0
    assert not loss.requires_grad
    # gradient 2 + 0.2 * 3 = 2.6; 3 - 0.26 = 2.74
    assert value.tolist() == pytest.approx([2.74])
    step(given(torch.tensor([2.0])))
    # gradient 2 + 0.2 * 2.74 = 2.548; velocity 0.5 * 2.6 + 2.548 = 3.848; 2.74 - 0.3848
    assert value.tolist() == pytest.approx([2.3552])


def test_a_step_without_anything_to_learn_returns_the_loss() -> None:
    optimiser = make_optimiser(OptimiserConfig(), [nn.Parameter(torch.zeros(0))])
    step = gradient_step(lambda x, labels: x.sum(), optimiser)
    assert float(step(given(torch.ones(3)))) == 3.0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("adadelta", torch.optim.Adadelta),
    ],
)
def test_every_optimiser_gets_its_settings(name: str, kind: type) -> None:
    values: dict[str, Any] = {"optimiser": name, "learning_rate": 0.25, "weight_decay": 0.125}
    config = OptimiserConfig(**values, momentum=0.5)
    full, empty = nn.Parameter(torch.ones(2)), nn.Parameter(torch.zeros(0))
    optimiser = make_optimiser(config, [empty, full])
    assert isinstance(optimiser, kind)
    (group,) = optimiser.param_groups
    assert group["params"] == [full]
    assert (group["lr"], group["weight_decay"]) == (0.25, 0.125)
    if name == "sgd":
        assert group["momentum"] == 0.5


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adadelta"])
def test_an_optimiser_over_nothing_does_nothing(name: str) -> None:
    values: dict[str, Any] = {"optimiser": name}
    for parameters in ([], [nn.Parameter(torch.zeros(0))]):
        make_optimiser(OptimiserConfig(**values), parameters).step()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": 0}, r"learning_rate=0 must be a number in \(0, 100\]; 0.01 is usual"),
        ({"batch_size": 0}, r"batch_size=0 must be a whole number in \[1, 10000000\]"),
        ({"momentum": 1}, r"momentum=1 must be a number in \[0, 1\)"),
        ({"weight_decay": -1}, r"weight_decay=-1 must be a number in \[0, inf\)"),
        ({"optimiser": "rmsprop"}, "unknown optimiser 'rmsprop'. Known: adadelta, adam, adamw"),
    ],
)
def test_settings_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        OptimiserConfig(**values)


# Accuracy.


def test_accuracy_is_the_fraction_right() -> None:
    images = torch.arange(8.0).view(4, 2, 1, 1)  # the second value is always the larger one
    samples = Samples(images, torch.tensor([1, 1, 0, 1]))
    assert accuracy(nn.Flatten(), lambda logits: logits.argmax(1), samples) == 0.75


def test_accuracy_counts_across_batches_and_runs_in_evaluation_mode() -> None:
    count = EVALUATION_BATCH + 3
    network = nn.Flatten().train()
    sizes = []

    def predict(logits: Tensor) -> Tensor:
        sizes.append(len(logits))
        assert not torch.is_grad_enabled()
        return torch.zeros(len(logits), dtype=torch.int64)

    samples = Samples(torch.zeros(count, 1, 1, 1), (torch.arange(count) < 512).long())
    assert accuracy(network, predict, samples) == 3 / 515
    assert sizes == [512, 3]
    assert not network.training


def test_accuracy_of_nothing_is_none() -> None:
    assert accuracy(nn.Flatten(), lambda logits: logits.argmax(1), numbered(0)) is None


# Masks of classes.

LOGITS = torch.tensor([[5.0, 1.0, 0.0, 2.0], [5.0, -1.0, 9.0, -3.0]])


def test_slicing_leaves_out_other_classes() -> None:
    mask = ClassMask((1, 3), 4, "slice", CPU)
    assert mask.predict(LOGITS).tolist() == [3, 1]
    # -log(e^2 / (e^1 + e^2)) = log(1 + e^-1); -log(e^-1 / (e^-1 + e^-3)) = log(1 + e^-2)
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2))) / 2
    assert float(mask.loss(LOGITS, torch.tensor([3, 1]))) == pytest.approx(expected)


def test_zeroing_keeps_other_classes_in_the_soft_max() -> None:
    mask = ClassMask((1, 3), 4, "zero", CPU)
    # Logits (0, 1, 0, 2) and (0, -1, 0, -3).
    first = math.log(2 + math.e + math.e**2) - 2
    second = math.log(2 + math.exp(-1) + math.exp(-3)) + 1
    found = mask.loss(LOGITS, torch.tensor([3, 1]))
    assert float(found) == pytest.approx((first + second) / 2)


def test_zeroed_classes_win_when_all_logits_of_the_task_are_negative() -> None:
    mask = ClassMask((1, 3), 4, "zero", CPU)
    assert mask.predict(LOGITS).tolist() == [3, 0]


def test_classes_need_not_be_in_order() -> None:
    mask = ClassMask((2, 0), 3, "slice", CPU)
    logits = torch.tensor([[1.0, 9.0, 3.0]])
    assert mask.predict(logits).tolist() == [2]
    assert float(mask.loss(logits, torch.tensor([2]))) == pytest.approx(math.log(1 + math.exp(-2)))


@pytest.mark.parametrize("how", ["slice", "zero"])
def test_logits_of_other_classes_get_no_gradient(how: str) -> None:
    logits = LOGITS.clone().requires_grad_()
    ClassMask((1, 3), 4, how, CPU).loss(logits, torch.tensor([3, 1])).backward()
    assert logits.grad is not None
    assert logits.grad[:, [0, 2]].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert (logits.grad[:, [1, 3]] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("how", ["slice", "zero"])
@pytest.mark.parametrize("classes", [(2,), (1, 3), (3, 0, 1), (0, 1, 2, 3)])
@pytest.mark.parametrize("batch", [1, 2, 7, 100])
def test_the_closed_form_has_the_bits_of_autograd(
    batch: int, classes: tuple[int, ...], how: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(batch)
    logits = (5 * torch.randn(batch, 4, generator=generator)).to(dtype).requires_grad_()
    labels = torch.tensor(classes)[torch.randint(len(classes), (batch,), generator=generator)]
    loss = ClassMask(classes, 4, how, CPU).loss
    expected = loss(logits, labels)
    (gradient,) = torch.autograd.grad(expected, logits)
    value, found = loss.value_and_gradient(logits.detach(), labels)
    assert torch.equal(value, expected.detach())
    assert found.dtype == dtype
    assert torch.equal(found, gradient)


def test_a_label_among_no_classes_is_an_error() -> None:
    loss = ClassMask((1, 3), 4, "slice", CPU).loss
    for call in (loss, loss.value_and_gradient):
        with pytest.raises(IndexError, match="out of bounds"):
            call(LOGITS, torch.tensor([3, 2]))


def test_a_step_is_told_its_place() -> None:
    run = Run([0.5, 0.5])
    assert run.places == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]


def test_the_gradient_of_several_terms() -> None:
    network = build_network(NetworkConfig(hidden=(8,), density=0.5), (1, 2, 2), 3, seed=0)
    generator = stream(0, "terms")
    images = [torch.rand(count, 1, 2, 2, generator=generator) for count in (7, 3)]
    labels, logits = torch.arange(7) % 3, torch.rand(3, 3, generator=generator)
    terms = [
        Term(images[0], labels, functional.cross_entropy),
        Term(images[1], logits, functional.mse_loss, 2.5),
    ]
    loss = gradient_of(network, terms)
    found = [value.grad for value in network.parameters()]
    network.zero_grad(set_to_none=True)
    wanted = functional.cross_entropy(network(images[0]), labels)
    wanted = wanted + 2.5 * functional.mse_loss(network(images[1]), logits)
    wanted.backward()
    assert float(loss) == pytest.approx(float(wanted.detach()))
    assert not loss.requires_grad
    for gradient, value in zip(found, network.parameters(), strict=True):
        assert gradient is not None
        torch.testing.assert_close(gradient, value.grad)


def test_a_falling_rate_is_a_line_to_zero() -> None:
    config = OptimiserConfig(learning_rate=0.8, decay="linear")
    rates = falling_rate(config)
    assert rates is not None
    assert [rates(done) for done in (0.0, 0.25, 0.5)] == pytest.approx([0.8, 0.6, 0.4])
    assert falling_rate(OptimiserConfig(learning_rate=0.8)) is None


def test_a_fit_takes_the_rate_of_each_step() -> None:
    """Ten images in batches of four, two epochs: a step each 4/20 of the way."""
    value = nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([value], lr=5.0)
    seen = []

    def step(batch: Batch) -> Tensor:
        seen.append(optimiser.param_groups[0]["lr"])
        return torch.zeros(())

    images = torch.zeros(10, 1, 2, 2)
    data = Samples(images, torch.zeros(10, dtype=torch.int64))
    fitting = fit(
        nn.ParameterList([value]),
        step,
        data,
        epochs=2,
        batch_size=4,
        order=lambda epoch: stream(0, "batches", epoch),
        validate=lambda: None,
        keep="last",
        optimiser=optimiser,
        rates=lambda done: 1.0 - done,
    )
    for _ in fitting:
        pass
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.5, 0.3, 0.1])


def test_two_parts_of_a_fit_are_the_whole() -> None:
    """With an optimiser without memory: orders, rates, numbers of epochs and values."""

    def learn(*parts: tuple[int, int]) -> tuple[Tensor, list[int]]:
        value, seen = nn.Parameter(torch.zeros(1)), []
        data = Samples(torch.arange(10.0).view(10, 1, 1, 1), torch.zeros(10, dtype=torch.int64))
        for earlier, epochs in parts:
            optimiser = torch.optim.SGD([value], lr=5.0)

            def step(batch: Batch, optimiser: torch.optim.Optimizer = optimiser) -> Tensor:
                value.grad = (value.detach() - batch.images.mean()) * batch.epoch
                optimiser.step()
                return torch.zeros(())

            fitting = fit(
                nn.ParameterList([value]),
                step,
                data,
                epochs=epochs,
                batch_size=4,
                order=lambda epoch: stream(0, "batches", epoch),
                validate=lambda: None,
                keep="last",
                optimiser=optimiser,
                rates=lambda done: 0.1 * (1.0 - done),
                part=(earlier, 5),
            )
            seen += [event.epoch for event in fitting if isinstance(event, EpochEnd)]
        return value.detach(), seen

    whole, parts = learn((0, 5)), learn((0, 2), (2, 3))
    assert torch.equal(whole[0], parts[0])
    assert whole[1] == parts[1] == [1, 2, 3, 4, 5]
