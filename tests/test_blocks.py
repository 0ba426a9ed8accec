"""Several sums over the same maps at once, and the memory that they are lent."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm_topo.stages.blocks import blocks

from timm_topo.generators import random
from timm_topo.stages import reuse, table


@settings(max_examples=100)
@given(
    nodes=st.integers(3, 20), p=st.floats(0.1, 1), seed=st.integers(0, 99),
    most=st.integers(1, 6), start=st.integers(1, 2),
)  # fmt: skip
def test_blocks_hold_every_node_and_edge_once(nodes, p, seed, most, start):
    wiring = random(nodes, p, seed).prune()[0]
    found = blocks(wiring, most, start)
    assert [node for block in found for node in block.nodes] == list(range(1, wiring.num_nodes - 1))
    dense = np.zeros((wiring.num_nodes, wiring.num_nodes))  # targets, sources
    weights = torch.arange(1, wiring.num_edges + 1)
    for (source, target), weight in zip(wiring.edges, weights):
        dense[target, source] = weight
    for block in found:
        first, stop = block.nodes.start, block.nodes.stop
        assert len(block.nodes) <= most
        if block.read is None:
            assert len(block.nodes) == 1
            assert not block.ahead
            assert not block.behind
            continue
        assert first >= start
        assert (block.read.matrix(weights).numpy() == dense[first:stop, : stop - 1]).all()
        assert (block.before.matrix(weights).numpy() == dense[first:stop, :first]).all()
        assert (block.after.matrix(weights).numpy() == dense[stop:-1, first:stop].T).all()
        picked = block.before.pick(block.before.matrix(weights))
        assert picked.tolist() == weights[block.before.numbers].tolist()


@settings(max_examples=30)
@given(
    maps=st.integers(2, 9), shape=st.sampled_from([(2, 3, 4, 5), (1, 7, 31, 29), (1, 1, 1, 1)]),
    count=st.integers(1, 5), seed=st.integers(0, 99), data=st.data(),
)  # fmt: skip
def test_sums_and_products_at_once_are_those_one_by_one(maps, shape, count, seed, data):
    draw = torch.Generator().manual_seed(seed)
    size = math.prod(shape)
    flat = torch.randn(maps, size, dtype=torch.float64, generator=draw)
    one = table.Table(flat, shape, False)
    first = data.draw(st.integers(0, maps - 1))
    stop = data.draw(st.integers(first + 1, maps))
    weights = torch.randn(count, stop - first, dtype=torch.float64, generator=draw)
    place = torch.full((count * size + 3,), torch.nan, dtype=torch.float64)
    sums = one.sums(weights, first, place)
    expected = (weights[:, :, None] * flat[first:stop]).sum(1)
    torch.testing.assert_close(torch.stack([s.reshape(-1) for s in sums]), expected)
    besides = [sums[0], flat[0]]
    some = torch.randn(stop - first + 2, dtype=torch.float64, generator=draw)
    for near, relu in ((range(first, stop), True), (range(0), False)):
        own = torch.cat([some[: len(near)], some[-2:]])
        got = one.sum(list(near), own, besides, relu).reshape(-1)
        total = own[-2] * expected[0] + own[-1] * flat[0]
        total = total + (own[: len(near), None] * flat[near.start : near.stop]).sum(0)
        torch.testing.assert_close(got, total.clamp(min=0) if relu else total)
    inner = one.inner(first, stop)
    expected = (flat[first:stop, None] * flat[None, :first]).sum(2)
    torch.testing.assert_close(inner, expected)


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason='this PyTorch has no MKL')
def test_sums_are_rounded_only_where_maps_are():
    """Not where products of float32 may be of half precision inside."""
    single, double = (
        table.Table(torch.empty(3, 8, dtype=dtype), torch.Size((1, 2, 2, 2)), False)
        for dtype in (torch.float32, torch.float64)
    )
    assert single.together == double.together == 4
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision('medium')
        assert single.together == 1
        assert double.together == 4
    finally:
        torch.set_float32_matmul_precision(before)


def test_memory_is_lent_of_tables_that_wait():
    reuse.let_go()
    waiting = [torch.full((2, 8), 1.0), torch.full((3, 8), 2.0)]
    for flat in waiting:
        reuse.give_back(flat)
    like = torch.empty(0)
    with reuse.lent(like, 20) as place:
        assert place.shape == (20,)
        assert place.data_ptr() == waiting[1].data_ptr()
        assert len(reuse._FREE) == 1
        with reuse.lent(like, 20) as other:
            assert other.data_ptr() not in {flat.data_ptr() for flat in waiting}
    assert {flat.data_ptr() for flat in reuse._FREE} == {flat.data_ptr() for flat in waiting}
    with reuse.lent(like.double(), 4) as place:
        assert place.dtype == torch.float64
    assert len(reuse._FREE) == 2
    reuse.let_go()
