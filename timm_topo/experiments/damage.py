"""Damage curves of a trained network, with and without training (TopoNet, section 4.4, Fig. 4)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from .. import plot
from ..analysis.damage import FRACTIONS, damage_edges, damage_nodes, nodes_to_damage
from ..analysis.prune import ORDERS, edge_mask, prune
from ..analysis.tables import read_numbers
from ..checkpoint import save
from ..files import locked, write_text
from ..report.damage import damage_figures
from ..stages import is_routed
from ..training.evaluate import (
    check_classes,
    eval_loader,
    evaluate,
    image_batches,
    in_memory,
    tell_unreadable,
)
from ..training.loop import train
from ..training.options import TrainingOptions
from .cache import FREE, Rows, digest, pending

__all__ = ['Damage']

_EDGE_KEY = ('order', 'seed', 'asked')
_BATCHES = 10  # of 128 images, for new statistics


@dataclass
class Damage:
    """Removal of nodes and of edges; every evaluation and training that is done is kept.

    ``nodes.csv`` and ``edges.csv`` in the folder get their rows as they come, ``retrained/`` the
    trainings, ``nodes.svg`` and ``edges.svg`` the figures. Started again, it goes on where it was.

    Attributes:
        model: The network, on the device that evaluates.
        output: Where to.
        data: What accuracy is measured on, as from :func:`timm_topo.data.load_dataset`.
        trained: Data for new statistics of batch norms and for weights that depend on the image;
            None: no new statistics.
        described: What both are called: another name is not mixed with what is there.
        images: Evaluate on so many random images, always the same; None: on all.
        fractions: Shares of the edges to remove, in (0, 1).
        orders: Which edges go first, of :data:`timm_topo.analysis.prune.ORDERS`.
        seeds: Of random order.
        nodes: Whether to remove nodes too.
        retrain: Options of a training for every fraction, from scratch unless they say
            ``from_saved_weights='finetune-frozen'``; edge weights are frozen. None: no training.
        batch_size: Images per pass.
    """

    model: nn.Module
    output: Path
    data: Dataset
    trained: Dataset | None = None
    described: str = ''
    images: int | None = None
    fractions: Sequence[float] = FRACTIONS
    orders: Sequence[str] = ('weakest',)
    seeds: Sequence[int] = (0,)
    nodes: bool = True
    retrain: TrainingOptions | None = None
    batch_size: int = 128

    def run(self) -> dict:
        """Everything that is not there yet, and the figures.

        Returns:
            ``top1``, the accuracy of the network as it is, in percent; ``nodes`` and ``edges``,
            rows as from :func:`timm_topo.analysis.damage.damage_nodes` and ``damage_edges``, those
            of edges with ``top1_retrained`` (last epoch) where it was trained.

        Raises:
            ValueError: The folder holds the damage of another network or of other data; weights
                depend on the image, and there are no images or training is asked for; an option
                out of range.
        """
        with locked(self.output):
            return self._run()

    def _run(self) -> dict:
        self._check()
        check_classes(self.model, self.data)
        loader = in_memory(eval_loader(self.model, self.data, self.batch_size), self.images)
        device = next(self.model.parameters()).device

        tell_unreadable(self.data)

        def score(model: nn.Module) -> float:
            return evaluate(model, loader, device)['top1']

        edges = self._edges(score)
        result = {'top1': edges[0]['top1'], 'edges': edges, 'nodes': []}
        if self.nodes:
            result['nodes'] = self._nodes(score)
        if self.retrain is not None:
            self._retrained(edges)
        self._figures(result)
        return result

    def curves_there(self) -> None:
        """Take over how what the folder has was measured, and the orders, seeds and shares."""
        made = _settings(self.output)
        if made:
            self.images = made.get('images')
            self.trained = self.trained if made.get('new_statistics') else None
        path = self.output / 'edges.csv'
        rows = [row for row in (read_numbers(path) if path.exists() else ()) if row['asked'] > 0]
        if rows:
            self.orders = [order for order in ORDERS if any(r['order'] == order for r in rows)]
            self.seeds = sorted({row['seed'] for row in rows if row['order'] == 'random'}) or (0,)
            self.fractions = sorted({row['asked'] for row in rows})
            self.nodes = (self.output / 'nodes.csv').exists()

    def _check(self) -> None:
        """What would stop it later stops it first."""
        for fraction in self.fractions:
            if not 0 < fraction < 1:
                raise ValueError(f'a fraction must be in (0, 1), got {fraction}')
        for order in self.orders:
            if order not in ORDERS:
                raise ValueError(f'unknown order {order!r}; known: {", ".join(ORDERS)}')
        given = (self.fractions, self.orders, self.seeds)
        if not all(map(len, given)) or (self.images is not None and self.images < 1):
            raise ValueError(
                'damage needs fractions, orders, seeds and images, got '
                f'{", ".join(str(list(values)) for values in given)} and {self.images}'
            )
        routed = is_routed(self.model)
        if routed and self.trained is None:
            raise ValueError('edge weights depend on the image: damage needs training images')
        if routed and self.retrain is not None:
            raise ValueError('edge weights depend on the image: they cannot be frozen to retrain')
        settings = {
            'network': digest(self.model),
            'data': self.described,
            'images': self.images,
            'new_statistics': self.trained is not None,
        }
        made = _settings(self.output)
        for name, value in settings.items() if made is not None else ():
            if made.get(name) != value:
                raise ValueError(
                    f'{self.output} holds damage with {name.replace("_", " ")} {made.get(name)}, '
                    f'not {value}: choose another folder'
                )
        write_text(self.output / 'settings.yaml', yaml.safe_dump(settings))

    def _edges(self, score: Callable) -> list[dict]:
        """One row per order, seed and fraction; the first is the network as it is."""
        batches = images = None
        if self.trained is not None:
            batches = image_batches(self.model, self.trained, _BATCHES)
            images = batches[0]
        kept = Rows(self.output / 'edges.csv', _EDGE_KEY)
        wanted = [('none', 0, 0.0)]
        for order in dict.fromkeys(self.orders):
            seeds = dict.fromkeys(self.seeds) if order == 'random' else (0,)
            wanted += [(order, s, float(f)) for s in seeds for f in sorted({*self.fractions})]

        def measure(order: str, seed: int, fraction: float) -> dict:
            first = 'weakest' if order == 'none' else order
            (row,) = damage_edges(self.model, [fraction], score, first, seed, batches or (), images)
            return row

        return [
            kept.get(partial(measure, *one), **dict(zip(_EDGE_KEY, one)))
            for one in tqdm(wanted, 'edges', leave=False, disable=None)
        ]

    def _nodes(self, score: Callable) -> list[dict]:
        kept, rows = Rows(self.output / 'nodes.csv', ('stage', 'node')), []
        for stage, node in tqdm(nodes_to_damage(self.model), 'nodes', leave=False, disable=None):

            def measure(one=(stage, node)) -> dict:
                (row,) = damage_nodes(self.model, score, [one])
                return row

            rows.append(kept.get(measure, stage=stage, node=node))
        return rows

    def _retrained(self, edges: Iterable[dict]) -> None:
        """Train what is left at every fraction, its edge weights frozen."""
        kept = Rows(self.output / 'edges.csv', _EDGE_KEY)
        for row in edges:
            if not row['connected']:
                continue
            name = row['order'] + (f'_{row["seed"]}' if row['order'] == 'random' else '')
            home = self.output / 'retrained' / f'{name}_{row["asked"]:g}'
            folder = home / 'run'
            weights = self.retrain.from_saved_weights
            args = pending(
                folder,
                self.retrain,
                FREE | {'from_saved'},
                from_saved=str(home / 'pruned'),
                from_saved_weights=weights if weights == 'finetune-frozen' else 'frozen',
                save='last',
            )
            if args is not None:
                if not (home / 'pruned').exists():
                    order = 'weakest' if row['order'] == 'none' else row['order']
                    keep = edge_mask(
                        self.model, fraction=row['asked'], order=order, seed=row['seed']
                    )
                    save(prune(self.model, keep=keep)[0].cpu(), home / 'pruned')
                print(f'== {folder}', flush=True)
                train(args)
            epochs = read_numbers(folder / 'summary.csv')
            row['top1_retrained'] = epochs[-1]['eval_top1']
            kept.put(row)

    def _figures(self, result: dict) -> None:
        first, *rest = result['edges']
        curves = {}
        for row in rest:
            curves.setdefault(row['order'], [first]).append(row)
        for number, figure in enumerate(damage_figures(curves, result['top1'])):
            name = f'edges_{number + 1}.svg' if number else 'edges.svg'
            plot.save_figure(figure, self.output / name)
        if result['nodes']:
            figure = plot.node_damage(result['nodes'], result['top1'])
            plot.save_figure(figure, self.output / 'nodes.svg')


def _settings(folder: Path) -> dict | None:
    """What the folder was made with; None where there is nothing."""
    path = folder / 'settings.yaml'
    if not path.exists():
        return None
    try:
        made = yaml.safe_load(path.read_text(encoding='utf-8'))
    except yaml.YAMLError:
        made = None
    return made if isinstance(made, dict) else {}
