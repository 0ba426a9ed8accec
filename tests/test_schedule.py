"""Which sums and inner products are computed together."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from timm_topo.executors.schedule import schedule
from timm_topo.executors.table import Table
from timm_topo.generators import random


@settings(max_examples=100)
@given(
    nodes=st.integers(3, 20), p=st.floats(0.1, 1), seed=st.integers(0, 99),
    size=st.integers(1, 6), start=st.integers(1, 2),
)  # fmt: skip
def test_groups_hold_every_node_and_edge_once(nodes, p, seed, size, start):
    wiring = random(nodes, p, seed).prune()[0]
    groups, last = schedule(wiring, size, start), wiring.num_nodes - 1
    assert [node for group in groups for node in group.nodes] == list(range(1, last))
    dense = torch.zeros(last + 1, last + 1, dtype=torch.long)  # targets, sources
    weights = torch.arange(1, wiring.num_edges + 1)
    for (source, target), weight in zip(wiring.edges, weights):
        dense[target, source] = weight
    for group in groups:
        first, stop = group.nodes.start, group.nodes.stop
        assert len(group.nodes) <= size
        if group.earlier is None:
            assert len(group.nodes) == 1
            assert (group.sums_earlier, group.sums_later) == (False, False)
            continue
        assert first >= start
        assert torch.equal(group.earlier.matrix(weights), dense[first:stop, :first])
        assert torch.equal(group.later.matrix(weights), dense[stop:last, first:stop].T)
        picked = group.earlier.pick(group.earlier.matrix(weights))
        assert torch.equal(picked, weights[group.earlier.numbers])


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason='this PyTorch has no MKL')
def test_sums_are_rounded_only_where_maps_are():
    """Not where products of float32 may be of half precision inside."""
    single, double = (
        Table(torch.empty(3, 8, dtype=dtype), torch.Size((1, 2, 2, 2)), False)
        for dtype in (torch.float32, torch.float64)
    )
    assert single.sums_per_product == double.sums_per_product > 1
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision('medium')
        assert single.sums_per_product == 1 < double.sums_per_product
    finally:
        torch.set_float32_matmul_precision(before)
