#!/usr/bin/env python
"""``topo prune``: ``python tools/prune.py output/RUN/model --fraction 0.6 -o pruned``."""

import sys

from timm_topo.cli import main

if __name__ == '__main__':
    sys.exit(main(['prune', *sys.argv[1:]]))
