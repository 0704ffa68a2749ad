"""As a command: `python -m engine.runs list|show|delete|import`. The library's functions are in `engine.run`."""

import sys

from engine.cli.runs import main

if __name__ == "__main__":
    sys.exit(main())
