"""Draw graphs, weights and trainings, to .svg, .png or .pdf (an animation to .gif).

Of networks: graph, in layers, edges as wide as |weight|; arcs, nodes on a line; adjacency,
matrices; histogram of |weight|; degrees, in and out. Of several networks: similarity, a matrix of
all graphs, and embedding, all graphs in the plane (Janik & Nowak, Figs. 5 and 6). Of a run:
training, its curves; process, adjacency matrices over its epochs; animation, the same as .gif. Of
data sets, NAME or NAME@DIR: images, one row each, one column per class.

examples:
  topo plot graph pruned -o graph.svg
  topo plot process output/RUN -o strip.svg
  topo plot animation output/RUN -o training.gif
  topo plot similarity easy=runs/0 easy=runs/1 hard=runs/2 -o similarity.svg
  topo plot images digits colour/digits -o sheet.png
"""

import argparse
from pathlib import Path

from torch import nn

from ..analysis.history import read_edge_weights
from ..analysis.metrics import embed, similarity, stage_characteristics
from ..analysis.prune import edge_weights, relative_weights
from ..analysis.tables import group, read_csv
from ..data import class_names, examples, load_dataset
from ..stages import graph_stages
from ..training.options import positive
from .common import add_data, add_networks, check_figure, folder_of, images_of, network

_OF_RUNS = ('training', 'process', 'animation')
_OF_SEVERAL = ('similarity', 'embedding')
_OF_NETWORKS = ('graph', 'arcs', 'adjacency', 'histogram', 'degrees')
KINDS = (*_OF_NETWORKS, *_OF_SEVERAL, *_OF_RUNS, 'images')


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument('kind', choices=KINDS, metavar='KIND', help=', '.join(KINDS))
    add_networks(parser)
    parser.add_argument('-o', '--output', type=Path, required=True, metavar='FILE')
    parser.add_argument('--stage', nargs='+', metavar='NAME', help='default: all')
    parser.add_argument(
        '--relative', action='store_true', help="weights over that of a node's strongest in-edge"
    )
    parser.add_argument(
        '--classes', type=positive, default=10, metavar='N', help='columns of images, at most'
    )
    add_data(parser)


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Options that do not go together."""
    if args.kind in _OF_RUNS and len(args.networks) > 1:
        parser.error(f'{args.kind} is of one run')


def run(args: argparse.Namespace) -> dict:
    """Draw one figure."""
    check_figure(args.output, ('.gif',) if args.kind == 'animation' else ('.svg', '.png', '.pdf'))
    from .. import plot

    if args.kind == 'animation':
        return {'written': [_process(args)]}
    return {'written': [plot.save_figure(_figure(args), args.output)]}


def _figure(args: argparse.Namespace):
    if args.kind == 'images':
        return _images(args)
    if args.kind == 'training':
        return _training(args)
    if args.kind == 'process':
        return _process(args)
    if args.kind in _OF_SEVERAL:
        return _likeness(args)
    models = {label: network(args, path) for label, path in args.networks}
    panels = [p for label, model in models.items() for p in _panels(args, model, label)]
    return _draw(args.kind, panels)


def _panels(args: argparse.Namespace, model: nn.Module, label: str) -> list:
    """The graphs of a network; their titles have its label where there are several networks."""
    from .. import plot

    stages = graph_stages(model)
    weights = edge_weights(model, images_of(args, model))
    if args.relative:
        weights = {n: relative_weights(stages[n].wiring, of) for n, of in weights.items()}
    several = len(args.networks) > 1
    return [
        plot.Panel(
            (label if len(stages) == 1 else f'{label}, {name}') if several else name,
            stage.wiring,
            weights[name],
            stage.node_ids,
            stage.levels if stage.levels[-1] else None,
        )
        for name, stage in _chosen(args, model).items()
    ]


def _chosen(args: argparse.Namespace, model: nn.Module) -> dict:
    stages = graph_stages(model)
    unknown = sorted(set(args.stage or ()) - set(stages))
    if unknown:
        raise ValueError(f'no stage {unknown[0]!r}; the stages are {", ".join(stages)}')
    return {name: stages[name] for name in args.stage or stages}


def _folder(args: argparse.Namespace) -> Path:
    ((_, path),) = args.networks
    if not (folder_of(path) / 'summary.csv').is_file():
        raise ValueError(f'{args.kind} is of the folder of a run, not of {path}')
    return folder_of(path)


def _training(args: argparse.Namespace):
    from .. import plot

    folder = _folder(args)
    rows = read_csv(folder / 'summary.csv')
    return plot.curves({folder.name: rows}, ['train_task_loss', 'train_sparsity', 'eval_top1'])


def _process(args: argparse.Namespace):
    """A strip of one stage as a figure; or the file of an animation of all."""
    from .. import plot

    folder = _folder(args)
    chosen = _chosen(args, network(args, args.networks[0][1]))
    epochs, weights = read_edge_weights(folder)
    wirings = {name: stage.wiring for name, stage in chosen.items()}
    missing = sorted(set(wirings) - set(weights))
    if missing:
        raise ValueError(f'{folder} has no snapshots of {missing[0]}')
    weights = {name: weights[name] for name in wirings}
    if args.kind == 'animation':
        return plot.animate(epochs, weights, wirings, args.output)
    if len(wirings) > 1:
        raise ValueError(f'a strip shows one stage: --stage, one of {", ".join(wirings)}')
    ((name, wiring),) = wirings.items()
    return plot.process_strip(epochs, weights[name], wiring, name)


def _likeness(args: argparse.Namespace):
    """Graphs of several networks compared by their characteristics."""
    from .. import plot

    rows = []
    for label, path in args.networks:
        stages = graph_stages(network(args, path))
        for number, stage in enumerate(stages.values(), start=1):
            name = label if len(stages) == 1 else f'{label} graph {number}'
            rows.append({'label': name, **stage_characteristics(stage)})
    rows = [row for of_label in group(rows, 'label').values() for row in of_label]
    labels = [row['label'] for row in rows]
    if args.kind == 'similarity':
        return plot.similarity_matrix(similarity(rows), labels)
    return plot.embedding(embed(rows), labels, 'principal component')


def _images(args: argparse.Namespace):
    from .. import plot

    rows, names = {}, []
    for label, path in args.networks:
        given = path if label == path else f'{label}={path}'  # an option of a variant, no label
        name, _, folder = given.partition('@')
        dataset = load_dataset(name, folder or None, args.train_split)
        names.append(class_names(dataset))
        columns = min(args.classes, len(names[-1]) if names[-1] else args.classes)
        rows[f'{name}\n{folder}' if folder else name] = examples(dataset, columns)
    shared = names[0] if all(one == names[0] for one in names) else None
    return plot.contact_sheet(rows, (shared or [])[: args.classes])


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


def text(result: dict) -> None:
    """Nothing beside the name of the file."""
