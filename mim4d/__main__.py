"""``python -m mim4d`` is the ``mim4d`` command."""

import sys

from mim4d.cli import main

if __name__ == "__main__":
    sys.exit(main())
