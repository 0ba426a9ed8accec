"""Several networks side by side: accuracy, edges, parameters, time, characteristics.

Times are measured in turn, round by round, and are to the first network's. Networks may have
different classes of nodes, but the same input.

examples:
  topo compare output/RUN pruned --dataset digits
  topo compare full=output/RUN half=pruned --dataset digits --csv compare.csv
"""

import argparse

import torch

from ..analysis.compare import measure
from ..analysis.cost import input_size_of
from ..analysis.metrics import stage_characteristics
from ..analysis.tables import mean_and_spread, text_table, write_csv
from ..stages import graph_stages
from ..training.evaluate import accuracy
from ..training.options import labelled, positive
from .common import add_data, add_network, data_of, network


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('checkpoints', nargs='+', type=labelled, metavar='[LABEL=]CHECKPOINT')
    add_network(parser, several=True)
    parser.add_argument('--csv', metavar='FILE', help='a row per network')
    parser.add_argument(
        '--batch-size', type=positive, default=8, help='of the measured time (default: %(default)s)'
    )
    parser.add_argument('--repeats', type=positive, default=20, help='rounds')
    parser.add_argument('--threads', type=positive, help="default: PyTorch's")
    add_data(parser)


def run(args: argparse.Namespace) -> dict:
    if args.threads:
        torch.set_num_threads(args.threads)
    labels = [label for label, _ in args.checkpoints]
    if len(set(labels)) < len(labels):
        raise ValueError(f'a label is given twice: {", ".join(labels)}')
    models = {label: network(args, path) for label, path in args.checkpoints}
    sizes = {label: input_size_of(model) for label, model in models.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(f'networks have different inputs, so times do not compare: {sizes}')
    scores = {
        label: None if args.dataset is None else accuracy(model, data_of(args, model))
        for label, model in models.items()
    }
    measured = measure(
        models, next(iter(sizes.values())), lambda model: 0.0, args.batch_size, args.repeats
    )
    rows = []
    for label, path in args.checkpoints:
        row = {'network': label, 'checkpoint': path, 'top1': scores[label]}
        row |= {name: value for name, value in measured[label].items() if name != 'score'}
        graphs = [stage_characteristics(stage) for stage in graph_stages(models[label]).values()]
        row['graphs'] = {
            name: [graph[name] for graph in graphs if name in graph]
            for name in dict.fromkeys(name for graph in graphs for name in graph)
        }
        rows.append(row)
    if args.csv:
        write_csv(args.csv, [_flat(row) for row in rows])
    return {'networks': rows, 'batch_size': args.batch_size, 'csv': args.csv}


def _flat(row: dict) -> dict:
    """Means over the graphs as columns of their own; edges and nodes are those of the network."""
    graphs = row['graphs'].items()
    means = {name: sum(of) / len(of) for name, of in graphs if of and name not in row}
    return {**{name: value for name, value in row.items() if name != 'graphs'}, **means}


def text(result: dict) -> str:
    networks = result['networks']
    wanted = (
        ('top1', 'top-1 (%)', '.2f'), ('edges', 'edges', 'd'), ('nodes', 'nodes', 'd'),
        ('parameters', 'parameters', ',d'), ('mflops', 'M multiply-adds', '.2f'),
        ('ms', f'ms for {result["batch_size"]} images', '.2f'), ('ratio', 'ratio', '.2f'),
    )  # fmt: skip
    lines = [
        [name, *('-' if row[key] is None else format(row[key], kind) for row in networks)]
        for key, name, kind in wanted
    ]
    names = dict.fromkeys(name for row in networks for name in row['graphs'])
    lines += [
        [name, *(mean_and_spread(row['graphs'][name], 3) if row['graphs'].get(name) else '-'
                 for row in networks)]
        for name in names if name not in ('edges', 'nodes')
    ]  # fmt: skip
    shown = text_table(['', *(row['network'] for row in networks)], lines)
    note = 'Characteristics are means over the graphs of a network and their standard deviations.'
    return '\n'.join([shown, note, *([f'written: {result["csv"]}'] if result['csv'] else [])])
