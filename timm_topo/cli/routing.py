"""How images choose their edges: open edges and computed nodes per stage of a DG-Net.

With --tau accuracy and time for thresholds in place of the learned ones, beside the network that
closes nothing (tau 0) and, with --against, other networks. Time is measured in turn, on images of
the data set. --figure draws which edges the classes use more or less than the average image.

examples:
  topo routing output/RUN --dataset digits
  topo routing output/RUN --dataset digits --tau 0.2 0.3 0.4 --against output/PLAIN --csv tau.csv
  topo routing output/RUN --dataset digits --figure paths.svg
"""

import argparse
import copy

from torch import nn
from tqdm import tqdm

from ..analysis.cost import latency
from ..analysis.routing import StageRouting, class_offsets, routing, routing_metrics
from ..analysis.tables import text_table
from ..connectivity.router import RouterConnectivity, check_tau, set_tau
from ..data import class_names
from ..stages import graph_stages
from ..training.evaluate import accuracy, eval_loader, image_batches, sample
from ..training.options import positive
from .common import (
    add_data,
    add_network,
    add_table,
    add_time,
    check_figure,
    data_of,
    network,
    set_threads,
    write_table,
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_network(parser)
    parser.add_argument(
        '--images', type=positive, metavar='N', help='whose paths count (default: all)'
    )
    parser.add_argument('--tau', type=float, nargs='+', default=[], help='thresholds in [0, 1)')
    parser.add_argument('--against', nargs='+', default=[], metavar='NETWORK')
    add_time(parser, several=True, repeats=40)
    add_table(parser, 'the table of thresholds')
    parser.add_argument('--figure', metavar='FILE', help='.svg, .png or .pdf')
    parser.add_argument('--stage', help='of the figure (default: whose weights spread most)')
    parser.add_argument('--classes', nargs='+', help='of the figure (default: the six extremes)')
    add_data(parser, required=True)


def run(args: argparse.Namespace) -> dict:
    """Open edges per stage, and rows per threshold."""
    taus = [check_tau(tau) for tau in args.tau]
    check_figure(args.figure)
    set_threads(args)
    model = network(args)
    stages = graph_stages(model)
    if not any(isinstance(s.connectivity, RouterConnectivity) for s in stages.values()):
        raise ValueError(f'{args.network} has no routers')
    if args.stage is not None and args.stage not in stages:
        raise ValueError(f'no stage {args.stage!r}; the stages are {", ".join(stages)}')
    data = data_of(args, model)
    routes = _follow(model, data, args.images)
    rows, written = [], []
    if taus:
        networks = {'tau 0': _threshold(model, 0.0), 'learned tau': model}
        networks |= {f'tau {tau:g}': _threshold(model, tau) for tau in taus}
        networks |= {path: network(args, path, graph=False) for path in args.against}
        rows = _compared(networks, data, args)
        written = write_table(args, rows)
    if args.figure:
        written.append(_draw(routes, class_names(data), args))
    return {
        'network': args.network,
        'stages': {name: str(route) for name, route in routes.items()},
        'metrics': routing_metrics(routes),
        'rows': rows,
        'written': written,
    }


def _threshold(model: nn.Module, tau: float) -> nn.Module:
    model = copy.deepcopy(model)
    set_tau(model, tau)
    return model


def _follow(model: nn.Module, data, limit: int | None) -> dict[str, StageRouting]:
    loader = eval_loader(model, data)
    if limit is not None:
        loader = sample(loader, limit)
    return routing(model, tqdm(loader, desc='images', leave=False, disable=None), limit)


def _compared(networks: dict[str, nn.Module], data, args: argparse.Namespace) -> list[dict]:
    """A row per network; time ratios are to the last of ``--against``, else to tau 0."""
    unit = list(networks)[-1] if args.against else 'tau 0'
    rows = {name: {'network': name} for name in networks}
    for name, model in networks.items():
        rows[name]['top1'] = accuracy(model, data)
        if name not in args.against:
            rows[name] |= routing_metrics(_follow(model, data, args.images))
    (images,) = image_batches(networks[unit], data, 1, max(128, *args.batch_size))
    ordered = {unit: networks[unit]} | networks
    for batch in args.batch_size:
        times = latency(ordered, images.shape[1:], batch, args.repeats, images)
        for name, taken in times.items():
            rows[name] |= {f'ratio at {batch}': taken.ratio, f'ms at {batch}': taken.median}
    return list(rows.values())


def _draw(routes: dict[str, StageRouting], names: list[str] | None, args: argparse.Namespace):
    """By how much the mean weights of single classes differ from those of all images."""
    from .. import plot

    stage = args.stage or max(routes, key=lambda name: routes[name].spread.mean().item())
    offsets = class_offsets(routes[stage], names, args.classes, limit=6)
    panels = [plot.Panel(label, routes[stage].wiring, offset) for label, offset in offsets.items()]
    quantity = f'edge weight in {stage}: mean of the class minus mean of all'
    return plot.save_figure(plot.graphs(panels, quantity=quantity), args.figure)


def text(result: dict) -> str:
    """A line per stage, and a table of thresholds."""
    lines = [f'{name}: {route}' for name, route in result['stages'].items()]
    if result['rows']:
        columns = list(dict.fromkeys(key for row in result['rows'] for key in row))
        cells = [
            [row[c] if c == 'network' else _number(c, row.get(c)) for c in columns]
            for row in result['rows']
        ]
        lines += ['', text_table(columns, cells)]
    return '\n'.join(lines)


def _number(column: str, value: float | None) -> str:
    if value is None:
        return ''
    return f'{value:.1f}' if column.endswith(('edges', 'nodes')) else f'{value:.2f}'
