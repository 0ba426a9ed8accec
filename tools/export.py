#!/usr/bin/env python
"""``topo export``: ``python tools/export.py output/RUN/model model.onnx``."""

import sys

from timm_topo.cli import main

if __name__ == '__main__':
    sys.exit(main(['export', *sys.argv[1:]]))
