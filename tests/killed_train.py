"""`python -m engine.train` in processes that kill themselves at a chosen moment. `kill_runs.py` starts this program.

It loads torch once, then forks a process for each line of JSON on standard input (moment, pipe, errors, arguments,
environment), and answers with its id, and with its exit code when it has ended.

Such a process counts what it does inside a checkpoint save, a segment flush and so on (write, fsync, rename, delete),
and sends itself SIGKILL at the n-th such operation: before it, after it, or with half of its bytes written or files
deleted. Each row is told to the pipe when it is logged, and each flush when it is done, by a system call that outlives
the process.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

PROJECT = Path(__file__).resolve().parent.parent
COMPACT_AT = 3  # segments: compactions are frequent here


@dataclass(frozen=True)
class Moment:
    """When to die: at the `nth` operation of a kind inside a region; or the parent kills, at a random time.

    Attributes:
        region: what the process is doing, outermost first, such as `rewind/compact`; `random` for a time.
        operation: write, fsync, rename or delete.
        when: before, half or after; for a random time `launch` or `first step`, from which it counts.
        nth: of these operations in this region since the process began; 1 for the first.
        after_s: of a random time.
    """

    region: str
    operation: str = ""
    when: str = ""
    nth: int = 1
    after_s: float = 0.0

    @property
    def is_random(self) -> bool:
        """Whether it is a time, not a place."""
        return self.region == "random"

    def __str__(self) -> str:
        if self.is_random:
            return f"random: {self.after_s:.2f} s after the {self.when}"
        return f"{self.region}: {self.when} {self.operation} {self.nth}"


def serve() -> None:
    """Fork a process for each request. Only loading is done here: no arithmetic, whose threads a fork would lose."""
    for name in ("cli.train", "evaluate", "generate", "step", "tokenizer", "train"):
        importlib.import_module(f"engine.{name}")
    for name in ("safetensors.torch", "pyarrow.pandas_compat"):  # what a run loads on the way
        importlib.import_module(name)
    sys.modules["engine.tokenizer"].encoding()
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(request)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _become(request: dict[str, Any]) -> NoReturn:
    code = 70
    try:
        os.environ.update(request["environment"])
        with open(os.devnull, "w") as out, open(request["errors"], "w") as err:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
        code = train(Moment(**request["moment"]), Path(request["pipe"]), request["arguments"])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def train(moment: Moment, pipe: Path, arguments: list[str]) -> int:
    """Train, and die on the way."""
    import engine.tables
    from engine.cli.train import main as train_command
    from engine.run import ActiveRun
    from engine.tables import TableWriter

    handle = os.open(pipe, os.O_WRONLY | os.O_APPEND)

    def tell(**facts: Any) -> None:
        os.write(handle, (json.dumps({**facts, "at": time.monotonic()}) + "\n").encode())

    log = ActiveRun.log

    def log_and_tell(self: ActiveRun, row: dict[str, Any]) -> None:
        tell(step=row["step"], validated=row.get("val_loss") is not None)
        log(self, row)

    write_pending = TableWriter._write_pending

    def write_pending_and_tell(self: TableWriter) -> None:
        write_pending(self)
        if self.path.stem == "metrics":
            tell(flushed=True)

    ActiveRun.log = log_and_tell  # type: ignore[method-assign]
    TableWriter._write_pending = write_pending_and_tell  # type: ignore[method-assign]
    engine.tables.COMPACT_AT = COMPACT_AT
    if not moment.is_random:
        Killer(moment, tell).install()
    return train_command(arguments)


class Killer:
    """Counts operations by region, and kills this process at the chosen one."""

    def __init__(self, moment: Moment, tell: Callable[..., None]) -> None:
        self.moment = moment
        self.tell = tell
        self.inside: list[str] = []
        self.count = 0

    def install(self) -> None:
        """Wrap the regions, and the operations that they consist of."""
        import pyarrow.parquet
        import safetensors.torch

        from engine.run import ActiveRun
        from engine.tables import TableWriter

        training = importlib.import_module("engine.train")  # `engine.train` is its function
        self._mark(training, "save", "save")
        self._mark(training, "prune", "prune")
        self._mark(TableWriter, "_write_pending", "flush")
        self._mark(TableWriter, "compact", "compact")
        self._mark(ActiveRun, "_write_info", "run.json")
        self._mark(ActiveRun, "rewind", "rewind")
        self._mark(ActiveRun, "finish", "finish")
        self._watch(pyarrow.parquet, "write_table", "write", _half_table)
        self._watch(safetensors.torch, "save_file", "write", _half_tensors)
        self._watch(Path, "write_text", "write", _half_text)
        self._watch(os, "fsync", "fsync")
        self._watch(Path, "rename", "rename")
        self._watch(Path, "replace", "rename")
        self._watch(Path, "unlink", "delete")
        self._watch(shutil, "rmtree", "delete", _half_folder)

    def _mark(self, owner: Any, name: str, region: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def marked(*args: Any, **kwargs: Any) -> Any:
            self.inside.append(region)
            try:
                return original(*args, **kwargs)
            finally:
                self.inside.pop()

        setattr(owner, name, marked)

    def _watch(self, owner: Any, name: str, operation: str, half: Callable[..., Any] | None = None) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if not self._is_now(operation):
                return original(*args, **kwargs)
            if self.moment.when == "half":
                assert half is not None
                half(original, *args)
            elif self.moment.when == "after":
                original(*args, **kwargs)
            self.tell(died="/".join(self.inside))
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, watched)

    def _is_now(self, operation: str) -> bool:
        if operation != self.moment.operation or "/".join(self.inside) != self.moment.region:
            return False
        self.count += 1
        return self.count == self.moment.nth


def _half_table(write_table: Any, table: Any, path: Path) -> None:
    whole = io.BytesIO()
    write_table(table, whole)
    path.write_bytes(whole.getvalue()[: whole.tell() // 2])


def _half_tensors(_: Any, tensors: Any, path: Path) -> None:
    import safetensors.torch

    whole = safetensors.torch.save(tensors)
    path.write_bytes(whole[: len(whole) // 2])


def _half_text(write_text: Any, path: Path, text: str) -> None:
    write_text(path, text[: len(text) // 2])


def _half_folder(_: Any, folder: Path) -> None:
    min(folder.iterdir()).unlink()


if __name__ == "__main__":
    sys.path[0] = str(PROJECT)
    if "--small" in sys.argv:
        importlib.import_module("tests.with_small_nano").shrink_nano(setattr)
    serve()
