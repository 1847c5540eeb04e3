"""``python -m virtnic.cli`` is the command ``virtnic``."""

import sys

from _virtnic import main

sys.exit(main())
