"""`python -m engine.runs COMMAND`: what is in the folder of runs, and what one can do with it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from engine.cli.common import DONE, FAILED, duration, run_command
from engine.config import SETTINGS
from engine.errors import LabError
from engine.labels import change_labels, write_labels
from engine.library import list_summaries, summary_of
from engine.run import load_run
from engine.trash import empty_trash, list_trash, restore_run, trash_run


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine.runs", description="List, label, delete and import runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(body: Callable[[argparse.Namespace], int], name: str, what: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=f"{what[:1].upper()}{what[1:]}.")
        added.set_defaults(body=body)
        return added

    command(_list, "list", "all runs, newest first").add_argument("--json", action="store_true", help="print JSON")
    show = command(_show, "show", "everything about one run")
    show.add_argument("run", metavar="RUN")
    show.add_argument("--json", action="store_true", help="print JSON")
    rename = command(_rename, "rename", "give a run another name; its id stays")
    rename.add_argument("run", metavar="RUN")
    rename.add_argument("name", metavar="NAME")
    note = command(_note, "note", "write a note on a run, instead of the one it has")
    note.add_argument("run", metavar="RUN")
    note.add_argument("notes", metavar="TEXT")
    tag = command(_tag, "tag", "give a run tags")
    tag.add_argument("run", metavar="RUN")
    tag.add_argument("tags", metavar="TAG", nargs="+")
    tag.add_argument("--remove", action="store_true", help="take these tags away")
    star = command(_star, "star", "give runs a star: they are listed first in the app")
    star.add_argument("runs", metavar="RUN", nargs="+")
    star.add_argument("--remove", action="store_true", help="take the star away")
    delete = command(_delete, "delete", "move runs to the trash")
    delete.add_argument("runs", metavar="RUN", nargs="+")
    restore = command(_restore, "restore", "take runs out of the trash")
    restore.add_argument("runs", metavar="RUN", nargs="+")
    trash = command(_trash, "trash", "what is in the trash")
    trash.add_argument("--empty", action="store_true", help="delete it for good")
    trash.add_argument("--yes", action="store_true", help="do not ask")
    taking = command(_import, "import", "runs from archives that `python -m engine.export` made")
    taking.add_argument("files", metavar="FILE", nargs="+", type=Path)
    options = parser.parse_args(arguments)
    return run_command(lambda: options.body(options))


def _list(options: argparse.Namespace) -> int:
    rows = list_summaries()
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return DONE
    if not rows:
        print("There are no runs yet. Start one: python -m engine.train --config nano --corpus verdict --epochs 3")
        return DONE
    print(f"  {'run':<42} {'state':<12} {'steps':>15} {'loss':>7} {'val':>7} {'best':>7} {'tokens/s':>9} {'time':>13}")
    for row in rows:
        if row.problem:
            print(f"! {row.id:<42} {row.problem}")
            continue
        star, steps = "★" if row.starred else " ", f"{row.step or 0:,}/{row.total_steps or 0:,}"
        print(
            f"{star} {row.id:<42} {row.state:<12} {steps:>15} {_number(row.train_loss, '.3f'):>7} "
            f"{_number(row.val_loss, '.3f'):>7} {_number(row.best_val_loss, '.3f'):>7} "
            f"{_number(row.tokens_per_s, ',.0f'):>9} {'–' if row.elapsed_s is None else duration(row.elapsed_s):>13}"
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
    row = summary_of(run.id)
    for name, text in (("tags", ", ".join(row.tags)), ("notes", row.notes), ("starred", "yes" * row.starred)):
        if text:
            print(f"{name}: {text}")
    print(f"step: {row.step or 0:,} of {run.total_steps:,}")
    for name, loss in (
        ("train_loss", row.train_loss),
        ("val_loss", row.val_loss),
        ("best_val_loss", row.best_val_loss),
    ):
        print(f"{name}: {_number(loss, '.4f')}")
    if run.world_size > 1:
        print(f"processes: {run.world_size}")
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


def _rename(options: argparse.Namespace) -> int:
    write_labels(load_run(options.run).folder, {"name": options.name})
    print(f"Run {options.run} is called {load_run(options.run).info['name']} now.")
    return DONE


def _note(options: argparse.Namespace) -> int:
    write_labels(load_run(options.run).folder, {"notes": options.notes})
    print(f"Run {options.run} has {'this note' if options.notes.strip() else 'no note'} now.")
    return DONE


def _tag(options: argparse.Namespace) -> int:
    run = load_run(options.run)

    def change() -> dict[str, list[str]]:
        before = summary_of(run.id).tags
        named = {tag.strip().casefold() for tag in options.tags}
        kept = [tag for tag in before if tag.casefold() not in named]
        return {"tags": kept if options.remove else [*before, *options.tags]}

    change_labels(run.folder, change)
    print(f"Run {run.id} has {', '.join(summary_of(run.id).tags) or 'no tags'} now.")
    return DONE


def _star(options: argparse.Namespace) -> int:
    for run in [load_run(run_id) for run_id in options.runs]:  # all of them exist, or none is changed
        write_labels(run.folder, {"starred": not options.remove})
        print(f"Run {run.id} has {'no star' if options.remove else 'a star'} now.")
    return DONE


def _delete(options: argparse.Namespace) -> int:
    def delete(run_id: str) -> str:
        trash_run(run_id)
        return f"Moved {run_id} to the trash. To undo: python -m engine.runs restore {run_id}"

    return _each(options.runs, delete)


def _restore(options: argparse.Namespace) -> int:
    return _each(options.runs, lambda run_id: f"Restored {restore_run(run_id).id}.")


def _each(names: list[str], act: Callable[[str], str]) -> int:
    """Do it with every run that it can be done with, and say why not of the others."""
    code = DONE
    for name in names:
        try:
            print(act(name))
        except LabError as error:
            print(error, file=sys.stderr)
            code = FAILED
    return code


def _trash(options: argparse.Namespace) -> int:
    trash = list_trash()
    for trashed in trash:
        print(f"{trashed.run_id:<42} deleted {trashed.deleted:%Y-%m-%d %H:%M} UTC {trashed.bytes / 2**20:>10,.1f} MiB")
    if not trash:
        print("The trash is empty.")
    elif options.empty:
        if not options.yes:
            print(f"Delete {'this run' if len(trash) == 1 else f'these {len(trash)} runs'} for good? [y/N] ", end="")
            sys.stdout.flush()
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                print("Nothing was deleted.")
                return DONE
        print(f"Deleted for good: {empty_trash([trashed.entry for trashed in trash])}.")
    return DONE


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
