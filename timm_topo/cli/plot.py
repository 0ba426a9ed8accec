"""Draw what was learned, to .svg, .png or .pdf (an animation to .gif).

graph: in layers, edges as wide as |weight|; arcs: nodes on a line; adjacency: matrices; histogram:
of |weight|; degrees: in and out. Of a run: training: its curves; process: adjacency matrices over
its epochs; animation: the same as .gif.

examples:
  topo plot pruned graph -o graph.svg
  topo plot output/RUN process -o strip.svg
  topo plot output/RUN animation -o training.gif
"""

import argparse
from pathlib import Path

from ..analysis.history import read_edge_weights
from ..analysis.prune import edge_weights, relative_weights
from ..analysis.tables import read_csv
from ..stages import graph_stages
from .common import add_data, add_network, images_of, network

_OF_RUNS = ('training', 'process', 'animation')
KINDS = ('graph', 'arcs', 'adjacency', 'histogram', 'degrees', *_OF_RUNS)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    parser.add_argument('kind', choices=KINDS, nargs='?', default='graph')
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FILE')
    parser.add_argument('--stage', nargs='+', metavar='NAME', help='default: all')
    parser.add_argument(
        '--relative', action='store_true', help="weights over that of a node's strongest in-edge"
    )
    add_data(parser)


def run(args: argparse.Namespace) -> dict:
    from .. import plot

    suffixes = ('.gif',) if args.kind == 'animation' else ('.svg', '.png', '.pdf')
    if args.output.suffix not in suffixes:
        raise ValueError(f'{args.output}: {args.kind} is drawn as {", ".join(suffixes)}')
    if args.kind in _OF_RUNS and not (Path(args.checkpoint) / 'summary.csv').is_file():
        raise ValueError(f'{args.kind} is of the folder of a run, not of {args.checkpoint}')
    if args.kind == 'training':
        rows = read_csv(Path(args.checkpoint) / 'summary.csv')
        keys = ['train_task_loss', 'train_sparsity', 'eval_top1']
        figure = plot.curves({Path(args.checkpoint).name: rows}, keys)
        return {'file': plot.save_figure(figure, args.output)}
    model = network(args)
    stages = graph_stages(model)
    unknown = sorted(set(args.stage or ()) - set(stages))
    if unknown:
        raise ValueError(f'no stage {unknown[0]!r}; the stages are {", ".join(stages)}')
    chosen = {name: stages[name] for name in args.stage or stages}
    if args.kind in ('process', 'animation'):
        epochs, weights = read_edge_weights(args.checkpoint)
        wirings = {name: stage.wiring for name, stage in chosen.items()}
        missing = sorted(set(wirings) - set(weights))
        if missing:
            raise ValueError(f'{args.checkpoint} has no snapshots of {missing[0]}')
        weights = {name: weights[name] for name in wirings}
        if args.kind == 'animation':
            return {'file': plot.animate(epochs, weights, wirings, args.output)}
        if len(wirings) > 1:
            raise ValueError(f'a strip shows one stage: --stage, one of {", ".join(wirings)}')
        ((name, wiring),) = wirings.items()
        figure = plot.process_strip(epochs, weights[name], wiring, name)
        return {'file': plot.save_figure(figure, args.output)}
    weights = edge_weights(model, images_of(args, model))
    if args.relative:
        weights = {n: relative_weights(stages[n].wiring, of) for n, of in weights.items()}
    panels = [
        plot.Panel(
            name,
            stage.wiring,
            weights[name],
            stage.node_ids,
            stage.levels if stage.levels[-1] else None,
        )
        for name, stage in chosen.items()
    ]
    return {'file': plot.save_figure(_draw(args.kind, panels), args.output)}


def _draw(kind: str, panels: list):
    from .. import plot

    if kind == 'histogram':
        return plot.weight_histogram({panel.title: panel.weights for panel in panels})
    if kind == 'degrees':
        return plot.degrees(panels)
    if kind == 'adjacency':
        return plot.adjacency(panels)
    draw = plot.layered_graphs if kind == 'graph' else plot.graphs
    return draw(panels, columns=1, limit=plot.shared_limit(panels))


def text(result: dict) -> str:
    return f'written: {result["file"]}'
