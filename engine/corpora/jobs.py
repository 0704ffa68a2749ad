"""Long work on corpora, told on disk: whoever does it, a thread of the app or a command, every page sees how far it is.

One job works on a corpus at a time: its lock ends with its process, so a job that was killed is recognised. A job is
cancelled by a file too, whichever process runs it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from engine.config import TrainConfig
from engine.corpora.progress import CancelledError, Progress, Stage
from engine.corpora.registry import NAME, Corpus, find_corpus
from engine.errors import CorpusError, LabError, storage_sentence
from engine.files import FolderLock, read_json, remove_parts, write_temporary
from engine.paths import corpora_dir

STATES = ("running", "done", "failed", "cancelled", "interrupted")
VAL_FRACTION = TrainConfig().val_fraction  # of the ladder that is measured; a run with another one has its own
_TELL_EVERY_S = 0.25
_LOOK_EVERY_S = 0.1
_COUNT = range(1 << 63)  # what a number of bytes or books can be; anything else is damage


@dataclass(frozen=True)
class Job:
    """What is known of the newest job on a corpus.

    Attributes:
        name: of the corpus.
        kind: `download`, `prepare` or `tokenize`.
        state: one of `STATES`: `interrupted` when its process is gone.
        title, unit, done, total, kept: see `progress.Stage`.
        began, told: when the stage began and when this was last told, seconds since 1970.
        error: why it failed.
    """

    name: str
    kind: str
    state: str = "running"
    title: str = ""
    unit: str = "bytes"
    done: int = 0
    total: int | None = None
    kept: int = 0
    began: float = 0.0
    told: float = 0.0
    error: str = ""

    @property
    def verb(self) -> str:
        """What it is doing, in one word: the first of its stage's title, such as `downloading`."""
        return (self.title or "starting").split()[0].lower()

    @property
    def speed(self) -> float | None:
        """Units a second since the stage began, what was kept not counted; None in its first second."""
        seconds = self.told - self.began
        return max(0, self.done - self.kept) / seconds if seconds >= 1 else None

    @property
    def seconds_left(self) -> float | None:
        """An estimate at the speed so far; None when nobody knows."""
        return max(0, self.total - self.done) / self.speed if self.total and self.speed else None


def _folder() -> Path:
    return corpora_dir() / ".jobs"


def _lock(name: str) -> FolderLock:
    return FolderLock(_folder() / f"{name}.lock")


def _cancel_file(name: str) -> Path:
    return _folder() / f"{name}.cancel"


def job_of(name: str) -> Job | None:
    """The newest job on a corpus, or None when there was none or what is told of it is damaged."""
    job = _read(name)
    if job is None or job.state != "running" or is_busy(name):
        return job
    again = _read(name)  # it may have told its end between our two looks
    return replace(job, state="interrupted") if again == job else again


def _read(name: str) -> Job | None:
    told = read_json(_folder() / f"{name}.json") or {}
    values: dict[str, Any] = {f.name: told.get(f.name) for f in fields(Job)} | {"name": name}
    texts = [values[key] for key in ("kind", "state", "title", "unit", "error")]
    counts = [values[key] for key in ("done", "kept", "total") if (key, values[key]) != ("total", None)]
    moments = [values["began"], values["told"]]
    whole = (
        all(type(text) is str for text in texts)
        and values["state"] in STATES
        and all(type(count) is int and count in _COUNT for count in counts)
        and all(type(moment) is float and math.isfinite(moment) for moment in moments)
    )
    return Job(**values) if whole else None


def running() -> list[Job]:
    """All jobs that some process is at."""
    names = [path.stem for path in _folder().glob("*.json") if NAME.fullmatch(path.stem)]
    return [job for name in sorted(names) if (job := job_of(name)) and job.state == "running"]


def is_busy(name: str) -> bool:
    """Whether some process works on a corpus."""
    return _lock(name).is_held()


def cancel(name: str) -> None:
    """Ask the job on a corpus to stop; what can be kept is kept. Harmless when there is none."""
    if is_busy(name):
        with contextlib.suppress(OSError):
            _cancel_file(name).touch()


def forget(name: str) -> None:
    """Forget the newest job on a corpus, whose lock the caller holds."""
    (_folder() / f"{name}.json").unlink(missing_ok=True)


def run(name: str, kind: str, work: Callable[[Progress], None], tell: Callable[[Stage], None] | None = None) -> None:
    """Do `work` as the job on a corpus; a job of another process on it is waited for first.

    Args:
        name: of the corpus.
        kind: see `Job`.
        work: gets the progress to report to.
        tell: is told each stage too, for a command's progress bar.

    Raises:
        LabError: whatever the work raises; `CancelledError` when somebody cancelled it.
        CorpusError: the disk refuses.
    """
    lock = claim(name)
    if lock is None and tell:
        tell(Stage(f"Waiting for another process that works on {name}"))
    while lock is None:
        lock = claim(name, patience_s=0.5)
    _run(lock, name, kind, work, tell)


def claim(name: str, patience_s: float = 0.1) -> FolderLock | None:
    """The lock of a corpus for who will work on it, or None when somebody else keeps it.

    Raises:
        CorpusError: the disk refuses.
    """
    lock = _lock(name)
    try:
        _folder().mkdir(parents=True, exist_ok=True)
        if not lock.acquire(patience_s=patience_s):
            return None
        _cancel_file(name).unlink(missing_ok=True)  # it was meant for an earlier job
        remove_parts(_folder() / f"{name}.json")
        return lock
    except OSError as error:
        lock.release()
        raise CorpusError(storage_sentence(error, _folder())) from error


def _run(
    lock: FolderLock,
    name: str,
    kind: str,
    work: Callable[[Progress], None],
    tell: Callable[[Stage], None] | None = None,
) -> None:
    teller = _Teller(name, kind, tell)
    try:
        teller.stage(Stage(""))  # from now on every page knows that it is worked on
        work(Progress(teller.stage, teller.is_cancelled))
        teller.end("done")
    except CancelledError:
        teller.end("cancelled")
        raise
    except LabError as error:
        teller.end("failed", str(error))
        raise
    except OSError as error:
        sentence = f"Corpus {name}: {storage_sentence(error, Path(error.filename or corpora_dir()))}"
        teller.end("failed", sentence)
        raise CorpusError(sentence) from error
    except Exception as error:  # a defect of ours; whoever follows the job must not wait for it
        cause = f"{type(error).__name__}: {error}"
        teller.end("failed", f"Corpus {name}: an unexpected error ended the work ({cause}). Try again.")
        raise
    except BaseException:
        teller.end("interrupted")
        raise
    finally:
        lock.release()


class _Teller:
    """Writes a job's state beside its lock, a few times a second; a full disk must not end the work itself."""

    def __init__(self, name: str, kind: str, also: Callable[[Stage], None] | None) -> None:
        self.job = Job(name, kind, began=time.time(), told=time.time())
        self.also = also
        self._written = self._looked = -math.inf  # on the monotonic clock
        self._cancelled = False

    def stage(self, stage: Stage) -> None:
        now = time.time()
        is_new = stage.title != self.job.title or stage.total != self.job.total
        began = now if is_new else self.job.began
        self.job = Job(self.job.name, self.job.kind, began=began, told=now, **asdict(stage))
        if is_new or time.monotonic() - self._written >= _TELL_EVERY_S:
            self._write()
        if self.also:
            self.also(stage)

    def end(self, state: str, error: str = "") -> None:
        self.job = replace(self.job, state=state, error=error, told=time.time())
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        with contextlib.suppress(OSError):
            write_temporary(_folder() / f"{self.job.name}.json", json.dumps(asdict(self.job)))

    def is_cancelled(self) -> bool:
        now = time.monotonic()
        if not self._cancelled and now - self._looked >= _LOOK_EVERY_S:
            self._looked = now
            self._cancelled = _cancel_file(self.job.name).exists()
        return self._cancelled


def work_on(corpus: Corpus, progress: Progress) -> None:
    """Everything a corpus needs to be trained on and looked at: get it, tokenize it, measure it."""
    from engine.corpora.download import download
    from engine.corpora.ladder import ladder_of
    from engine.corpora.statistics import statistics_of
    from engine.corpora.tokens import open_tokens

    if not corpus.is_here:
        download(corpus, progress)
    tokenized = open_tokens(corpus.name, progress)
    statistics_of(tokenized, progress)
    validation = find_corpus(corpus.validation) if corpus.validation else None
    if validation is None or validation.is_here:
        official = open_tokens(validation.name, progress) if validation else None
        ladder_of(tokenized, official, VAL_FRACTION, progress)


def start(names: Sequence[str]) -> None:
    """Work on corpora in the background, one after the other, in this process. Returns at once.

    How it goes is read with `job_of`. A corpus that is worked on already is left to whoever does it. One that fails
    does not keep the others from being tried; when one is cancelled, those after it are too.

    Raises:
        CorpusError: there is no such corpus, or the disk refuses.
    """
    corpora = [find_corpus(name) for name in names]
    claimed: list[tuple[Corpus, FolderLock]] = []
    try:
        # Claimed here and not in the thread, so that whoever looks after this call sees them at work.
        for corpus in corpora:
            if lock := claim(corpus.name):
                claimed.append((corpus, lock))
                _Teller(corpus.name, _kind(corpus), None).stage(Stage("Waiting"))
        threading.Thread(target=_work_through, args=(claimed,), name="corpora", daemon=True).start()
    except BaseException:
        for corpus, lock in claimed:
            _give_up(corpus, lock)
        raise


def _kind(corpus: Corpus) -> str:
    return "tokenize" if corpus.is_here else "download"


def _give_up(corpus: Corpus, lock: FolderLock) -> None:
    """End a job that was not begun."""
    _Teller(corpus.name, _kind(corpus), None).end("cancelled")
    lock.release()


def _work_through(claimed: list[tuple[Corpus, FolderLock]]) -> None:
    cancelled = False
    for corpus, lock in claimed:
        if cancelled:
            _give_up(corpus, lock)
            continue
        try:
            _run(lock, corpus.name, _kind(corpus), partial(work_on, corpus))
        except CancelledError:
            cancelled = True
        except LabError:
            pass  # told in its job
        except Exception:  # told there too; the log gets where the defect is, and the others get their turn
            logging.getLogger(__name__).exception("The job on %s ended with a defect.", corpus.name)
