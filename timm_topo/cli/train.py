"""Train an image classifier whose connectivity is learned: ``tools/train.py`` is this command.

Several processes: torchrun --nproc-per-node=N tools/train.py ...

examples:
  topo train -c configs/classification/toponet_tiny_digits.yaml
  topo train --model toponet_adaptive --data-dir IMAGENET --epochs 100 --amp
"""

import argparse

from ..training.loop import train
from ..training.options import parse_args

RESUMES = '; go on from the last whole epoch with --resume auto'


def parse(argv: list[str]) -> argparse.Namespace:
    """Arguments of this command alone, read as training reads them."""
    return parse_args(argv, prog='topo train', description=__doc__)


def run(args: argparse.Namespace) -> dict:
    """Train one network."""
    return train(args)


def text(result: dict) -> None:
    """Nothing more: training has its own output."""
