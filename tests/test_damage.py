"""Graph damage against adjacency matrices with zeroed entries; measuring goes on, or refuses."""

import copy
import struct
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import timm_topo
from timm_topo.analysis.damage import (
    FRACTIONS,
    damage_edges,
    damage_nodes,
    is_connected,
    nodes_to_damage,
)
from timm_topo.analysis.prune import (
    DisconnectedError,
    edge_mask,
    edge_weights,
    mask_edges,
    prune,
    recalibrate,
)
from timm_topo.analysis.tables import read_csv, read_numbers
from timm_topo.connectivity.router import RouterConnectivity
from timm_topo.data import load_dataset
from timm_topo.executors import adjacency
from timm_topo.experiments import damage as damage_module
from timm_topo.experiments.damage import Damage
from timm_topo.generators import complete, random, sequential
from timm_topo.stages import graph_stages
from timm_topo.training.evaluate import (
    accuracy,
    eval_loader,
    evaluate,
    image_batches,
    in_memory,
)
from timm_topo.training.options import parse_args
from timm_topo.wiring import Wiring

SQUASH = {'alpha': lambda a: a, 'fixed': lambda a: a, 'tanh': torch.tanh}
CPU = torch.device('cpu')
FEW = settings(max_examples=30)


def network(wirings, rules='alpha', seed: int = 0, **options) -> nn.Module:
    """Two small stages whose norms and edge weights are far from their initial values."""
    sizes = dict(
        widths=(4, 6), strides=(1, 2), stem_width=4, stem_kernel=3, stem_stride=2, num_classes=3
    )
    torch.manual_seed(seed)
    model = timm.create_model(
        'test_toponet',
        num_nodes=None,
        wiring=list(wirings),
        connectivity=[rules] * 2 if isinstance(rules, str) else list(rules),
        **{**sizes, **options},
    )
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.5, generator=noise)
                module.running_var.uniform_(0.5, 2, generator=noise)
                module.weight.uniform_(0.5, 1.5, generator=noise)
                module.bias.normal_(0, 0.5, generator=noise)
            if isinstance(module, RouterConnectivity):
                module.weight.normal_(0, 1, generator=noise)
                module.bias.normal_(generator=noise)
        model.head.fc.weight.normal_(0, 1, generator=noise)
        for stage in model.stages:
            if hasattr(stage.connectivity, 'alpha'):
                stage.connectivity.alpha.normal_(0, 1, generator=noise)
    return model.eval()


def images(batch: int = 2, seed: int = 5) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


#: One number that every logit changes.
COUNTED = torch.randn(2, 3, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def score(model: nn.Module) -> float:
    return (model(images()) * COUNTED).sum().item()


@torch.no_grad()
def dense_score(model: nn.Module, matrices: list[Tensor]) -> float:
    """The same by matrices ``[source, target]``, with sums and the modules of the nodes only."""
    x = model.stem(images())
    for stage, matrix in zip(model.stages, matrices, strict=True):
        size = len(matrix)
        maps = [stage.entry(x)]
        for node in range(1, size):
            total = torch.einsum('i,ibchw->bchw', matrix[:node, node], torch.stack(maps))
            maps.append(total if node == size - 1 else stage.nodes[node - 1](total))
        x = maps[-1]
    logits = F.linear(F.relu(x).mean((2, 3)), model.head.fc.weight, model.head.fc.bias)
    return (logits * COUNTED).sum().item()


def matrices(model: nn.Module, rules) -> list[Tensor]:
    """Adjacency matrices ``[source, target]``, edge by edge."""
    found = []
    for stage, rule in zip(model.stages, rules, strict=True):
        matrix = torch.zeros(stage.wiring.num_nodes, stage.wiring.num_nodes)
        for (source, target), a in zip(stage.wiring.edges, stage.connectivity.alpha, strict=True):
            matrix[source, target] = SQUASH[rule](a.detach())
        found.append(matrix)
    return found


def has_way(matrix: Tensor) -> bool:
    graph = nx.from_numpy_array((matrix != 0).numpy(), create_using=nx.DiGraph)
    return nx.has_path(graph, 0, len(matrix) - 1)


def near(value: float):
    return pytest.approx(value, rel=1e-4, abs=1e-4)


wirings = st.builds(
    random, num_nodes=st.integers(3, 6), p=st.floats(0.2, 1), seed=st.integers(0, 9999)
)
cases = st.tuples(
    st.tuples(wirings, wirings),
    st.tuples(*[st.sampled_from(sorted(SQUASH))] * 2),
    st.integers(0, 999),
)


# -- nodes ----------------------------------------------------------------------------------------


@FEW
@given(cases)
def test_a_node_that_goes_leaves_zeros_in_its_row_and_column(case):
    graphs, rules, seed = case
    model = network(graphs, rules, seed)
    before = copy.deepcopy(model.state_dict())
    rows = list(damage_nodes(model, score))
    nodes = [(s, n) for s, graph in enumerate(graphs) for n in range(1, graph.num_nodes - 1)]
    assert nodes_to_damage(model) == [(f'stages.{stage}', node) for stage, node in nodes]
    for row, (stage, node) in zip(rows, nodes, strict=True):
        dense = matrices(model, rules)
        whole = nx.DiGraph(graphs[stage].edges)
        dense[stage][node], dense[stage][:, node] = 0, 0
        assert row == {
            'stage': f'stages.{stage}',
            'node': node,
            'in_degree': whole.in_degree(node),
            'out_degree': whole.out_degree(node),
            'connected': int(all(map(has_way, dense))),
            'top1': near(dense_score(model, dense)),
        }
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert score(model) == near(dense_score(model, matrices(model, rules)))


def test_nodes_of_a_pruned_network_have_the_ids_from_before():
    model = network((complete(5), complete(3)))
    keep = edge_mask(model, threshold=0)
    for e, edge in enumerate(model.stages[0].wiring.edges):
        keep['stages.0'][e] = 2 not in edge
    pruned, _ = prune(model, keep=keep)
    assert nodes_to_damage(pruned) == [('stages.0', 1), ('stages.0', 3), ('stages.1', 1)]
    (row,) = damage_nodes(pruned, score, [('stages.0', 3)])
    keep['stages.0'] &= torch.tensor([3 not in edge for edge in model.stages[0].wiring.edges])
    with mask_edges(model, keep):
        assert row['top1'] == near(score(model))
    assert (row['in_degree'], row['out_degree']) == (2, 1)


def test_nodes_that_are_not_there_are_refused():
    model = network((complete(4), complete(3)))
    for node in (('stages.0', 0), ('stages.0', 3), ('stages.1', 2), ('stage', 1)):
        with pytest.raises(ValueError, match=rf'{node[0]!r} has no computing node {node[1]}; st'):
            list(damage_nodes(model, score, [node]))


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('dagnet', dict(num_nodes=6, channels=2)),
        ('test_maskconnect_resnet', dict(num_blocks=1, widths=(4, 6, 8), fan_in=2)),
        (
            'test_maskconnect_resnext',
            dict(depths=(1, 2), widths=(6, 8), cardinality=3, base_width=2, stem_width=4, fan_in=2),
        ),
    ],
)
def test_nodes_go_from_every_kind_of_graph(name, options, randomise):
    """What is left is what the adjacency that the network itself records says."""
    model = randomise(timm.create_model(name, num_classes=3, **options)).eval()
    (stage,) = graph_stages(model).values()
    seen = []

    def record(masked: nn.Module) -> float:
        (matrix,) = adjacency(masked, images(1)).values()
        seen.append(matrix[0])
        return 0.0

    rows = list(damage_nodes(model, record))
    assert [row['node'] for row in rows] == list(range(1, stage.wiring.num_nodes - 1))
    (whole,) = adjacency(model, images(1)).values()
    for row, matrix in zip(rows, seen, strict=True):
        expected = whole[0].clone()
        expected[row['node']], expected[:, row['node']] = 0, 0
        torch.testing.assert_close(matrix, expected)


# -- edges ----------------------------------------------------------------------------------------


@FEW
@given(cases, st.sampled_from(['weakest', 'strongest']), st.floats(0, 0.99))
def test_edges_that_go_leave_zeros(case, order, fraction):
    graphs, rules, seed = case
    model = network(graphs, rules, seed)
    dense = matrices(model, rules)
    places = [
        (stage, source, target)
        for stage, graph in enumerate(graphs)
        for source, target in graph.edges
    ]
    places.sort(key=lambda place: abs(dense[place[0]][place[1:]].item()))
    if order == 'strongest':
        places.reverse()
    gone = round(fraction * len(places))
    for stage, source, target in places[:gone]:
        dense[stage][source, target] = 0
    (row,) = damage_edges(model, [fraction], score, order)
    assert row == {
        'order': order,
        'seed': 0,
        'removed': pytest.approx(gone / len(places)),
        'edges': len(places) - gone,
        'connected': int(all(map(has_way, dense))),
        'top1': near(dense_score(model, dense)),
    }


def removed_by(model: nn.Module, count: int, **options) -> set[tuple[str, int]]:
    """Stages and numbers of the edges that go when so many go."""
    total = sum(stage.wiring.num_edges for stage in model.stages)
    keep = edge_mask(model, fraction=count / total, **options)
    gone = {(name, e) for name, mask in keep.items() for e, stays in enumerate(mask) if not stays}
    assert len(gone) == count
    return gone


def sequence(model: nn.Module, **options) -> list[tuple[str, int]]:
    """Edges in the order in which they go; what a step removes the next one removes too."""
    taken, before = [], set()
    for count in range(1, sum(stage.wiring.num_edges for stage in model.stages)):
        gone = removed_by(model, count, **options)
        assert before < gone
        taken += gone - before
        before = gone
    return taken


@FEW
@given(wirings, wirings, st.integers(0, 99))
def test_the_strongest_go_in_reverse_of_the_weakest(first, second, seed):
    """Also among edges that weigh the same."""
    model = network((first, second), seed=seed)
    with torch.no_grad():
        for stage in model.stages:
            stage.connectivity.alpha.copy_(stage.connectivity.alpha.round())
    weakest, strongest = sequence(model), sequence(model, order='strongest')
    everything = {(n, e) for n, s in graph_stages(model).items() for e in range(s.wiring.num_edges)}
    (last,) = everything - set(weakest)
    assert strongest == [last, *reversed(weakest)][:-1]
    weights = {name: w.abs() for name, w in edge_weights(model).items()}
    sizes = [weights[name][e].item() for name, e in [*weakest, last]]
    assert sizes == sorted(sizes)


@FEW
@given(wirings, wirings, st.integers(0, 99))
def test_random_edges_go_in_an_order_of_their_seed_alone(first, second, seed):
    one, other = (network((first, second), seed=own) for own in (1, 2))
    torch.manual_seed(seed)
    state = torch.get_rng_state()
    order = sequence(one, order='random', seed=seed)
    assert torch.equal(torch.get_rng_state(), state), 'draws are its own'
    assert len(set(order)) == len(order)
    torch.manual_seed(seed + 1)
    assert sequence(other, order='random', seed=seed) == order


def test_other_seeds_are_other_orders():
    model = network((complete(6), complete(6)))
    orders = {tuple(sequence(model, order='random', seed=seed)) for seed in range(10)}
    orders |= {tuple(sequence(model)), tuple(sequence(model, order='strongest'))}
    assert len(orders) == 12
    firsts = {sequence(model, order='random', seed=seed)[0] for seed in range(60)}
    assert len(firsts) > 15, 'any edge may be the first'


def test_orders_that_cannot_be_are_refused():
    model = network((complete(3), complete(3)))
    with pytest.raises(ValueError, match="unknown order 'weak'; known: weakest, strongest, random"):
        edge_mask(model, fraction=0.5, order='weak')
    for order in ('strongest', 'random'):
        told = f'a threshold takes the weakest edges, not the order {order!r}'
        with pytest.raises(ValueError, match=told):
            edge_mask(model, threshold=0.5, order=order)
    with pytest.raises(ValueError, match="unknown order 'best'"):
        list(damage_edges(model, [0.5], score, 'best'))
    with pytest.raises(ValueError, match=r'fraction must be in \[0, 1\), got 1'):
        list(damage_edges(model, [0.5, 1], score))


@settings(max_examples=100)
@given(wirings, wirings, st.data())
def test_a_network_is_connected_while_every_graph_is(first, second, data):
    model = network((first, second))
    keep, expected = {}, True
    for name, stage in graph_stages(model).items():
        size = stage.wiring.num_edges
        stays = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
        keep[name] = torch.tensor(stays)
        graph = nx.DiGraph(edge for edge, kept in zip(stage.wiring.edges, stays) if kept)
        graph.add_nodes_from(range(stage.wiring.num_nodes))
        expected &= nx.has_path(graph, 0, stage.wiring.num_nodes - 1)
    assert is_connected(model, keep) is expected


def test_new_statistics_are_those_of_the_pruned_network():
    model = network((complete(6), complete(5)), seed=3)
    batches = [1 + images(6, seed=1), 2 * images(3, seed=2)]
    before = copy.deepcopy(model.state_dict())
    fractions = (0.1, 0.3, 0.6, 0.9)
    rows = list(damage_edges(model, fractions, score, batches=batches))
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    cut = 0
    for fraction, row in zip(fractions, rows, strict=True):
        try:
            smaller, _ = prune(model, fraction=fraction)
        except DisconnectedError:
            cut += 1
            assert row['connected'] == 0
            assert 'top1_recalibrated' not in row
            continue
        assert row['top1'] == near(score(smaller))
        assert row['top1_recalibrated'] == near(score(recalibrate(smaller, batches)))
        assert row['top1_recalibrated'] != near(row['top1'])
    assert 0 < cut < 4
    assert next(damage_edges(model, fractions, score)).keys() == rows[-1].keys()


def test_edges_whose_weight_depends_on_the_image_go_by_their_mean():
    model = network((complete(5), complete(4)), ('router', 'alpha'))
    with pytest.raises(ValueError, match='edge weights depend on the image: give images'):
        next(damage_edges(model, [0.5], score))
    seen = images(20, seed=4)
    rows = list(damage_edges(model, [0.25, 0.5], score, images=seen))
    whole = adjacency(model, seen)
    means = {}
    for name, stage in graph_stages(model).items():
        for e, (source, target) in enumerate(stage.wiring.edges):
            means[name, e] = sum(m[target, source].item() for m in whole[name]) / len(seen)
    order = sorted(means, key=lambda edge: abs(means[edge]))
    for row, count in zip(rows, (4, 8), strict=True):
        keep = {
            name: torch.tensor([(name, e) not in order[:count] for e in range(len(s.wiring.edges))])
            for name, s in graph_stages(model).items()
        }
        with mask_edges(model, keep):
            assert row['top1'] == near(score(model))
        assert row['edges'] == len(order) - count


# -- data sets ------------------------------------------------------------------------------------

MODEL = dict(
    num_nodes=None, wiring=[complete(5), complete(4)], widths=(4, 6), strides=(1, 2), stem_width=4,
    stem_kernel=3, num_classes=3,
)  # fmt: skip
SIZE = 16


@torch.no_grad()
def labelled_model(seed: int = 11, **options) -> nn.Module:
    """For images of 16 px, with preprocessing of its own and answers of all three kinds."""
    options = {**MODEL, **options}
    graphs = options.pop('wiring')
    options.pop('num_nodes')
    rules = options.pop('connectivity', 'alpha')
    model = network(graphs, rules, seed, **options)
    cfg = dict(input_size=(3, SIZE, SIZE), crop_pct=0.9, mean=(0.3, 0.4, 0.5), std=(0.2, 0.2, 0.3))
    model.pretrained_cfg = {**model.pretrained_cfg, **cfg}
    noise = torch.randn(64, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    model.head.fc.bias -= model(F.interpolate(noise, (SIZE, SIZE), mode='bicubic')).mean(0)
    return model


def write_idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f'>{array.ndim}I', *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


@pytest.fixture(scope='session')
def digits(tmp_path_factory) -> Path:
    """40 images to train on, 50 to validate on; their labels are what ``labelled_model`` says."""
    folder = tmp_path_factory.mktemp('idx')
    rng = np.random.default_rng(0)
    for stem, split, count in (('train', 'train', 40), ('t10k', 'validation', 50)):
        small = rng.integers(0, 256, (count, 4, 4), dtype=np.uint8)
        big = [np.asarray(Image.fromarray(i).resize((20, 20), Image.BICUBIC)) for i in small]
        write_idx(folder / f'{stem}-images-idx3-ubyte', np.stack(big))
        write_idx(folder / f'{stem}-labels-idx1-ubyte', np.arange(count) % 3)
        model = labelled_model()
        with torch.no_grad():
            loader = eval_loader(model, load_dataset('idx', folder, split))
            logits = torch.cat([model(x) for x, _ in loader])
        answers = logits.argmax(1)
        assert min(torch.bincount(answers, minlength=3)) > 10
        write_idx(folder / f'{stem}-labels-idx1-ubyte', answers.numpy())
    return folder


@pytest.fixture
def data(digits) -> dict:
    """What a Damage is told of the data."""
    return dict(
        data=load_dataset('idx', digits, 'validation'),
        trained=load_dataset('idx', digits, 'train'),
        described='idx',
    )


def make(output: Path, data: dict, model: nn.Module | None = None, **options) -> Damage:
    options = {'fractions': (0.2, 0.6), **data, **options}
    return Damage(model=model or labelled_model(), output=output, **options)


def counting(monkeypatch, stop_at: int | None = None) -> list:
    """Evaluations that are made; Ctrl-C in that of a number, counted from 1."""
    made = []

    def counted(model, *args):
        if len(made) + 1 == stop_at:
            raise KeyboardInterrupt
        made.append(model)
        return evaluate(model, *args)

    monkeypatch.setattr(damage_module, 'evaluate', counted)
    return made


# -- images in memory -----------------------------------------------------------------------------


@pytest.mark.parametrize('batch', [7, 50, 128])
def test_images_in_memory_are_those_of_the_loader_again_and_again(data, batch):
    model = labelled_model()
    loader = eval_loader(model, data['data'], batch)
    inner = loader.loader
    expected = [(x.clone(), y.clone()) for x, y in loader]
    held = in_memory(loader)
    assert len(held) == len(expected)
    for _ in range(2):
        for (x, y), (held_x, held_y) in zip(expected, held, strict=True):
            assert torch.equal(held_x, x)
            assert torch.equal(held_y, y)
        assert evaluate(model, held, CPU) == evaluate(model, loader, CPU)
    assert loader.loader is inner, 'the loader is as it was'


def test_images_in_memory_are_read_once(data, monkeypatch):
    loader = eval_loader(labelled_model(), data['data'], 16)
    reads = []
    read = type(data['data']).__getitem__

    def reading(dataset, index):
        reads.append(index)
        return read(dataset, index)

    monkeypatch.setattr(type(data['data']), '__getitem__', reading)
    held = in_memory(loader)
    assert sorted(reads) == list(range(50))
    list(held), list(held)
    assert len(reads) == 50


def test_some_images_in_memory_are_always_the_same_ones(data):
    model = labelled_model()
    one, other = (
        [x for x, _ in in_memory(eval_loader(model, data['data'], size), 20)] for size in (8, 20)
    )
    assert torch.equal(torch.cat(one), torch.cat(other))
    whole = torch.cat([x for x, _ in eval_loader(model, data['data'])])
    rows = {tuple(image.flatten()[:20].tolist()) for image in whole}
    drawn = [tuple(image.flatten()[:20].tolist()) for image in torch.cat(one)]
    assert len(rows) == 50
    assert len(set(drawn) & rows) == 20
    assert drawn != [tuple(image.flatten()[:20].tolist()) for image in whole[:20]]


# -- measuring ------------------------------------------------------------------------------------


def test_every_row_is_the_accuracy_of_what_is_left(tmp_path, data):
    orders = ('weakest', 'strongest', 'random')
    fractions = (0.1, 0.3, 0.9)
    model = labelled_model()
    result = make(tmp_path, data, fractions=fractions, orders=orders, seeds=(3, 4)).run()
    assert result['top1'] == accuracy(model, data['data']) == 100, 'labels are its own answers'
    first, *edges = result['edges']
    expected = [(o, s, f) for o in orders for s in ((3, 4) if o == 'random' else (0,))
                for f in fractions]  # fmt: skip
    assert [(row['order'], row['seed'], row['asked']) for row in edges] == expected
    batches = image_batches(model, data['trained'], 10)
    at = dict(order='none', seed=0, removed=0.0, edges=16, connected=1, asked=0.0)
    assert first == {**at, 'top1': result['top1'], 'top1_recalibrated': pytest.approx(
        accuracy(recalibrate(labelled_model(), batches), data['data']))}  # fmt: skip
    for row in edges:
        keep = edge_mask(model, fraction=row['asked'], order=row['order'], seed=row['seed'])
        assert row['edges'] == sum(int(mask.sum()) for mask in keep.values())
        with mask_edges(model, keep):
            assert row['top1'] == accuracy(model, data['data'])
        assert ('top1_recalibrated' in row) == bool(row['connected'])
        if row['connected']:
            smaller, _ = prune(model, keep=keep)
            recalibrate(smaller, batches)
            assert row['top1_recalibrated'] == accuracy(smaller, data['data'])
    assert {row['connected'] for row in edges} == {0, 1}
    assert len({row['top1'] for row in edges}) > 3
    for row, (name, node) in zip(result['nodes'], nodes_to_damage(model), strict=True):
        keep = {n: torch.ones(s.wiring.num_edges).bool() for n, s in graph_stages(model).items()}
        keep[name] = torch.tensor([node not in e for e in graph_stages(model)[name].wiring.edges])
        with mask_edges(model, keep):
            assert (row['stage'], row['node'], row['top1']) == (
                name, node, accuracy(model, data['data'])
            )  # fmt: skip


def test_rows_and_figures_are_written(tmp_path, data):
    result = make(tmp_path / 'new' / 'folder', data).run()
    folder = tmp_path / 'new' / 'folder'
    names = sorted(path.name for path in folder.iterdir())
    assert names == ['edges.csv', 'edges.svg', 'nodes.csv', 'nodes.svg', 'settings.yaml']
    assert read_numbers(folder / 'edges.csv') == result['edges']
    assert read_numbers(folder / 'nodes.csv') == result['nodes']
    for name in ('edges.svg', 'nodes.svg'):
        assert (folder / name).read_text().startswith('<?xml')


def test_edges_alone_and_on_some_images(tmp_path, data):
    model = labelled_model()
    result = make(tmp_path, data, nodes=False, images=20, trained=None).run()
    assert result['nodes'] == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ['edges.csv', 'edges.svg', 'settings.yaml']
    loader = in_memory(eval_loader(model, data['data']), 20)
    for row in result['edges']:
        with mask_edges(model, edge_mask(model, fraction=row['asked'])):
            assert row['top1'] == evaluate(model, loader, CPU)['top1']
    assert len(torch.cat([y for _, y in loader])) == 20
    assert not any('top1_recalibrated' in row for row in result['edges'])


# -- going on -------------------------------------------------------------------------------------

ORDERS = dict(orders=('weakest', 'random'), seeds=(1, 2))


@pytest.fixture(scope='module')
def straight(tmp_path_factory, digits) -> tuple[Path, int]:
    """A damage that nothing interrupted, and how many evaluations it took."""
    folder = tmp_path_factory.mktemp('straight')
    data = [load_dataset('idx', digits, split) for split in ('validation', 'train')]
    with pytest.MonkeyPatch.context() as patch:
        made = counting(patch)
        make(folder, dict(data=data[0], trained=data[1], described='idx'), **ORDERS).run()
    return folder, len(made)


@pytest.mark.parametrize('stop_at', [1, 2, 4, 9, 14, 'last'])
def test_what_was_stopped_goes_on(straight, tmp_path, data, monkeypatch, stop_at):
    """A row that was not whole is measured anew, none twice."""
    folder, total = straight
    stop_at = total if stop_at == 'last' else stop_at
    with monkeypatch.context() as patch:
        before = counting(patch, stop_at)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, data, **ORDERS).run()
    assert len(before) == stop_at - 1
    kept = rows_of(tmp_path)
    assert all('top1' in row for row in kept)
    assert not list(tmp_path.glob('.*')), 'nothing half-written'
    after = counting(monkeypatch)
    make(tmp_path, data, **ORDERS).run()
    assert total <= len(before) + len(after) <= total + 1
    assert [row for row in rows_of(tmp_path) if row in kept] == kept
    for name in ('edges.csv', 'nodes.csv', 'settings.yaml', 'edges.svg', 'nodes.svg'):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def rows_of(folder: Path) -> list[dict]:
    files = [folder / name for name in ('edges.csv', 'nodes.csv')]
    return [row for path in files if path.exists() for row in read_csv(path)]


def test_what_is_done_is_not_done_again(straight, data, monkeypatch):
    folder, _ = straight
    written = (folder / 'edges.csv').read_bytes()
    made = counting(monkeypatch)
    (folder / 'edges.svg').unlink()
    result = make(folder, data, **ORDERS).run()
    assert made == []
    assert result['edges'] == read_numbers(folder / 'edges.csv')
    assert (folder / 'edges.csv').read_bytes() == written
    assert (folder / 'edges.svg').exists()


def test_more_shares_and_orders_add_to_what_is_there(tmp_path, data, monkeypatch):
    first = make(tmp_path, data, trained=None, nodes=False).run()
    made = counting(monkeypatch)
    more = make(tmp_path, data, trained=None, nodes=False, fractions=(0.6, 0.4, 0.2, 0.4)).run()
    assert len(made) == 1
    assert [row['asked'] for row in more['edges']] == [0, 0.2, 0.4, 0.6]
    assert [row for row in more['edges'] if row['asked'] != 0.4] == first['edges']
    other = make(tmp_path, data, trained=None, nodes=False, orders=('strongest',)).run()
    assert [row['order'] for row in other['edges']] == ['none', 'strongest', 'strongest']
    assert len(read_csv(tmp_path / 'edges.csv')) == 6
    again = make(tmp_path, data, trained=None, nodes=False, fractions=(0.4,)).run()
    assert again['edges'][1] == more['edges'][2]


def test_what_a_folder_was_made_with_is_taken_over(tmp_path, data, monkeypatch):
    options = dict(orders=('random', 'weakest'), seeds=(5, 2), fractions=(0.3,), images=30)
    first = make(tmp_path, data, trained=None, **options).run()
    made = counting(monkeypatch)
    again = make(tmp_path, data, fractions=FRACTIONS)
    again.curves_there()
    assert again.orders == ['weakest', 'random']
    assert again.seeds == [2, 5]
    assert (again.fractions, again.images, again.trained) == ([0.3], 30, None)
    result = again.run()
    assert made == []
    assert sorted(map(str, result['edges'])) == sorted(map(str, first['edges']))


def test_an_empty_folder_takes_nothing_over(tmp_path, data):
    damage = make(tmp_path, data)
    before = vars(damage).copy()
    damage.curves_there()
    assert vars(damage) == before


def test_a_folder_that_was_stopped_at_once_keeps_its_ways(tmp_path, data, monkeypatch):
    with monkeypatch.context() as patch:
        counting(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, data, images=30).run()
    damage = make(tmp_path, data)
    damage.curves_there()
    assert (damage.images, damage.fractions) == (30, (0.2, 0.6))
    assert damage.trained is not None
    damage.run()


# -- what does not belong together ----------------------------------------------------------------


def other_weights() -> nn.Module:
    model = labelled_model()
    with torch.no_grad():
        model.head.fc.bias[1] += 1e-3
    return model


@pytest.mark.parametrize(
    ('change', 'told'),
    [
        (dict(described='idx@elsewhere'), 'data idx, not idx@elsewhere'),
        (dict(images=10), 'images None, not 10'),
        (dict(trained=None), 'new statistics True, not False'),
        (dict(model=other_weights), r'network \w{16}, not \w{16}'),
    ],
)
def test_another_network_or_other_data_are_not_mixed(tmp_path, data, monkeypatch, change, told):
    make(tmp_path, data, nodes=False, fractions=(0.5,)).run()
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    if 'model' in change:
        change = {'model': change['model']()}
    made = counting(monkeypatch)
    with pytest.raises(ValueError, match=f'holds damage with {told}: choose another folder'):
        make(tmp_path, data, **change).run()
    assert made == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_a_network_that_only_has_other_edges_is_another(tmp_path, data):
    """The same values under the same names, as of two random prunings of edges that weigh 1."""
    model = labelled_model(wiring=[Wiring(4, ((0, 1), (0, 2), (1, 3), (2, 3))), complete(3)])
    other = labelled_model(wiring=[Wiring(4, ((0, 1), (1, 2), (1, 3), (2, 3))), complete(3)])
    other.load_state_dict(model.state_dict())
    make(tmp_path, data, model, nodes=False, fractions=(0.2,)).run()
    with pytest.raises(ValueError, match='holds damage with network'):
        make(tmp_path, data, other, nodes=False, fractions=(0.2,)).run()
    make(tmp_path, data, model.to(memory_format=torch.channels_last), nodes=False).run()


@pytest.mark.parametrize('text', ['', '- a\n- b\n', 'some: [thing\n', 'theme: dark\n', '7\n'])
def test_settings_of_something_else_are_left_alone(tmp_path, data, text):
    (tmp_path / 'settings.yaml').write_text(text)
    with pytest.raises(ValueError, match='holds damage with network None, not'):
        make(tmp_path, data).run()
    assert [p.name for p in tmp_path.iterdir()] == ['settings.yaml']
    assert (tmp_path / 'settings.yaml').read_text() == text


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (dict(fractions=(0.5, 0.0)), r'a fraction must be in \(0, 1\), got 0\.0'),
        (dict(fractions=(1.0,)), r'a fraction must be in \(0, 1\), got 1\.0'),
        (dict(fractions=(float('nan'),)), r'a fraction must be in \(0, 1\), got nan'),
        (dict(fractions=()), r'needs fractions, orders, seeds and images, got \[\], '),
        (dict(orders=('weakest', 'best')), "unknown order 'best'; known: weakest, strongest, rand"),
        (dict(orders=()), r'needs .* got \[0\.2, 0\.6\], \[\], \[0\] and None'),
        (dict(seeds=()), r"needs .* \['weakest'\], \[\] and None"),
        (dict(images=0), r'needs .* \[0\] and 0'),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is(
    tmp_path, data, monkeypatch, options, told
):
    made = counting(monkeypatch)
    with pytest.raises(ValueError, match=told):
        make(tmp_path / 'out', data, **options).run()
    assert made == []
    assert not (tmp_path / 'out').exists()


# -- weights that depend on the image -------------------------------------------------------------


def routed_model() -> nn.Module:
    return labelled_model(connectivity=('router', 'alpha'))


def test_networks_with_routers_are_damaged_by_their_mean_weights(tmp_path, data):
    model = routed_model()
    result = make(tmp_path, data, model, fractions=(0.3,)).run()
    seen = image_batches(model, data['trained'], 10)
    for row in result['edges']:
        keep = edge_mask(model, fraction=row['asked'], images=seen[0])
        with mask_edges(model, keep):
            assert row['top1'] == accuracy(model, data['data'])
    assert len(result['nodes']) == 5
    assert (tmp_path / 'nodes.svg').exists()
    assert read_numbers(tmp_path / 'edges.csv') == result['edges']


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (dict(trained=None), 'depend on the image: damage needs training images'),
        (dict(retrain=parse_args([])), 'depend on the image: they cannot be frozen to retrain'),
    ],
)
def test_what_routers_cannot_do_is_refused(tmp_path, data, options, told):
    with pytest.raises(ValueError, match=told):
        make(tmp_path / 'out', data, routed_model(), **options).run()
    assert not (tmp_path / 'out').exists()


# -- training what is left ------------------------------------------------------------------------


def training(digits: Path, *extra):
    return parse_args([
        *('--dataset', 'idx', '--data-dir', str(digits), '-b', '20', '-vb', '50', '-j', '0'),
        *('--no-aug', '--lr', '0.05', '--no-tensorboard', '--epochs', '1', *map(str, extra)),
    ])  # fmt: skip


RETRAINED = dict(nodes=False, fractions=(0.25, 0.9), orders=('weakest', 'random'), seeds=(1,))


@pytest.fixture(scope='module')
def retrained(tmp_path_factory, digits) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp('retrained')
    data = dict(data=load_dataset('idx', digits, 'validation'), described='idx')
    return folder, make(folder, data, **RETRAINED, retrain=training(digits)).run()


def test_what_is_left_is_trained_with_its_edge_weights_frozen(retrained, data):
    folder, result = retrained
    model = labelled_model()
    done = {path.name for path in (folder / 'retrained').iterdir()}
    assert done == {'none_0', 'weakest_0.25', 'random_1_0.25'}, 'not what fell apart'
    for row in result['edges']:
        assert ('top1_retrained' in row) == bool(row['connected']) == (row['asked'] < 0.9)
        if not row['connected']:
            continue
        name = row['order'] + ('_1' if row['order'] == 'random' else '') + f'_{row["asked"]:g}'
        run = folder / 'retrained' / name / 'run'
        order = 'weakest' if row['order'] == 'none' else row['order']
        keep = edge_mask(model, fraction=row['asked'], order=order, seed=row['seed'])
        pruned, _ = prune(model, keep=keep)
        new = timm_topo.load(run / 'model').eval()
        assert [s.wiring for s in new.stages] == [s.wiring for s in pruned.stages]
        for stage, weights in edge_weights(pruned).items():
            assert torch.equal(edge_weights(new)[stage], weights)
            assert not list(graph_stages(new)[stage].connectivity.parameters())
        assert not torch.equal(new.stem.conv.weight, pruned.stem.conv.weight), 'from scratch'
        assert accuracy(new, data['data']) == row['top1_retrained']
        assert row['top1_retrained'] == float(read_csv(run / 'summary.csv')[-1]['eval_top1'])
        assert (new.pretrained_cfg['input_size'], tuple(new.pretrained_cfg['mean'])) == (
            (3, SIZE, SIZE), (0.3, 0.4, 0.5)
        )  # fmt: skip
    assert read_numbers(folder / 'edges.csv') == result['edges']


def test_trainings_that_are_done_are_not_done_again(retrained, data, digits, monkeypatch):
    folder, result = retrained
    monkeypatch.setattr(damage_module, 'train', lambda args: pytest.fail('trained again'))
    made = counting(monkeypatch)
    again = make(folder, {**data, 'trained': None}, **RETRAINED, retrain=training(digits)).run()
    assert (again, made) == (result, [])
    plain = make(folder, {**data, 'trained': None}, **RETRAINED).run()
    assert plain == result, 'what was trained is told without training, too'
    with pytest.raises(ValueError, match=r'run was made with lr 0\.05, not 0\.5: choose another'):
        make(
            folder, {**data, 'trained': None}, **RETRAINED, retrain=training(digits, '--lr', 0.5)
        ).run()


def test_a_training_that_was_stopped_goes_on(retrained, tmp_path, data, digits, monkeypatch):
    folder, result = retrained
    real, trained = damage_module.train, []

    def stopping(args):
        trained.append(Path(args.output).name)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return real(args)

    options = {**data, 'trained': None, **RETRAINED, 'retrain': training(digits)}
    monkeypatch.setattr(damage_module, 'train', stopping)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, options).run()
    assert trained == ['none_0', 'weakest_0.25']
    told = [row.get('top1_retrained') for row in read_numbers(tmp_path / 'edges.csv')]
    assert told == [result['edges'][0]['top1_retrained'], None, None, None, None]
    made = counting(monkeypatch)
    assert make(tmp_path, options).run() == result
    assert trained[2:] == ['weakest_0.25', 'random_1_0.25']
    assert made == []
    assert (tmp_path / 'edges.csv').read_bytes() == (folder / 'edges.csv').read_bytes()


def test_all_weights_but_those_of_edges_are_trained_on(tmp_path, data, digits):
    """At learning rate 0, so that the result is the start."""
    retrain = training(digits, '--from-saved-weights', 'finetune-frozen', '--lr', 0)
    options = dict(trained=None, nodes=False, fractions=(0.25,), retrain=retrain)
    row = make(tmp_path, data, **options).run()['edges'][1]
    pruned, _ = prune(labelled_model(), fraction=0.25)
    new = timm_topo.load(tmp_path / 'retrained' / 'weakest_0.25' / 'run' / 'model').eval()
    for name, value in new.named_parameters():
        assert torch.equal(value, pruned.get_parameter(name)), name
    for stage, weights in edge_weights(pruned).items():
        assert torch.equal(edge_weights(new)[stage], weights)
        assert not list(graph_stages(new)[stage].connectivity.parameters())
    assert row['top1_retrained'] == accuracy(new, data['data'])


def test_every_other_way_to_start_is_from_scratch_and_frozen(tmp_path, data, digits, monkeypatch):
    seen = []

    def stop(args):
        seen.append(yaml.safe_load(yaml.safe_dump(vars(args))))
        raise KeyboardInterrupt

    monkeypatch.setattr(damage_module, 'train', stop)
    for how in ('reset', 'keep', 'frozen', 'finetune'):
        retrain = training(digits, '--from-saved-weights', how)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path / how, data, nodes=False, fractions=(0.25,), retrain=retrain).run()
        assert retrain.from_saved_weights == how, 'options are left as they are'
    assert [args['from_saved_weights'] for args in seen] == ['frozen'] * 4
    assert {(args['save'], args['experiment'], args['resume']) for args in seen} == {
        ('last', 'run', 'auto')
    }


def test_a_stage_of_one_path_falls_in_two_with_any_edge(tmp_path, data):
    """Nothing but the first row has new statistics then, and figures are drawn all the same."""
    model = labelled_model(wiring=[sequential(4), sequential(3)])
    result = make(tmp_path, data, model, fractions=(0.3,)).run()
    assert [row['connected'] for row in result['edges']] == [1, 0]
    assert ['top1_recalibrated' in row for row in result['edges']] == [True, False]
    assert [row['connected'] for row in result['nodes']] == [0, 0, 0]
    assert (tmp_path / 'edges.svg').exists()
