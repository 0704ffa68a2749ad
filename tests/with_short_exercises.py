"""Run a module with the first exercise's run cut down to some seconds; all else is as it is.

python tests/with_short_exercises.py -m streamlit run app/Home.py
"""

from __future__ import annotations

import runpy
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine import exercises

SHORT = {"batch_size": 1, "context_length": 64, "max_steps": 12, "eval_every": 6, "sample_length": 4, "threads": 1}


def main() -> None:
    """`-m MODULE [ARGUMENT ...]`"""
    if len(sys.argv) < 3 or sys.argv[1] != "-m":
        sys.exit("usage: python tests/with_short_exercises.py -m MODULE [ARGUMENT ...]")
    first, *others = exercises.EXERCISES
    runs = tuple(replace(run, settings={**run.settings, **SHORT}) for run in first.runs)
    exercises.EXERCISES = (replace(first, runs=runs), *others)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
