"""What the operations of each method are for, against hand counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nispa.methods import METHODS
from nispa.network.operations import Ledger, counting
from tests.extent import one_of_each_kind

from .toy import brief, finish, toy_method, toy_task


def learned(name: str, **settings: Any) -> Iterator[dict[str, int]]:
    """What each of two tasks took, of two epochs each."""
    method = toy_method(name, epochs=2, tasks=2, **settings)
    method.start()
    for index in range(2):
        ledger = Ledger()
        with counting(ledger):
            finish(method.learn(toy_task(index)))
        yield ledger.table()


def per(name: str, **settings: Any) -> tuple[int, int, int]:
    """Forward, weights and inputs of a toy network with nothing frozen, by live connections."""
    method = toy_method(name, **settings)
    method.start()
    live = [layer.live_count for layer in method.network.layers.values()]
    return 2 * sum(live), 2 * sum(live), 2 * sum(live[1:])


PLAIN = ("forward", "weight_gradients", "input_gradients")


def test_finetuning_by_hand() -> None:
    """48 images and 16 for validation, batches of 8, two epochs: 12 updates a task."""
    forward, weights, inputs = per("finetune", tasks=2)
    values = weights // 2 + 16 + 12 + 4
    wanted = {
        **dict(zip(PLAIN, (96 * forward, 96 * weights, 96 * inputs), strict=True)),
        "updates": 12 * values * 13,
        "validation": 2 * 16 * forward,
    }
    assert list(learned("finetune")) == [wanted, wanted]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        # 12 steps with batches of 8; a reservoir gives samples from the second step on.
        ("rehearsal", 0, 12 * 8),
        ("er", 11 * 8, 12 * 8),
        ("der", 11 * 8, 12 * 8),
        ("derpp", 11 * 16, 12 * 16),
        ("fdr", 0, 12 * 8),
    ],
)
def test_replay_is_told_apart(name: str, first: int, second: int) -> None:
    forward, weights, inputs = per(name, tasks=2)
    tables = list(learned(name, incremental="class"))
    for table, count in zip(tables, (first, second), strict=True):
        assert [table[key] for key in PLAIN] == [96 * forward, 96 * weights, 96 * inputs]
        assert table.get("replay", 0) == count * (forward + weights + inputs)


def test_projections_are_told_apart() -> None:
    forward, weights, inputs = per("gem", tasks=2)
    first, second = learned("gem")
    assert "projection" not in first
    assert second["projection"] == 12 * 24 * (forward + weights + inputs)  # all the memory, always
    assert "replay" not in second
    _, second = learned("a-gem")
    assert second["projection"] == 12 * 8 * (forward + weights + inputs)


def test_importances_are_told_apart() -> None:
    forward, weights, inputs = per("ewc", tasks=2)
    for table in learned("ewc", samples=10):
        assert table["importance"] == 10 * (forward + weights + inputs)
    for table in learned("mas"):
        assert table["importance"] == 48 * (forward + weights + inputs)


def test_nispa_measures_activity_after_each_phase_but_the_last() -> None:
    method = toy_method("nispa", epochs_per_phase=1, max_phases=3)
    method.start()
    ledger = Ledger()
    with counting(ledger):
        _, report = finish(method.learn(toy_task(0)))
    table = ledger.table()
    assert report.phases == 3
    live = sum(layer.live_count for layer in method.network.layers.values())
    assert table["activity"] == 2 * 48 * 2 * live  # rewiring keeps the number of connections
    assert table["validation"] == 3 * 16 * 2 * live
    assert table["forward"] == 3 * 48 * 2 * live
    before = table["input_gradients"]
    ledger = Ledger()
    with counting(ledger):
        finish(method.learn(toy_task(1)))
    frozen = sum(layer.frozen_count for layer in method.network.layers.values())
    assert frozen > 0
    assert ledger.table()["weight_gradients"] < table["weight_gradients"]
    assert ledger.table()["input_gradients"] < before


@pytest.mark.parametrize("name", one_of_each_kind(METHODS))
def test_what_is_kept_between_passes_changes_no_number(name: str) -> None:
    """The activations of stable units, whose work the cache saves, count all the same."""
    tables = []
    for cache in (0, 2**29):
        method = toy_method(name, **brief(name))
        method.cache_bytes = cache
        method.start()
        ledger = Ledger()
        with counting(ledger):
            for index in range(2):
                finish(method.learn(toy_task(index)))
        tables.append(ledger.table())
    assert tables[0] == tables[1]
    assert {"forward", "weight_gradients", "input_gradients", "updates"} <= tables[0].keys()
