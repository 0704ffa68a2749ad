"""As a command: `python -m engine.estimate`. The library's functions are in `engine.memory` and `engine.fit`."""

import sys

from engine.cli.estimate import main

if __name__ == "__main__":
    sys.exit(main())
