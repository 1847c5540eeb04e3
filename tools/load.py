"""Run a command beside busy loops: ``load.py 4 make test``."""

import os
import subprocess
import sys
from collections.abc import Sequence

#: A loop that ends with its parent: it is then another process's child.
LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"


def main(argv: Sequence[str]) -> int:
    """Start the loops, run the command, end the loops; return the command's status."""
    count, command = int(argv[0]), argv[1:]
    loops = [subprocess.Popen([sys.executable, "-S", "-c", LOOP]) for _ in range(count)]
    try:
        print(f"{count} busy loops on {os.cpu_count()} processors", flush=True)
        return subprocess.run(command, check=False).returncode
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
