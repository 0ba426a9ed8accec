"""From a network to a faster one, from search to report: what ``topo shrink`` runs."""

import json
from collections import UserDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from ..analysis.cost import count_flops, count_parameters
from ..analysis.prune import recalibrate
from ..analysis.shrink import BATCH, Search, Step, as_graph
from ..analysis.tables import read_csv, write_csv
from ..checkpoint import load, save
from ..files import locked, write_text
from ..stages import graph_stages
from ..training.evaluate import accuracy, eval_loader, sample
from ..training.loop import train
from ..training.options import TrainingOptions
from .cache import FREE, Rows, digest, pending

__all__ = ['CONTROL', 'Shrinking']

CONTROL = 'control'
_FREE = FREE | {'from_saved', 'kd_model_name'}  # in the folder, which may move


@dataclass
class Shrinking:
    """Networks of several budgets, made of one, trained on and compared.

    Evaluations and trainings are kept: the same call goes on where it was.

    Attributes:
        model: A network with graphs, or a residual one of timm.
        output: Where to: a folder per budget with ``model``, and ``tuned/model`` after training.
        trained: Training images, to calibrate on.
        data: Images that accuracy is measured on.
        described: Name of the data.
        budgets: Costs relative to the network, in (0, 1), in ``unit``; or None.
        drop: Instead, points of top-1 on the calibration images that may be lost.
        unit: ``'time'``, ``'flops'`` or ``'parameters'``.
        images: Calibration images, drawn at random, always the same.
        batch_size: Images per pass, where time is measured.
        repeats: Rounds of every measurement of time.
        ranking: Worth of a node.
        search: ``'greedy'`` or ``'knapsack'``.
        seed: Of a random ranking.
        options: Of the training afterwards, with distillation from the network; None: none.
        recalibrate: Whether the statistics of batch norm are estimated anew, on the calibration
            images, before accuracy is measured.
        control: Whether the network itself is trained on too, as long.
    """

    model: nn.Module
    output: Path
    trained: Dataset
    data: Dataset
    described: str
    budgets: Sequence[float] | None
    drop: float | None = None
    unit: str = 'time'
    images: int = 500
    batch_size: int = 1
    repeats: int = 20
    ranking: str = 'taylor'
    search: str = 'greedy'
    seed: int = 0
    options: TrainingOptions | None = None
    recalibrate: bool = True
    control: bool = False
    _graph: nn.Module = field(init=False)

    def run(self) -> dict:
        """All of it.

        Returns:
            ``before``, ``rows`` with one per budget and one of the control, and ``way``, the steps
            of the search.

        Raises:
            ValueError: As for :class:`timm_topo.analysis.shrink.Search`; a budget that cannot be
                met; data of other classes; or a training that is there with other options.
        """
        self._graph = as_graph(self.model)
        with locked(self.output):
            return self._run()

    def _run(self) -> dict:
        images, labels = self._calibration()
        known = _Known(self.output / 'search.json', *self._settings(len(images)))
        search = Search(
            self._graph, images, labels, self.unit, self.batch_size, self.repeats, self.ranking,
            self.seed, known,
        )  # fmt: skip
        if self.budgets is None:
            step, way = search.within(self.drop)
            steps = [step]
        else:
            steps, way = getattr(search, _SEARCHES[self.search])(self.budgets)
        before = self.output / 'before'
        save(self.model, before)
        full = {'network': 'before', **self._measured(self.model, search.start), 'measured': 1.0}
        write_csv(self.output / 'way.csv', [_row(step) for step in way])
        networks = []
        for step in steps:
            smaller = search.without(step.removed)
            if self.recalibrate:
                recalibrate(smaller, images.split(BATCH))
            name = f'drop_{self.drop:g}' if self.budgets is None else f'{self.unit}_{step.asked:g}'
            self._keep(smaller, self.output / name)
            networks.append({'network': name, **_row(step), **self._measured(smaller, step)})
            write_csv(self.output / 'shrink.csv', [full, *networks])
        if self.options is not None:
            if self.control:
                networks.append({'network': CONTROL, 'measured': 1.0})
            for row in networks:
                row['top1_tuned'] = self._tuned(row['network'])
                write_csv(self.output / 'shrink.csv', [full, *networks])
        return {'before': full, 'rows': networks, 'way': [_row(step) for step in way]}

    def _calibration(self) -> tuple[Tensor, Tensor]:
        """Images as the network evaluates them, and their labels."""
        loader = sample(eval_loader(self._graph, self.trained, 100), self.images)
        batches = [batch for batch in loader if len(batch[0])]
        images, labels = (torch.cat(of_all) for of_all in zip(*batches))
        return images[: self.images], labels[: self.images]

    def _settings(self, images: int) -> tuple[str, str]:
        """What scores depend on, and what costs depend on."""
        scores = f'{digest(self._graph)} {self.described} {images}'
        device = next(self._graph.parameters()).device
        threads = torch.get_num_threads()
        costs = f'{self.unit} {device} {threads} {self.batch_size} {self.repeats}'
        return scores, f'{scores} {costs}'

    def _keep(self, smaller: nn.Module, folder: Path) -> None:
        """Save a network, unless it is there.

        Raises:
            ValueError: Another one is there, and was trained on.
        """
        if (folder / 'model').exists() and (folder / 'tuned').exists():
            if digest(load(folder / 'model')) != digest(smaller):
                raise ValueError(
                    f'{folder} holds another network, which was trained on: choose another folder'
                )
            return
        save(smaller, folder / 'model')

    def _measured(self, model: nn.Module, step: Step) -> dict:
        stages = graph_stages(model, required=False).values()
        rows = Rows(self.output / 'accuracies.csv', ('network', 'data'))

        def measure() -> dict:
            return {'top1': accuracy(model, self.data)}

        return {
            'top1': rows.get(measure, network=digest(model), data=self.described)['top1'],
            'calibration_top1': step.top1,
            'nodes': sum(stage.wiring.num_nodes - 2 for stage in stages) if stages else None,
            'parameters': count_parameters(model),
            'multiply_adds': count_flops(model).total,
        }

    def _tuned(self, name: str) -> float:
        """Top-1 after training, the network before being the teacher."""
        control = name == CONTROL
        source = self.output / ('before' if control else f'{name}/model')
        folder = self.output / name / 'tuned'
        args = pending(
            folder, self.options, _FREE, from_saved=str(source), from_saved_weights='finetune',
            kd_model_name=str(self.output / 'before'), save='last',
        )  # fmt: skip
        if args is not None:
            print(f'== {folder}', flush=True)
            train(args)
        return float(read_csv(folder / 'summary.csv')[-1]['eval_top1'])


_SEARCHES = {'greedy': 'meet', 'knapsack': 'knapsack'}


class _Known(UserDict):
    """What a search evaluated and measured, kept in a file of JSON.

    Args:
        path: The file.
        scores: What losses and accuracies depend on.
        costs: What costs depend on.

    Raises:
        ValueError: The file is damaged.
    """

    def __init__(self, path: Path, scores: str, costs: str):
        super().__init__()
        self.path, self.scores, self.settings = path, scores, {'cost': costs, 'costs': costs}
        if path.exists():
            try:
                self.data = dict(json.loads(path.read_text(encoding='utf-8')))
            except (TypeError, ValueError) as error:
                raise ValueError(f'{path} is damaged: {error}') from None

    def __contains__(self, key: str) -> bool:
        return self._full(key) in self.data

    def __getitem__(self, key: str):
        return self.data[self._full(key)]

    def __setitem__(self, key: str, value) -> None:
        self.data[self._full(key)] = value
        write_text(self.path, json.dumps(self.data, indent=0))

    def _full(self, key: str) -> str:
        return f'{self.settings.get(key.partition(" ")[0], self.scores)} {key}'


def _row(step: Step) -> dict:
    return {
        'asked': step.asked,
        'predicted': step.predicted,
        'measured': step.measured,
        'loss': step.loss,
        'calibration_top1': step.top1,
        'removed': ' '.join(map(str, step.removed)),
    }
