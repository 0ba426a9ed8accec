#!/usr/bin/env python
"""Train a classifier: ``python tools/train.py -c configs/classification/toponet_tiny_digits.yaml``.

Several processes: ``torchrun --nproc-per-node=2 tools/train.py ...``. See ``--help``.
"""

import sys

import timm_topo  # noqa: F401  registers the models
from timm_topo.training.loop import train
from timm_topo.training.options import parse_args


def main() -> int:
    args = parse_args()
    try:
        train(args)
    except KeyboardInterrupt:
        print('\ninterrupted; go on from the last whole epoch with --resume auto', file=sys.stderr)
        return 130
    except (FloatingPointError, ImportError, OSError, TypeError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
