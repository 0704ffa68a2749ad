"""engine.files: the old file or the new one, and a lock that ends with its holder."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import CorpusError
from engine.files import (
    FolderLock,
    read_json,
    remove_folder,
    remove_parts,
    require_space,
    write_atomic,
    write_json,
    write_temporary,
)
from engine.paths import PROJECT

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


def test_write_atomic_replaces_the_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for content in ("old", "new"):
        write_atomic(path, lambda temporary, content=content: temporary.write_text(content))  # type: ignore[misc]
        assert path.read_text() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("moment", ["before", "within", "fsync", "rename"])
def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    def write(temporary: Path) -> None:
        if moment == "before":
            full()
        if moment == "within":
            temporary.write_text("ne")
            full()
        temporary.write_text("new")

    if moment == "fsync":
        monkeypatch.setattr(os, "fsync", full)
    elif moment == "rename":
        monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, write)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    write_json(path, {"n": 0, "filler": "x" * 5000})
    torn: list[str] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            value = read_json(path)
            if value is None or len(value["filler"]) != 5000:
                torn.append(str(value))

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(50):
        write_json(path, {"n": n, "filler": "x" * 5000})
    done.set()
    reader.join()
    assert torn == []


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_json_comes_back(value: dict[str, Any]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.json"
        write_json(path, value)
        assert read_json(path) == value


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_what_is_not_json_is_refused_and_the_old_file_kept(number: float, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"loss": 1.0})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"loss": number})
    assert read_json(path) == {"loss": 1.0}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"null", b"\xff\xfe", b'{"a": 1} x', b"[" * 100_000])
def test_torn_and_foreign_json_is_none(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert read_json(path) is None
    path.write_bytes(content)
    assert read_json(path) is None


@pytest.mark.parametrize(
    ("spelt", "read"), [(r"\ud83d\ude80", "🚀"), (r"half \uD83D", "half ?"), (r"\\ud800", r"\ud800")]
)
def test_half_a_character_is_read_as_a_question_mark(spelt: str, read: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(f'{{"{spelt}": ["{spelt}"]}}')
    assert read_json(path) == {read: [read]}


def test_a_removed_folder_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("x")
    remove_folder(folder)
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------- locks


@contextmanager
def other_process(path: Path, note: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is ended."""
    code = (
        "import sys; from pathlib import Path; from engine.files import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); print(lock.acquire(sys.argv[2]), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path), note],
        cwd=PROJECT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "True\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_lock_holds_between_processes_and_ends_with_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    mine = FolderLock(path)
    with other_process(path, "the other one") as process:
        assert mine.is_held()
        assert not mine.acquire("me", patience_s=0.1)
        assert mine.note() == "the other one"  # a failed attempt changes nothing
        process.kill()
        process.wait()
        assert not mine.is_held()
        assert mine.acquire("me")
        assert (mine.is_held(), mine.note()) == (True, "me")
    mine.release()
    assert not mine.is_held()


def test_a_lock_holds_within_a_process_too(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path / "lock"), FolderLock(tmp_path / "lock")
    assert first.acquire()
    assert second.is_held() and not second.acquire(patience_s=0.05)
    second.release()  # it was not the holder's
    assert first.is_held()
    first.release()
    first.release()
    assert second.acquire()
    second.release()


def test_a_shorter_note_replaces_a_longer_one(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "lock")
    for note in ("a long note", "short"):
        assert lock.acquire(note)
        lock.release()
        assert lock.note() == note


def test_asking_does_not_make_a_lock_file(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "lock")
    assert not lock.is_held() and lock.note() == ""
    assert os.listdir(tmp_path) == []


def test_asking_does_not_disturb_who_wants_the_lock(tmp_path: Path) -> None:
    """A page asks `is_held` all the time; a start at the same moment must not be refused for it."""
    path = tmp_path / "lock"
    done = threading.Event()

    def ask() -> None:
        lock = FolderLock(path)
        while not done.is_set():
            lock.is_held()

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        for _ in range(30):
            lock = FolderLock(path)
            assert lock.acquire()
            lock.release()
    finally:
        done.set()
        for asker in askers:
            asker.join()


def test_who_looks_is_waited_for_beyond_the_patience(tmp_path: Path) -> None:
    """Patience is for a holder: on a slow machine those who look can leave no gap for longer than it."""
    path = tmp_path / "lock"
    look = os.open(path, os.O_RDONLY | os.O_CREAT)
    fcntl.flock(look, fcntl.LOCK_SH)
    began = time.monotonic()
    threading.Timer(0.3, os.close, [look]).start()
    lock = FolderLock(path)
    assert lock.acquire(patience_s=0)
    assert time.monotonic() - began >= 0.3
    assert not FolderLock(path).acquire(patience_s=0)  # a holder is not waited for
    lock.release()


# ------------------------------------------------------------------------------------------------ room and haste


def test_space_is_required_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**10, 10**10 - 5_000_000, 5_000_000))
    require_space(tmp_path, 5_000_000, "the books")
    require_space(tmp_path, 0, "nothing at all")
    with pytest.raises(CorpusError) as caught:
        require_space(tmp_path, 1_234_500_000, "the books")
    assert str(caught.value) == (
        f"The books need about 1,234.5 MB, and the disk that holds {tmp_path} has 5.0 MB free. "
        "Free some space, then try again."
    )


def test_a_disk_that_is_there_has_some_room(tmp_path: Path) -> None:
    require_space(tmp_path, 1, "a byte")
    with pytest.raises(CorpusError, match="Free some space"):
        require_space(tmp_path, 1 << 62, "the library of Babel's shelves")


def test_write_temporary_replaces_and_leaves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file.json"
    for content in ("old", "neu: ü"):
        write_temporary(path, content)
        assert path.read_text(encoding="utf-8") == content

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    for method in ("write_text", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, full)
            with pytest.raises(OSError, match="No space left"):
                write_temporary(path, "newer")
        assert os.listdir(tmp_path) == ["file.json"] and path.read_text(encoding="utf-8") == "neu: ü"


def test_a_reader_never_sees_half_of_what_is_written_in_haste(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_temporary(path, "0" * 100_000)
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            text = path.read_text()
            seen.add(f"{len(text)} {len(set(text))}")

    reader = threading.Thread(target=read)
    reader.start()
    for n in range(300):
        write_temporary(path, str(n % 10) * 100_000)
    done.set()
    reader.join()
    assert seen == {"100000 1"}


def test_parts_of_one_file_are_removed_and_no_others(tmp_path: Path) -> None:
    others = ["mine.txt", ".mine.txt", ".mine.txt.old", ".mine-too.txt.0123abcd.part", ".mine.md.0123abcd.part"]
    for name in [*others, ".mine.txt.0123abcd.part", ".mine.txt.ffffffff.part"]:
        (tmp_path / name).touch()
    remove_parts(tmp_path / "mine.txt")
    assert sorted(os.listdir(tmp_path)) == sorted(others)
