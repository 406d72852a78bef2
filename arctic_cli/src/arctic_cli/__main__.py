"""``python -m arctic_cli``, the same as ``arctic``."""

import sys

from arctic_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
