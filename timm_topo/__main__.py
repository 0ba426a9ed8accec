"""``python -m timm_topo``: the command ``topo``."""

import sys

from .cli import main

if __name__ == '__main__':
    sys.exit(main())
