"""Which nodes go: against all subsets, a network cut by hand, the formulas."""

import json
from itertools import combinations

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

import timm_topo
from timm_topo.analysis.cost import count_flops, count_parameters
from timm_topo.analysis.node_costs import Node, make_costs
from timm_topo.analysis.rankings import RANKINGS
from timm_topo.analysis.shrink import Search, _knapsack, as_graph
from timm_topo.analysis.tables import read_numbers
from timm_topo.stages import graph_stages
from timm_topo.training.options import read_options

SMALL = dict(num_nodes=(5, 5), widths=(8, 8), strides=(2, 2), stem_width=8, stem_kernel=3)


@pytest.fixture
def calibration():
    return torch.randn(20, 3, 32, 32), torch.randint(0, 5, (20,))


@pytest.fixture
def plain(randomise):
    return randomise(timm.create_model('resnet_cifar20', num_classes=5)).eval()


@pytest.fixture
def weighted(randomise):
    model = timm.create_model('test_toponet', num_classes=5, **SMALL)
    return randomise(model).eval()


def without_blocks(model: nn.Module, blocks: list[str]) -> nn.Module:
    """timm's network with identities in place of blocks."""
    cut = timm.create_model('resnet_cifar20', num_classes=5).eval()
    cut.load_state_dict(model.state_dict())
    for block in blocks:
        parent, _, leaf = block.rpartition('.')
        setattr(cut.get_submodule(parent), leaf, nn.Identity())
    return cut


def block_of(graph: nn.Module, node: Node) -> str:
    stage = graph_stages(graph)[node.stage]
    return stage.nodes[stage.node_ids.index(node.id) - 1].origin


@torch.no_grad()
def loss_of(model: nn.Module, calibration) -> float:
    images, labels = calibration
    return cross_entropy(model(images), labels).item()


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0.01, 0.3)), min_size=1, max_size=8),
    st.floats(0.05, 0.9),
)
def test_knapsack_is_the_best_subset(items, saving):
    worth = [value for value, _ in items]
    costs = [round(cost, 3) for _, cost in items]
    saving = round(saving, 3)
    chosen = _knapsack(worth, costs, saving)
    subsets = [
        subset
        for size in range(len(items) + 1)
        for subset in combinations(range(len(items)), size)
        if sum(round(1000 * costs[i]) for i in subset) >= round(1000 * saving)
    ]
    if not subsets:
        assert chosen is None
        return
    best = min(sum(worth[i] for i in subset) for subset in subsets)
    assert sum(worth[i] for i in chosen) == pytest.approx(best)
    assert tuple(chosen) in subsets


@pytest.mark.parametrize('unit', ['flops', 'parameters'])
def test_greedy_takes_the_least_loss_per_cost(plain, calibration, unit):
    """Against timm's network, its blocks tried one by one by hand."""
    count = {'flops': lambda m: count_flops(m, (3, 32, 32)).total, 'parameters': count_parameters}
    count = count[unit]
    graph = as_graph(plain)
    search = Search(graph, *calibration, unit=unit, ranking='loss')
    (step,), way = search.meet([0.75])
    removed = [block_of(graph, node) for node in step.removed]
    assert removed
    gone, now = [], loss_of(plain, calibration)
    for row in way[1:]:
        blocks = [
            block_of(graph, node) for node in search.candidates(tuple(way[len(gone)].removed))
        ]
        scores = {}
        for block in blocks:
            cut = without_blocks(plain, [*gone, block])
            rise = loss_of(cut, calibration) - now
            saved = count(without_blocks(plain, gone)) - count(cut)
            scores[block] = rise / saved if rise > 0 else rise * saved
        gone.append(min(scores, key=scores.get))
        cut = without_blocks(plain, gone)
        now = loss_of(cut, calibration)
        assert [block_of(graph, node) for node in row.removed] == gone
        assert row.measured == pytest.approx(count(cut) / count(plain), rel=1e-3)  # edges count
        assert row.loss == pytest.approx(now, rel=1e-4)
    assert step.measured <= 0.75
    smaller = search.without(step.removed)
    images, _ = calibration
    assert torch.allclose(smaller(images), without_blocks(plain, removed)(images), atol=1e-4)


@pytest.mark.parametrize('search', ['greedy', 'knapsack'])
def test_budgets_are_met_in_every_unit(weighted, search):
    images, labels = torch.randn(20, 3, 32, 32), torch.randint(0, 5, (20,))
    for unit in ('flops', 'parameters', 'time'):
        smaller, step = timm_topo.shrink(weighted, images, labels, 0.8, unit, search=search)
        assert 0 < step.measured <= 0.8
        nodes = [
            sum(s.wiring.num_nodes for s in graph_stages(m).values()) for m in (smaller, weighted)
        ]
        assert nodes[0] < nodes[1]
        if unit == 'parameters':
            assert step.measured == count_parameters(smaller) / count_parameters(weighted)


@pytest.mark.parametrize('whole', [True, False])
def test_taylor_is_the_slope_of_a_gate(plain, weighted, calibration, whole):
    """dL/dg at g = 1, of g x + (1 - g) x', by central differences in double precision."""
    graph = (as_graph(plain) if whole else weighted).double()
    images, labels = calibration[0].double(), calibration[1]
    search = Search(graph, images, labels, unit='parameters')
    nodes = search.candidates(())
    worth = RANKINGS['taylor'](graph, nodes, images, labels, None, 0)

    class Gate(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.gate = inner, 1.0

        def forward(self, x):
            return self.gate * self.inner(x.clone()) + (1 - self.gate) * (x if whole else 0 * x)

    for node in nodes[:3]:
        stage = graph_stages(graph)[node.stage]
        place = stage.node_ids.index(node.id) - 1
        inner = stage.nodes[place]
        gate = stage.nodes[place] = Gate(inner)
        losses = []
        for gate.gate in (1 + 1e-5, 1 - 1e-5):
            losses.append(loss_of(graph, (images, labels)))
        stage.nodes[place] = inner
        slope = abs(losses[0] - losses[1]) / 2e-5
        assert worth[node] == pytest.approx(slope, rel=1e-3, abs=1e-6)


def test_time_of_nodes_adds_up(weighted, calibration):
    """A network of the same nodes: each costs about as much, and all no more than the network."""
    costs = make_costs('time', weighted, calibration[0], repeats=10)
    nodes = costs.nodes(weighted)
    assert len(nodes) == 6
    assert all(cost > 0 for cost in nodes.values())
    assert sum(nodes.values()) < 1.5


@pytest.mark.parametrize('ranking', ['taylor', 'loss'])
def test_what_is_known_is_not_evaluated_again(plain, calibration, ranking):
    known, options = {}, dict(unit='time', repeats=2, ranking=ranking)
    first = Search(as_graph(plain), *calibration, known=known, **options).meet([0.9])
    text = json.loads(json.dumps(known))
    again = Search(as_graph(plain), *calibration, known=text, **options)
    again.costs = again.images = None  # nothing is measured
    assert again.meet([0.9]) == first


def test_bad_input(plain, weighted, calibration):
    images, labels = calibration
    for budget in (0.0, 1.0, 1.5, -0.1):
        with pytest.raises(ValueError, match=rf'in \(0, 1\), got {budget}'):
            timm_topo.shrink(plain, images, labels, budget, 'parameters')
    with pytest.raises(ValueError, match=r'budget of 0\.01 cannot be met.*reached: 0\.\d+'):
        timm_topo.shrink(plain, images, labels, 0.01, 'parameters')
    with pytest.raises(ValueError, match=r'budget of 0\.01 cannot be met'):
        timm_topo.shrink(plain, images, labels, 0.01, 'parameters', search='knapsack')
    with pytest.raises(ValueError, match="unknown unit 'speed'; known: time, flops, parameters"):
        timm_topo.shrink(plain, images, labels, 0.5, 'speed')
    with pytest.raises(ValueError, match='all edge weights are alike'):
        timm_topo.shrink(plain, images, labels, 0.9, 'parameters', ranking='weight')
    with pytest.raises(ValueError, match='unknown ranking'):
        timm_topo.shrink(plain, images, labels, 0.9, 'parameters', ranking='size')
    with pytest.raises(ValueError, match='labels up to 7, the network has 5 classes'):
        timm_topo.shrink(plain, images, labels + 7 - labels.max(), 0.9, 'parameters')
    with pytest.raises(ValueError, match='cannot be re-wired'):
        timm_topo.shrink(timm.create_model('test_vit', num_classes=5), images, labels, 0.9)
    with pytest.raises(ValueError, match='a drop must be finite'):
        Search(as_graph(plain), images, labels, 'parameters').within(-1.0)


def test_within_a_drop_of_accuracy(weighted, calibration):
    search = Search(weighted, *calibration, unit='parameters')
    step, way = search.within(100.0)
    assert step == way[-1]
    assert not search.candidates(step.removed)  # everything may go
    images, _ = calibration
    right = weighted(images).argmax(1)  # all of them are right now
    search = Search(weighted, images, right, unit='parameters')
    drops = [search.start.top1 - one.top1 for one in search.within(100.0)[1]]
    allowed = max(drops[1:3])
    step, way = search.within(allowed)
    assert search.start.top1 - step.top1 <= allowed
    assert len(way) >= 2
    if drops[1] > 0:
        with pytest.raises(ValueError, match='no node can go for'):
            search.within(0.0)


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model('resnet_cifar20', num_classes=10, in_chans=1)
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': (1, 8, 8), 'mean': (0.3,),
                            'std': (0.4,), 'crop_pct': 1.0}  # fmt: skip
    folder = tmp_path_factory.mktemp('saved') / 'model'
    timm_topo.save(model, folder)
    return folder


def test_from_search_to_report(tool, saved, tmp_path):
    out = tmp_path / 'out'
    args = (saved, '--parameters', '0.9', '0.7', '--dataset', 'digits', '-o', out, '--images', 100)
    training = ('--epochs', 1, '--control', '--', '--no-aug', '--train-images', 128, '--workers', 0)
    status, text, error = tool('shrink', *args, *training)
    assert status == 0, error
    rows = {row['network']: row for row in read_numbers(out / 'shrink.csv')}
    assert list(rows) == ['before', 'parameters_0.9', 'parameters_0.7', 'control']
    for name, budget in (('parameters_0.9', 0.9), ('parameters_0.7', 0.7)):
        row = rows[name]
        smaller = timm_topo.load(out / name / 'model')
        assert row['parameters'] == count_parameters(smaller)
        share = row['parameters'] / rows['before']['parameters']
        assert row['measured'] == pytest.approx(share)
        assert share <= budget
        assert 0 <= row['top1_tuned'] <= 100
        assert (out / name / 'tuned' / 'model').is_dir()
        assert name in text
    assert 'accuracy' in (out / 'report.html').read_text().lower()
    before = (out / 'parameters_0.7' / 'tuned' / 'summary.csv').stat().st_mtime_ns
    status, again, error = tool('shrink', *args, *training)
    assert status == 0, error
    assert text.endswith(again)  # what was trained was told before
    assert (out / 'parameters_0.7' / 'tuned' / 'summary.csv').stat().st_mtime_ns == before
    for name in ('parameters_0.7', 'control'):
        options = read_options(out / name / 'tuned' / 'args.yaml')
        assert options['kd_model_name'] == str(out / 'before')
    timm_topo.save(
        timm_topo.load(out / 'parameters_0.9' / 'model'), out / 'parameters_0.7' / 'model'
    )
    status, _, error = tool('shrink', *args, *training)
    assert status == 1
    assert 'holds another network, which was trained on' in error


@pytest.mark.parametrize(
    ('args', 'status', 'message'),
    [
        (('--time', '1.0'), 1, 'in (0, 1), got 1.0'),
        (('--parameters', '0.001'), 1, 'cannot be met by removing nodes; reached'),
        (('--drop', '-1'), 1, 'a drop must be finite and >= 0'),
        (('--time', '0.9', '--drop', '1'), 2, 'not allowed with argument'),
        (('--time', '0.9', '--epochs', '-1'), 2, '--epochs is 0 or more'),
        (('--time', '0.9', '--epochs', '0', '--control'), 2, 'trains nothing'),
        (('--time', '0.9', '--', '--from-saved', 'x'), 2, 'chooses --from-saved itself'),
    ],
)
def test_wrong_use(tool, saved, tmp_path, args, status, message):
    given = args if '--epochs' in args or '--' in args else (*args, '--epochs', '0')
    data = ('--dataset', 'digits', '-o', tmp_path / 'out', '--images', 20)
    got, _, error = tool('shrink', saved, *data, *given)
    assert got == status
    assert message in ' '.join(error.split())


def test_a_name_without_weights_is_refused(tool, tmp_path):
    status, _, error = tool(
        'shrink', 'resnet_cifar20', '--time', '0.9', '--dataset', 'digits', '-o', tmp_path / 'out'
    )
    assert status == 1
    assert 'names no weights' in error
