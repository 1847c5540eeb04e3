"""``python -m virtnic`` is the command ``virtnic``."""

import sys

from _virtnic import main

if __name__ == "__main__":
    sys.exit(main())
