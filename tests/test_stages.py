"""The weighted sum and the executor, against loops that anyone can check by eye."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm_topo.connectivity import StaticConnectivity, build_connectivity
from timm_topo.generators import complete, random, residual, sequential
from timm_topo.nodes import NODES, ConvNorm
from timm_topo.stages import (
    GraphStage,
    aggregate,
    aggregate_reference,
    graph_stage,
    select_edges,
)
from timm_topo.wiring import Wiring

SHAPE = (2, 3, 4, 5)
FORMS = {'one for all': (), 'per image': (SHAPE[0],)}
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def naive_sum(inputs: list[Tensor], weights: Tensor) -> Tensor:
    """One image after another, one input after another."""
    per_image = weights if weights.ndim == 2 else weights.expand(len(inputs[0]), -1)
    return torch.stack(
        [sum(w * x[image] for w, x in zip(row, inputs)) for image, row in enumerate(per_image)]
    )


def make_inputs(in_degree: int, form: str = 'one for all', layout=LAYOUTS[0], dtype=torch.float32):
    inputs = [
        torch.randn(SHAPE, dtype=dtype).to(memory_format=layout).requires_grad_()
        for _ in range(in_degree)
    ]
    return inputs, torch.randn(*FORMS[form], in_degree, dtype=dtype).requires_grad_()


class Count(TorchDispatchMode):
    """Counts operations on whole feature maps that have one of some words in their name."""

    def __init__(self, *words: str):
        super().__init__()
        self.words, self.count = words, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        on_map = any(isinstance(a, Tensor) and a.numel() >= math.prod(SHAPE) for a in args)
        self.count += on_map and any(word in func.name() for word in self.words)
        return func(*args, **(kwargs or {}))


MULTIPLY = ('mul', 'dot', 'matmul', 'einsum')


# -- aggregate: values and gradients --------------------------------------------------------------


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('in_degree', [1, 2, 3, 4, 5])
def test_fast_path_and_reference_equal_a_naive_loop(in_degree, dtype, layout, form):
    inputs, weights = make_inputs(in_degree, form, layout, dtype)
    direction = torch.randn(SHAPE, dtype=dtype)
    expected = naive_sum(inputs, weights)
    expected_grads = torch.autograd.grad(expected, [weights, *inputs], direction)
    for function in (aggregate, aggregate_reference):
        result = function(inputs, weights)
        torch.testing.assert_close(result, expected)
        assert result.is_contiguous(memory_format=layout)
        grads = torch.autograd.grad(result, [weights, *inputs], direction)
        torch.testing.assert_close(grads, expected_grads)


def test_maps_in_mixed_layouts_add_up_too():
    inputs, weights = make_inputs(3, dtype=torch.float64)
    inputs[1] = inputs[1].detach().to(memory_format=torch.channels_last).requires_grad_()
    inputs[2] = torch.randn(2, 3, 5, 4, dtype=torch.float64).mT.requires_grad_()
    direction = torch.randn(SHAPE, dtype=torch.float64).to(memory_format=torch.channels_last)
    result, expected = aggregate(inputs, weights), naive_sum(inputs, weights)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(
        torch.autograd.grad(result, [weights, *inputs], direction),
        torch.autograd.grad(expected, [weights, *inputs], direction),
    )


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('in_degree', [1, 3])
def test_first_and_second_derivatives_are_numerically_right(in_degree, form):
    inputs, weights = make_inputs(in_degree, form, dtype=torch.float64)

    def function(weights, *inputs):
        return aggregate(inputs, weights)

    torch.autograd.gradcheck(function, (weights, *inputs))
    torch.autograd.gradgradcheck(function, (weights, *inputs))


@pytest.mark.parametrize('form', FORMS)
def test_gradients_are_computed_only_where_asked_for(form):
    inputs, weights = make_inputs(3, form, dtype=torch.float64)
    maps_only = aggregate(inputs, weights.detach())
    expected = naive_sum(inputs, weights.detach())
    torch.testing.assert_close(
        torch.autograd.grad(maps_only.square().sum(), inputs),
        torch.autograd.grad(expected.square().sum(), inputs),
    )
    frozen = [inputs[0].detach(), inputs[1], inputs[2].detach()]
    aggregate(frozen, weights).square().sum().backward()
    expected = torch.autograd.grad(naive_sum(inputs, weights).square().sum(), [weights, inputs[1]])
    torch.testing.assert_close([weights.grad, inputs[1].grad], list(expected))
    result = aggregate(frozen, weights.detach())
    with Count(*MULTIPLY) as backward:
        torch.autograd.grad(result, inputs[1], torch.ones_like(result))
    assert backward.count == 1


def test_weights_of_another_width_than_the_maps_get_a_gradient_of_their_own():
    inputs, _ = make_inputs(2, dtype=torch.float32)
    weights = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    result = aggregate(inputs, weights)
    assert result.dtype == torch.float32
    result.sum().backward()
    torch.testing.assert_close(weights.grad, torch.stack([x.sum() for x in inputs]).double())


# -- aggregate: half precision --------------------------------------------------------------------


@pytest.mark.parametrize('function', [aggregate, aggregate_reference])
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize(('dtype', 'large'), [(torch.bfloat16, 256.0), (torch.float16, 2048.0)])
def test_half_precision_is_summed_in_float32(dtype, large, form, function):
    """The case is one that a half-precision sum gets wrong: large + 1 = large there."""
    in_degree = 9
    inputs = [torch.full(SHAPE, large, dtype=dtype)]
    inputs += [torch.ones(SHAPE, dtype=dtype)] * (in_degree - 1)
    assert torch.equal(sum(inputs), inputs[0]), 'not a case that tells the two apart'
    weights = torch.ones(*FORMS[form], in_degree)
    result = function(inputs, weights)
    assert result.dtype == dtype
    assert torch.equal(result, torch.full(SHAPE, large + 8, dtype=dtype))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('function', [aggregate, aggregate_reference])
def test_half_precision_gradients_are_close_and_have_the_dtypes_of_their_inputs(function, form):
    inputs, weights = make_inputs(5, form)
    half = [x.detach().bfloat16().requires_grad_() for x in inputs]
    direction = torch.randn(SHAPE).bfloat16()
    grads = torch.autograd.grad(function(half, weights), [weights, *half], direction)
    assert [g.dtype for g in grads] == [torch.float32] + [torch.bfloat16] * 5
    expected = torch.autograd.grad(
        naive_sum(inputs, weights), [weights, *inputs], direction.float()
    )
    for grad, reference in zip(grads, expected):
        torch.testing.assert_close(grad.float(), reference, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize('function', [aggregate, aggregate_reference])
def test_a_gradient_over_many_pixels_is_summed_in_float32(function):
    x = torch.ones(1, 1, 63, 65, dtype=torch.bfloat16)
    weights = torch.ones(1, requires_grad=True)
    function([x], weights).sum(dtype=torch.float32).backward()
    assert weights.grad.item() == 63 * 65  # which no bfloat16 number is


def test_autocast_stays_within_half_precision_of_float32(randomise, naive_stage):
    stage = randomise(make_stage(complete(6))).eval()
    x = torch.randn(2, 3, 16, 16)
    with torch.autocast('cpu', torch.bfloat16):
        half = stage(x)
    assert half.dtype == torch.bfloat16
    full = naive_stage(stage, x)
    assert (half.float() - full).norm() < 0.02 * full.norm()
    half.float().square().mean().backward()
    grads = [parameter.grad.clone() for parameter in stage.parameters()]
    stage.zero_grad()
    naive_stage(stage, x).square().mean().backward()
    for grad, parameter in zip(grads, stage.parameters()):
        assert (grad - parameter.grad).norm() < 0.1 * parameter.grad.norm() + 1e-3


# -- aggregate: memory ----------------------------------------------------------------------------


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('in_degree', [1, 2])
def test_the_result_is_a_tensor_of_its_own(in_degree, form):
    inputs, weights = make_inputs(in_degree, form)
    before = [x.detach().clone() for x in inputs]
    with torch.no_grad():
        weights.fill_(1)
    result = aggregate(inputs, weights)
    torch.relu_(result)
    result.sum().backward()
    for x, copy in zip(inputs, before):
        assert torch.equal(x, copy)
        assert result.data_ptr() != x.data_ptr()
    total = sum(before)
    torch.testing.assert_close(inputs[0].grad, (total > 0).float())


def saved_maps(weights: Tensor, inputs: list[Tensor]) -> int:
    """Number of feature maps that the weighted sum keeps for the backward pass."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        aggregate(inputs, weights)
    return sum(tensor.shape == SHAPE for tensor in saved)


@pytest.mark.parametrize('form', FORMS)
def test_maps_are_kept_for_learned_weights_only(form):
    inputs, weights = make_inputs(4, form)
    assert saved_maps(weights, inputs) == 4
    assert saved_maps(weights.detach(), inputs) == 0


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('layout', LAYOUTS)
def test_no_map_is_copied_in_either_layout(layout, form):
    inputs, weights = make_inputs(3, form, layout)
    direction = torch.randn(SHAPE).to(memory_format=layout)
    with Count('copy', 'clone', 'stack', 'cat') as copies:
        result = aggregate(inputs, weights)
        torch.autograd.grad(result, [weights, *inputs], direction)
    assert copies.count == 0


# -- aggregate: bad input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('shapes', 'weights', 'message'),
    [
        ([], (0,), 'aggregate needs at least one input'),
        ([SHAPE, (2, 3, 4, 4)], (2,), r'inputs differ in shape: \(2, 3, 4, 5\) and \(2, 3, 4, 4\)'),
        ([SHAPE, (1, 3, 4, 5)], (2,), r'inputs differ in shape: \(2, 3, 4, 5\) and \(1, 3, 4, 5\)'),
        ([SHAPE] * 2, (3,), r'weights must be \(2,\) or \(2, 2\) for 2 inputs .* got \(3,\)'),
        ([SHAPE] * 3, (3, 3), r'weights must be \(3,\) or \(2, 3\) .* got \(3, 3\)'),
        ([SHAPE] * 2, (1, 2), r'weights must be \(2,\) or \(2, 2\) .* got \(1, 2\)'),
        ([SHAPE] * 2, (2, 1, 2), r'weights must be .* got \(2, 1, 2\)'),
        ([SHAPE], (), r'weights must be .* got \(\)'),
    ],
)
def test_maps_and_weights_that_do_not_fit_are_refused(shapes, weights, message):
    with pytest.raises(ValueError, match=message):
        aggregate([torch.zeros(shape) for shape in shapes], torch.ones(weights))


# -- GraphStage -----------------------------------------------------------------------------------


def make_stage(
    wiring: Wiring, connectivity: str = 'alpha', channels: int = 4, node: str = 'sepconv'
) -> GraphStage:
    parts = NODES[node](3, channels, wiring.num_nodes - 2, stride=2, dilation=1)
    rule = build_connectivity(connectivity, wiring)
    return GraphStage(wiring, rule, parts.entry, parts.nodes, parts.first_reads_input)


@settings(max_examples=25)
@given(
    n=st.integers(2, 7),
    p=st.floats(0, 1),
    seed=st.integers(0, 99),
    rule=st.sampled_from(['alpha', 'tanh', 'fixed']),
    training=st.booleans(),
    node=st.sampled_from(sorted(NODES)),
)
def test_any_wiring_runs_as_its_edges_say(randomise, naive_stage, n, p, seed, rule, training, node):
    torch.manual_seed(seed)
    stage = randomise(make_stage(random(n, p, seed), rule, node=node)).double().train(training)
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    result, expected = stage(x), naive_stage(stage, x)
    torch.testing.assert_close(result, expected)
    wanted, direction = [x, *stage.parameters()], torch.randn_like(result)
    torch.testing.assert_close(
        torch.autograd.grad(result, wanted, direction),
        torch.autograd.grad(expected, wanted, direction),
    )


@pytest.mark.parametrize('wiring', [sequential(7), residual(7, 2), random(7, 0.5), complete(7)])
def test_a_sum_is_asked_for_existing_edges_only(monkeypatch, wiring):
    """Node j gets the features of exactly its predecessors: no zeros in place of absent edges."""
    produced, asked = [], []
    stage = make_stage(wiring)
    for module in (stage.entry, *stage.nodes):
        module.register_forward_hook(lambda module, args, output: produced.append(output))

    def counting_aggregate(inputs, weights):
        asked.append([next(i for i, f in enumerate(produced) if f is x) for x in inputs])
        return aggregate(inputs, weights)

    monkeypatch.setattr(graph_stage, 'aggregate', counting_aggregate)
    stage(torch.randn(1, 3, 8, 8))
    assert asked == [list(wiring.preds(node)) for node in range(1, wiring.num_nodes)]


@pytest.mark.parametrize('wiring', [sequential(9), residual(9, 3), random(9, 0.5), complete(9)])
def test_work_is_proportional_to_the_number_of_edges(wiring):
    """One product per edge forward; backward one for the map and one for the weight."""
    rule = build_connectivity('alpha', wiring)
    stage = GraphStage(wiring, rule, nn.Identity(), [nn.Tanh() for _ in range(7)])
    x = torch.randn(SHAPE, requires_grad=True)
    with Count(*MULTIPLY) as forward:
        output = stage(x)
    with Count(*MULTIPLY) as backward:
        output.sum().backward()
    assert forward.count == wiring.num_edges
    assert backward.count == 2 * wiring.num_edges


@pytest.mark.parametrize('connectivity', ['alpha', 'fixed'])
def test_checkpointing_recomputes_and_gives_the_same_gradients(randomise, connectivity):
    stage = randomise(make_stage(complete(5), connectivity)).double()
    calls = []
    stage.nodes[0].register_forward_hook(lambda module, args, output: calls.append(module))
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    wanted = [x, *stage.parameters()]
    stored = stage(x)
    stored_grads = torch.autograd.grad(stored.square().sum(), wanted)
    assert len(calls) == 1
    stage.grad_checkpointing = True
    recomputed = stage(x)
    recomputed_grads = torch.autograd.grad(recomputed.square().sum(), wanted)
    assert len(calls) == 3
    torch.testing.assert_close(recomputed, stored)
    torch.testing.assert_close(recomputed_grads, stored_grads)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('connectivity', ['alpha', 'fixed'])
def test_a_stage_keeps_the_memory_format_of_its_input(layout, connectivity):
    stage = make_stage(random(6, 0.5), connectivity).to(memory_format=layout)
    result = stage(torch.randn(2, 3, 8, 8).to(memory_format=layout))
    assert result.is_contiguous(memory_format=layout)
    assert not result.is_contiguous(
        memory_format=next(other for other in LAYOUTS if other != layout)
    )


def test_a_stage_is_a_function_of_its_input_alone():
    """Nodes overwrite their input in place, which must never be a feature that others read."""
    stage = make_stage(complete(6)).eval()
    x = torch.randn(2, 3, 8, 8)
    before = x.clone()
    first = stage(x)
    assert torch.equal(x, before)
    assert torch.equal(stage(x), first)


# -- GraphStage.select ----------------------------------------------------------------------------


def zeroed(stage: GraphStage, edges: list[int]) -> GraphStage:
    """The stage with the weights of all other edges set to 0."""
    with torch.no_grad():
        for edge in range(stage.wiring.num_edges):
            if edge not in edges:
                stage.connectivity.alpha[edge] = 0
    return stage


@settings(max_examples=30)
@given(
    data=st.data(),
    n=st.integers(3, 6),
    seed=st.integers(0, 99),
    node=st.sampled_from(sorted(NODES)),
)
def test_selecting_edges_equals_zeroing_the_others_while_no_node_dies(
    randomise, data, n, seed, node
):
    torch.manual_seed(seed)
    stage = randomise(make_stage(complete(n), node=node)).double().eval()
    live = {stage.wiring.edges.index((i, i + 1)) for i in range(n - 1)}
    edges = sorted(live | data.draw(st.sets(st.integers(0, stage.wiring.num_edges - 1))))
    smaller = select_edges(stage, edges)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert smaller.wiring.edges == tuple(stage.wiring.edges[e] for e in edges)
    torch.testing.assert_close(smaller(x), zeroed(stage, edges)(x))


def test_select_drops_nodes_that_nobody_reads_without_changing_the_output(randomise):
    stage = randomise(make_stage(complete(5))).eval()
    edges = [e for e, (source, _) in enumerate(stage.wiring.edges) if source != 2]
    smaller = select_edges(stage, edges)
    x = torch.randn(2, 3, 6, 6)
    assert smaller.wiring == complete(4)
    assert list(smaller.nodes) == [stage.nodes[0], stage.nodes[2]]
    torch.testing.assert_close(smaller(x), zeroed(stage, edges)(x))


def test_the_first_node_reads_the_stage_input_until_it_goes(randomise, naive_stage):
    stage = randomise(make_stage(complete(5), node='conv')).double().eval()
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


def test_an_entry_that_nobody_reads_is_not_kept(randomise):
    stage = randomise(make_stage(complete(4), node='conv')).double().eval()
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
