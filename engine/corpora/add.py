"""A person's own text becomes a corpus: checked while it is copied, and put in place only when it is sound."""

from __future__ import annotations

import codecs
import os
import secrets
from pathlib import Path
from typing import BinaryIO

from engine.corpora.chunks import document_pieces
from engine.corpora.jobs import claim
from engine.corpora.known import canonical_name
from engine.corpora.progress import Progress
from engine.corpora.registry import NAME, SUFFIXES, Corpus, find_corpus, list_corpora
from engine.errors import CorpusError, storage_sentence
from engine.files import fsync_folder, remove_parts, require_space
from engine.paths import corpora_dir

_BLOCK = 1 << 20


def name_problem(name: str) -> str:
    """What is wrong with a name for a new corpus; "" when nothing is."""
    if not NAME.fullmatch(name):
        return (
            f"{name!r} cannot be a name: take 1 to 64 letters (a to z), digits, hyphens and underscores, "
            "with a letter or digit first."
        )
    taken = {corpus.name.lower(): corpus.name for corpus in list_corpora()}
    existing = taken.get(canonical_name(name.lower()))
    return f"There is a corpus {existing!r} already: choose another name." if existing else ""


def add_file(path: Path, name: str = "", progress: Progress | None = None) -> Corpus:
    """Make a corpus of a file; it is copied.

    Args:
        path: `.txt` and `.md` are one text, `.jsonl` is one document a line in the field `text`.
        name: of the corpus; made from the file's name when empty.

    Raises:
        CorpusError: the file or the name will not do, or the disk refuses; nothing is left behind then.
        CancelledError: through the progress; likewise.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return add_text(file, size, path.name, name or suggest_name(path.name), progress)
    except OSError as error:
        raise CorpusError(storage_sentence(error, Path(error.filename or path))) from error


def suggest_name(file_name: str) -> str:
    """A name for a corpus, from the name of a file."""
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in Path(file_name).stem)
    return stem.strip("_-")[:64] or "my_text"


def add_text(file: BinaryIO, size: int, file_name: str, name: str, progress: Progress | None = None) -> Corpus:
    """Make a corpus of an open file, for example of an upload.

    Args:
        file: its content, from where it stands.
        size: bytes of it.
        file_name: as the person knows it; its ending says what it is.
        name: of the corpus.

    Raises:
        CorpusError: all problems of name and kind together, or the first one of the content, or the disk refuses;
            nothing is left behind then.
        CancelledError: through the progress; likewise.
    """
    progress = progress or Progress()
    suffix = Path(file_name).suffix.lower()
    problems = [name_problem(name)]
    if suffix not in SUFFIXES:
        problems.append(f"{file_name} is none of {', '.join(SUFFIXES)}: save it as one of these.")
    if any(problems):
        raise CorpusError(" ".join(problem for problem in problems if problem))
    lock = claim(name)
    if lock is None:
        raise CorpusError(f"Another process is making a corpus {name!r} now: choose another name.")
    try:
        return _add(file, size, file_name, name, progress)
    except OSError as error:
        raise CorpusError(storage_sentence(error, Path(error.filename or corpora_dir()))) from error
    finally:
        lock.release()


def _add(file: BinaryIO, size: int, file_name: str, name: str, progress: Progress) -> Corpus:
    folder, suffix = corpora_dir(), Path(file_name).suffix.lower()
    target = folder / f"{name}{suffix}"
    part = folder / f".{target.name}.{secrets.token_hex(4)}.part"
    remove_parts(target)
    require_space(folder, size, f"the bytes of {file_name}")
    try:
        progress.begin(f"Adding {file_name}", size)
        _copy(file, part, file_name, progress)
        if suffix == ".jsonl":
            progress.begin(f"Checking {file_name}", size)
            _check_documents(part, file_name, progress)
        if problem := name_problem(name):  # somebody may have been quicker
            raise CorpusError(problem)
        part.rename(target)
        fsync_folder(folder)
    finally:
        part.unlink(missing_ok=True)
    return find_corpus(name)


def _copy(file: BinaryIO, part: Path, file_name: str, progress: Progress) -> None:
    """Copy text, and refuse what is none."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    done, blank = 0, True
    with part.open("wb") as copy:
        while True:
            block = file.read(_BLOCK)
            if b"\0" in block:
                where = done + block.index(0)
                raise CorpusError(f"{file_name} is not text: byte {where:,} is zero. Save it as UTF-8 text.")
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                where = done - len(error.object) + len(block) + error.start
                raise CorpusError(f"{file_name} is not UTF-8 text (byte {where:,}). Save it as UTF-8.") from error
            blank = blank and not text.strip().strip("\ufeff")
            if not block:
                break
            copy.write(block)
            done += len(block)
            progress.advance(len(block))
        copy.flush()
        os.fsync(copy.fileno())
    if blank:
        raise CorpusError(f"{file_name} is empty: there is nothing to train on.")


def _check_documents(part: Path, file_name: str, progress: Progress) -> None:
    """Read every line as the tokenizer will."""
    try:
        documents = sum(1 for _ in document_pieces(part, lambda block: progress.advance(len(block))))
    except CorpusError as error:
        raise CorpusError(str(error).replace(str(part), file_name)) from error
    if not documents:
        raise CorpusError(f"{file_name} is empty: no line has any text.")
