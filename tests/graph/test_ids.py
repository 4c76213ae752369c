"""Tied numbers held against SciPy's connected components."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from nispa.graph.ids import merged


@given(st.data())
def test_connected_numbers_get_the_least_of_them(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 30))
    number = st.integers(0, count - 1)
    pairs = np.array(data.draw(st.lists(st.tuples(number, number), min_size=1, max_size=40)))
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    _, part = connected_components(graph, directed=False)
    wanted = [int(np.flatnonzero(part == each).min()) for each in part]
    assert merged(torch.arange(count), torch.from_numpy(pairs)).tolist() == wanted


def test_a_long_chain_in_any_order_ends_soon() -> None:
    order = torch.randperm(100_000, generator=torch.Generator().manual_seed(0))
    pairs = torch.stack([order[:-1], order[1:]], dim=1)
    assert not merged(torch.arange(100_000), pairs).any()
