"""engine.corpora.jobs: what others can read of long work, how they stop it, and what is left when it dies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.corpora import download as download_module
from engine.corpora import find_corpus, jobs
from engine.corpora.jobs import Job, job_of
from engine.corpora.progress import CancelledError, Progress
from engine.corpora.registry import Corpus
from engine.errors import CorpusError, LabError
from engine.files import FolderLock
from engine.paths import PROJECT


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def seen(name: str) -> Job:
    job = job_of(name)
    assert job is not None
    return job


ELSEWHERE = """
import sys, time
from engine.corpora import jobs
from engine.corpora.progress import Progress

def work(progress: Progress) -> None:
    progress.begin("Downloading the moon", 1000)
    progress.advance(10)
    print("working", flush=True)
    while True:
        time.sleep(0.01)
        progress.check()

print("started", flush=True)
try:
    jobs.run("mine", "download", work)
except BaseException as error:
    print(type(error).__name__, flush=True)
"""


@pytest.fixture
def elsewhere() -> Iterator[subprocess.Popen[str]]:
    """Another process at work on `mine`; it ends when it is cancelled or killed."""
    process = subprocess.Popen([sys.executable, "-c", ELSEWHERE], cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["started\n", "working\n"]
        yield process
    finally:
        process.kill()
        process.communicate()


# ------------------------------------------------------------------------------------------------ telling


def test_who_looks_sees_how_far_it_is() -> None:
    looks: list[Job] = []

    def work(progress: Progress) -> None:
        looks.append(seen("mine"))
        progress.begin("Downloading the moon", 1000, kept=200)
        looks.append(seen("mine"))
        time.sleep(jobs._TELL_EVERY_S + 0.05)
        progress.advance(300)
        looks.append(seen("mine"))
        progress.begin("Tokenizing the moon", 5, unit="books")
        looks.append(seen("mine"))
        assert jobs.is_busy("mine") and [job.name for job in jobs.running()] == ["mine"]

    assert job_of("mine") is None and jobs.running() == [] and not jobs.is_busy("mine")
    jobs.run("mine", "download", work)
    told = [(job.title, job.verb, job.unit, job.done, job.total, job.kept) for job in looks]
    assert told == [
        ("", "starting", "bytes", 0, None, 0),
        ("Downloading the moon", "downloading", "bytes", 200, 1000, 200),
        ("Downloading the moon", "downloading", "bytes", 500, 1000, 200),
        ("Tokenizing the moon", "tokenizing", "books", 0, 5, 0),
    ]
    assert {job.state for job in looks} == {"running"}
    assert looks[1].began == looks[2].began < looks[2].told <= looks[3].began <= time.time()
    assert (seen("mine").state, seen("mine").error, seen("mine").kind) == ("done", "", "download")
    assert jobs.running() == [] and not jobs.is_busy("mine")


def test_a_command_is_told_every_stage() -> None:
    stages = []
    jobs.run("mine", "download", lambda progress: progress.begin("Downloading the moon", 3), stages.append)
    assert [stage.title for stage in stages] == ["", "Downloading the moon"]


def test_the_disk_is_not_bothered_by_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[str] = []
    monkeypatch.setattr(jobs, "write_temporary", lambda path, text: writes.append(text))

    def work(progress: Progress) -> None:
        progress.begin("Downloading the moon", 20_000)
        for _ in range(20_000):
            progress.advance(1)

    began = time.monotonic()
    jobs.run("mine", "download", work)
    assert len(writes) <= 3 + (time.monotonic() - began) / jobs._TELL_EVERY_S + 1
    assert json.loads(writes[-1])["done"] == 20_000  # the last word is the whole truth


@pytest.mark.parametrize(
    ("error", "raised", "state", "words"),
    [
        (CorpusError("The moon is gone."), CorpusError, "failed", "The moon is gone."),
        (OSError(28, "No space left on device"), CorpusError, "failed", "is full. Free some space, then try again."),
        (OSError(13, "Permission denied", "/there"), CorpusError, "failed", "Corpus mine: /there may not be used"),
        (CancelledError("Cancelled."), CancelledError, "cancelled", ""),
        (RuntimeError("a defect"), RuntimeError, "failed", "an unexpected error"),
        (KeyboardInterrupt(), KeyboardInterrupt, "interrupted", ""),
    ],
)
def test_an_end_is_told_and_the_next_job_can_begin(
    error: BaseException, raised: type[BaseException], state: str, words: str
) -> None:
    def work(progress: Progress) -> None:
        progress.begin("Downloading the moon", 10)
        progress.advance(4)
        raise error

    with pytest.raises(raised) as caught:
        jobs.run("mine", "download", work)
    job = seen("mine")
    assert job.state == state and words in job.error and "\n" not in job.error
    assert job.done == 4, "how far it was is part of the story"
    if raised is CorpusError:
        assert str(caught.value) == job.error
    assert not jobs.is_busy("mine")
    jobs.run("mine", "download", lambda progress: None)
    assert (seen("mine").state, seen("mine").error) == ("done", "")


def test_a_disk_that_is_too_full_to_tell_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "write_temporary", full)
    done: list[int] = []

    def work(progress: Progress) -> None:
        progress.begin("Downloading the moon", 10)
        progress.advance(10)
        done.append(progress.stage.done)

    jobs.run("mine", "download", work)
    assert done == [10] and not jobs.is_busy("mine")


def test_a_folder_that_cannot_be_written_is_one_sentence(corpora_folder: Path) -> None:
    (corpora_folder / ".jobs").write_text("a file where the folder should be")
    for begin in (lambda: jobs.run("mine", "download", lambda progress: None), lambda: jobs.start(["tiny"])):
        with pytest.raises(CorpusError) as caught:
            begin()
        assert str(corpora_folder / ".jobs") in str(caught.value) and "\n" not in str(caught.value)
    assert job_of("mine") is None and jobs.running() == []


DAMAGE: list[Any] = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'"text"',
    b"[" * 100_000,
    {"state": 3},
    {"state": "dancing"},
    {"done": "many"},
    {"done": True},
    {"done": -1},
    {"done": 10**400},
    {"total": 1.5},
    {"kept": None},
    {"began": 3},
    {"told": float("nan")},
    {"told": float("inf")},
    {"title": None},
    {"error": ["x"]},
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: str(damage)[:20])
def test_a_damaged_file_says_nothing_and_never_raises(damage: Any, corpora_folder: Path) -> None:
    jobs.run("mine", "download", lambda progress: progress.begin("Downloading the moon", 10))
    path = corpora_folder / ".jobs" / "mine.json"
    whole = json.loads(path.read_text())
    path.write_bytes(damage if isinstance(damage, bytes) else json.dumps(whole | damage).encode())
    assert job_of("mine") is None and jobs.running() == [] and not jobs.is_busy("mine")
    jobs.cancel("mine")
    jobs.run("mine", "download", lambda progress: None)
    assert seen("mine").state == "done"


def test_a_file_cannot_speak_for_another_corpus(corpora_folder: Path) -> None:
    jobs.run("mine", "download", lambda progress: None)
    (corpora_folder / ".jobs" / "other.json").write_bytes((corpora_folder / ".jobs" / "mine.json").read_bytes())
    assert seen("other").name == "other"


# ------------------------------------------------------------------------------------------------ arithmetic


def test_speed_and_time_left() -> None:
    job = Job("mine", "download", done=700, total=1000, kept=200, began=100.0, told=110.0)
    assert (job.speed, job.seconds_left) == (50.0, 6.0)  # 500 in ten seconds; the kept 200 flatter nothing


@pytest.mark.parametrize(
    ("changes", "speed", "left"),
    [
        ({"told": 100.5}, None, None),  # too early to say
        ({"total": None}, 50.0, None),
        ({"done": 200}, 0.0, None),
        ({"done": 100}, 0.0, None),  # what was kept turned out to be useless
        ({"done": 1200}, 100.0, 0.0),  # the total was an estimate
        ({"told": 50.0}, None, None),  # somebody set the clock
    ],
)
def test_what_is_not_known_is_not_told(changes: dict[str, Any], speed: float | None, left: float | None) -> None:
    values: dict[str, Any] = dict(done=700, total=1000, kept=200, began=100.0, told=110.0)
    job = Job("mine", "download", **values | changes)
    assert (job.speed, job.seconds_left) == (speed, left)


# ------------------------------------------------------------------------------------------------ other processes


def test_a_killed_job_is_recognised_and_a_new_one_works(elsewhere: subprocess.Popen[str], corpora_folder: Path) -> None:
    assert (seen("mine").state, seen("mine").total) == ("running", 1000)
    assert [job.name for job in jobs.running()] == ["mine"]
    (corpora_folder / ".jobs" / ".mine.json.0123abcd.part").write_text("torn")  # as if killed while telling
    elsewhere.kill()
    elsewhere.wait()
    assert (seen("mine").state, seen("mine").title) == ("interrupted", "Downloading the moon")
    assert jobs.running() == [] and not jobs.is_busy("mine")
    jobs.run("mine", "download", lambda progress: None)
    assert seen("mine").state == "done"
    assert sorted(os.listdir(corpora_folder / ".jobs")) == ["mine.json", "mine.lock"]


def test_a_job_of_another_process_is_cancelled(elsewhere: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    jobs.cancel("mine")
    assert elsewhere.stdout is not None and elsewhere.stdout.readline() == "CancelledError\n"
    assert time.monotonic() - began < 10
    assert seen("mine").state == "cancelled"
    jobs.run("mine", "download", lambda progress: progress.check())  # the old wish does not stop a new job
    assert seen("mine").state == "done"


def test_a_wish_to_stop_what_does_not_run_has_no_effect(corpora_folder: Path) -> None:
    jobs.cancel("mine")
    assert not (corpora_folder / ".jobs").exists()
    jobs.run("mine", "download", lambda progress: progress.check())
    jobs.cancel("mine")
    jobs.run("mine", "download", lambda progress: progress.check())
    assert seen("mine").state == "done"


def test_the_second_process_waits_and_finds_the_work_done(add_here: Path) -> None:
    """Both want the file; who comes second is told to wait, and then has nothing to do."""
    code = """
import sys, time
from pathlib import Path
from engine.corpora import jobs
path = Path(sys.argv[1])

def work(progress):
    if path.exists():
        return print("found it", flush=True)
    print("making it", flush=True)
    time.sleep(0.7)
    path.write_text("made")

jobs.run("mine", "download", work, lambda stage: print(stage.title, flush=True) if "Waiting" in stage.title else None)
"""
    command = [sys.executable, "-c", code, str(add_here)]
    first = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "making it\n"
    second = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    first.communicate(timeout=60)
    assert second.stdout == "Waiting for another process that works on mine\nfound it\n", second.stderr
    assert (first.returncode, second.returncode) == (0, 0)


@pytest.fixture
def add_here(tmp_path: Path) -> Path:
    return tmp_path / "made"


def test_an_end_between_two_looks_is_no_interruption(monkeypatch: pytest.MonkeyPatch, corpora_folder: Path) -> None:
    """Read as running, then told and released before the lock is looked at: done, not interrupted."""
    jobs.run("mine", "download", lambda progress: None)
    path = corpora_folder / ".jobs" / "mine.json"
    done = path.read_text()
    path.write_text(json.dumps(json.loads(done) | {"state": "running"}))

    def held_until_now(lock: FolderLock) -> bool:
        path.write_text(done)
        return False

    monkeypatch.setattr(FolderLock, "is_held", held_until_now)
    assert seen("mine").state == "done"


# ------------------------------------------------------------------------------------------------ in the background


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Callable[[Progress], None]]]:
    """What `start` does for a corpus; nothing unless the test says otherwise. Waits for the threads to end."""
    chosen: dict[str, Callable[[Progress], None]] = {}
    monkeypatch.setattr(
        jobs, "work_on", lambda corpus, progress: chosen.get(corpus.name, lambda progress: None)(progress)
    )
    yield chosen
    for thread in threading.enumerate():
        if thread.name == "corpora":
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def texts(corpora_folder: Path) -> list[str]:
    names = ["a", "b", "c"]
    for name in names:
        (corpora_folder / f"{name}.txt").write_text("Once upon a time.")
    return names


def states(names: list[str]) -> list[str]:
    return [seen(name).state for name in names]


Works = dict[str, Callable[[Progress], None]]


def test_a_batch_is_worked_through_in_its_order(works: Works, texts: list[str]) -> None:
    order: list[tuple[str, list[str]]] = []
    for name in texts:
        works[name] = lambda progress, name=name: order.append((name, states(texts)))  # type: ignore[misc]
    jobs.start(["c", "a", "b", "a"])
    wait_for(lambda: states(texts) == ["done"] * 3)
    assert [name for name, _ in order] == ["c", "a", "b"]
    assert all(then == "running" for then in order[0][1]), "who waits for its turn is seen at work from the start"


def test_who_waits_says_so(works: Works, texts: list[str]) -> None:
    go = threading.Event()
    works["a"] = lambda progress: go.wait(20) and None
    jobs.start(texts)
    assert [seen(name).title for name in ("b", "c")] == ["Waiting"] * 2
    assert sorted(job.name for job in jobs.running()) == texts
    go.set()
    wait_for(lambda: states(texts) == ["done"] * 3)


def endless(progress: Progress) -> None:
    while True:
        progress.check()
        time.sleep(0.01)


@pytest.mark.parametrize("cancelled", ["a", "b"])
def test_a_cancel_stops_the_batch(works: Works, texts: list[str], cancelled: str) -> None:
    """The one that works, or one that waits its turn; those before it end as they would have."""
    go = threading.Event()
    works["a"] = endless if cancelled == "a" else lambda progress: go.wait(20) and None
    works["b"] = works["c"] = endless
    jobs.start(texts)
    wait_for(lambda: seen("a").title != "Waiting")
    began = time.monotonic()
    jobs.cancel(cancelled)
    go.set()
    wait_for(lambda: states(texts) == [("cancelled" if cancelled == "a" else "done"), "cancelled", "cancelled"])
    assert time.monotonic() - began < 10
    assert not any(jobs.is_busy(name) for name in texts)


def test_one_that_fails_does_not_stop_the_others(works: Works, texts: list[str]) -> None:
    def fails(progress: Progress) -> None:
        raise LabError("The moon is gone.")

    works["a"] = fails
    jobs.start(texts)
    wait_for(lambda: states(texts) == ["failed", "done", "done"])
    assert seen("a").error == "The moon is gone."


def test_a_defect_does_not_stop_the_others_either(
    works: Works, texts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    def defect(progress: Progress) -> None:
        raise ZeroDivisionError("a defect")

    works["a"] = defect
    jobs.start(texts)
    wait_for(lambda: states(texts) == ["failed", "done", "done"])
    assert "ZeroDivisionError" in seen("a").error and "ZeroDivisionError" in caplog.text
    assert not any(jobs.is_busy(name) for name in texts)


def test_an_unknown_name_begins_nothing(works: Works, texts: list[str]) -> None:
    with pytest.raises(CorpusError, match="There is no corpus 'nothing'"):
        jobs.start(["a", "nothing"])
    assert job_of("a") is None and not jobs.is_busy("a")


def test_a_batch_that_cannot_begin_keeps_nobody_waiting(
    works: Works, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError):
        jobs.start(texts)
    assert not any(jobs.is_busy(name) for name in texts) and states(texts) == ["cancelled"] * 3


def test_what_another_process_works_on_is_left_to_it(works: Works, elsewhere: subprocess.Popen[str]) -> None:
    Path(os.environ["LAB_CORPORA"], "mine.txt").write_text("Once upon a time.")
    mine: list[str] = []
    works["mine"] = lambda progress: mine.append("no")
    jobs.start(["mine", "tiny"])
    wait_for(lambda: seen("tiny").state == "done")
    assert mine == [] and seen("mine").state == "running"
    assert elsewhere.poll() is None


def test_who_looks_at_that_moment_does_not_keep_a_job_from_starting(works: Works, texts: list[str]) -> None:
    """Pages poll `is_busy`, which takes the lock for an instant."""
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set():
            jobs.is_busy("a")

    jobs.run("a", "tokenize", lambda progress: None)  # there is a lock to look at
    pollers = [threading.Thread(target=poll) for _ in range(2)]
    for thread in pollers:
        thread.start()
    try:
        ran: list[int] = []
        works["a"] = lambda progress: ran.append(1)
        for turn in range(1, 31):
            jobs.start(["a"])
            wait_for(lambda turn=turn: len(ran) == turn and seen("a").state == "done")  # type: ignore[misc]
            wait_for(lambda: not any(t.name == "corpora" for t in threading.enumerate()))
    finally:
        stop.set()
        for thread in pollers:
            thread.join()


def test_everything_a_corpus_needs(corpora_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Download, tokens, statistics, ladder; the second time nothing is left to do."""
    text = (PROJECT / "corpora" / "verdict.txt").read_bytes()

    def pretend(corpus: Corpus, progress: Progress) -> None:
        progress.begin("Downloading", len(text))
        corpus.path.write_bytes(text)

    monkeypatch.setattr(download_module, "download", pretend)
    titles: list[str] = []
    progress = Progress(lambda stage: titles.append(stage.title) if stage.title not in titles else None)
    jobs.work_on(find_corpus("shakespeare"), progress)
    words = [title.split()[0] for title in titles]
    assert words[:2] == ["Downloading", "Tokenizing"] and "Measuring the loss ladder" in titles
    kept = {path.name.partition("-")[0] for path in (corpora_folder / ".tokens").glob("*.json")}
    assert kept >= {"shakespeare.json", "ladder", "statistics"}
    titles.clear()
    jobs.work_on(find_corpus("shakespeare"), progress)
    assert titles == []
