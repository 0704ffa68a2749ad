"""As a command: `python -m engine.export RUN[@STEP] --to archive|hf|tensorboard|csv|parquet DEST`."""

import sys

from engine.cli.export import main

if __name__ == "__main__":
    sys.exit(main())
