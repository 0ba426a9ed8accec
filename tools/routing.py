#!/usr/bin/env python
"""How a saved DG-Net routes images: ``python tools/routing.py output/RUN/model --dataset digits``.

Prints open edges and computed nodes per stage; with ``--tau``, accuracy and time for thresholds
(in place of the learned ones), beside the network that closes nothing (tau 0) and, with
``--against``, other saved networks. Time is measured in turn, on images of the data set.
``--figure`` draws which edges the classes use more or less than the average image.
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

import timm_topo
from timm_topo.analysis.cost import latency
from timm_topo.analysis.routing import StageRouting, class_offsets, routing, routing_metrics
from timm_topo.analysis.tables import write_csv
from timm_topo.connectivity.router import RouterConnectivity, check_tau, set_tau
from timm_topo.data import class_names, load_dataset
from timm_topo.files import replacing
from timm_topo.stages import graph_stages
from timm_topo.training.evaluate import accuracy, eval_loader, image_batches, image_mode, sample
from timm_topo.training.options import positive


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', metavar='FOLDER', help='saved network with routers')
    parser.add_argument('--dataset', metavar='NAME', required=True, help='as for tools/train.py')
    parser.add_argument('--data-dir', metavar='DIR')
    parser.add_argument('--split', default='validation')
    parser.add_argument(
        '--images', type=positive, metavar='N', help='whose paths count (default: all)'
    )
    parser.add_argument('--tau', type=float, nargs='+', default=[], help='thresholds in [0, 1)')
    parser.add_argument('--against', nargs='+', default=[], metavar='FOLDER')
    parser.add_argument(
        '--batch-size', type=positive, nargs='+', default=[1, 8], help='of the measured time'
    )
    parser.add_argument('--repeats', type=positive, default=40, help='rounds of the measured time')
    parser.add_argument('--threads', type=positive, default=1, help='when time is measured')
    parser.add_argument('--csv', metavar='FILE', help='write the table of thresholds there too')
    parser.add_argument('--figure', metavar='FILE', help='.svg, .png or .pdf')
    parser.add_argument('--stage', help='of the figure (default: whose weights spread most)')
    parser.add_argument('--classes', nargs='+', help='of the figure (default: the six extremes)')
    return parser.parse_args()


def main(args: argparse.Namespace) -> None:
    taus = [check_tau(tau) for tau in args.tau]
    model = timm_topo.load(args.model).eval()
    stages = graph_stages(model)
    if not any(isinstance(s.connectivity, RouterConnectivity) for s in stages.values()):
        raise ValueError(f'{args.model} has no routers')
    check_output(args, stages)
    mode = image_mode(model)
    data = load_dataset(args.dataset, args.data_dir, args.split, mode)
    routes = follow(model, data, args.images)
    for name, route in routes.items():
        print(f'{name}: {route}')
    if taus:
        networks = {'tau 0': threshold(args.model, 0.0), 'learned tau': model}
        networks |= {f'tau {tau:g}': threshold(args.model, tau) for tau in taus}
        networks |= {folder: timm_topo.load(folder).eval() for folder in args.against}
        show(sweep(networks, data, args), args.csv)
    if args.figure:
        draw(routes, class_names(data), args)


def check_output(args: argparse.Namespace, stages: dict) -> None:
    """Refuse what could not be written before anything is measured."""
    for path in filter(None, (args.csv, args.figure)):
        if not Path(path).absolute().parent.is_dir():
            raise FileNotFoundError(f'{path}: there is no such folder')
    kinds = ('.svg', '.png', '.pdf')
    if args.figure:
        from timm_topo.analysis import plot  # noqa: F401  or an error that says what to install
    if args.figure and Path(args.figure).suffix not in kinds:
        raise ValueError(f'--figure {args.figure} is not one of {", ".join(kinds)}')
    if args.stage is not None and args.stage not in stages:
        raise ValueError(f'no stage {args.stage!r}; the stages are {", ".join(stages)}')


def threshold(folder: str, tau: float) -> torch.nn.Module:
    model = timm_topo.load(folder).eval()
    set_tau(model, tau)
    return model


def follow(model: torch.nn.Module, data, limit: int | None) -> dict[str, StageRouting]:
    loader = eval_loader(model, data)
    if limit is not None:
        loader = sample(loader, limit)
    return routing(model, tqdm(loader, desc='images', leave=False, disable=None), limit)


def sweep(networks: dict[str, torch.nn.Module], data, args: argparse.Namespace) -> list[dict]:
    """A row per network; time ratios are to the last network, so to the last of ``--against``."""
    unit = list(networks)[-1] if args.against else 'tau 0'
    rows = {name: {'network': name} for name in networks}
    for name, model in networks.items():
        rows[name]['top1'] = f'{accuracy(model, data):.2f}'
        if name not in args.against:
            metrics = routing_metrics(follow(model, data, args.images))
            rows[name] |= {key: f'{value:.1f}' for key, value in metrics.items()}
    torch.set_num_threads(args.threads)
    (images,) = image_batches(networks[unit], data, 1, max(128, *args.batch_size))
    ordered = {unit: networks[unit]} | networks
    for batch in args.batch_size:
        times = latency(ordered, images.shape[1:], batch, args.repeats, images)
        for name, taken in times.items():
            rows[name][f'time at {batch}'] = f'{taken.ratio:.2f}'
        rows[unit][f'time at {batch}'] += f' ({times[unit].median:.1f} ms)'
    return list(rows.values())


def show(rows: list[dict], path: str | None) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    widths = [max(len(column), *(len(row.get(column, '')) for row in rows)) for column in columns]
    for row in [dict(zip(columns, columns)), *rows]:
        print('  '.join(row.get(c, '').ljust(w) for c, w in zip(columns, widths)).rstrip())
    if path:
        write_csv(path, rows)


def draw(routes: dict[str, StageRouting], names: list[str] | None, args) -> None:
    """By how much the mean weights of single classes differ from those of all images."""
    from timm_topo.analysis.plot import Panel, graphs

    stage = args.stage or max(routes, key=lambda name: routes[name].spread.mean().item())
    offsets = class_offsets(routes[stage], names, args.classes, limit=6)
    panels = [Panel(label, routes[stage].wiring, offset) for label, offset in offsets.items()]
    fig = graphs(panels, quantity=f'edge weight in {stage}: mean of the class minus mean of all')
    with replacing(args.figure) as part:
        fig.savefig(part, dpi=100)
    print(f'figure: {args.figure}')


if __name__ == '__main__':
    try:
        main(parse_args())
    except (ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
