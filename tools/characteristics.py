#!/usr/bin/env python
"""Networks as graphs: ``python tools/characteristics.py [LABEL=]FOLDER ...``.

Prints, for the graphs of saved networks, sparsity, nodes and the characteristics of Janik & Nowak's
Tables 1 and 2: number and length of the paths, communicability, edge connectivity, degree,
elongation. Networks with the same label become one column, mean and standard deviation. Networks of
several graphs, as TopoNets are, have a column per graph.
"""

import argparse
import sys

import timm_topo
from timm_topo.analysis.cost import count_parameters
from timm_topo.analysis.metrics import embed, similarity, stage_characteristics
from timm_topo.analysis.prune import edge_weights
from timm_topo.analysis.tables import group, mean_and_spread, text_table, write_csv
from timm_topo.stages import graph_stages
from timm_topo.training.options import labelled


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='+', type=labelled, metavar='[LABEL=]FOLDER')
    parser.add_argument('--csv', metavar='FILE', help='one row per graph')
    parser.add_argument('--similarity', metavar='SVG', help='matrix of all graphs (Fig. 5)')
    parser.add_argument('--embedding', metavar='SVG', help='all graphs in the plane (Fig. 6)')
    parser.add_argument('--method', choices=('pca', 'umap'), default='pca', help='of --embedding')
    parser.add_argument('--graphs', metavar='SVG', help='drawing of the graphs (Fig. 4)')
    return parser.parse_args()


def describe(label: str, folder: str) -> list[dict]:
    """Rows of one network."""
    model = timm_topo.load(folder)
    stages = graph_stages(model)
    rows = []
    for number, stage in enumerate(stages.values(), start=1):
        column = label if len(stages) == 1 else f'{label} graph {number}'
        row = {'label': column, 'network': folder, 'parameters': count_parameters(model)}
        rows.append({**row, **stage_characteristics(stage)})
    return rows


def show(rows: list[dict]) -> None:
    """The table, a column per label."""
    columns = group(rows, 'label')
    names = [name for name in dict.fromkeys(n for row in rows for n in row)
             if name not in ('label', 'network')]  # fmt: skip
    lines = []
    for name in names:
        cells = [[row[name] for row in of_label if name in row] for of_label in columns.values()]
        whole = all(isinstance(value, int) for values in cells for value in values)
        several = any(len(values) > 1 for values in cells)
        digits = (1 if several else 0) if whole and name != 'quasi_1d' else 3
        lines.append([name, *(mean_and_spread(v, digits) if v else '' for v in cells)])
    print(text_table(['', *columns], lines))


def panels(models: list[tuple[str, str]]) -> list:
    """Drawings of all graphs."""
    from timm_topo.plot import Panel

    drawn = []
    for label, folder in models:
        model = timm_topo.load(folder)
        weights = {} if any(s.needs_context for s in graph_stages(model).values()) else None
        weights = edge_weights(model) if weights is None else weights
        for name, stage in graph_stages(model).items():
            values = weights.get(name, [1.0] * stage.wiring.num_edges)
            title = label if len(graph_stages(model)) == 1 else f'{label}, {name}'
            drawn.append(Panel(title, stage.wiring, values, stage.node_ids, stage.levels))
    return drawn


def main(args: argparse.Namespace) -> None:
    if args.similarity or args.embedding or args.graphs:
        from timm_topo import plot
    rows = [row for label, folder in args.models for row in describe(label, folder)]
    show(rows)
    written = [args.csv] if args.csv else []
    if args.csv:
        write_csv(args.csv, rows)
    labels = [row['label'] for row in rows]
    if args.similarity:
        ordered = [row for of_label in group(rows, 'label').values() for row in of_label]
        matrix = similarity(ordered)
        fig = plot.similarity_matrix(matrix, [row['label'] for row in ordered])
        written.append(plot.save_figure(fig, args.similarity))
    if args.embedding:
        axis = 'principal component' if args.method == 'pca' else 'UMAP'
        fig = plot.embedding(embed(rows, args.method), labels, axis)
        written.append(plot.save_figure(fig, args.embedding))
    if args.graphs:
        drawn = panels(args.models)
        fig = plot.graphs(drawn, columns=min(len(rows), 2), limit=plot.shared_limit(drawn))
        written.append(plot.save_figure(fig, args.graphs))
    if written:
        print(f'written: {", ".join(map(str, written))}')


if __name__ == '__main__':
    try:
        main(parse_args())
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
