"""`python -m engine.bench`."""

import sys

from engine.cli.bench import main

if __name__ == "__main__":
    sys.exit(main())
