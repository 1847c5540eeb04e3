"""``python -m virtnic.cli`` is the command ``virtnic``."""

import sys

from virtnic.cli import main

sys.exit(main())
