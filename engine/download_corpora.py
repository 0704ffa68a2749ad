"""As a command: `python -m engine.download_corpora`. The library's functions are in `engine.corpora`."""

import sys

from engine.cli.download import main

if __name__ == "__main__":
    sys.exit(main())
