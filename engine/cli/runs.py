"""`python -m engine.runs list|show|delete|import`: what is in the folder of runs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from engine.cli.common import DONE, FAILED, duration, run_command
from engine.config import SETTINGS
from engine.errors import LabError
from engine.run import Run, delete_run, list_runs, load_run


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine.runs", description="List, show, delete and import runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="list|show|delete|import")
    listing = commands.add_parser("list", help="all runs, newest first")
    listing.add_argument("--json", action="store_true", help="print JSON")
    show = commands.add_parser("show", help="everything about one run")
    show.add_argument("run", metavar="RUN")
    show.add_argument("--json", action="store_true", help="print JSON")
    delete = commands.add_parser("delete", help="delete runs and all their files")
    delete.add_argument("runs", metavar="RUN", nargs="+")
    delete.add_argument("--yes", action="store_true", help="do not ask")
    taking = commands.add_parser("import", help="runs from archives that `python -m engine.export` made")
    taking.add_argument("files", metavar="FILE", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    body = {"list": _list, "show": _show, "delete": _delete, "import": _import}[options.command]
    return run_command(lambda: body(options))


def summary(run: Run) -> dict[str, Any]:
    """A run in one line of numbers; what was not measured is None."""
    info = run.info
    progress, config = info.get("progress") or {}, info.get("config") or {}
    return {
        "id": run.id,
        "state": run.state_of(info),
        "name": info.get("name"),
        "config": config.get("config"),
        "corpus": config.get("corpus"),
        "step": progress.get("step"),
        "total_steps": info.get("total_steps"),
        "tokens": progress.get("tokens"),
        "train_loss": progress.get("train_loss"),
        "val_loss": progress.get("val_loss"),
        "tokens_per_s": progress.get("tokens_per_s"),
        "elapsed_s": progress.get("elapsed_s"),
        "created": info.get("created"),
    }


def _list(options: argparse.Namespace) -> int:
    rows = [summary(run) for run in list_runs()]
    if options.json:
        print(json.dumps(rows, indent=2))
        return DONE
    if not rows:
        print("There are no runs yet. Start one: python -m engine.train --config nano --corpus verdict --epochs 3")
        return DONE
    print(f"{'run':<42} {'state':<12} {'steps':>15} {'loss':>7} {'val':>7} {'tokens/s':>9} {'time':>13}")
    for row in rows:
        steps = f"{row['step'] or 0:,}/{row['total_steps'] or 0:,}"
        print(
            f"{row['id']:<42} {row['state']:<12} {steps:>15} {_number(row['train_loss'], '.3f'):>7} "
            f"{_number(row['val_loss'], '.3f'):>7} {_number(row['tokens_per_s'], ',.0f'):>9} "
            f"{'–' if row['elapsed_s'] is None else duration(row['elapsed_s']):>13}"
        )
    return DONE


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _show(options: argparse.Namespace) -> int:
    run = load_run(options.run)
    if options.json:
        checkpoints = [
            {"step": c.step, "bytes": c.bytes, "saved": c.saved, "problem": c.problem, **c.progress}
            for c in run.checkpoints
        ]
        print(json.dumps({**run.info, "state": run.state, "checkpoints": checkpoints}, indent=2))
        return DONE
    info, config = run.info, run.config
    print(f"{run.id}: {info.get('name')}\nstate: {run.state}{' – ' + info['error'] if info.get('error') else ''}")
    row = summary(run)
    print(f"step: {row['step']:,} of {run.total_steps:,}")
    for name in ("train_loss", "val_loss"):
        print(f"{name}: {_number(row[name], '.4f')}")
    if info.get("parent"):
        print(f"branched from: {info['parent']['run']} at step {info['parent']['step']:,}")
    print("\nsettings")
    for name in SETTINGS:
        print(f"  {name}: {getattr(config, name)}")
    print("\ncheckpoints")
    for c in run.checkpoints:
        print(
            f"  step {c.step:,}: {'damaged, ' + c.problem if c.problem else f'{c.bytes / 2**20:,.0f} MiB, {c.saved}'}"
        )
    print("\nlog")
    for event in run.events:
        print(f"  {event.time}  step {event.step:,}  {event.message}")
    for problem in run.problems:
        print(f"damaged: {problem}")
    return DONE


def _delete(options: argparse.Namespace) -> int:
    runs = [load_run(run_id) for run_id in options.runs]  # all of them exist, or nothing is deleted
    if not options.yes:
        print(f"Delete {', '.join(run.id for run in runs)} and all their checkpoints? [y/N] ", end="", flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("Nothing was deleted.")
            return DONE
    code = DONE
    for run in runs:
        try:
            delete_run(run.id)
            print(f"Deleted {run.id}.")
        except LabError as error:
            print(error, file=sys.stderr)
            code = FAILED
    return code


def _import(options: argparse.Namespace) -> int:
    from engine.archive import import_archive

    code = DONE
    for file in options.files:
        try:
            print(f"Imported {import_archive(file).id}.")
        except LabError as error:
            print(error, file=sys.stderr)
            code = FAILED
    return code
