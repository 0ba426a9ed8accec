#!/usr/bin/env python
"""``topo train``, as a file for torchrun: ``torchrun --nproc-per-node=2 tools/train.py ...``."""

import sys

from timm_topo.cli import main

if __name__ == '__main__':
    sys.exit(main(['train', *sys.argv[1:]]))
