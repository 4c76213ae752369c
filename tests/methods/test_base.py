"""What methods inherit: draws, and settings that follow the data of each task."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nispa.base.config import build
from nispa.errors import ConfigError
from nispa.methods.base import Method, MethodConfig, derive
from nispa.network.models import NetworkConfig

from .toy import same_tensors, toy_method, toy_problem, toy_task


def started(**settings: Any) -> Method:
    method = toy_method("finetune", **settings)
    method.start()
    return method


def drawn(method: Method, task: int, seed: int | None = None) -> dict[str, torch.Tensor]:
    """The weights after a draw."""
    method.redraw_plastic(toy_task(task), "fan_in", seed)
    return {name: value.detach().clone() for name, value in method.network.named_parameters()}


def test_a_draw_is_of_the_seed_and_the_task() -> None:
    first, second = started(seed=1), started(seed=2)
    second.load_state(first.state())
    assert same_tensors(drawn(first, 0), drawn(second, 0, seed=1))
    assert same_tensors(drawn(first, 0, seed=2), drawn(second, 0))
    assert not same_tensors(drawn(first, 0), drawn(second, 0))
    assert not same_tensors(drawn(first, 0), drawn(first, 1))


@pytest.mark.parametrize(
    ("earlier", "rehearses", "batch"),
    [(0, False, 16), (1, False, 16), (0, True, 16), (1, True, 32)],
)
def test_an_epoch_of_a_method_that_rehearses_is_longer(
    earlier: int, rehearses: bool, batch: int
) -> None:
    """A batch is an eighth of the images: of 128 of this task, or of as many of each."""
    config = MethodConfig(derived=("batch_size",))
    network = build(NetworkConfig, {"architecture": "mlp", "hidden": (8,)})
    before = [toy_task(index).info for index in range(earlier)]
    task = toy_task(earlier, count=128)
    found = derive(config, network, toy_problem(), task, before, rehearses)
    assert found == {"batch_size": batch}


def test_the_density_that_would_do_is_at_most_one() -> None:
    method = started(network_settings={"hidden": (1,), "density": 0.8})
    assert method.unreached  # of six outputs five have a connection
    with pytest.raises(ConfigError, match=r"density=1 reaches all of them"):
        method.check_paths(method.unreached)
