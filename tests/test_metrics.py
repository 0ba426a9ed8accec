"""Graph characteristics against brute force, networkx, scipy and the values of the paper."""

import math
from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
import timm
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.linalg import expm
from sklearn.metrics.pairwise import rbf_kernel

from timm_topo.analysis import metrics
from timm_topo.analysis.prune import prune
from timm_topo.generators import complete, random, residual, sequential
from timm_topo.stages import graph_stages
from timm_topo.wiring import Wiring

dags = st.builds(
    random, num_nodes=st.integers(2, 9), p=st.floats(0.1, 1), seed=st.integers(0, 9999)
)


def walk(graph: nx.DiGraph, source, target) -> list[int]:
    """Lengths of all paths, one by one."""
    if source == target:
        return [0]
    return [1 + n for after in graph.successors(source) for n in walk(graph, after, target)]


def test_the_complete_graph_of_the_paper():
    graph = complete(60).to_networkx()
    assert metrics.log_paths(graph) == pytest.approx(40.2025, abs=5e-5)
    assert metrics.mean_path(graph) == 30
    assert metrics.max_path(graph) == 59
    assert metrics.ln_communicability(graph) == pytest.approx(54.9057, abs=5e-5)
    assert metrics.edge_connectivity(graph) == 59
    assert metrics.mean_degree(graph) == 59
    assert metrics.pca_elongation(graph) == pytest.approx(0, abs=1e-6)
    assert not metrics.is_quasi_1d(graph)
    assert metrics.sparsity(1770, 60) == 0
    assert list(metrics.characteristics(complete(60))) == [
        'log_paths', 'mean_path', 'max_path', 'ln_communicability', 'edge_connectivity',
        'mean_degree', 'pca_elongation',
    ]  # fmt: skip


@given(dags)
def test_paths_are_those_found_one_by_one(wiring):
    graph = wiring.to_networkx()
    last = wiring.num_nodes - 1
    lengths = walk(graph, 0, last)
    assert sorted(lengths) == sorted(len(path) - 1 for path in nx.all_simple_paths(graph, 0, last))
    counts = {n: lengths.count(n) for n in sorted(set(lengths))}
    assert metrics.path_counts(graph, 0, last) == counts
    assume(lengths)
    assert metrics.log_paths(graph, 0, last) == pytest.approx(math.log(len(lengths)))
    assert metrics.mean_path(graph, 0, last) == pytest.approx(np.mean(lengths))
    assert metrics.max_path(graph, 0, last) == max(lengths)


@given(dags, st.data())
def test_paths_between_any_two_nodes_under_any_names(wiring, data):
    graph = wiring.to_networkx()
    names = [f'n{node}' for node in range(wiring.num_nodes)]
    source, target = data.draw(st.permutations(range(wiring.num_nodes)))[:2]
    lengths = walk(graph, source, target)
    renamed = nx.relabel_nodes(graph, dict(enumerate(names)))
    counts = metrics.path_counts(renamed, names[source], names[target])
    assert counts == {n: lengths.count(n) for n in sorted(set(lengths))}


def test_counts_are_exact_beyond_floats():
    """Two ways in each of 1100 steps: 2 ** 1100 paths, more than a float holds."""
    edges = [(3 * i, 3 * i + k) for i in range(1100) for k in (1, 2)]
    edges += [(3 * i + k, 3 * i + 3) for i in range(1100) for k in (1, 2)]
    graph = nx.DiGraph([*edges, (0, 3)])  # and half as many that are one shorter
    assert metrics.path_counts(graph) == {2199: 2**1099, 2200: 2**1100}
    assert metrics.log_paths(graph) == pytest.approx(math.log(3) + 1099 * math.log(2))
    assert metrics.mean_path(graph) == pytest.approx((2199 + 2 * 2200) / 3)


@given(dags)
def test_communicability_and_connectivity_by_other_means(wiring):
    graph = wiring.to_networkx()
    adjacency = np.zeros((wiring.num_nodes,) * 2)
    for source, target in wiring.edges:
        adjacency[source, target] = adjacency[target, source] = 1
    walks = expm(adjacency)[0, -1]
    last = wiring.num_nodes - 1
    joined = nx.has_path(graph.to_undirected(), 0, last)
    expected = math.log(walks) if joined else -math.inf
    assert metrics.ln_communicability(graph, 0, last) == pytest.approx(expected)
    nx.set_edge_attributes(graph, 1, 'capacity')
    flow = nx.maximum_flow_value(graph, 0, last)
    assert metrics.edge_connectivity(graph, 0, last) == flow
    degrees = [degree for _, degree in graph.degree()]
    assert metrics.mean_degree(graph) == pytest.approx(np.mean(degrees))


@given(dags)
def test_elongation_is_the_variance_along_the_longest_axis(wiring):
    graph = wiring.to_networkx()
    last = wiring.num_nodes - 1
    ordered = nx.empty_graph(wiring.num_nodes)
    ordered.add_edges_from(graph.edges)
    assume(all(graph.in_degree(n) or n == 0 for n in graph))  # else the order is not 0, 1, 2...
    places = np.array(list(nx.kamada_kawai_layout(ordered).values()))
    largest = np.linalg.eigvalsh(np.cov(places.T))[-1]
    expected = 2 * largest / np.trace(np.cov(places.T)) - 1
    got = metrics.pca_elongation(graph)
    assert got == pytest.approx(expected, abs=1e-6)
    assert -1e-9 <= got <= 1 + 1e-9
    several = metrics.edge_connectivity(graph, 0, last) > 1
    assert metrics.is_quasi_1d(graph, 0, last) == (got > 0.25 and several)


@pytest.mark.parametrize('n', [2, 25, 60, 200])
def test_walks_along_a_chain_are_few_and_counted_all_the_same(n):
    """The sum over walks in exact fractions; matrix exponentials are off by 45 at 60 nodes."""
    steps = max(60, 3 * n)
    ways, total = [Fraction(0)] * n, Fraction(0)
    ways[0] = Fraction(1)
    for step in range(1, steps):
        ways = [
            ((ways[i - 1] if i else 0) + (ways[i + 1] if i + 1 < n else 0)) / Fraction(step)
            for i in range(n)
        ]
        total += ways[-1]
    expected = math.log(total.numerator) - math.log(total.denominator)
    got = metrics.ln_communicability(sequential(n).to_networkx())
    assert got == pytest.approx(expected, rel=1e-12)


def test_walks_of_a_large_graph_do_not_overflow():
    """exp of a complete graph on n nodes, off the diagonal: (e^(n - 1) - e^-1) / n."""
    got = metrics.ln_communicability(complete(900).to_networkx())
    assert got == pytest.approx(899 - math.log(900))


def test_the_order_in_which_a_graph_was_made_changes_no_characteristic():
    wiring = random(14, 0.35, 3).prune()[0]
    graph = wiring.to_networkx()
    rng = np.random.default_rng(0)
    for _ in range(3):
        other = nx.DiGraph()
        other.add_nodes_from(rng.permutation(wiring.num_nodes).tolist())
        other.add_edges_from(rng.permutation(wiring.edges).tolist())
        expected = metrics.characteristics(graph)
        assert metrics.characteristics(other) == pytest.approx(expected, rel=1e-9)


def test_source_and_target_are_those_of_the_graph():
    graph = nx.DiGraph([('in', 'a'), ('a', 'out'), ('in', 'out')])
    assert metrics.path_counts(graph) == {1: 1, 2: 1}
    assert metrics.characteristics(graph)['edge_connectivity'] == 2
    assert metrics.characteristics(graph, 'a', 'out')['edge_connectivity'] == 1
    graph.add_edge('b', 'out')
    with pytest.raises(ValueError, match='2 nodes could be the source: say which'):
        metrics.max_path(graph)
    assert metrics.max_path(graph, 'in') == 2


def test_weights_on_edges_change_nothing():
    plain, weighted = complete(6).to_networkx(), complete(6).to_networkx()
    for n, edge in enumerate(weighted.edges):
        weighted.edges[edge]['weight'] = 0.1 * n - 0.3
    assert metrics.characteristics(plain) == metrics.characteristics(weighted)


def test_a_chain_is_long_and_a_ladder_is_quasi_1d():
    assert metrics.pca_elongation(sequential(12).to_networkx()) > 0.99
    assert not metrics.is_quasi_1d(sequential(12).to_networkx())  # one edge cuts it
    ladder = Wiring(12, [(i, i + d) for d in (1, 2) for i in range(12 - d)]).to_networkx()
    assert metrics.edge_connectivity(ladder) == 2
    assert metrics.is_quasi_1d(ladder)


def test_sparsity_is_the_share_of_edges_that_are_gone():
    assert metrics.sparsity(45, 10) == 0
    assert metrics.sparsity(9, 10) == pytest.approx(0.8)
    assert metrics.sparsity(20, 10, 5, 2) == pytest.approx(1 - 20 / 56)
    assert metrics.sparsity(0, 1) == 0


# -- networks -------------------------------------------------------------------------------------


def test_table_1_of_a_pruned_network(randomise):
    """Edges within and across stages counted one by one, against the sizes before pruning."""
    model = randomise(timm.create_model('dagnet', num_nodes=12, channels=2))
    smaller, _ = prune(model, fraction=0.5)
    (stage,) = graph_stages(smaller).values()
    row = metrics.stage_characteristics(stage)
    ids = stage.node_ids
    edges = [(ids[s] // 4, ids[t] // 4) for s, t in stage.wiring.edges]
    assert row['edges'] == len(edges)
    assert row['sparsity'] == pytest.approx(1 - len(edges) / 66)
    assert row['nodes'] == len(ids)
    for level in range(3):
        inside = sum(edge == (level, level) for edge in edges)
        assert row[f'sparsity_{level}'] == pytest.approx(1 - inside / 6)
        assert row[f'nodes_{level}'] == sum(node // 4 == level for node in ids)
    assert row['log_paths'] == metrics.log_paths(stage.wiring.to_networkx())
    assert row['quasi_1d'] == metrics.is_quasi_1d(stage.wiring.to_networkx())


def test_a_stage_at_one_resolution_has_no_numbers_per_resolution():
    model = timm.create_model('test_toponet', wiring={'name': 'residual', 'interval': 2})
    rows = [metrics.stage_characteristics(stage) for stage in graph_stages(model).values()]
    assert [row['edges'] for row in rows] == [residual(n, 2).num_edges for n in (4, 4, 5, 4)]
    assert not any(key.startswith(('nodes_', 'sparsity_')) for row in rows for key in row)


# -- similarity -----------------------------------------------------------------------------------


def some_rows(count: int = 5) -> list[dict]:
    wirings = [complete(n + 4) for n in range(count)]
    rows = [metrics.characteristics(wiring) for wiring in wirings]
    return [{**row, 'sparsity': 0.1 * i, 'nodes': i + 4} for i, row in enumerate(rows)]


def test_similarity_is_the_kernel_of_standardised_features():
    rows = some_rows()
    features = ['sparsity', 'nodes', *metrics.CHARACTERISTICS]
    values = np.array([[row[name] for name in features] for row in rows])
    spread = values.std(0)
    points = (values - values.mean(0)) / np.where(spread > 1e-12, spread, 1)
    got = metrics.similarity(rows)
    assert np.allclose(got, rbf_kernel(points, gamma=1 / len(features)))
    assert np.allclose(np.diag(got), 1)
    assert np.allclose(got, got.T)
    assert got[0, 1] > got[0, 4]


def test_where_the_nodes_are_counts_for_similarity():
    rows = [{**some_rows(1)[0], 'nodes_0': n, 'nodes_1': 9 - n, 'sparsity_0': 0.5} for n in (2, 3)]
    assert metrics.features_of(rows)[2:5] == ['nodes_0', 'nodes_1', 'sparsity_0']
    assert metrics.similarity(rows)[0, 1] < 0.6
    rows[1].pop('nodes_1')  # not known of both
    assert 'nodes_1' not in metrics.features_of(rows)


def test_graphs_alone_can_be_compared():
    rows = [metrics.characteristics(complete(n)) for n in (4, 5, 9)]
    assert metrics.features_of(rows) == list(metrics.CHARACTERISTICS)
    assert metrics.similarity(rows)[0, 1] > metrics.similarity(rows)[0, 2]


def test_similarity_knows_no_units():
    rows = some_rows()
    scaled = [{**row, 'nodes': 1000 * row['nodes'] + 7} for row in rows]
    assert np.allclose(metrics.similarity(rows), metrics.similarity(scaled))


def test_embedding_keeps_the_distances_that_a_plane_can_keep():
    features = ('nodes', 'sparsity')
    rows = [dict(nodes=n, sparsity=s) for n, s in [(1, 0.5), (2, 0.1), (3, 0.9), (7, 0.2)]]
    points = metrics.embed(rows, features=features)
    values = np.array([[row[name] for name in features] for row in rows])
    values = (values - values.mean(0)) / values.std(0)
    for a in range(4):
        for b in range(4):
            expected = np.linalg.norm(values[a] - values[b])
            assert np.linalg.norm(points[a] - points[b]) == pytest.approx(expected)


# -- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['log_paths', 'mean_path', 'max_path'])
def test_without_a_path_there_is_no_length(name):
    graph = Wiring(4, [(0, 1), (2, 3)]).to_networkx()
    with pytest.raises(ValueError, match='no path leads from 0 to 3'):
        getattr(metrics, name)(graph, 0, 3)
    assert metrics.path_counts(graph, 0, 3) == {}
    assert metrics.edge_connectivity(graph, 0, 3) == 0
    assert metrics.ln_communicability(graph, 0, 3) == -math.inf


@pytest.mark.parametrize(
    ('graph', 'told'),
    [
        (nx.Graph([(0, 1)]), 'DiGraph is needed, got Graph'),
        (nx.MultiDiGraph([(0, 1)]), 'DiGraph is needed, got MultiDiGraph'),
        (nx.DiGraph([(0, 1), (1, 2), (2, 1), (2, 3)]), 'has a cycle'),
        (nx.empty_graph(1, nx.DiGraph), 'with input and output is needed, got 1'),
    ],
)
def test_other_graphs_are_refused(graph, told):
    with pytest.raises(ValueError, match=told):
        metrics.log_paths(graph)


@pytest.mark.parametrize('name', ['log_paths', 'edge_connectivity', 'ln_communicability'])
def test_nodes_must_exist(name):
    with pytest.raises(ValueError, match='no node 7'):
        getattr(metrics, name)(complete(3).to_networkx(), 0, 7)


@pytest.mark.parametrize(
    ('rows', 'options', 'told'),
    [
        (some_rows(1), {}, 'compared with one another, got 1'),
        (some_rows(2), dict(features=()), 'not every network has any feature'),
        ([*some_rows(2), {}], {}, 'not every network has log_paths'),
        ([*some_rows(2), {**some_rows(1)[0], 'nodes': math.inf}], {}, 'not finite'),
    ],
)
def test_rows_that_cannot_be_compared(rows, options, told):
    with pytest.raises(ValueError, match=told):
        metrics.similarity(rows, **options)
