"""A stage counts on its edges alone; smaller stages; parts that do not fit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from timm_topo.connectivity import StaticConnectivity, build_connectivity
from timm_topo.generators import complete, sequential
from timm_topo.nodes import NODES, ConvNorm
from timm_topo.stages import GraphStage, select_edges
from timm_topo.wiring import Wiring

# -- running --------------------------------------------------------------------------------------


@pytest.mark.parametrize('rule', ['alpha', 'fixed'])
def test_checkpointing_recomputes_and_gives_the_same_gradients(rule, stage_of):
    stage, calls = stage_of(complete(5), rule), []
    stage.nodes[0].register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    found = []
    for checkpointing in (False, True):
        stage.grad_checkpointing = checkpointing
        output = stage(x)
        wanted = [x, *stage.parameters()]
        found.append([output, *torch.autograd.grad(output.square().sum(), wanted)])
    assert len(calls) == 1 + 2
    torch.testing.assert_close(*found)


# -- select_edges --------------------------------------------------------------------------------


def zeroed(stage: GraphStage, edges: list[int]) -> GraphStage:
    """The stage with the weights of all other edges set to 0."""
    with torch.no_grad():
        for edge in range(stage.wiring.num_edges):
            if edge not in edges:
                stage.connectivity.alpha[edge] = 0
    return stage


@settings(max_examples=30)
@given(data=st.data(), n=st.integers(3, 6), node=st.sampled_from(sorted(NODES)))
def test_selecting_edges_equals_zeroing_the_others_while_no_node_dies(data, n, node, stage_of):
    stage = stage_of(complete(n), node=node).eval()
    live = {stage.wiring.edges.index((i, i + 1)) for i in range(n - 1)}
    edges = sorted(live | data.draw(st.sets(st.integers(0, stage.wiring.num_edges - 1))))
    smaller = select_edges(stage, edges)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert smaller.wiring.edges == tuple(stage.wiring.edges[e] for e in edges)
    torch.testing.assert_close(smaller(x), zeroed(stage, edges)(x))


def test_select_drops_nodes_that_nobody_reads_without_changing_the_output(stage_of):
    stage = stage_of(complete(5)).eval()
    edges = [e for e, (source, _) in enumerate(stage.wiring.edges) if source != 2]
    smaller = select_edges(stage, edges)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert smaller.wiring == complete(4)
    assert list(smaller.nodes) == [stage.nodes[0], stage.nodes[2]]
    torch.testing.assert_close(smaller(x), zeroed(stage, edges)(x))


def test_the_first_node_reads_the_stage_input_until_it_goes(stage_of, naive_stage):
    stage = stage_of(complete(5), node='conv').eval()
    assert stage.first_reads_input
    assert stage.nodes[0].conv.in_channels == 3
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    without = [e for e, edge in enumerate(stage.wiring.edges) if 1 not in edge]
    smaller = select_edges(stage, without)
    assert (smaller.first_reads_input, smaller.node_ids) == (False, [0, 2, 3, 4])
    torch.testing.assert_close(smaller(x), zeroed(stage, without)(x))
    without = [e for e, edge in enumerate(smaller.wiring.edges) if 1 not in edge]
    again = select_edges(smaller, without)
    assert again.node_ids == [0, 3, 4], 'ids of the first stage'
    torch.testing.assert_close(again(x), naive_stage(again, x))


def test_an_entry_that_nobody_reads_is_not_kept(stage_of):
    stage = stage_of(complete(4), node='conv').eval()
    edges = [e for e, edge in enumerate(stage.wiring.edges) if edge[0] or edge == (0, 1)]
    smaller = select_edges(stage, edges)
    assert smaller.first_reads_input
    assert not list(smaller.entry.parameters())
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(smaller(x), zeroed(stage, edges)(x))
    smaller(x).sum().backward()
    assert all(parameter.grad is not None for parameter in smaller.parameters())


def test_an_entry_that_a_router_looks_at_is_kept():
    class Pooled(StaticConnectivity):
        needs_context = True

        def __init__(self, wiring):
            super().__init__(wiring)
            self.alpha = nn.Parameter(torch.ones(wiring.num_edges))

        def squash(self, alpha):
            return alpha

        def forward(self, node, context=None):
            assert context.shape[1:] == (len(self.wiring.preds(node)), 4)
            return super().forward(node) * context.mean(-1)

    parts = NODES['conv'](3, 4, 2, stride=1, dilation=1)
    wiring = sequential(4)
    stage = GraphStage(wiring, Pooled(wiring), parts.entry, parts.nodes, first_reads_input=True)
    assert isinstance(stage.entry, ConvNorm)
    stage(torch.randn(2, 3, 6, 6)).sum().backward()


# -- GraphStage: bad input ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('wiring', 'rule_wiring', 'nodes', 'message'),
    [
        (Wiring(4, [(0, 1), (0, 2), (2, 3)]), None, 2, r'nodes \[1\] of Wiring.* are dead.*prune'),
        (Wiring(4, [(0, 1), (2, 3)]), None, 2, r'nodes \[0, 1, 2, 3\] of Wiring.* are dead'),
        (complete(4), None, 3, r'Wiring\(num_nodes=4.*\) has 2 computing nodes, got 3'),
        (complete(4), None, 0, r'Wiring\(num_nodes=4.*\) has 2 computing nodes, got 0'),
        (complete(4), complete(5), 2, r'built for a wiring other than Wiring\(num_nodes=4'),
        (
            Wiring(4, [(0, 1), (0, 2), (1, 3), (2, 3)]),
            Wiring(4, [(0, 1), (1, 2), (1, 3), (2, 3)]),
            2,
            'built for a wiring other than',
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(wiring, rule_wiring, nodes, message):
    rule = build_connectivity('alpha', rule_wiring or wiring)
    with pytest.raises(ValueError, match=message):
        GraphStage(wiring, rule, nn.Identity(), [nn.Identity() for _ in range(nodes)])


@pytest.mark.parametrize('ids', [[0, 1, 2], [1, 2, 3, 4], [0, 2, 1, 3], [0, 1, 1, 3]])
def test_node_ids_that_do_not_fit_are_refused(ids):
    rule = build_connectivity('alpha', complete(4))
    with pytest.raises(ValueError, match='needs as many node ids, ascending from 0, got'):
        GraphStage(complete(4), rule, nn.Identity(), [nn.Identity(), nn.Identity()], node_ids=ids)


def test_a_first_node_that_reads_the_input_must_exist():
    rule = build_connectivity('alpha', complete(2))
    with pytest.raises(ValueError, match='has no computing node that could read the stage input'):
        GraphStage(complete(2), rule, nn.Identity(), [], first_reads_input=True)
