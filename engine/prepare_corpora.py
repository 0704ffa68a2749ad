"""As a command: `python -m engine.prepare_corpora NAME...`. The library's function is in `engine.corpora.prepare`."""

import sys

from engine.cli.prepare import main

if __name__ == "__main__":
    sys.exit(main())
