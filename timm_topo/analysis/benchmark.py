"""Our executors beside plain networks, a naive sum and nodes alone.

Everything is a ratio within one process: networks run in turn, round by round, so that what else
the machine does hits all alike.
"""

import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from ..executors import BASELINES, Using, naive_sum, nodes_alone, set_triton_kernels
from ..files import write_text
from ..generators import complete
from ..models import rewire
from ..stages import graph_stages
from .cost import Latency, latency
from .memory import peak_memory, saved_memory
from .prune import prune

__all__ = [
    'SUITES',
    'markdown',
    'suite',
    'write_json',
]

_ROUTED = 'dgnet_resnet50'
_REWIRED = ('tf_efficientnet_lite0', 'mobilenetv2_100', 'convnext_tiny', 'resnetv2_50')
_MAIN, _PLAIN = 'toponet_adaptive', 'resnet50'
_SMALL, _SMALL_PLAIN = 'toporesnet20', 'resnet_cifar20'
_TINY = 'toponet_tiny_adaptive'
_GPU_BATCH = (256, 224)  # images, pixels
_PROCESSES = 3  # whose median peak of memory counts
_PERCENT = (20, 40, 60, 80)  # of edges removed


def suite(name: str, rounds: int = 10, device: str = 'cpu') -> list[dict]:
    """Run one of :data:`SUITES`.

    Args:
        name: Which.
        rounds: Repetitions of every measurement of time, after one that does not count.
        device: Where networks run.

    Returns:
        Rows with ``suite``, ``of`` (what was measured), ``network``, and numbers.

    Raises:
        ValueError: An unknown suite, or one for GPUs on another device.
    """
    if name not in SUITES:
        raise ValueError(f'unknown suite {name!r}; known: {", ".join(SUITES)}')
    if name.startswith('gpu') and not device.startswith('cuda'):
        raise ValueError(f'suite {name!r} needs device cuda, got {device!r}')
    return [{'suite': name, **row} for row in SUITES[name](rounds, device)]


def _timed(
    of: str,
    models: dict,
    shape: Sequence[int],
    rounds: int,
    device: str,
    modes: Sequence[str] = ('forward', 'forward and backward'),
) -> list[dict]:
    """Rows of each mode; ratios are to the first model."""
    models = {label: model.to(device) for label, model in models.items()}
    batch, *size = shape
    rows = []
    for mode in modes:
        times = latency(models, size, batch, rounds, training=mode != 'forward')
        rows += [
            {'of': f'{of}, {mode}', 'network': label, **_numbers(taken)}
            for label, taken in times.items()
        ]
    return rows


def _numbers(taken: Latency) -> dict:
    return {
        'ratio': round(taken.ratio, 3),
        'low': round(taken.ratios[0], 3),
        'high': round(taken.ratios[1], 3),
        'ms': round(taken.median, 2),
    }


def _beside(plain: str, name: str) -> dict[str, nn.Module]:
    model = timm.create_model(name)
    return {
        plain: timm.create_model(plain),
        name: model,
        f'{name}, naive sum': naive_sum(model),
        f'{name}, nodes alone': nodes_alone(model),
    }


def _main(rounds: int, device: str) -> list[dict]:
    """(1) and (2): TopoNet and ResNet-50, our executors, a naive sum and nodes alone."""
    models = _beside(_PLAIN, _MAIN)
    _check_equal(models[_MAIN], models[f'{_MAIN}, naive sum'], (2, 3, 64, 64))
    return _timed('8 images of 224 px', models, (8, 3, 224, 224), rounds, device)


def _cifar(rounds: int, device: str) -> list[dict]:
    """The same at CIFAR size."""
    models = _beside(_SMALL_PLAIN, _SMALL)
    _check_equal(models[_SMALL], models[f'{_SMALL}, naive sum'], (2, 3, 32, 32))
    return _timed('128 images of 32 px', models, (128, 3, 32, 32), rounds, device)


def _routed(rounds: int, device: str) -> list[dict]:
    """(3): weights per image beside weights for all, and beside the plain network."""
    models = {
        _PLAIN: timm.create_model(_PLAIN),
        f'{_ROUTED}, static': timm.create_model(_ROUTED, connectivity='alpha'),
        _ROUTED: timm.create_model(_ROUTED),
    }
    return _timed('8 images of 224 px', models, (8, 3, 224, 224), rounds, device)


def _rewired(rounds: int, device: str) -> list[dict]:
    """Networks of timm re-wired, all edges 1, beside the networks themselves."""
    rows = []
    for name in _REWIRED:
        plain = timm.create_model(name)
        models = {name: plain, f'{name}, re-wired': rewire(plain)}
        for batch, modes in ((1, ('forward',)), (8, ('forward', 'forward and backward'))):
            shape = (batch, 3, 224, 224)
            rows += _timed(f'{batch} x 224 px', models, shape, rounds, device, modes)
    return sorted(rows, key=lambda row: row['of'])


def _pruned(rounds: int, device: str) -> list[dict]:
    """(4): what removing edges gains, beside the whole network and beside the nodes left."""
    torch.manual_seed(0)
    model = timm.create_model(_MAIN)
    for stage in graph_stages(model).values():
        nn.init.uniform_(stage.connectivity.alpha)
    smaller = {}
    for percent in _PERCENT:
        smaller[f'{percent}% of edges removed'] = prune(
            model, fraction=percent / 100, relative=True, probe=torch.randn(1, 3, 64, 64)
        )[0]
    shape = (8, 3, 224, 224)
    rows = _timed('8 images of 224 px', {_MAIN: model, **smaller}, shape, rounds, device)
    for label, network in smaller.items():
        models = {'its nodes alone': nodes_alone(network), label: network}
        rows += _timed(label, models, shape, rounds, device)
    return rows


def _memory(rounds: int, device: str) -> list[dict]:
    """(5): a training step, by what autograd keeps and by what the process takes."""
    rows = []
    for plain, name, shape in (
        (_PLAIN, _MAIN, (8, 3, 224, 224)), (_SMALL_PLAIN, _SMALL, (128, 3, 32, 32))
    ):  # fmt: skip
        unit = None
        for label, network, baseline in (
            (plain, plain, 'ours'), (name, name, 'ours'),
            (f'{name}, naive sum', name, 'naive sum'),
            (f'{name}, nodes alone', name, 'nodes alone'),
        ):  # fmt: skip
            model = BASELINES[baseline](timm.create_model(network))
            saved = saved_memory(model.to(device), torch.randn(shape, device=device)) / 2**20
            peaks = [peak_memory(network, baseline, shape, device) for _ in range(_PROCESSES)]
            peak = statistics.median(peaks) / 2**20
            unit = unit or (saved, peak)
            rows.append({
                'of': f'{shape[0]} images of {shape[-1]} px, a training step', 'network': label,
                'saved MiB': round(saved), 'saved ratio': round(saved / unit[0], 3),
                'peak MiB': round(peak), 'peak ratio': round(peak / unit[1], 3),
            })  # fmt: skip
    return rows


def _growth(rounds: int, device: str) -> list[dict]:
    """(6): cost against nodes, batch and resolution."""
    rows = []
    for nodes in (8, 16, 32, 64):
        model = timm.create_model(
            'test_toponet', num_nodes=None, wiring=[complete(nodes)], widths=(64,), strides=(2,)
        )
        models = {label: BASELINES[label](model) for label in ('nodes alone', 'ours', 'naive sum')}
        edges, size = complete(nodes).num_edges, (8, 3, 64, 64)
        rows += _timed(f'{nodes} nodes, {edges} edges', models, size, rounds, device)
    for of, batch, pixels in (('batch', 1, 128), ('batch', 4, 128), ('batch', 16, 128),
                              ('resolution', 4, 64), ('resolution', 4, 224)):  # fmt: skip
        models = {_PLAIN: timm.create_model(_PLAIN), _MAIN: timm.create_model(_MAIN)}
        shape = (batch, 3, pixels, pixels)
        rows += _timed(f'{of}: {batch} x {pixels} px', models, shape, rounds, device)
    return rows


def _start(rounds: int, device: str) -> list[dict]:
    """Import, creation, also without memory on the meta device."""
    programs = {name: partial(_run_python, f'import {name}') for name in ('timm', 'timm_topo')}
    rows = _in_turn('import', programs, min(rounds, 5))
    names = (_PLAIN, _MAIN, _ROUTED, 'dagnet60')
    for place in ('cpu', 'meta'):
        makers = {name: partial(_create, name, place) for name in names}
        for row in _in_turn(f'creation on {place}', makers, min(rounds, 5)):
            convs = sum(isinstance(m, nn.Conv2d) for m in _create(row['network'], 'meta').modules())
            rows.append({**row, 'convolutions': convs, 'ms each': round(row['ms'] / convs, 2)})
    return rows


def _run_python(program: str) -> None:
    subprocess.run([sys.executable, '-c', program], check=True)


def _create(name: str, place: str) -> nn.Module:
    with torch.device(place):
        return timm.create_model(name)


def _in_turn(of: str, jobs: dict[str, Callable], rounds: int) -> list[dict]:
    """Median time of each job, and of its ratio to the first."""
    times = {label: [] for label in jobs}
    for _ in range(rounds + 1):
        for label, job in jobs.items():
            start = time.perf_counter()
            job()
            times[label].append(1000 * (time.perf_counter() - start))
    unit = next(iter(times.values()))[1:]
    return [
        {
            'of': of, 'network': label,
            'ratio': round(statistics.median(t / u for t, u in zip(taken[1:], unit)), 3),
            'ms': round(statistics.median(taken[1:]), 1),
        }
        for label, taken in times.items()
    ]  # fmt: skip


def _compile(rounds: int, device: str) -> list[dict]:
    """torch.compile beside the executor, on a small network; its first calls, too."""
    model = timm.create_model(_TINY).to(device)
    by_node = Using(model, 'reference')
    models = {_TINY: model, 'reference': by_node, 'compiled': torch.compile(model)}
    shape, images = (128, 3, 32, 32), torch.randn(128, 3, 32, 32, device=device)
    rows = []
    for mode in ('forward', 'forward and backward'):
        training = mode != 'forward'
        start = time.perf_counter()
        with torch.set_grad_enabled(training):
            output = models['compiled'].train(training)(images)
        if training:
            output.sum().backward()
        seconds = time.perf_counter() - start
        times = latency(models, shape[1:], shape[0], rounds, training=training)
        rows += [
            {
                'of': f'128 images of 32 px, {mode}', 'network': label, **_numbers(taken),
                'first call': f'{seconds:.0f} s' if label == 'compiled' else '',
            }
            for label, taken in times.items()
        ]  # fmt: skip
    return rows


class _Cast(nn.Module):
    """A model with its precision, memory layout and kernels."""

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, last: bool, kernels: bool | None = None
    ):
        super().__init__()
        self.model, self.dtype, self.kernels = model, dtype, kernels
        self.layout = torch.channels_last if last else torch.contiguous_format
        self.model.to(memory_format=self.layout)

    def forward(self, x: Tensor) -> Tensor:
        set_triton_kernels(self.kernels)
        x = x.contiguous(memory_format=self.layout)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.model(x).float()


def _gpu(rounds: int, device: str) -> list[dict]:
    """Precision and layout, with and without our kernels, in images per second."""
    rows = []
    for dtype, last in (
        (torch.bfloat16, True), (torch.bfloat16, False), (torch.float16, True),
        (torch.float32, True),
    ):  # fmt: skip
        ours = timm.create_model(_MAIN)
        models = {
            _PLAIN: _Cast(timm.create_model(_PLAIN), dtype, last),
            _MAIN: _Cast(ours, dtype, last),
            f'{_MAIN}, without kernels': _Cast(copy.deepcopy(ours), dtype, last, False),
            f'{_MAIN}, nodes alone': _Cast(nodes_alone(ours), dtype, last),
        }
        rows += _on_gpu(f'{str(dtype)[6:]}, {_layout(last)}', models, rounds, device)
    return rows


def _gpu_compile(rounds: int, device: str) -> list[dict]:
    """The compiler beside our kernels."""
    dtype, last = torch.bfloat16, True
    ours = timm.create_model(_MAIN)
    models = {
        _PLAIN: _Cast(timm.create_model(_PLAIN), dtype, last),
        _MAIN: _Cast(ours, dtype, last),
        f'{_MAIN}, compiled': _Cast(torch.compile(copy.deepcopy(ours)), dtype, last),
    }
    return _on_gpu(f'{str(dtype)[6:]}, {_layout(last)}', models, rounds, device)


def _layout(last: bool) -> str:
    return 'channels last' if last else 'contiguous'


def _on_gpu(of: str, models: dict, rounds: int, device: str) -> list[dict]:
    batch, pixels = _GPU_BATCH
    try:
        rows = _timed(of, models, (batch, 3, pixels, pixels), rounds, device)
        for row in rows:
            row['images/s'] = round(1000 * batch / row['ms'])
            if device != 'cpu':
                images = torch.randn(batch, 3, pixels, pixels, device=device)
                training = row['of'].endswith('backward')
                peak = _gpu_memory(models[row['network']], images, training)
                row['peak GiB'] = round(peak / 2**30, 2)
    finally:
        set_triton_kernels(None)
    return rows


def _gpu_memory(model: nn.Module, images: Tensor, training: bool) -> int:
    """What a pass allocates on a GPU at its peak, in bytes; of training, gradients included."""
    before = torch.cuda.memory_allocated(images.device)
    torch.cuda.reset_peak_memory_stats(images.device)
    with torch.set_grad_enabled(training):
        output = model.train(training)(images)
    if training:
        output.logsumexp(-1).mean().backward()
        model.zero_grad()
    return torch.cuda.max_memory_allocated(images.device) - before


def _check_equal(model: nn.Module, other: nn.Module, shape: Sequence[int]) -> None:
    """Values and gradients of one network run in two ways, in float64.

    Raises:
        RuntimeError: They differ.
    """
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    results = []
    for one in (copy.deepcopy(model), copy.deepcopy(other)):
        output = one.double().train()(images)
        output.square().mean().backward()
        results.append([output.detach(), *(p.grad for p in one.parameters())])
    for mine, theirs in zip(*results):
        if not torch.allclose(mine, theirs, rtol=1e-6, atol=1e-9 * theirs.abs().max().item()):
            raise RuntimeError('the naive sum computes something else: the benchmark is void')


#: What can be measured, by name.
SUITES = {
    'main': _main,
    'cifar': _cifar,
    'routed': _routed,
    'rewired': _rewired,
    'pruned': _pruned,
    'memory': _memory,
    'growth': _growth,
    'start': _start,
    'compile': _compile,
    'gpu': _gpu,
    'gpu-compile': _gpu_compile,
}


def markdown(rows: Sequence[dict]) -> str:
    """Rows as Markdown tables, one per suite and measurement."""
    parts = []
    groups = {}
    for row in rows:
        groups.setdefault((row['suite'], row['of']), []).append(row)
    for (name, of), some in groups.items():
        columns = [c for c in some[0] if c not in ('suite', 'of')]
        lines = [f'**{name}: {of}**', '', '| ' + ' | '.join(columns) + ' |']
        lines.append('|' + '---|' * len(columns))
        lines += ['| ' + ' | '.join(str(row.get(c, '')) for c in columns) + ' |' for row in some]
        parts.append('\n'.join(lines))
    return '\n\n'.join(parts) + '\n'


def write_json(rows: Sequence[dict], path: str | Path, **about) -> None:
    """Rows and what they were measured on and with."""
    write_text(path, json.dumps({**about, 'rows': list(rows)}, indent=1))
