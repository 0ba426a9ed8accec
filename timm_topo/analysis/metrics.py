"""What a wiring is like, as a graph (Janik & Nowak, 2020, Tables 1 and 2; Fig. 5 and 6).

Functions on any acyclic ``networkx.DiGraph`` between a source s and a target t; by default the
only node without in-edges and the only one without out-edges.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import networkx as nx
import numpy as np

from ..extras import needs
from ..stages import Stage
from ..wiring import Wiring

__all__ = [
    'CHARACTERISTICS',
    'characteristics',
    'edge_connectivity',
    'embed',
    'features_of',
    'is_quasi_1d',
    'ln_communicability',
    'log_paths',
    'max_path',
    'mean_degree',
    'mean_path',
    'path_counts',
    'pca_elongation',
    'similarity',
    'sparsity',
    'stage_characteristics',
    'stage_sizes',
]


def _ends(graph: nx.DiGraph, source, target):
    if not graph.is_directed() or graph.is_multigraph():
        raise ValueError(f'a networkx.DiGraph is needed, got {type(graph).__name__}')
    if len(graph) < 2:
        raise ValueError(f'a graph with input and output is needed, got {len(graph)} nodes')
    ends = []
    for name, node, degrees in (
        ('source', source, graph.in_degree), ('target', target, graph.out_degree)
    ):  # fmt: skip
        if node is None:
            loose = [one for one, degree in degrees if degree == 0]
            if len(loose) != 1:
                raise ValueError(f'{len(loose)} nodes could be the {name}: say which')
            node = loose[0]
        if node not in graph:
            raise ValueError(f'the graph has no node {node!r}')
        ends.append(node)
    return tuple(ends)


def path_counts(graph: nx.DiGraph, source=None, target=None) -> dict[int, int]:
    """Number of paths from s to t by length in edges, exact whatever its size.

    Raises:
        ValueError: No directed graph, a cycle, or no such node.

    >>> path_counts(nx.DiGraph([(0, 1), (0, 2), (1, 2)]))
    {1: 1, 2: 1}
    """
    source, target = _ends(graph, source, target)
    if not nx.is_directed_acyclic_graph(graph):
        raise ValueError('the graph has a cycle, and paths without end')
    ways = {node: {} for node in graph}  # to each node from s, by length
    ways[source] = {0: 1}
    for node in nx.topological_sort(graph):
        for successor in graph.successors(node):
            for length, count in ways[node].items():
                ways[successor][length + 1] = ways[successor].get(length + 1, 0) + count
    return dict(sorted(ways[target].items()))


def _some_paths(graph: nx.DiGraph, source, target) -> dict[int, int]:
    counts = path_counts(graph, source, target)
    if not counts:
        source, target = _ends(graph, source, target)
        raise ValueError(f'no path leads from {source!r} to {target!r}')
    return counts


def log_paths(graph: nx.DiGraph, source=None, target=None) -> float:
    """Natural logarithm of the number of paths from s to t.

    Raises:
        ValueError: As for :func:`path_counts`, or no path.
    """
    return math.log(sum(_some_paths(graph, source, target).values()))


def mean_path(graph: nx.DiGraph, source=None, target=None) -> float:
    """Mean length of the paths from s to t, in edges.

    Raises:
        ValueError: As for :func:`log_paths`.
    """
    counts = _some_paths(graph, source, target)
    return float(Fraction(sum(n * count for n, count in counts.items()), sum(counts.values())))


def max_path(graph: nx.DiGraph, source=None, target=None) -> int:
    """Length of the longest path from s to t, in edges.

    Raises:
        ValueError: As for :func:`log_paths`.
    """
    return max(_some_paths(graph, source, target))


def ln_communicability(graph: nx.DiGraph, source=None, target=None) -> float:
    """ln exp(A + A^T)[s, t]: walks between s and t in either direction (Estrada & Hatano, 2008).

    A walk of k steps counts 1 / k!. Minus infinity where s and t are in separate components. Summed
    walk by walk: ``expm`` and ``networkx.communicability_exp`` lose small values in the rounding of
    large ones (a chain of 60 nodes has ln = -184.5, they say -139).

    Raises:
        ImportError: scipy is missing.
        ValueError: No directed graph, or no such node.
    """
    source, target = _ends(graph, source, target)
    either_way = graph.to_undirected()
    if not nx.has_path(either_way, source, target):
        return -math.inf
    nodes = list(either_way)
    with needs('timm-topo[analysis]'):
        adjacency = nx.to_scipy_sparse_array(
            either_way, nodes, weight=None, dtype=float, format='csr'
        )
    at, step, scale, total = nodes.index(source), 0, 0.0, -math.inf  # the last two as logarithms
    walks = np.zeros(len(nodes))  # of ``step`` steps to the target, over step! and over the scale
    walks[nodes.index(target)] = 1.0
    while step < len(nodes) or scale > total - 40:  # from the N-th step on, there are ever fewer
        step += 1
        walks = adjacency @ walks / step
        scale += math.log(walks.max())
        walks /= walks.max()
        if walks[at] > 0:
            total = np.logaddexp(total, scale + math.log(walks[at]))
    return float(total)


def edge_connectivity(graph: nx.DiGraph, source=None, target=None) -> int:
    """Least number of edges without which no path leads from s to t.

    Raises:
        ValueError: No directed graph, or no such node.
    """
    return nx.edge_connectivity(graph, *_ends(graph, source, target))


def mean_degree(graph: nx.DiGraph) -> float:
    """Mean number of edges at a node, in and out: 2 E / V."""
    return 2 * graph.number_of_edges() / graph.number_of_nodes()


def pca_elongation(graph: nx.DiGraph) -> float:
    """How long and thin the graph is drawn, from 0 (round) to 1 (a line).

    2 r - 1, with r the share of the first principal component in the variance of the nodes' places
    in the plane by Kamada & Kawai, edges of length one, directions ignored. The layout is one local
    minimum, found from a circle of the nodes in topological order: another order can give a value
    that differs by 0.1.

    Raises:
        ImportError: scikit-learn or scipy is missing.
        ValueError: Fewer than two nodes.
    """
    if len(graph) < 2:
        raise ValueError(f'a layout needs at least 2 nodes, got {len(graph)}')
    with needs('timm-topo[analysis]'):
        from sklearn.decomposition import PCA
    ordered = nx.Graph()
    ordered.add_nodes_from(_ordered(graph))
    ordered.add_edges_from(graph.edges)
    places = nx.kamada_kawai_layout(ordered, weight=None)
    shares = PCA().fit(list(places.values())).explained_variance_ratio_
    return float(2 * shares[0] - 1)


def _ordered(graph: nx.DiGraph) -> list:
    try:
        return list(nx.lexicographical_topological_sort(graph))
    except TypeError:  # names that cannot be compared
        return list(nx.topological_sort(graph))


def is_quasi_1d(graph: nx.DiGraph, source=None, target=None) -> bool:
    """Whether the graph is quasi-1-dimensional: elongated, and not cut by one edge (Eq. 3).

    Raises:
        ValueError: As for :func:`edge_connectivity`.
    """
    return _is_quasi_1d(pca_elongation(graph), edge_connectivity(graph, source, target))


def _is_quasi_1d(elongation: float, connectivity: int) -> bool:
    return elongation > 0.25 and connectivity > 1


def sparsity(num_edges: int, *num_nodes: int) -> float:
    """Share of the edges of the complete graph that are gone: 1 - E / (N (N - 1) / 2).

    Args:
        num_edges: E, edges that are left.
        num_nodes: N, nodes of the complete graph, or of several of them; 0 is returned where they
            have no edge.
    """
    possible = sum(math.comb(n, 2) for n in num_nodes)
    return 1 - num_edges / possible if possible else 0.0


#: By name, the functions of Table 2.
CHARACTERISTICS = {
    function.__name__: function
    for function in (
        log_paths,
        mean_path,
        max_path,
        ln_communicability,
        edge_connectivity,
        mean_degree,
        pca_elongation,
    )
}


def characteristics(graph: nx.DiGraph | Wiring, source=None, target=None) -> dict[str, float]:
    """Table 2 of one graph: every function of :data:`CHARACTERISTICS`, by name.

    Raises:
        ValueError: As for them.
    """
    if isinstance(graph, Wiring):
        source, target = 0, graph.num_nodes - 1
        graph = graph.to_networkx()
    return {
        name: function(graph)
        if function in (mean_degree, pca_elongation)
        else function(graph, source, target)
        for name, function in CHARACTERISTICS.items()
    }


def stage_sizes(stage: Stage) -> dict[str, float]:
    """Table 1 of one graph of a network, pruned or not.

    Returns:
        ``edges``, ``sparsity``, ``nodes``; for a graph over several resolutions ``sparsity_0``...
        within each of its stages and ``nodes_0``... Sparsity compares with the complete graph on
        the nodes that there were before pruning.
    """
    wiring, levels = stage.wiring, stage.levels
    row = {
        'edges': wiring.num_edges,
        'sparsity': sparsity(wiring.num_edges, sum(stage.level_sizes)),
        'nodes': wiring.num_nodes,
    }
    if len(stage.level_sizes) > 1:
        for level, size in enumerate(stage.level_sizes):
            inside = sum(levels[s] == levels[t] == level for s, t in wiring.edges)
            row[f'sparsity_{level}'] = sparsity(inside, size)
            row[f'nodes_{level}'] = levels.count(level)
    return row


def stage_characteristics(stage: Stage) -> dict[str, float]:
    """Tables 1 and 2: :func:`stage_sizes`, :func:`characteristics` and ``quasi_1d``, 0 or 1."""
    row = {**stage_sizes(stage), **characteristics(stage.wiring)}
    quasi_1d = _is_quasi_1d(row['pca_elongation'], row['edge_connectivity'])
    return {**row, 'quasi_1d': int(quasi_1d)}


def features_of(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """What networks are compared by: Tables 1 and 2 but the number of parameters.

    Sparsity and nodes, in all and per stage, count where every network has them.
    """
    shared = [name for name in rows[0] if all(name in row for row in rows)] if rows else []
    per_stage = [name for name in shared if name.startswith(('sparsity_', 'nodes_'))]
    sizes = [name for name in ('sparsity', 'nodes') if name in shared]
    return [*sizes, *per_stage, *CHARACTERISTICS]


def _standardised(
    rows: Sequence[Mapping[str, float]], features: Sequence[str] | None
) -> np.ndarray:
    if len(rows) < 2:
        raise ValueError(f'networks are compared with one another, got {len(rows)}')
    features = features_of(rows) if features is None else features
    missing = [name for name in features if any(name not in row for row in rows)]
    if missing or not features:
        raise ValueError(f'not every network has {", ".join(missing) or "any feature"}')
    values = np.array([[float(row[name]) for name in features] for row in rows])
    if not np.isfinite(values).all():
        raise ValueError('a feature is not finite: networks must lead from input to output')
    with needs('timm-topo[analysis]'):
        from sklearn.preprocessing import StandardScaler
    return StandardScaler().fit_transform(values)


def similarity(
    rows: Sequence[Mapping[str, float]], features: Sequence[str] | None = None
) -> np.ndarray:
    """Pairwise similarity of n networks, ``(n, n)`` from 0 to 1 (Fig. 5).

    The radial basis function exp(-|x - y|^2 / F) of their F features, standardised over the
    networks, a feature that is the same everywhere counting nothing.

    Args:
        rows: As from :func:`stage_characteristics`.
        features: Which of them count; by default :func:`features_of`.

    Raises:
        ValueError: Fewer than two networks, a missing feature, or one that is not finite.
    """
    with needs('timm-topo[analysis]'):
        from sklearn.metrics.pairwise import rbf_kernel
    return rbf_kernel(_standardised(rows, features))


def embed(rows: Sequence[Mapping[str, float]], features: Sequence[str] | None = None) -> np.ndarray:
    """Networks as points in the plane, ``(n, 2)``, similar ones near each other (Fig. 6).

    The first two principal components; the paper shows UMAP.

    Args:
        rows: As for :func:`similarity`.
        features: Which of them count.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: As for :func:`similarity`.
    """
    points = _standardised(rows, features)
    with needs('timm-topo[analysis]'):
        from sklearn.decomposition import PCA
    return PCA(2).fit_transform(points)
