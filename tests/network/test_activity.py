from __future__ import annotations

import torch

from nispa.network.activity import total_activity, unit_activity


def test_a_linear_unit_sums_over_the_batch() -> None:
    activations = torch.tensor([[1.0, 0.0, 2.0], [0.5, 0.0, 3.0]])
    assert unit_activity(activations).tolist() == [1.5, 0.0, 5.0]


def test_a_channel_sums_over_batch_and_positions() -> None:
    one = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 7.0]]])  # 2 channels, 2x2
    activations = torch.stack([one, 10 * one])
    assert unit_activity(activations).tolist() == [110.0, 77.0]


def test_signed_activations_do_not_cancel() -> None:
    assert unit_activity(torch.tensor([[-2.0, 1.0], [2.0, -1.0]])).tolist() == [4.0, 2.0]
    assert unit_activity(torch.tensor([[[[-1.0, 1.0]]]])).tolist() == [2.0]


def test_sums_are_kept_in_double_precision() -> None:
    # In float32, 16777216 + 1 is 16777216 again.
    activity = unit_activity(torch.tensor([[16777216.0], [1.0]]))
    assert activity.dtype == torch.float64
    assert activity.tolist() == [16777217.0]


def test_an_empty_batch_is_silent() -> None:
    assert unit_activity(torch.zeros(0, 3)).tolist() == [0.0, 0.0, 0.0]


def test_totals_add_up_over_batches_group_by_group() -> None:
    first = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0])}
    second = {"a": torch.tensor([10.0, 20.0]), "b": torch.tensor([0.5])}
    totals = total_activity([first, second])
    assert {name: sums.tolist() for name, sums in totals.items()} == {"a": [11.0, 22.0], "b": [5.5]}
    assert first["a"].tolist() == [1.0, 2.0]
