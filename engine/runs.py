"""As a command: `python -m engine.runs COMMAND`. As a library: `engine.run`, `library`, `labels` and `trash`."""

import sys

from engine.cli.runs import main

if __name__ == "__main__":
    sys.exit(main())
