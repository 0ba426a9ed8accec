"""The page about one network: one file, numbers that are its own, sections that have something."""

import copy
import math
import statistics
import warnings
from html.parser import HTMLParser

import networkx as nx
import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import Tensor, nn

from timm_topo import plot, rewire
from timm_topo.analysis.cost import Flops, Latency, count_flops, input_size_of
from timm_topo.analysis.prune import edge_mask, prune
from timm_topo.analysis.routing import routing
from timm_topo.connectivity.mask import MaskConnectivity
from timm_topo.connectivity.router import RouterConnectivity, set_tau
from timm_topo.executors import adjacency
from timm_topo.generators import complete
from timm_topo.report import images as module
from timm_topo.report.damage import damage_figures
from timm_topo.report.html import Report
from timm_topo.report.network import Findings, network_page
from timm_topo.stages import graph_stages

HOSTILE = '<script>alert("1")</script> & \'more\' --> ]]>'
SIZES = dict(widths=(4, 6), strides=(1, 2), stem_width=4, stem_kernel=3, num_classes=3)
DASH = '\u2013'


@torch.no_grad()
def varied(model: nn.Module) -> nn.Module:
    """Edge weights unlike one another, routers that tell images apart; for images of 16 px."""
    for module_ in model.modules():
        if isinstance(module_, RouterConnectivity):
            module_.weight.normal_(0, 1)
            module_.bias.normal_()
        elif isinstance(module_, MaskConnectivity) and module_.learned:
            module_.mask.uniform_()
        elif isinstance(module_, nn.BatchNorm2d):
            module_.bias.normal_(0, 0.5)
    for stage in graph_stages(model).values():
        if hasattr(stage.connectivity, 'alpha'):
            stage.connectivity.alpha.uniform_(-1, 1)
            stage.connectivity.alpha[0] = 0.0
    channels = input_size_of(model)[0]
    model.pretrained_cfg = {**model.pretrained_cfg, 'input_size': (channels, 16, 16)}
    return model.eval()


def static(**options) -> nn.Module:
    rules = options.pop('connectivity', ['alpha', 'tanh'])
    sizes = {**SIZES, 'num_nodes': (5, 4), **options}
    return varied(timm.create_model('test_toponet', connectivity=rules, **sizes))


def routed() -> nn.Module:
    return static(connectivity=['router', 'alpha'])


def masked() -> nn.Module:
    sizes = dict(num_blocks=2, widths=(4, 6, 8), fan_in=2, num_classes=5)
    return varied(timm.create_model('test_maskconnect_resnet', **sizes))


def blocks() -> nn.Module:
    sizes = dict(depths=(1, 2), widths=(6, 8), cardinality=3, base_width=2, stem_width=4, fan_in=2)
    return varied(timm.create_model('test_maskconnect_resnext', **sizes))


def whole() -> nn.Module:
    return varied(timm.create_model('dagnet', num_nodes=9, channels=2, num_classes=3))


def folded() -> nn.Module:
    """Node 1 of the first graph starves; what it emitted is folded. Nobody reads its node 2."""
    model = static()
    keep = edge_mask(model, threshold=0)
    gone = {(0, 1), (2, 3), (2, 4)}
    for e, edge in enumerate(model.stages[0].wiring.edges):
        keep['stages.0'][e] = edge not in gone
    smaller, report = prune(model, keep=keep)
    assert report.stages[0].folded
    assert report.stages[0].removed == (1, 2)
    return smaller


def rewired() -> nn.Module:
    """Seven graphs: more than a figure takes."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        plain = timm.create_model('efficientnet_b1', num_classes=3, in_chans=1)
    model = varied(rewire(plain))
    assert len(graph_stages(model)) == 7
    return model


KINDS = {f.__name__: f for f in (static, routed, masked, blocks, whole, folded, rewired)}
GENERAL = ['Graphs', 'Edge weights', 'Degrees', 'Characteristics']


def found(model: nn.Module, **options) -> Findings:
    """As ``topo report`` finds it, but for times, which are made up."""
    flops = options.pop('flops', None) or count_flops(model)
    times = {1: Latency(2.0, 1.5, 3.0, 1.0, (1.0, 1.0)), 8: Latency(10.0, 9.0, 11.5, 1.0, (1, 1))}
    return Findings(flops, times, '1 CPU thread', **options)


#: Where costs do not matter.
FLOPS = Flops(conv=3_000_000, linear=20_000, edges=400_000)


def images(model: nn.Module, count: int = 12) -> Tensor:
    return torch.randn(count, *input_size_of(model), generator=torch.Generator().manual_seed(3))


class Page(HTMLParser):
    """Elements with their attributes and text, tables by caption; refuses unbalanced tags."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.open, self.elements = [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in ('meta', 'link', 'br', 'img'):
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, text in self.open:
            text.append(data)

    def texts(self, *tags: str) -> list[str]:
        return [''.join(text) for tag, _, text in self.elements if tag in tags]

    @property
    def facts(self) -> dict[str, tuple[str, str]]:
        values = self.texts('dd')
        return dict(zip(self.texts('dt'), zip(values[::2], values[1::2], strict=True), strict=True))

    def table(self, caption: str) -> list[list[str]]:
        """Head and rows of the table whose caption starts like this."""
        inside, rows = False, []
        for tag, _, text in self.elements:
            if tag == 'caption':
                inside = ''.join(text).startswith(caption)
            elif inside and tag == 'tr':
                rows.append([])
            elif inside and tag in ('th', 'td'):
                rows[-1].append(''.join(text))
        assert rows, caption
        return rows


def page_of(model: nn.Module, **options) -> Page:
    return Page(network_page(model, 'title', found(model, **options)).html())


@pytest.fixture
def drawn(monkeypatch) -> dict[str, list]:
    """Arguments of all figures by name of the function; nothing is really drawn."""
    calls = {}

    def spy(name: str):
        def draw(*args, **kwargs) -> Figure:
            calls.setdefault(name, []).append((args, kwargs))
            return Figure()

        return draw

    for name in plot.__all__:
        if name not in ('MOST_SERIES', 'Panel', 'shared_limit', 'to_svg', 'save_figure'):
            monkeypatch.setattr(plot, name, spy(name))
    return calls


# -- one file -------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', KINDS)
def test_the_page_of_every_kind_of_network_is_one_file_without_references(kind):
    model = KINDS[kind]()
    before = copy.deepcopy(model.state_dict())
    given_ = {'images': images(model)} if kind == 'routed' else {}
    html = network_page(model, 'title', found(model, **given_)).html()
    page = Page(html)
    assert '://' not in html
    assert '@import' not in html
    for tag, attrs, _ in page.elements:
        assert tag not in ('script', 'iframe', 'object', 'embed', 'link', 'base')
        assert not any(name.startswith('on') for name in attrs)
        for name in ('src', 'href', 'xlink:href', 'data', 'action', 'poster', 'srcset'):
            assert attrs.get(name, '#').startswith(('#', 'data:image/png;')), (tag, attrs)
    assert page.texts('h2') == [*GENERAL, 'Costs']
    assert page.texts('h1') == page.texts('title') == ['title']
    stages = len(graph_stages(model))
    sheets = math.ceil(stages / 6)
    figures = stages + 3 * sheets + (kind != 'rewired')  # which stores the weights themselves
    assert len(page.texts('figcaption')) == figures
    assert html.count('<svg role="img" aria-label=') == figures
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())


def test_the_same_network_gives_the_same_bytes():
    model = routed()
    shown = [np.full((4, 4, 3), i, np.uint8) for i in range(12)]
    options = dict(images=images(model), shown=shown, routes=routes_of(model))
    one, other = (network_page(model, 'a', found(model, **options)).html() for _ in range(2))
    assert one == other


def test_a_network_without_graphs_has_no_page():
    model = timm.create_model('test_resnet')
    with pytest.raises(ValueError, match='ResNet has no graph stage'):
        network_page(model, 'title', found(model, flops=FLOPS))


# -- what it says ---------------------------------------------------------------------------------


def squashed(stage: nn.Module) -> list[float]:
    """Weights by the definitions of the rules."""
    alpha = [value.item() for value in stage.connectivity.alpha]
    if 'Tanh' not in type(stage.connectivity).__name__:
        return alpha
    return [math.tanh(value) for value in alpha]


@pytest.mark.parametrize('build', [static, folded])
def test_the_table_of_graphs_says_what_they_are(drawn, build):
    model = build()
    head, *rows = page_of(model).table('The graphs of the network')
    assert head == ['graph', 'nodes', 'before pruning', 'edges', 'density', 'rule',
                    'median |weight|', 'largest |weight|', 'zeros']  # fmt: skip
    assert [row[0] for row in rows] == list(graph_stages(model))
    for row, stage, before, rule in zip(rows, model.stages, (5, 4), ('alpha', 'tanh')):
        sizes = [abs(value) for value in squashed(stage)]
        n = stage.wiring.num_nodes
        assert row[1:] == [
            str(n), str(before), str(len(sizes)), f'{len(sizes) / (n * (n - 1) / 2):.2f}', rule,
            f'{statistics.median(sizes):.3g}', f'{max(sizes):.3g}', str(sizes.count(0)),
        ]  # fmt: skip


def test_the_first_lines_say_what_the_network_is_and_costs(drawn):
    model = static()
    flops = count_flops(model)
    page = page_of(model, top1=87.654, data='digits, validation')
    assert page.texts('p')[0] == 'test_toponet, images 3x16x16, 3 classes.'
    parameters = sum(p.numel() for p in model.parameters())
    assert page.facts == {
        'top-1': ('87.65%', 'digits, validation'),
        'edges': ('16', '9 nodes in 2 graphs'),
        'parameters': (f'{parameters:,}', '16 of them edge weights'),
        'multiply-adds': (f'{flops.total / 1e6:.1f} M', 'of one image'),
        'time': ('2.0 ms', 'for 1 image, 1 CPU thread'),
    }
    assert 'top-1' not in page_of(model).facts
    assert page_of(whole()).facts['edges'] == ('36', '9 nodes in 1 graph')


def test_costs_are_those_that_were_found(drawn):
    page = page_of(static(), flops=FLOPS)
    assert page.table('Multiply-adds at 16x16 px')[1:] == [
        ['conv', '3.00'], ['linear', '0.02'], ['edges', '0.40'], ['total', '3.42'],
    ]  # fmt: skip
    assert page.table('Measured time of a forward pass, 1 CPU thread')[1:] == [
        ['1', '2.00', '1.50', '3.00', '500'], ['8', '10.00', '9.00', '11.50', '800'],
    ]  # fmt: skip


@pytest.mark.parametrize('build', [folded, masked, whole])
def test_characteristics_are_those_of_networkx(drawn, build):
    model = build()
    stages = graph_stages(model)
    head, *rows = page_of(model).table('Of each graph from input to output')
    assert head == ['characteristic', *stages]
    for column, stage in enumerate(stages.values(), start=1):
        told = {row[0]: row[column] for row in rows}
        graph = nx.DiGraph(stage.wiring.edges)
        last = stage.wiring.num_nodes - 1
        lengths = [len(path) - 1 for path in nx.all_simple_paths(graph, 0, last)]
        assert told['edges'] == str(stage.wiring.num_edges)
        assert told['nodes'] == str(len(graph))
        assert told['max_path'] == str(max(lengths))
        assert told['edge_connectivity'] == str(nx.edge_connectivity(graph, 0, last))
        for name, value in {
            'log_paths': math.log(len(lengths)),
            'mean_path': statistics.fmean(lengths),
            'mean_degree': 2 * graph.number_of_edges() / len(graph),
            'ln_communicability': math.log(
                nx.communicability_exp(graph.to_undirected())[0][last]
            ),
        }.items():  # fmt: skip
            assert float(told[name]) == pytest.approx(value, rel=1e-3), name
        levels = len(stage.level_sizes)
        assert [told.get(f'nodes_{level}', DASH) != DASH for level in range(3)] == (
            [level < levels > 1 for level in range(3)]
        )


# -- figures --------------------------------------------------------------------------------------


def panels_of(drawn: dict, name: str) -> list[plot.Panel]:
    return [panel for (panels, *_), _ in drawn.get(name, ()) for panel in panels]


@pytest.mark.parametrize('build', [static, folded, rewired, masked, blocks, whole])
def test_every_graph_is_drawn_with_its_weights(drawn, build):
    model = build()
    page = page_of(model, flops=FLOPS)
    stages = graph_stages(model)
    (matrices,) = zip(*adjacency(model, images(model, 1)).values())
    for name in ('layered_graphs', 'adjacency'):
        panels = panels_of(drawn, name)
        assert [panel.title for panel in panels] == list(stages)
        for panel, stage, matrix in zip(panels, stages.values(), matrices, strict=True):
            assert panel.wiring == stage.wiring
            assert panel.labels == [str(node) for node in stage.node_ids]
            expected = [matrix[target, source] for source, target in stage.wiring.edges]
            assert panel.weights == pytest.approx(torch.stack(expected).numpy())
            assert panel.levels == (stage.levels if build in (masked, blocks, whole) else None)
    assert [panel.title for panel in panels_of(drawn, 'degrees')] == list(stages)
    assert [len(panels) for (panels,), _ in drawn['adjacency']] == (
        [6, 1] if build is rewired else [len(stages)]
    )
    assert 'Images' not in page.texts('h2')


def test_large_graphs_are_matrices_alone(drawn):
    model = static(num_nodes=None, wiring=[complete(29), complete(30)])
    page_of(model, flops=FLOPS)
    assert [panel.wiring.num_edges for panel in panels_of(drawn, 'layered_graphs')] == []
    assert [panel.wiring.num_edges for panel in panels_of(drawn, 'adjacency')] == [406, 435]
    drawn.clear()
    page_of(static(num_nodes=None, wiring=[complete(28), complete(29)]), flops=FLOPS)
    assert [panel.wiring.num_edges for panel in panels_of(drawn, 'layered_graphs')] == [378]


@pytest.mark.parametrize(
    ('build', 'name', 'one_sided'),
    [(static, 'alpha', False), (whole, 'alpha', False), (masked, 'mask', True)],
)
def test_what_rules_store_is_shown_where_it_is_not_the_weight(drawn, build, name, one_sided):
    model = build()
    page_of(model, flops=FLOPS)
    (weights, _), (stored, options) = drawn['weight_histogram']
    stages = graph_stages(model)
    assert list(weights[0]) == list(stages)
    expected = {
        f'{stage}: {name}': getattr(own.connectivity, name).detach()
        for stage, own in stages.items()
        if type(own.connectivity).__name__ != 'AlphaConnectivity'
    }
    assert stored[0].keys() == expected.keys()
    assert all(torch.equal(stored[0][label], value) for label, value in expected.items())
    assert stored[1] is one_sided
    assert options == {'quantity': 'stored value'}


def test_weights_themselves_are_not_shown_twice(drawn):
    page_of(static(connectivity='alpha'), flops=FLOPS)
    assert len(drawn['weight_histogram']) == 1


# -- images ---------------------------------------------------------------------------------------


def routes_of(model: nn.Module, count: int = 12) -> dict:
    return routing(model, [(images(model, count), torch.arange(count) % 3)])


def test_weights_that_depend_on_the_image_are_means(drawn):
    model = routed()
    page = page_of(model, flops=FLOPS, images=images(model))
    whole_ = adjacency(model, images(model))
    for panel in panels_of(drawn, 'adjacency'):
        for (source, target), weight in zip(panel.wiring.edges, panel.weights, strict=True):
            values = [matrix[target, source].item() for matrix in whole_[panel.title]]
            assert weight.item() == pytest.approx(statistics.fmean(values), abs=1e-6)
    assert any('these are means' in text for text in page.texts('figcaption'))
    assert 'Images' not in page.texts('h2'), 'routes were not followed'


def test_without_images_edges_are_not_weighed(drawn):
    page = page_of(routed(), flops=FLOPS)
    assert page.texts('h2') == ['Graphs', 'Degrees', 'Characteristics', 'Costs']
    assert any('no images were given' in text for text in page.texts('p'))
    assert drawn.keys() == {'degrees'}
    rows = page.table('The graphs of the network')[1:]
    assert [row[6:] for row in rows] == [[DASH] * 3] * 2
    assert [row[3] for row in rows] == ['10', '6']


def test_the_table_of_routes_counts_open_edges_and_computed_nodes(drawn):
    model = routed()
    set_tau(model, 0.45)
    page = page_of(model, flops=FLOPS, images=images(model), routes=routes_of(model))
    rows = page.table('Over 12 images')[1:]
    every = {'edges': [0] * 12, 'nodes': [0] * 12}
    for row, (name, matrices) in zip(rows, adjacency(model, images(model)).items(), strict=True):
        stage = graph_stages(model)[name]
        edges = [int((matrix != 0).sum()) for matrix in matrices]
        nodes = [int((matrix[1:-1] != 0).any(1).sum()) for matrix in matrices]
        values = np.array([[m[t, s] for s, t in stage.wiring.edges] for m in matrices])
        assert row == [
            name, str(stage.wiring.num_edges), f'{statistics.fmean(edges):.1f}', str(min(edges)),
            str(max(edges)), f'{statistics.fmean(nodes):.1f}', str(min(nodes)), str(max(nodes)),
            f'{values.std(0).mean():.3f}',
        ]  # fmt: skip
        every['edges'] = [a + b for a, b in zip(every['edges'], edges)]
        every['nodes'] = [a + b for a, b in zip(every['nodes'], nodes)]
    assert 0 < statistics.fmean(every['edges']) < 15.9
    assert page.facts['edges open'][0] == f'{100 * statistics.fmean(every["edges"]) / 16:.1f}%'
    assert page.facts['nodes computed'][0] == f'{100 * statistics.fmean(every["nodes"]) / 5:.1f}%'
    assert page.texts('h2') == [*GENERAL, 'Images', 'Costs']


def naive_farthest(points: np.ndarray) -> float:
    """Of all pairs."""
    largest = 0.0
    for one in points:
        for other in points:
            largest = max(largest, math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other))))
    return largest


def test_the_images_that_are_shown_are_the_most_different(drawn):
    model = routed()
    shown = [np.full((2, 2, 3), i, np.uint8) for i in range(12)]
    page_of(model, flops=FLOPS, images=images(model), shown=shown, routes=routes_of(model))
    matrices = adjacency(model, images(model))
    flat = torch.cat([matrix.flatten(1) for matrix in matrices.values()], 1).double().numpy()
    ((sheet, titles), _), = drawn['contact_sheet']  # fmt: skip
    chosen = [int(title.removeprefix('image ')) for title in titles]
    assert len(set(chosen)) == 4
    assert [int(image[0, 0, 0]) for image in sheet['images']] == chosen
    pair = np.linalg.norm(flat[chosen[0]] - flat[chosen[1]])
    assert pair == pytest.approx(naive_farthest(flat))
    # their ways: weights minus the mean over all images, in the graph where images differ most
    (panels,), options = drawn['layered_graphs'][-1]
    assert [panel.title for panel in panels] == titles
    mean = matrices['stages.0'].mean(0)
    for panel, image in zip(panels, chosen, strict=True):
        for (source, target), value in zip(panel.wiring.edges, panel.weights, strict=True):
            expected = matrices['stages.0'][image][target, source] - mean[target, source]
            assert value.item() == pytest.approx(expected.item(), abs=1e-6)
    assert options == {'columns': 2, 'quantity': 'weight minus mean'}


def test_without_the_images_as_people_see_them_none_is_shown(drawn):
    model = routed()
    options = dict(flops=FLOPS, images=images(model), routes=routes_of(model))
    for shown in ([], [np.zeros((2, 2, 3), np.uint8)]):
        page_of(model, shown=shown, **options)
    assert 'contact_sheet' not in drawn


def test_two_images_are_a_pair(drawn):
    model = routed()
    shown = [np.full((2, 2, 3), i, np.uint8) for i in range(2)]
    options = dict(flops=FLOPS, images=images(model), shown=shown, routes=routes_of(model))
    page_of(model, **options)
    (((_, titles), _),) = drawn['contact_sheet']
    assert sorted(titles) == ['image 0', 'image 1']


@given(
    st.integers(2, 9).flatmap(
        lambda size: st.lists(
            st.lists(st.integers(-9, 9), min_size=3, max_size=3), min_size=size, max_size=size
        )
    ),
    st.integers(2, 5),
)
def test_points_are_chosen_far_from_those_chosen(points, count):
    """Whole numbers, so that distances are exact and ties are ties."""
    chosen = module._farthest(torch.tensor(points, dtype=torch.float), count)
    assert len(chosen) == min(count, len(points))

    def square(one: int, other: int) -> int:
        return sum((a - b) ** 2 for a, b in zip(points[one], points[other]))

    everything = range(len(points))
    assert square(*chosen[:2]) == max(square(i, j) for i in everything for j in everything)
    for k in range(2, len(chosen)):
        nearest = [min(square(i, j) for j in chosen[:k]) for i in everything]
        assert nearest[chosen[k]] == max(nearest)


def test_classes_that_differ_most_are_drawn(drawn):
    model = routed()
    routes = routes_of(model)
    page_of(model, flops=FLOPS, images=images(model), routes=routes, classes=['ant', 'bee', 'cat'])
    (panels,), _ = drawn['layered_graphs'][-1]
    matrices = adjacency(model, images(model))['stages.0']
    edges = model.stages[0].wiring.edges
    offsets = {}
    for label, name in enumerate(['ant', 'bee', 'cat']):
        offset = matrices[label::3].mean(0) - matrices.mean(0)
        offsets[name] = torch.stack([offset[target, source] for source, target in edges])
    order = sorted(offsets, key=lambda name: -offsets[name].norm())
    assert [panel.title for panel in panels] == order
    for panel in panels:
        assert panel.weights == pytest.approx(offsets[panel.title].numpy(), abs=1e-6)


def test_images_that_all_go_the_same_way_are_not_compared(drawn):
    model = static()
    shown = [np.zeros((2, 2, 3), np.uint8)] * 12
    page = page_of(model, flops=FLOPS, images=images(model), shown=shown, routes=routes_of(model))
    assert 'All images take the same way.' in page.texts('p')
    assert 'contact_sheet' not in drawn
    assert len(drawn['layered_graphs']) == 2, 'the graphs alone'


# -- damage ---------------------------------------------------------------------------------------


def damage_rows(orders=('weakest',), seeds=(0,), columns=('top1',), nodes: int = 0) -> dict:
    """As :meth:`Damage.run` returns them, with a number of its own in every cell."""
    start = dict(order='none', seed=0, removed=0.0, edges=10, connected=1, asked=0.0)
    rows = [{**start, **{column: 90.0 + i for i, column in enumerate(columns)}}]
    for o, order in enumerate(orders):
        for seed in seeds if order == 'random' else (0,):
            for asked in (0.2, 0.5):
                values = {c: 50.0 + 10 * o + seed + asked + i for i, c in enumerate(columns)}
                more = dict(order=order, seed=seed, removed=asked, edges=5, connected=1)
                rows.append({**more, **values, 'asked': asked})
    return {
        'top1': 90.0,
        'edges': rows,
        'nodes': [
            dict(stage='s', node=n, in_degree=1, out_degree=1, connected=1, top1=80.0 + n)
            for n in range(1, nodes + 1)
        ],
    }


def test_damage_is_shown_where_it_was_measured(drawn):
    model = static()
    damage = damage_rows(('weakest', 'random'), (1, 2), ('top1', 'top1_recalibrated'), nodes=3)
    page = page_of(model, flops=FLOPS, damage=damage)
    assert page.texts('h2') == [*GENERAL, 'Damage', 'Costs']
    (((curves, baseline), _),) = drawn['damage_curves']
    assert baseline == 90
    first, *rest = damage['edges']
    assert curves.keys() == {'weakest', 'random'}
    for order, rows in curves.items():
        assert rows == [first, *(row for row in rest if row['order'] == order)]
    (((nodes, baseline), _),) = drawn['node_damage']
    assert (nodes, baseline) == (damage['nodes'], 90)
    drawn.clear()
    page_of(model, flops=FLOPS, damage=damage_rows())
    assert 'node_damage' not in drawn
    assert 'Damage' not in page_of(model, flops=FLOPS).texts('h2')


@pytest.mark.parametrize(
    ('orders', 'columns', 'figures'),
    [
        (1, ('top1', 'top1_recalibrated', 'top1_retrained'), 1),
        (3, ('top1', 'top1_retrained'), 1),
        (3, ('top1', 'top1_recalibrated', 'top1_retrained'), 3),
    ],
)
def test_damage_has_a_figure_per_measurement_if_lines_are_many(drawn, orders, columns, figures):
    orders = ('weakest', 'strongest', 'random')[:orders]
    first, *rest = damage_rows(orders, (0, 1), columns)['edges']
    curves = {order: [first, *(r for r in rest if r['order'] == order)] for order in orders}
    assert len(damage_figures(curves, 90.0)) == figures
    shown = {}
    for (lines, baseline), _ in drawn['damage_curves']:
        assert baseline == 90
        assert lines.keys() == set(orders)
        for order, rows in lines.items():
            for row in rows:
                for column in columns:
                    if column in row:
                        shown.setdefault((order, column), []).append((row['removed'], row[column]))
    assert shown == {
        (order, column): [(row['removed'], row[column]) for row in curves[order]]
        for order in orders for column in columns
    }  # fmt: skip


def test_every_figure_of_damage_can_be_drawn():
    damage = damage_rows(
        ('weakest', 'strongest', 'random'), (0, 1), ('top1', 'top1_recalibrated', 'top1_retrained'),
        nodes=2,
    )  # fmt: skip
    del damage['edges'][-1]['top1_recalibrated']  # fell apart
    page = page_of(static(), flops=FLOPS, damage=damage)
    captions = page.texts('figcaption')
    assert sum(caption.startswith('Accuracy over the share') for caption in captions) == 3
    assert sum(caption.startswith('Change of accuracy') for caption in captions) == 1


# -- training -------------------------------------------------------------------------------------

SUMMARY = [
    {'epoch': '0', 'train_task_loss': '2.5', 'train_sparsity': '7', 'eval_top1': '10', 'lr': '1'},
    {'epoch': '1', 'train_task_loss': '1.5', 'train_sparsity': '5', 'eval_top1': '60', 'lr': '1'},
]


def test_training_is_shown_where_there_was_some(drawn):
    model = static()
    epochs = [0, 1, 2.5]
    history = {'stages.0': np.arange(30.0).reshape(3, 10), 'stages.1': np.ones((3, 6))}
    page = page_of(model, flops=FLOPS, training=SUMMARY, snapshots=(epochs, history))
    assert page.texts('h2') == [*GENERAL, 'Training', 'Costs']
    (((runs, keys), _),) = drawn['curves']
    assert runs == {'run': SUMMARY}
    assert keys == ['train_task_loss', 'train_sparsity', 'eval_top1']
    strips = drawn['process_strip']
    for ((times, weights, wiring), options), (name, expected) in zip(strips, history.items()):
        assert times == epochs
        assert weights is expected
        assert wiring == graph_stages(model)[name].wiring
        assert options == {'title': name}
    assert len(strips) == 2


@pytest.mark.parametrize(
    ('epochs', 'history'),
    [
        ([0], {'stages.0': np.ones((1, 10))}),
        ([0, 1], {'stages.0': np.ones((2, 9))}),
        ([0, 1], {'dag': np.ones((2, 10))}),
    ],
    ids=['one', 'pruned since', 'of another network'],
)
def test_snapshots_that_show_nothing_of_this_network_are_left_out(drawn, epochs, history):
    page_of(static(), flops=FLOPS, training=SUMMARY, snapshots=(epochs, history))
    assert 'process_strip' not in drawn


def test_curves_are_those_that_the_summary_has(drawn):
    rows = [{k: row[k] for k in ('epoch', 'eval_top1')} for row in SUMMARY]
    page_of(static(), flops=FLOPS, training=rows)
    (((_, keys), _),) = drawn['curves']
    assert keys == ['eval_top1']


def test_training_can_be_drawn():
    weights = np.linspace(-1, 1, 30).reshape(3, 10)
    options = dict(training=SUMMARY, snapshots=([0, 1, 2], {'stages.0': weights}))
    page = page_of(static(), flops=FLOPS, **options)
    assert any(text.startswith('stages.0: edge weights after') for text in page.texts('figcaption'))


# -- text -----------------------------------------------------------------------------------------


def test_every_text_that_is_given_is_escaped():
    model = routed()
    model.pretrained_cfg = {**model.pretrained_cfg, 'architecture': HOSTILE}
    shown = [np.full((2, 2, 3), i, np.uint8) for i in range(12)]
    findings = found(
        model, flops=FLOPS, top1=50.0, data=HOSTILE, images=images(model), shown=shown,
        routes=routes_of(model), classes=[HOSTILE, 'b', 'c'],
    )  # fmt: skip
    findings.threads = HOSTILE
    report = network_page(model, HOSTILE, findings)
    assert isinstance(report, Report)
    page = Page(report.html())
    assert not any(tag == 'script' for tag, _, _ in page.elements)
    assert page.texts('h1') == page.texts('title') == [HOSTILE]
    assert page.texts('p')[0].startswith(f'{HOSTILE}, images 3x16x16')
    assert page.facts['top-1'] == ('50.00%', HOSTILE)
    assert page.facts['time'][1].endswith(HOSTILE)
    assert any(HOSTILE in attrs.get('aria-label', '') for tag, attrs, _ in page.elements)
