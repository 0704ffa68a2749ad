"""`python -m engine.export`: take a run along, in formats that other programs read."""

from __future__ import annotations

import argparse
import secrets
import shutil
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from engine.cli.common import DONE, run_and_step, run_command
from engine.errors import ConfigError, Problem, RunError, storage_sentence
from engine.files import fsync_folder, write_atomic
from engine.metrics import METRICS, SAMPLES
from engine.run import Run, load_run
from engine.tables import read_table

FORMATS = {
    "archive": "one file that another lab imports (`python -m engine.runs import FILE`), with all checkpoints, that of "
    "STEP, or none",
    "hf": "a Hugging Face GPT-2 model folder, of the newest checkpoint or that of STEP",
    "tensorboard": "a folder with an event file: metrics and samples",
    "csv": "the metrics as one CSV file",
    "parquet": "the metrics as one Parquet file",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.export",
        description="Take a run along: " + "; ".join(f"{name}: {text}" for name, text in FORMATS.items()) + ".",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN[@STEP]", help="the run, and perhaps the step of a checkpoint (hf, archive)")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the format")
    parser.add_argument("destination", metavar="DEST", type=Path, help="a new file, or a new or empty folder")
    parser.add_argument("--no-checkpoints", action="store_true", help="leave all checkpoints out (archive)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    run_id, step = run_and_step(options.run)
    at = step is not None
    if at and options.to not in ("hf", "archive"):
        raise ConfigError([Problem("RUN@STEP", f"{options.to} takes the whole run; leave @{step} out.")])
    if options.no_checkpoints and (at or options.to != "archive"):
        raise ConfigError([Problem("--no-checkpoints", "it is for --to archive RUN, without @STEP; leave it out.")])
    run, target = load_run(run_id), options.destination.absolute()
    try:
        if options.to in ("csv", "parquet"):
            _check_new(target)
            write_atomic(target, lambda path: _write_metrics(run, options.to, path))
        elif options.to == "archive":
            _check_new(target)
            steps = () if options.no_checkpoints else None if step is None else (step,)
            write_atomic(target, lambda path: _write_archive(run, path, steps))
        else:
            _check_new(target, folder=True)
            _write_folder(target, lambda folder: _fill(run, options.to, step, folder))
    except OSError as error:
        raise RunError(storage_sentence(error, target)) from error
    for sentence in [] if options.to == "hf" else _unread(run):
        print(sentence, file=sys.stderr)
    print(target)
    return DONE


def _unread(run: Run) -> list[str]:
    """A sentence for each file whose rows are missing in what was written."""
    tables = (("metrics", METRICS), ("samples", SAMPLES))
    return [sentence for table in tables for sentence in read_table(run.folder, *table)[1]]


def _check_new(target: Path, *, folder: bool = False) -> None:
    """Nothing is ever overwritten."""
    if folder and target.is_dir() and not target.is_symlink() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise RunError(f"{target} exists already and is not overwritten. Choose another name, or move it away.")
    if not target.parent.is_dir():
        raise RunError(f"There is no folder {target.parent}. Make it, or choose another place.")


def _write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder beside `target` and rename it there, so that it is whole or absent."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    temporary.mkdir()
    try:
        fill(temporary)
        temporary.rename(target)  # an empty folder gives way; one that was filled meanwhile is an error
        fsync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(run: Run, name: str, step: int | None, folder: Path) -> None:
    if name == "hf":
        from engine.hf import write_hf

        write_hf(run.id, step, folder)
    else:
        from engine.tensorboard import write_events

        write_events(run.folder, folder)


def _write_archive(run: Run, path: Path, steps: Collection[int] | None) -> None:
    from engine.archive import write_archive

    for sentence in write_archive(run, path, steps):
        print(sentence, file=sys.stderr)


def _write_metrics(run: Run, name: str, path: Path) -> None:
    if name == "csv":
        run.metrics.to_csv(path, index=False)
    else:
        run.metrics.to_parquet(path, index=False)
