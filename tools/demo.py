#!/usr/bin/env python
"""Learn a wiring on real scans of digits, prune and shrink it, export it: one HTML report.

``make demo`` runs this. Every number in the report is measured in the same run.
"""

import argparse
import json
import shutil
import sys
import time
from functools import partial
from pathlib import Path

import torch

import timm_topo
from timm_topo.analysis.compare import Cut, measure, prune_sweep
from timm_topo.analysis.export import export_onnx
from timm_topo.analysis.prune import prune
from timm_topo.analysis.tables import read_csv
from timm_topo.data import load_dataset
from timm_topo.experiments.shrink import Shrinking
from timm_topo.files import replacing, write_text
from timm_topo.training.evaluate import accuracy, image_batches
from timm_topo.training.loop import train
from timm_topo.training.options import parse_args

CONFIG = Path(__file__).parents[1] / 'configs/classification/toponet_tiny_digits.yaml'
LEARNED, RESIDUAL = 'toponet_tiny_adaptive', 'toponet_tiny_residual2'
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
TOLERANCE = 0.5  # points of training accuracy that pruning may cost
TUNED = 3  # epochs after shrinking
BUDGET = 0.7  # of the time that is left after pruning
BATCH = 8  # images per pass when time is measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', default='output/demo', metavar='FOLDER')
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--seed', type=int, default=42)
    options = parser.parse_args()
    from timm_topo.report import pruning as pages
    from timm_topo.report.html import Report
    from timm_topo.report.training import add_curves

    torch.set_num_threads(1)  # as fast for maps this small, and steady on a busy machine
    folder, start = Path(options.output), time.perf_counter()
    if (folder / 'report.html').exists():  # a finished run: begin anew
        (folder / 'report.html').unlink()
        for part in (LEARNED, RESIDUAL, 'shrunk'):
            shutil.rmtree(folder / part, ignore_errors=True)
    validation = partial(accuracy, dataset=load_dataset('digits', split='validation'))
    runs = {}
    for step, name in enumerate((LEARNED, RESIDUAL), start=1):
        say(f'{step}/5 train {name} for {options.epochs} epochs on the digits')
        runs[name] = run_training(name, folder, options)

    say('3/5 prune the learned wiring, from the weakest edge on, without training')
    model = timm_topo.load(runs[LEARNED]['model']).eval()
    cuts, best = prune_while_harmless(model, validation)
    print(best.report)
    timm_topo.save(best.model, folder / 'pruned')

    say(f'4/5 shrink it to {BUDGET} of its time: whole nodes go; train on for {TUNED} epochs')
    small = shrunk(best.model, folder / 'shrunk', options)

    say('5/5 measure, export to ONNX, write the report')
    networks = {
        'learned wiring': model,
        'the same, pruned': best.model,
        'pruned and shrunk': small,
        'residual wiring': timm_topo.load(runs[RESIDUAL]['model']).eval(),
    }
    measured = measure(networks, (3, 32, 32), validation, BATCH)
    difference = export_onnx(timm_topo.deploy(small), folder / 'shrunk.onnx')
    page = Report('A wiring learned, pruned and exported')
    pages.add_summary(page, options.epochs, options.seed, measured, BATCH, difference)
    pages.add_networks(page, measured, BATCH, torch.get_num_threads())
    pages.add_wiring(page, model, best.model, best.report)
    figure = pages.before_and_after(model, best.model, best.report)
    with replacing(folder / 'learned_wiring.png') as part:
        figure.savefig(part, dpi=90)
    chosen = (
        f'{best.fraction:.0%} of the edges, the most that cost at most {TOLERANCE} points of '
        'accuracy on the training data'
    )
    pages.add_pruning(page, cuts, chosen, best.report)
    page.section('Training')
    add_curves(page, {name: run['rows'] for name, run in runs.items()})
    write_text(folder / 'numbers.json', json.dumps(measured, indent=1))
    path = page.write(folder / 'report.html')
    say(f'done in {time.perf_counter() - start:.0f} s; open {path}')


def say(text: str) -> None:
    print(f'== {text}', flush=True)


def run_training(name: str, folder: Path, options: argparse.Namespace) -> dict:
    """Train one model; goes on where an interrupted demo stopped."""
    argv = ['-c', str(CONFIG), '--model', name, '--epochs', str(options.epochs)]
    argv += ['--seed', str(options.seed), '--output', str(folder), '--experiment', name]
    result = train(parse_args([*argv, '--resume', 'auto']))
    return {**result, 'rows': read_csv(result['folder'] / 'summary.csv')}


def prune_while_harmless(model, validation) -> tuple[list[Cut], Cut]:
    """All cuts, and the last that is harmless by training (not validation) data."""
    data = load_dataset('digits', split='train')
    least = accuracy(model, data) - TOLERANCE
    cuts, best = [], Cut(0.0, *prune(model, fraction=0), *[validation(model)] * 2)
    for cut in prune_sweep(model, FRACTIONS, image_batches(model, data), validation):
        say(
            f'{cut.fraction:.0%} of the edges removed: top-1 {cut.at_once:.2f}%, with new '
            f'batch-norm statistics {cut.recalibrated:.2f}%'
        )
        cuts.append(cut)
        if accuracy(cut.model, data) >= least:
            best = cut
    return cuts, best


def shrunk(model, folder: Path, options: argparse.Namespace):
    """The network without the nodes that are worth least for their time, trained on."""
    argv = ['-c', str(CONFIG), '--epochs', str(TUNED), '--lr', '0.01', '--seed', str(options.seed)]
    train_on = parse_args([*argv, '--model-kwargs', 'sparsity=none'])
    data = {split: load_dataset('digits', split=split) for split in ('train', 'validation')}
    Shrinking(
        model, folder, data['train'], data['validation'], 'digits', [BUDGET], batch_size=BATCH,
        options=train_on,
    ).run()  # fmt: skip
    return timm_topo.load(folder / f'time_{BUDGET}' / 'tuned' / 'model').eval()


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('\ninterrupted; the same command goes on from the last whole epoch')
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
