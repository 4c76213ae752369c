"""How many tasks fit a network, estimated from its first tasks."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from nispa.errors import ConfigError
from nispa.methods.presets import resolve
from nispa.runs.planning import Measured, measure, resized, room
from nispa.runs.runner import accuracy_on
from tests.runs.test_runner import experiment


def units(*stable: int) -> dict[str, tuple[int, int]]:
    return {f"fc{number}": (count, 400) for number, count in enumerate(stable, start=1)}


def test_equal_shares_of_what_is_left_fill_a_layer() -> None:
    # Half of the plastic units each: 1/2, 1/4, 1/8, 1/16 are left, so four tasks begin with room.
    assert room([units(200)]) == room([units(200), units(300)])
    assert room([units(200), units(300)]).tasks == 4


def test_the_layer_that_fills_first_decides_and_is_named() -> None:
    found = room([units(40, 200, 0)])
    assert (found.layer, found.tasks) == ("fc2", 4)


def test_the_range_comes_from_the_greediest_and_the_most_modest_task() -> None:
    found = room([units(200), units(220)])  # a half, then a tenth
    assert (found.least, found.most) == (4, math.ceil(math.log(0.1) / math.log(0.9)))
    assert found.least <= found.tasks <= found.most


@pytest.mark.parametrize(
    ("after", "tasks"), [([0], math.inf), ([400], 1), ([200, 400], 2), ([360], 1), ([359], 2)]
)
def test_empty_and_full_layers(after: list[int], tasks: float) -> None:
    assert room([units(count) for count in after]).tasks == tasks


def test_a_network_without_hidden_units_never_fills() -> None:
    assert math.isinf(room([{}]).tasks)


# Stable units after the first two tasks of EFMNIST, and how many tasks began with more than a
# tenth of each layer plastic (docs/results.md; six stands for "all five, and room for more").
@pytest.mark.parametrize(
    ("first", "second", "began"),
    [
        ((84, 121, 72), (190, 218, 170), 5),
        ((93, 135, 78), (239, 283, 220), 4),
        ((77, 101, 56), (269, 279, 251), 4),
        ((89, 114, 65), (248, 272, 219), 4),
        ((77, 107, 59), (178, 223, 164), 6),
    ],
)
def test_two_tasks_of_efmnist_foretell_the_rest_within_one(
    first: tuple[int, ...], second: tuple[int, ...], began: int
) -> None:
    assert abs(room([units(*first), units(*second)]).tasks - began) <= 1


def test_layers_are_widened_and_the_density_changed() -> None:
    settings = resolve("nispa", "default", "", (1, 28, 28), {"channels": "8,16"})
    wide = resized(settings, 1.5, 0.3).network
    assert (wide.channels, wide.density) == ((16, 24), 0.3)  # multiples of 8
    assert resized(settings) == settings
    assert resized(settings, 0.01).network.channels == (8, 8)
    with pytest.raises(ConfigError, match="resnet18 has no sizes"):
        resized(resolve("nispa", "default", "", (1, 28, 28), {"architecture": "resnet18"}), 2.0)


def test_the_first_tasks_are_learned_as_a_run_would() -> None:
    whole = experiment()
    events = list(measure(whole, 1))
    found = events[-1]
    assert isinstance(found, Measured)
    method = whole.method()
    task = whole.scenario.tasks[0]
    list(method.learn(task))
    census = method.census()
    assert found.room == room([census.stable])
    assert found.live == sum(live for live, _, _ in census.connections.values())
    assert found.accuracies == (accuracy_on(method, task.test, task.info),)


def test_a_method_without_stable_units_is_refused() -> None:
    plain = experiment()
    er = replace(plain, settings=resolve("finetune", "default", "", (1, 8, 8), {}))
    with pytest.raises(ConfigError, match="makes no units stable"):
        next(iter(measure(er, 1)))
