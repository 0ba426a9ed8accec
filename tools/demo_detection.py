#!/usr/bin/env python
"""Do learned backbones transfer? Faster R-CNN on digits, from a classifier's weights and without.

``make demo-detection`` runs this: a tiny TopoNet learns to tell single digits apart, then
detectron2's own train_net finds digits on canvases, from its weights and from random ones, and
COCO's evaluation compares. Every number is measured in the same run.
"""

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import torch
from tqdm import tqdm

from timm_topo.files import write_text
from timm_topo.training.loop import train
from timm_topo.training.options import parse_args, positive

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/detection/lazy/small_faster_rcnn_digits.py'
CLASSIFIER = ROOT / 'configs/classification/test_toponet_digits.yaml'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--output', default='output/demo-detection', metavar='FOLDER')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument(
        '--iterations', type=positive, default=120, help='of the detectors (%(default)s)'
    )
    parser.add_argument('--classifier', default=str(CLASSIFIER), metavar='YAML')
    options = parser.parse_args()
    importlib.import_module('d2_topo')  # or an error that says how to install detectron2
    torch.set_num_threads(1)  # as fast for maps this small, and steady on a busy machine
    folder, start = Path(options.output).resolve(), time.perf_counter()
    begin(folder, vars(options))

    say('1/2 train a tiny TopoNet to tell single digits apart')
    argv = ['-c', options.classifier, '--output', str(folder), '--experiment', 'classifier']
    weights = train(parse_args([*argv, '--resume', 'auto']))['folder'] / 'model'

    say('2/2 train Faster R-CNN to find digits: from these weights, and from random ones')
    results = {}
    for seed in options.seeds:
        for start_from, checkpoint in (('transfer', weights), ('random', '')):
            run = f'{start_from}-{seed}'
            results[run] = detect(run, folder / run, checkpoint, seed, options.iterations)
            print(
                f'  {run}: AP {results[run]["AP"]:.1f}, AP50 {results[run]["AP50"]:.1f}', flush=True
            )
    show(results, options)
    write_text(folder / 'results.json', json.dumps(results, indent=1))
    (folder / 'options.json').unlink()  # the next run begins anew
    say(f'done in {time.perf_counter() - start:.0f} s; logs and weights in {folder}')


def begin(folder: Path, options: dict) -> None:
    """Go on with an interrupted run of these options, or remove what another run left."""
    note = folder / 'options.json'
    if not note.exists() or json.loads(note.read_text(encoding='utf-8')) != options:
        for name in ('classifier', 'transfer-[0-9]*', 'random-[0-9]*'):
            for part in folder.glob(name):
                shutil.rmtree(part)
    write_text(note, json.dumps(options))


def say(text: str) -> None:
    print(f'== {text}', flush=True)


def detect(name: str, folder: Path, checkpoint: str | Path, seed: int, iterations: int) -> dict:
    """One run of detectron2's unmodified trainer; goes on where an interrupted one stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, '-m', 'd2_topo.train_net', '--resume', '--config-file', CONFIG,
        f'train.output_dir={folder}', f'train.init_checkpoint={checkpoint}', f'train.seed={seed}',
        f'train.max_iter={iterations}', 'train.checkpointer.period=40',
    ]  # fmt: skip
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1',
           'DETECTRON2_DATASETS': str(folder.parent / 'datasets')}  # fmt: skip
    log = folder / 'stdout.txt'
    with (
        open(log, 'a', encoding='utf-8') as file,
        tqdm(total=iterations, desc=f'  {name}', leave=False) as bar,
        subprocess.Popen(
            list(map(str, command)), env=env, cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process,
    ):  # fmt: skip
        for line in process.stdout:
            file.write(line)
            if ' iter: ' in line:
                bar.update(int(line.split(' iter: ')[1].split()[0]) + 1 - bar.n)
    if process.returncode:
        raise RuntimeError(f'detectron2 stopped with status {process.returncode}; see {log}')
    lines = (folder / 'metrics.json').read_text(encoding='utf-8').splitlines()
    last = [row for row in map(json.loads, lines) if 'bbox/AP' in row][-1]
    found = {key: last[f'bbox/{key}'] for key in ('AP', 'AP50', 'AP75')}
    return {key: 0.0 if value != value else value for key, value in found.items()}  # nan: no boxes


def show(results: dict, options: argparse.Namespace) -> None:
    """A table: a column per seed and their mean."""
    seeds = ''.join(f'{f"seed {seed}":>9}' for seed in options.seeds)
    print(f'\nCOCO AP (AP50) after {options.iterations} iterations of 4 canvases')
    print(f'{"backbone from":24}{seeds}{"mean":>9}{"AP50":>9}')
    for start_from, label in (('transfer', 'digit classifier'), ('random', 'random weights')):
        runs = [results[f'{start_from}-{seed}'] for seed in options.seeds]
        values = ''.join(f'{run["AP"]:9.1f}' for run in runs)
        average = f'{mean(run["AP"] for run in runs):9.1f}{mean(run["AP50"] for run in runs):9.1f}'
        print(f'{label:24}{values}{average}')
    print()


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit('\ninterrupted; the same command goes on where it stopped')
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        sys.exit(f'error: {error}')
