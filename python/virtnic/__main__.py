"""``python -m virtnic`` is the command ``virtnic``."""

import sys

from virtnic.cli import main

if __name__ == "__main__":
    sys.exit(main())
