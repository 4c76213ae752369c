"""What methods inherit: draws, and settings that follow the data of each task."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nispa.base.config import build
from nispa.errors import ConfigError
from nispa.methods.base import Method, MethodConfig, derive
from nispa.methods.nispa_config import NispaConfig
from nispa.network.models import NetworkConfig

from .toy import finish, same_tensors, toy_method, toy_problem, toy_task


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


def test_a_task_may_take_more_than_its_share_of_the_classes_to_come() -> None:
    network = build(NetworkConfig, {"architecture": "mlp", "hidden": (8,)})
    config = NispaConfig(derived=("unit_share",))
    for index, share in enumerate((3 / 6, 3 / 4, 1.0)):
        before = [toy_task(earlier).info for earlier in range(index)]
        found = derive(config, network, toy_problem(), toy_task(index), before)
        assert found == {"unit_share": pytest.approx(share)}


def test_what_follows_the_data_replaces_what_was_given() -> None:
    method = started(derived=("batch_size",), batch_size=8, epochs=1)
    finish(method.learn(toy_task(0)))
    assert (method.given.batch_size, method.config.batch_size) == (8, 16)


@pytest.mark.parametrize(("tasks", "missing", "more"), [(6, 10, False), (7, 11, True)])
def test_of_many_outputs_without_a_path_ten_are_named(tasks: int, missing: int, more: bool) -> None:
    method = started(tasks=tasks, network_settings={"hidden": (1,), "density": 0.2})
    assert len(method.unreached) == missing
    named = ", ".join(map(str, method.unreached[:10])) + (" and more" if more else "")
    text = rf"leaves {missing} of {2 * tasks} outputs \({named}\)"
    with pytest.raises(ConfigError, match=text):
        method.check_paths(method.unreached)
