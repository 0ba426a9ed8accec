"""Every registered rule keeps the contract; and so do two toy rules that this file registers.

The toys prove that a rule is one class: they are known to nothing but the registry, yet pass the
same tests as the built-in rules and run in a model by name.
"""

import copy
import inspect
import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.optim import create_optimizer_v2
from timm.utils import freeze, unfreeze
from torch import Tensor, nn

from timm_topo.connectivity import (
    Connectivity,
    base,
    build_connectivity,
    connectivity_spec,
    list_connectivity,
    register_connectivity,
    undecayed_parameters,
)
from timm_topo.connectivity.router import set_tau
from timm_topo.generators import complete, random, sequential
from timm_topo.stages import GraphStage, explain, use
from timm_topo.wiring import Wiring

CHANNELS = 4
#: In-degrees 1, 1, 2, 3, 2 and out-degrees that differ too: a mix-up of ends would show.
WIRING = Wiring(6, [(0, 1), (0, 2), (1, 3), (2, 3), (0, 4), (1, 4), (3, 4), (3, 5), (4, 5)])
#: A part of it without dead nodes, and where its edges are in ``WIRING.edges``.
KEPT = (1, 3, 6, 7, 8)
SMALLER, KEPT_NODES = WIRING.subgraph(WIRING.edges[e] for e in KEPT).prune()


class ToySoftmax(Connectivity):
    """Static and normalised: a_j = softmax(alpha_j) over the in-edges of j."""

    per_edge = ('alpha',)

    def __init__(self, wiring: Wiring):
        super().__init__(wiring)
        self.alpha = nn.Parameter(torch.empty(self.num_edges))
        self.reset_parameters()

    def forward(self, node: int, context: Tensor | None = None) -> Tensor:
        span = self.spans[node]
        return torch.softmax(self.alpha[span[0] : span[1]], 0)

    def edge_weights(self) -> Tensor:
        return torch.cat([self(node) for node in range(len(self.spans))])

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.alpha)


class ToyGate(Connectivity):
    """Per image: a_ji = sigmoid(weight_ji . pooled x_i + bias_ji)."""

    per_edge = ('weight', 'bias')
    needs_context = True

    def __init__(self, wiring: Wiring, channels: int):
        super().__init__(wiring)
        self.options = {'channels': channels}
        self.weight = nn.Parameter(torch.empty(self.num_edges, channels))
        self.bias = nn.Parameter(torch.empty(self.num_edges))
        self.reset_parameters()

    def forward(self, node: int, context: Tensor | None = None) -> Tensor:
        assert context is not None
        span = self.spans[node]
        logits = (context * self.weight[span[0] : span[1]]).sum(-1)
        return torch.sigmoid(logits + self.bias[span[0] : span[1]])

    def edge_weights(self) -> Tensor:
        raise RuntimeError('the weights of a gate depend on the image')

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, 0.1)
        nn.init.zeros_(self.bias)


TOYS = {'toy_softmax': ToySoftmax, 'toy_gate': ToyGate}
RULES = [*list_connectivity(), *TOYS]
#: Constructor options of rules that need them.
OPTIONS = {
    'toy_gate': dict(channels=CHANNELS),
    'router': dict(channels=CHANNELS),
    'mask': dict(fan_in=1),  # by default nothing is chosen
}


@pytest.fixture(autouse=True)
def _toys_are_registered(monkeypatch):
    for name, rule in TOYS.items():
        monkeypatch.setitem(base.RULES, name, rule)


def build(rule: str, wiring: Wiring = WIRING, **kwargs) -> Connectivity:
    return build_connectivity({'name': rule, **OPTIONS.get(rule, {})}, wiring, **kwargs)


def with_values(rule: str, wiring: Wiring = WIRING) -> Connectivity:
    """A rule in float64 that has learned something: different values everywhere."""
    connectivity = build(rule, wiring, dtype=torch.float64)
    with torch.no_grad():
        for value in connectivity.state_dict().values():
            if value.is_floating_point():
                value.uniform_(0.1, 0.9)
    return connectivity.eval()


def make_stage(connectivity: Connectivity, wiring: Wiring = WIRING) -> GraphStage:
    """A stage around a rule, in the rule's dtype, with nodes that all differ."""
    entry = nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1)
    nodes = [
        nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Tanh())
        for _ in range(wiring.num_nodes - 2)
    ]
    return GraphStage(wiring, connectivity, entry, nodes).to(torch.float64).eval()


def dense_stage(stage: GraphStage, x: Tensor) -> Tensor:
    """The same stage as a dense adjacency matrix A (B, N, N) over stacked features."""
    wiring, rule = stage.wiring, stage.connectivity
    if rule.needs_context and rule.thresholds() is not None:
        return torch.cat([open_stage(stage, image[None]) for image in x])
    x_0 = stage.entry(x)
    features = [x_0] + [torch.zeros_like(x_0)] * (wiring.num_nodes - 1)
    static = None if rule.needs_context else rule.edge_weights()
    for node in range(1, wiring.num_nodes):
        adjacency = x_0.new_zeros(len(x), wiring.num_nodes, wiring.num_nodes)
        if rule.needs_context:
            sources = list(wiring.preds(node))
            pooled = torch.einsum('bnchw->bnc', torch.stack(features, 1)) / x_0[0, 0].numel()
            adjacency[:, node, sources] = rule(node, pooled[:, sources])
        else:
            for (source, target), weight in zip(wiring.edges, static):
                adjacency[:, target, source] = weight
        mixed = torch.einsum('bji,bichw->bjchw', adjacency, torch.stack(features, 1))[:, node]
        features[node] = stage.nodes[node - 1](mixed) if node < wiring.num_nodes - 1 else mixed
    return features[-1]


def open_stage(stage: GraphStage, x: Tensor) -> Tensor:
    """One image through the edges that its thresholds leave open, computed nodes only."""
    wiring, rule, last = stage.wiring, stage.connectivity, stage.wiring.num_nodes - 1
    features, thresholds = {0: stage.entry(x)}, rule.thresholds().tolist()
    edges = {edge: e for e, edge in enumerate(wiring.edges)}
    for node in range(1, last + 1):
        sources = wiring.preds(node)
        absent = torch.zeros_like(features[0])
        means = [features.get(source, absent).mean((2, 3)) for source in sources]
        weights = dict(zip(sources, rule(node, torch.stack(means, 1))[0]))
        weights = {s: w for s, w in weights.items() if s in features}
        kept = [s for s, w in weights.items() if w >= thresholds[edges[s, node]]]
        if node == last and not kept:
            kept = [max(weights, key=weights.get)]
        if kept:
            mixed = sum(weights[s] * features[s] for s in kept)
            features[node] = mixed if node == last else stage.nodes[node - 1](mixed)
    return features[last]


# -- the shared rule tests ------------------------------------------------------------------------


@pytest.mark.parametrize('rule', RULES)
def test_a_node_gets_one_weight_per_in_edge_or_one_per_image_and_in_edge(rule):
    connectivity = with_values(rule)
    for node in range(1, WIRING.num_nodes):
        in_degree = WIRING.in_degrees[node]
        if connectivity.needs_context:
            context = torch.rand(2, in_degree, CHANNELS, dtype=torch.float64)
            assert connectivity(node, context).shape in [(in_degree,), (2, in_degree)]
        else:
            assert connectivity(node).shape in [(in_degree,), (2, in_degree)]


@pytest.mark.parametrize('rule', RULES)
def test_edge_weights_are_those_of_the_nodes_in_the_order_of_the_edges(rule):
    connectivity = with_values(rule)
    if connectivity.needs_context:
        with pytest.raises(RuntimeError, match='depend on the image'):
            connectivity.edge_weights()
    else:
        by_node = torch.cat([connectivity(node) for node in range(1, WIRING.num_nodes)])
        torch.testing.assert_close(connectivity.edge_weights(), by_node)


@pytest.mark.parametrize('rule', RULES)
def test_a_stage_equals_its_dense_adjacency_matrix(rule):
    """Output and all gradients, parameters of the rule included."""
    stage = make_stage(with_values(rule))
    x = torch.randn(3, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    sparse, dense = stage(x), dense_stage(stage, x)
    torch.testing.assert_close(sparse, dense)
    wanted = [x, *stage.parameters()]
    direction = torch.randn_like(sparse)
    torch.testing.assert_close(
        torch.autograd.grad(sparse, wanted, direction, materialize_grads=True),
        torch.autograd.grad(dense, wanted, direction, materialize_grads=True),
    )


@pytest.mark.parametrize('rule', RULES)
def test_every_parameter_gets_a_finite_gradient(rule):
    connectivity = build(rule)
    stage = make_stage(connectivity).train()
    stage(torch.randn(2, 3, 6, 6, dtype=torch.float64)).square().sum().backward()
    for name, parameter in connectivity.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.count_nonzero() > 0, name


@pytest.mark.parametrize('rule', RULES)
def test_images_of_a_batch_do_not_see_each_other_in_eval(rule):
    stage = make_stage(with_values(rule))
    x = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(stage(x), torch.cat([stage(image[None]) for image in x]))


@pytest.mark.parametrize('rule', RULES)
def test_the_state_dict_round_trips(rule):
    learned, fresh = make_stage(with_values(rule)), make_stage(build(rule).eval())
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert not torch.equal(learned(x), fresh(x))
    fresh.load_state_dict(learned.state_dict())
    assert torch.equal(learned(x), fresh(x))


@pytest.mark.parametrize('rule', RULES)
def test_a_rule_is_built_again_from_its_description(rule):
    connectivity = build(rule)
    again = build_connectivity(connectivity_spec(connectivity), WIRING)
    assert type(again) is type(connectivity)
    assert connectivity_spec(again) == connectivity_spec(connectivity)


@pytest.mark.parametrize('rule', RULES)
def test_a_description_has_all_options_whatever_their_defaults(rule):
    connectivity = build(rule)
    options = set(inspect.signature(type(connectivity)).parameters) - {'wiring'}
    stored = {'values'}  # of fixed weights, which are state
    assert connectivity_spec(connectivity).keys() == {'name'} | options - stored


@pytest.mark.parametrize('rule', RULES)
def test_reset_parameters_restores_the_initial_state(rule):
    torch.manual_seed(3)
    expected = build(rule, dtype=torch.float64).state_dict()
    connectivity = with_values(rule)
    torch.manual_seed(3)
    connectivity.reset_parameters()
    torch.testing.assert_close(connectivity.state_dict(), expected)


@pytest.mark.parametrize('rule', RULES)
def test_a_rule_is_built_on_the_device_and_in_the_dtype_asked_for(rule):
    connectivity = build(rule, device='meta', dtype=torch.float64)
    for value in [*connectivity.parameters(), *connectivity.buffers()]:
        assert value.is_meta
        assert not value.is_floating_point() or value.dtype == torch.float64
    torch.manual_seed(3)
    filled = connectivity.to_empty(device='cpu')
    filled.reset_parameters()
    torch.manual_seed(3)
    torch.testing.assert_close(filled.state_dict(), build(rule, dtype=torch.float64).state_dict())


@pytest.mark.parametrize('rule', RULES)
def test_select_keeps_what_is_stored_for_the_edges_that_stay(rule):
    connectivity = with_values(rule)
    before = {name: value.clone() for name, value in connectivity.state_dict().items()}
    smaller = connectivity.select(SMALLER, KEPT)
    assert type(smaller) is type(connectivity)
    assert smaller.num_edges == SMALLER.num_edges
    for name, value in smaller.state_dict().items():
        expected = before[name]
        if name in connectivity.per_edge:
            expected = expected[list(KEPT)]
        if name in connectivity.per_source:
            expected = expected[list(KEPT_NODES[:-1])]
        assert torch.equal(value, expected), name
    torch.testing.assert_close(connectivity.state_dict(), before, rtol=0, atol=0)
    trained = dict(smaller.named_parameters())
    assert trained.keys() == dict(connectivity.named_parameters()).keys()
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in trained.values())


@pytest.mark.parametrize('rule', RULES)
def test_a_selected_rule_runs_the_smaller_wiring(rule):
    stage = make_stage(with_values(rule).select(SMALLER, KEPT), SMALLER)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(stage(x), dense_stage(stage, x))


@pytest.mark.parametrize('rule', RULES)
def test_a_stage_can_be_exported_for_any_batch_size(rule):
    stage = make_stage(with_values(rule))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    program = torch.export.export(stage, (x,), dynamic_shapes=({0: torch.export.Dim('batch')},))
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(program.module()(x), stage(x))


@pytest.mark.parametrize('rule', RULES)
def test_the_edge_weights_of_a_rule_are_not_decayed(rule):
    stage = make_stage(build(rule))
    stage.connectivity.decayed = ()
    names = {f'connectivity.{name}' for name, _ in stage.connectivity.named_parameters()}
    assert undecayed_parameters(stage) == names
    stage.connectivity.decayed = tuple(dict(stage.connectivity.named_parameters()))
    assert undecayed_parameters(stage) == set()


# -- the toys in a model --------------------------------------------------------------------------


def toy_model(rule: str) -> nn.Module:
    """``test_toponet`` with a rule by name; the gate learns the width of its stage from it."""
    return timm.create_model('test_toponet', connectivity=rule)


@pytest.mark.parametrize('rule', TOYS)
def test_a_toy_rule_trains_in_a_model_by_name(rule):
    model = toy_model(rule)
    assert all(type(stage.connectivity) is TOYS[rule] for stage in model.stages)
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_weights_that_depend_on_the_image_are_the_same_alone_and_in_a_batch(randomise):
    model = randomise(toy_model('toy_gate')).eval().double()
    with torch.no_grad():
        for stage in model.stages:
            nn.init.normal_(stage.connectivity.weight, std=3.0)
        x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
        together, alone = model(x), torch.cat([model(image[None]) for image in x])
        torch.testing.assert_close(together, alone)
        for stage in model.stages:
            nn.init.zeros_(stage.connectivity.weight)
        assert not torch.allclose(together, model(x))


@pytest.mark.parametrize('opt', ['sgd', 'adamw', 'muon'])
def test_two_dimensional_edge_weights_are_not_decayed_either(opt):
    model = toy_model('toy_gate')
    optimizer = create_optimizer_v2(model, opt=opt, lr=0.1, weight_decay=0.05)
    decay = {}
    for group in optimizer.param_groups:
        decay |= dict.fromkeys(map(id, group['params']), group['weight_decay'])
    assert {decay[id(stage.connectivity.weight)] for stage in model.stages} == {0.0}
    assert decay[id(model.stem.conv.weight)] == 0.05


def test_a_class_that_is_not_registered_serves_as_well():
    class Halved(ToySoftmax):
        def forward(self, node: int, context: Tensor | None = None) -> Tensor:
            return 0.5 * super().forward(node, context)

    model = timm.create_model('test_toponet', connectivity=Halved)
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 1000)
    with pytest.raises(ValueError, match='Halved has no name: decorate it'):
        connectivity_spec(model.stages[0].connectivity)


# -- the built-in rules ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('rule', 'equation'),
    [
        ('fixed', lambda a: a),
        ('alpha', lambda a: a),
        ('tanh', math.tanh),
        ('sigmoid', lambda a: 1 / (1 + math.exp(-a))),
    ],
)
def test_the_weight_is_the_function_of_alpha_that_the_paper_names(rule, equation):
    connectivity = build(rule, dtype=torch.float64)
    values = torch.linspace(-2, 2, WIRING.num_edges, dtype=torch.float64)
    connectivity.load_state_dict({'alpha': values})
    expected = torch.tensor([equation(a) for a in values.tolist()], dtype=torch.float64)
    torch.testing.assert_close(connectivity.edge_weights(), expected)


@pytest.mark.parametrize(
    ('rule', 'options', 'weight'),
    [
        ('fixed', {}, 1.0),
        ('alpha', {}, 1.0),
        ('alpha', dict(init=-0.5), -0.5),
        ('tanh', {}, 0.5),
        ('tanh', dict(init=-0.9), -0.9),
        ('sigmoid', {}, 0.5),
        ('sigmoid', dict(init=0.9), 0.9),
    ],
)
def test_init_is_the_initial_edge_weight(rule, options, weight):
    connectivity = build_connectivity(dict(name=rule, **options), WIRING)
    torch.testing.assert_close(connectivity.edge_weights(), torch.full((9,), weight))


def test_fixed_weights_are_given_saved_and_not_trained():
    values = torch.linspace(-1, 1, 9)
    connectivity = build_connectivity(dict(name='fixed', values=values), WIRING)
    assert torch.equal(connectivity.edge_weights(), values)
    assert torch.equal(connectivity.state_dict()['alpha'], values)
    assert list(connectivity.parameters()) == []
    values.zero_()
    assert connectivity.edge_weights().any(), 'the rule must own its values'


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('spec', 'error', 'message'),
    [
        (
            'alhpa',
            ValueError,
            "unknown connectivity 'alhpa'; known: alpha, depth_weighted, fixed, .*sigmoid.*tanh",
        ),
        (dict(name='x'), ValueError, "unknown connectivity 'x'; known: alpha"),
        (dict(init=1), TypeError, 'a connectivity is a name, a dict with a name or a class, got'),
        (7, TypeError, 'a connectivity is a name, a dict with a name or a class, got 7'),
        (nn.Linear, TypeError, "a connectivity is .* got <class 'torch.nn.*Linear'>"),
        (dict(name='alpha', inti=1), TypeError, r"AlphaConnectivity\(.*\): .*argument 'inti'"),
        (dict(name='fixed', init=1), TypeError, r"FixedConnectivity\(.*\): .*argument 'init'"),
        ('toy_gate', TypeError, r"ToyGate\(.*\): missing a required argument: 'channels'"),
        (dict(name='alpha', init=math.inf), ValueError, 'init must be finite, got inf'),
        (dict(name='alpha', init=math.nan), ValueError, 'init must be finite, got nan'),
        (dict(name='tanh', init=1), ValueError, r'init must be in \(-1, 1\) for tanh, got 1\.0'),
        (dict(name='tanh', init=-1), ValueError, r'init must be in \(-1, 1\) for tanh, got -1\.0'),
        (dict(name='sigmoid', init=0), ValueError, r'in \(0, 1\) for sigmoid, got 0\.0'),
        (dict(name='sigmoid', init=1), ValueError, r'in \(0, 1\) for sigmoid, got 1\.0'),
        (dict(name='fixed', values=[1, 2]), ValueError, r'values must be \(9,\) .*, got \(2,\)'),
        (dict(name='fixed', values=[[1] * 9]), ValueError, r'values must be \(9,\).*\(1, 9\)'),
    ],
)
def test_descriptions_that_mean_nothing_are_refused(spec, error, message):
    with pytest.raises(error, match=message):
        build_connectivity(spec, WIRING)


def test_a_name_belongs_to_one_rule():
    assert register_connectivity('toy_gate')(ToyGate) is ToyGate
    with pytest.raises(ValueError, match=r"'alpha' is already registered by .*AlphaC"):
        register_connectivity('alpha')(ToyGate)


def test_select_needs_one_index_per_edge():
    with pytest.raises(ValueError, match=r'2 edge indices for Wiring\(num_nodes=5'):
        build('alpha').select(SMALLER, (0, 1))


@pytest.mark.parametrize(
    'ask', [lambda c: c(1), lambda c: c.edge_weights(), lambda c: c.reset_parameters()]
)
def test_the_contract_itself_answers_nothing(ask):
    with pytest.raises(NotImplementedError, match=r'^$'):
        ask(Connectivity(complete(3)))


# -- sole in-edges --------------------------------------------------------------------------------

LEARNED = ['alpha', 'sigmoid', 'tanh']


def without_soles(rule: str, wiring: Wiring) -> Connectivity:
    """A rule that weighs no sole in-edge, with different values everywhere."""
    connectivity = build_connectivity({'name': rule, 'weigh_sole': False}, wiring)
    with torch.no_grad():
        connectivity.alpha.uniform_(0.1, 0.9)
        connectivity.constant.uniform_(0.1, 0.9)
    return connectivity


@pytest.mark.parametrize('rule', LEARNED)
@given(n=st.integers(2, 9), p=st.floats(0, 1), seed=st.integers(0, 999))
def test_a_sole_in_edge_has_no_parameter_and_carries_one(rule, n, p, seed):
    wiring = random(n, p, seed)
    connectivity = build_connectivity({'name': rule, 'weigh_sole': False}, wiring)
    soles = [wiring.in_degrees[target] == 1 for _, target in wiring.edges]
    assert sum(q.numel() for q in connectivity.parameters()) == soles.count(False)
    initial = build_connectivity(rule, wiring).edge_weights()
    expected = torch.where(torch.tensor(soles, dtype=torch.bool), 1.0, initial)
    assert torch.allclose(connectivity.edge_weights(), expected)


@pytest.mark.parametrize('rule', LEARNED)
@given(n=st.integers(2, 9), p=st.floats(0, 1), seed=st.integers(0, 999), data=st.data())
def test_without_soles_nodes_read_the_weights_that_are_told(rule, n, p, seed, data):
    wiring = random(n, p, seed)
    connectivity = without_soles(rule, wiring)
    weights = connectivity.edge_weights()
    place = 0
    for node, degree in enumerate(wiring.in_degrees):
        start, stop = wiring.in_edges[node]
        assert torch.allclose(connectivity(node), weights[start:stop])
        if degree > 1:
            learned = connectivity.squash(connectivity.alpha[place : place + degree])
            assert torch.allclose(weights[start:stop], learned)
            place += degree
    kept = data.draw(st.lists(st.sampled_from(range(wiring.num_edges)), min_size=1, unique=True))
    try:
        smaller, nodes = wiring.subgraph(wiring.edges[e] for e in kept).prune()
    except ValueError:
        return
    index = {edge: e for e, edge in enumerate(wiring.edges)}
    edges = [index[nodes[s], nodes[t]] for s, t in smaller.edges]
    connectivity.eval()
    selected = connectivity.select(smaller, edges)
    assert torch.allclose(selected.edge_weights(), weights[edges])
    assert not selected.training
    again = build_connectivity(connectivity_spec(selected), smaller)
    again.load_state_dict(selected.state_dict())
    assert torch.equal(again.edge_weights(), selected.edge_weights())
    selected.reset_parameters()
    fresh = build_connectivity({'name': rule, 'weigh_sole': False}, smaller)
    assert torch.equal(selected.edge_weights(), fresh.edge_weights())
    assert torch.equal(connectivity.edge_weights(), weights)  # copies, not views


@pytest.mark.parametrize('rule', RULES)
def test_a_frozen_rule_stays_in_evaluation(rule):
    built = build_connectivity(rule, complete(4), CHANNELS)
    learns = any(True for _ in built.parameters())
    network = nn.Sequential(built.requires_grad_(False)).train()
    assert network.training
    assert built.training is not learns
    built.requires_grad_(True)
    assert network.train()[0].training


DRAWING = [{'name': 'router', 'tau': 0.45}, {'name': 'mask', 'fan_in': 1}]


@pytest.mark.parametrize('rule', DRAWING, ids=['router', 'mask'])
def test_a_frozen_stage_does_in_training_what_it_does_in_evaluation(rule, randomise):
    model = randomise(timm.create_model('test_toponet', connectivity=rule))
    freeze(model, ['stages.0'])
    stage = model.stages[0]
    for parameter in stage.connectivity.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.rand(6, 16, 8, 8)
    expected = model.eval().stages[0](x)
    assert torch.equal(model.train().stages[0](x), expected)
    assert model.stages[1].connectivity.training
    unfreeze(model, ['stages.0'], include_bn_running_stats=False)
    assert not torch.allclose(model.train().stages[0](x), expected)


def test_a_frozen_router_among_nodes_that_train_leaves_no_image_out(stage_of):
    """Their norms look at all images."""
    stage, x = stage_of(complete(6), DRAWING[0]), torch.randn(6, 3, 8, 8, dtype=torch.float64)
    x = x + torch.linspace(-5, 5, 6).view(-1, 1, 1, 1)  # images that go different ways
    set_tau(stage, 0.45)
    stage.connectivity.requires_grad_(False)
    assert explain(stage.eval(), x)[''].executor == 'conditional'
    before = copy.deepcopy(stage.train())
    found = stage(x)
    with use('reference'):
        expected = before(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(stage.state_dict(), before.state_dict())


def test_weights_frozen_before_are_frozen_after_a_selection():
    connectivity = without_soles('tanh', WIRING)
    connectivity.alpha.requires_grad_(False)
    edges = list(range(WIRING.num_edges))
    assert not connectivity.select(WIRING, edges).alpha.requires_grad
    connectivity.alpha.requires_grad_(True)
    assert connectivity.select(WIRING, edges).alpha.requires_grad


def test_a_chain_has_nothing_to_learn():
    """A parameter of no elements that is never used would stop DistributedDataParallel."""
    connectivity = build_connectivity({'name': 'tanh', 'weigh_sole': False}, sequential(5))
    assert connectivity.edge_weights().tolist() == [1.0] * 4
    assert [p for p in connectivity.parameters() if p.requires_grad] == []


@pytest.mark.parametrize('rule', LEARNED)
def test_files_of_rules_that_weigh_every_edge_are_as_before(rule):
    assert set(build_connectivity(rule, WIRING).state_dict()) == {'alpha'}
    assert not list(build_connectivity(rule, WIRING).buffers())
    state = set(without_soles(rule, WIRING).state_dict())
    assert state == {'alpha', 'constant'}


def test_weigh_sole_is_a_bool():
    with pytest.raises(TypeError, match="weigh_sole must be True or False, got 'no'"):
        build_connectivity({'name': 'tanh', 'weigh_sole': 'no'}, WIRING)


# -- mean outputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize('rule', LEARNED)
@pytest.mark.parametrize('weigh_sole', [False, True])
@given(n=st.integers(2, 9), p=st.floats(0, 1), seed=st.integers(0, 999), data=st.data())
def test_a_mean_output_has_no_parameters_and_averages(rule, weigh_sole, n, p, seed, data):
    wiring = random(n, p, seed)
    options = {'name': rule, 'weigh_sole': weigh_sole, 'mean_output': True}
    connectivity = build_connectivity(options, wiring)
    start, stop = wiring.in_edges[n - 1]
    weights = connectivity.edge_weights()
    assert torch.allclose(weights[start:], torch.full((stop - start,), 1 / (stop - start)))
    other = build_connectivity({'name': rule, 'weigh_sole': weigh_sole}, wiring)
    assert torch.allclose(weights[:start], other.edge_weights()[:start])
    learned = [d for d in wiring.in_degrees[:-1] if d > 1 or weigh_sole]
    assert connectivity.alpha.numel() == sum(learned)
    with torch.no_grad():
        connectivity.alpha.uniform_(0.1, 0.9)
    weights = connectivity.edge_weights()
    assert torch.equal(torch.cat([connectivity(node) for node in range(1, n)]), weights)
    kept = data.draw(st.lists(st.sampled_from(range(wiring.num_edges)), min_size=1, unique=True))
    kept.sort()
    smaller = Wiring(n, tuple(wiring.edges[e] for e in kept))
    selected = connectivity.select(smaller, kept)
    assert torch.allclose(selected.edge_weights(), weights[kept])  # the mean of those there were
    again = build_connectivity(connectivity_spec(selected), smaller)
    again.load_state_dict(selected.state_dict())
    assert torch.equal(again.edge_weights(), selected.edge_weights())


def test_mean_output_is_a_bool():
    with pytest.raises(TypeError, match='mean_output must be True or False, got 1'):
        build_connectivity({'name': 'tanh', 'mean_output': 1}, WIRING)


# -- all at once ----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['alpha', 'tanh', 'sigmoid', 'fixed'])
@given(n=st.integers(2, 9), p=st.floats(0, 1), seed=st.integers(0, 999))
def test_all_weights_of_a_pass_are_those_node_by_node(name, n, p, seed):
    wiring = random(n, p, seed)
    rule = build_connectivity(name, wiring)
    with torch.no_grad():
        rule.alpha.uniform_(0.1, 0.9)
    by_node = torch.cat([rule(node) for node in range(1, n)])
    torch.testing.assert_close(rule.pass_weights(), by_node)  # vectors round unlike scalars
    assert torch.equal(Connectivity.pass_weights(rule), by_node)
