"""Contents of a checkpoint: stages, edges, weights, costs and, with data, accuracy.

examples:
  topo inspect output/RUN
  topo inspect output/RUN/model_best.pth.tar --dataset digits
  topo inspect pruned --edges --json | jq '.stages[0].edge_weights'
"""

import argparse

from torch import Tensor

from ..analysis.cost import count_flops, count_parameters, input_size_of
from ..analysis.metrics import characteristics
from ..analysis.prune import edge_weights
from ..connectivity import connectivity_name
from ..stages import Stage, graph_stages, is_routed
from ..training.evaluate import accuracy
from .common import add_data, add_network, data_of, images_of, network, table


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_network(parser)
    add_data(parser)
    parser.add_argument('--edges', action='store_true', help='list every edge and its weight')
    parser.add_argument(
        '--characteristics', action='store_true',
        help='paths, communicability, connectivity, elongation of every graph',
    )  # fmt: skip


def run(args: argparse.Namespace) -> dict:
    """Stages, weights, costs, accuracy."""
    model = network(args)
    known = not is_routed(model) or args.dataset is not None
    weights = edge_weights(model, images_of(args, model)) if known else {}
    flops = count_flops(model)
    data = data_of(args, model)
    return {
        'network': args.network,
        'architecture': model.pretrained_cfg['architecture'],
        'input_size': list(input_size_of(model)),
        'num_classes': model.num_classes,
        'parameters': count_parameters(model),
        'multiply_adds': {'conv': flops.conv, 'linear': flops.linear, 'edges': flops.edges},
        'top1': None if data is None else accuracy(model, data),
        'stages': [
            describe(name, stage, weights.get(name), args)
            for name, stage in graph_stages(model).items()
        ],
    }


def describe(name: str, stage: Stage, weights: Tensor | None, args: argparse.Namespace) -> dict:
    """One stage."""
    wiring = stage.wiring
    row = {
        'name': name,
        'rule': connectivity_name(stage.connectivity),
        'node': _kind(stage),
        'nodes': wiring.num_nodes,
        'edges': wiring.num_edges,
        'density': wiring.density,
        'levels': stage.levels[-1] + 1,
        'node_ids': list(stage.node_ids),
    }
    if weights is not None:
        magnitudes = weights.abs()
        row['weights'] = {
            'least': magnitudes.min().item(),
            'median': magnitudes.quantile(0.5).item(),
            'largest': magnitudes.max().item(),
            'negative': int((weights < 0).sum()),
            'zero': int((weights == 0).sum()),
        }
    if args.edges:
        values = [None] * wiring.num_edges if weights is None else weights.tolist()
        row['edge_weights'] = [
            [stage.node_ids[s], stage.node_ids[t], value]
            for (s, t), value in zip(wiring.edges, values)
        ]
    if args.characteristics:
        row['characteristics'] = characteristics(wiring)
    return row


def _kind(stage: Stage) -> str:
    """What the nodes compute."""
    kinds = dict.fromkeys(type(node).__name__ for node in stage.nodes)
    return ', '.join(kinds) or 'none'


def text(result: dict) -> str:
    """A paragraph per stage."""
    size = 'x'.join(map(str, result['input_size']))
    total = sum(result['multiply_adds'].values())
    lines = [
        f'{result["network"]}: {result["architecture"]}, input {size}, '
        f'{result["num_classes"]} classes',
        f'{result["parameters"]:,} parameters, {total / 1e6:,.2f} M multiply-adds '
        f'({result["multiply_adds"]["edges"] / 1e6:,.2f} M of them for edges)',
    ]
    if result['top1'] is not None:
        lines.append(f'top-1 {result["top1"]:.2f}%')
    rows = [{**stage, **_weights(stage)} for stage in result['stages']]
    columns = ['name', 'nodes', 'edges', 'density', 'rule', 'node']
    columns += ['|weight| least', 'median', 'largest', 'negative', 'zero']
    if not any('weights' in stage for stage in result['stages']):
        columns = columns[:6]
        lines.append('edge weights depend on the image: --dataset averages them')
    lines += ['', table(rows, columns)]
    for stage in result['stages']:
        if 'characteristics' in stage:
            lines += ['', f'{stage["name"]}:', *(
                f'  {name} {value:.4g}' for name, value in stage['characteristics'].items()
            )]  # fmt: skip
        if 'edge_weights' in stage:
            lines += ['', f'{stage["name"]}, from node to node:', *(
                f'  {s:>4} {t:>4}  ' + ('' if w is None else f'{w:+.6f}')
                for s, t, w in stage['edge_weights']
            )]  # fmt: skip
    return '\n'.join(lines)


def _weights(stage: dict) -> dict:
    weights = dict(stage.get('weights', {}))
    if weights:
        weights['|weight| least'] = weights.pop('least')
    return weights
