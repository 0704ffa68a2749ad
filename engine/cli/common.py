"""What all commands share: flags made from the settings' declaration, and errors as sentences."""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from engine.config import SETTINGS, flag
from engine.errors import ConfigError, LabError, Problem

DONE, FAILED, USAGE = 0, 1, 2


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting, grouped and explained as in the form. Flags that are not given are left out."""
    groups: dict[str, Any] = {}
    for name, field in SETTINGS.items():
        meta = field.metadata
        title = "Everyday settings" if meta["group"] == "main" else meta["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        group = groups[title]
        help_text = meta["help"].replace("%", "%%") + f" (default: {show_default(field.default)})"
        if isinstance(field.default, bool):
            group.add_argument(
                flag(name), dest=name, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=help_text
            )
        else:
            metavar = "{" + ",".join(meta["choices"]) + "}" if meta["choices"] else type(field.default).__name__.upper()
            group.add_argument(
                flag(name), dest=name, type=_reader(name), metavar=metavar, default=argparse.SUPPRESS, help=help_text
            )


def show_default(value: Any) -> str:
    """A setting's default as help texts and the README print it."""
    return "empty" if value == "" else f"{value:g}" if isinstance(value, float) else str(value).lower()


def _reader(name: str) -> Callable[[str], Any]:
    """Numbers are read here; anything else stays a text for `config.from_dict`, which tells all problems together."""
    kind: Callable[[str], Any] = type(SETTINGS[name].default)

    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            return text

    return read


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that were named on the command line."""
    return {name: value for name, value in vars(arguments).items() if name in SETTINGS}


def run_and_step(text: str) -> tuple[str, int | None]:
    """Read RUN or RUN@STEP; the step is None when there is no @.

    Raises:
        ConfigError: what follows the @ is not a step.
    """
    run_id, at, step = text.partition("@")
    if at and not (step.isdecimal() and step.isascii() and len(step) <= 12):
        raise ConfigError([Problem("RUN@STEP", f"{step!r} is not a step; write RUN@STEP, such as {run_id}@400.")])
    return run_id, int(step) if at else None


def run_command(command: Callable[[], int]) -> int:
    """Run a command's body; errors meant for the user become sentences on standard error and an exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a terminal without a character of a name still shows the rest
    try:
        code = command()
        if sys.stdout is not None:  # a daemon may have none
            sys.stdout.flush()
        return code
    except ConfigError as error:
        return _complain(error, USAGE)
    except LabError as error:
        return _complain(error, FAILED)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        sys.stderr.close()
        return DONE
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        print(
            f"The output cannot be written: {error.strerror}. Send it elsewhere, or free some space.", file=sys.stderr
        )
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is still to be flushed
        return FAILED
    except KeyboardInterrupt:
        return FAILED


def _complain(error: LabError, code: int) -> int:
    if isinstance(error, ConfigError):
        for problem in error.problems:
            name = flag(problem.field) if problem.field in SETTINGS else problem.field
            print(f"{name}: {problem.message}", file=sys.stderr)
    else:
        print(error, file=sys.stderr)
    return code


def duration(seconds: float) -> str:
    """A duration as a person says it: 12 s, 3 min 12 s, 2 h 05 min, 3 d 4 h."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    if total < 86400:
        return f"{total // 3600} h {total % 3600 // 60:02d} min"
    return f"{total // 86400} d {total % 86400 // 3600} h"
