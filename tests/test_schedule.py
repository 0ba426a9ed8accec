"""Which sums and inner products are computed together, and that products compute them."""

import math

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
            assert not (group.sums_earlier or group.sums_later)
            continue
        assert first >= start
        assert torch.equal(group.earlier.matrix(weights), dense[first:stop, :first])
        assert torch.equal(group.later.matrix(weights), dense[stop:last, first:stop].T)
        picked = group.earlier.pick(group.earlier.matrix(weights))
        assert torch.equal(picked, weights[group.earlier.numbers])


@settings(max_examples=30)
@given(
    maps=st.integers(2, 9), shape=st.sampled_from([(2, 3, 4, 5), (1, 7, 31, 29), (1, 1, 1, 1)]),
    count=st.integers(1, 5), seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_sums_and_products_at_once_are_those_one_by_one(maps, shape, count, seed, data):
    draw, size = torch.Generator().manual_seed(seed), math.prod(shape)

    def noise(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes, dtype=torch.float64, generator=draw)

    flat = noise(maps, size)
    table = Table(flat, torch.Size(shape), False)
    first = data.draw(st.integers(0, maps - 1))
    stop = data.draw(st.integers(first + 1, maps))
    weights, place = noise(count, stop - first), torch.full((count * size + 3,), torch.nan).double()
    sums = table.sums(weights, first, place)
    expected = (weights[:, :, None] * flat[first:stop]).sum(1)
    torch.testing.assert_close(torch.stack([s.reshape(-1) for s in sums]), expected)
    extra, some = [sums[0], flat[0]], noise(stop - first + 2)
    for near, relu in ((range(first, stop), True), (range(0), False)):
        own = torch.cat([some[: len(near)], some[-2:]])
        total = own[-2] * expected[0] + own[-1] * flat[0]
        total = total + (own[: len(near), None] * flat[near.start : near.stop]).sum(0)
        got = table.sum(list(near), own, extra, relu).reshape(-1)
        torch.testing.assert_close(got, total.clamp(min=0) if relu else total)
    products = (flat[first:stop, None] * flat[None, :first]).sum(2)
    torch.testing.assert_close(table.inner_products(first, stop), products)


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
