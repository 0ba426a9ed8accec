"""Several networks side by side: accuracy, edges, parameters, time, characteristics.

Times are measured in turn, round by round, and are to the first network's. Networks may have
different classes of nodes, but the same input; plain networks of timm have no graphs, and names
without weights no accuracy. Networks
with the same label are one column, mean and standard deviation. Characteristics are those of Janik
& Nowak's Tables 1 and 2.

examples:
  topo compare output/RUN pruned resnet18 --dataset digits
  topo compare full=output/RUN half=pruned --dataset digits --csv compare.csv
  topo compare easy=runs/0 easy=runs/1 hard=runs/2
"""

import argparse

from ..analysis.compare import measure
from ..analysis.cost import input_size_of
from ..analysis.metrics import stage_characteristics
from ..analysis.tables import group, mean_and_spread, text_table
from ..stages import graph_stages
from ..training.evaluate import accuracy
from .common import (
    add_data,
    add_networks,
    add_table,
    add_time,
    data_of,
    has_weights,
    network,
    set_threads,
    write_table,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_networks(parser)
    add_table(parser, 'a row per network')
    add_time(parser)
    add_data(parser)


def run(args: argparse.Namespace) -> dict:
    """Measure all networks; their rows by label."""
    set_threads(args)
    models = [network(args, path, graph=False) for _, path in args.networks]
    sizes = [input_size_of(model) for model in models]
    if len(set(sizes)) > 1:
        told = {path: size for (_, path), size in zip(args.networks, sizes)}
        raise ValueError(f'networks have different inputs, so times do not compare: {told}')
    scores = [
        accuracy(model, data_of(args, model))
        if args.dataset is not None and has_weights(path)
        else None
        for model, (_, path) in zip(models, args.networks)
    ]
    measured = measure(
        dict(enumerate(models)), sizes[0], lambda model: 0.0, args.batch_size, args.repeats
    )
    rows = []
    for i, (label, path) in enumerate(args.networks):
        row = {'label': label, 'network': path, 'top1': scores[i]}
        row |= {name: value for name, value in measured[i].items() if name != 'score'}
        stages = graph_stages(models[i], required=False)
        graphs = [stage_characteristics(stage) for stage in stages.values()]
        row['graphs'] = {
            name: [graph[name] for graph in graphs if name in graph]
            for name in dict.fromkeys(name for graph in graphs for name in graph)
        }
        rows.append(row)
    written = write_table(args, [_flat(row) for row in rows])
    return {'networks': rows, 'batch_size': args.batch_size, 'written': written}


def _flat(row: dict) -> dict:
    """Means over the graphs as columns of their own; edges and nodes are those of the network."""
    graphs = row['graphs'].items()
    means = {name: sum(of) / len(of) for name, of in graphs if of and name not in row}
    return {**{name: value for name, value in row.items() if name != 'graphs'}, **means}


def text(result: dict) -> str:
    """A column per network."""
    columns = group(result['networks'], 'label')
    wanted = (
        ('top1', 'top-1 (%)', 2), ('edges', 'edges', 0), ('nodes', 'nodes', 0),
        ('parameters', 'parameters', 0), ('mflops', 'M multiply-adds', 2),
        ('ms', f'ms for {result["batch_size"]} images', 2), ('ratio', 'ratio', 2),
    )  # fmt: skip
    lines = [
        [name, *(_cell([row[key] for row in rows], digits) for rows in columns.values())]
        for key, name, digits in wanted
    ]
    names = dict.fromkeys(name for row in result['networks'] for name in row['graphs'])
    for name in names:
        if name not in ('edges', 'nodes'):
            of = [[v for row in rows for v in row['graphs'].get(name, ())]
                  for rows in columns.values()]  # fmt: skip
            lines.append([name, *(_cell(values, 3) for values in of)])
    shown = text_table(['', *columns], lines)
    note = 'Characteristics are means over the graphs of a network and their standard deviations.'
    return f'{shown}\n{note}' if names else shown


def _cell(values: list, digits: int) -> str:
    """Mean and spread; of one whole number itself."""
    if not values or None in values:
        return '-'
    if len(values) == 1 and isinstance(values[0], int):
        return f'{values[0]:,}'
    return mean_and_spread(values, digits or 1)
