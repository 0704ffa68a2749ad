"""engine.corpora.chunks and encode: pieces have the tokens of the whole, and stay within bounds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import tokenizer
from engine.corpora import chunks, encode, open_tokens, words
from engine.corpora.chunks import last_cut
from engine.corpora.encode import Encoder
from engine.corpora.progress import CancelledError, Progress
from engine.corpora.registry import Corpus
from engine.corpora.words import Words
from engine.errors import CorpusError
from engine.paths import PROJECT
from engine.tokenizer import END_OF_TEXT, MARK, encoding

AddCorpus = Callable[[str, str], Path]

# Stretches at which a careless cut would change tokens: contractions, runs of blanks, blanks of other scripts, digits,
# signs, characters of up to four bytes, combining marks, controls that Python alone takes for white space.
LATIN = [
    "the",
    " the",
    "'s",
    "'ll",
    "don't",
    " '",
    "'",
    "12",
    "3.14",
    " 7",
    "...",
    "!?",
    "_",
    "<|",
    "|>",
    "endoftext",
    MARK,
]
SPACES = [" ", "  ", "   ", "\n", "\n\n", " \n", "\t", "\r\n", "\xa0", "\u2003", "\u3000", "\x85", "\x1c", "\x1f "]
OTHERS = [
    "世界",
    "世界。",
    "こんにちは、",
    "é",
    "e\u0301",
    "🙂",
    "👨\u200d👩\u200d👧",
    "Grüße",
    "مرحبا",
    " שלום",
    "नमस्ते",
    "\u200b",
    "¿",
    "ſ",
    "İ",
]
STRETCHES = st.sampled_from([*LATIN, *SPACES, *OTHERS])
TEXTS = st.lists(st.one_of(STRETCHES, st.text(max_size=6)), max_size=60).map("".join)


def storable(text: str) -> str:
    """Without halves of surrogate pairs, which no UTF-8 file can hold."""
    return text.encode("utf-8", "ignore").decode()


WORDS = Words()  # one for all examples, so that what was remembered is used


def marks_in(data: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(MARK.encode()), data)]


def pieces_of(text: str, size: int) -> list[bytes]:
    """The text cut wherever the chunks allow it, at most `size` bytes looked at each time."""
    data, pieces, seen = text.encode(), [], size
    while data:
        cut = last_cut(data[:seen]) if seen < len(data) else 0
        if cut == 0 and seen < len(data):
            seen += size
            continue
        pieces.append(data[: cut or len(data)])
        data, seen = data[cut or len(data) :], size
    return pieces


@settings(max_examples=400)
@given(TEXTS.map(storable), st.integers(1, 40))
def test_pieces_have_the_tokens_of_the_whole(text: str, size: int) -> None:
    parts = pieces_of(text, size)
    assert b"".join(parts).decode() == text
    assert [int(i) for part in parts for i in tokenizer.encode_array(part.decode())] == encoding().encode_ordinary(text)
    assert [int(i) for part in parts for i in WORDS.encode(part, [])] == encoding().encode_ordinary(text)


@settings(max_examples=400)
@given(TEXTS.map(storable), st.integers(1, 40))
def test_pieces_of_marked_text_have_the_tokens_of_the_whole(text: str, size: int) -> None:
    parts = pieces_of(text, size)
    together = [int(i) for part in parts for i in WORDS.encode(part, marks_in(part))]
    assert together == encoding().encode(text, allowed_special={MARK})


def cache_of(path: Path, **how: object) -> tuple[np.ndarray, Encoder]:
    corpus = Corpus("mine", "Mine", "", **how)  # type: ignore[arg-type]
    encoder = Encoder(corpus, Progress())
    arrays = list(encoder.run())
    return np.concatenate(arrays) if arrays else np.array([], np.uint16), encoder


@pytest.mark.parametrize("chunk", [16, 61, 257, 4096])
@pytest.mark.parametrize("marked", [False, True])
def test_a_file_has_the_tokens_of_its_text_at_every_chunk_size(
    chunk: int, marked: bool, corpora_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    monkeypatch.setattr(encode, "_TASK", chunk)
    random = np.random.default_rng(chunk)
    vocabulary = ["Once", " upon", " a", " time", "don't", "'s", " 1234", MARK, *SPACES, *OTHERS]
    for _ in range(15):
        text = "".join(random.choice(vocabulary, size=400))
        (corpora_folder / "mine.txt").write_text(text, encoding="utf-8", newline="")
        ids, encoder = cache_of(corpora_folder, marked=marked)
        special = {MARK} if marked else set()
        assert ids.tolist() == encoding().encode(text, allowed_special=special, disallowed_special=())
        assert encoder.characters == len(text)
        stories = text.split(MARK)
        if marked:
            assert encoder.documents == len(stories) - (not stories[-1].strip())
        assert encoder.source_bytes == len(text.encode())


SIGNS = ["a", "S", "s", "l", "'", "!", "1", ".", "-", " ", "  ", "\n", "\t", "\0", "é", "\xa0", "'s", "'ll", MARK]


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(SIGNS), max_size=80))
def test_the_arithmetic_cuts_as_the_pattern_does(signs: list[str]) -> None:
    text = "".join(signs)
    assert WORDS.encode(text.encode(), []).tolist() == encoding().encode_ordinary(text)
    marked = Words().encode(text.encode(), marks_in(text.encode()))
    assert marked.tolist() == encoding().encode(text, allowed_special={MARK})


def test_words_begin_anew_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_MOST_WORDS", 50)
    mine = Words()
    for number in range(200):
        text = f"number {number} and {number * 7919} and the word {chr(97 + number % 26) * 9}{number}"
        assert mine.encode(text.encode(), []).tolist() == encoding().encode_ordinary(text)
    assert len(mine._entries) < 100


def test_words_that_share_a_slot_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_SLOTS", 4)
    mine = Words()
    text = (PROJECT / "corpora" / "verdict.txt").read_text(encoding="utf-8")
    for _ in range(2):
        assert mine.encode(text.encode(), []).tolist() == encoding().encode_ordinary(text)


@pytest.mark.parametrize("space", ["\n", " ", "\t\n", "\u3000"])
@pytest.mark.parametrize("after", ["", "end"])
def test_a_run_of_white_space_that_tiktoken_cannot_take(space: str, after: str) -> None:
    """Checked against tiktoken where it can be, and against the text itself beyond."""
    text = "begin" + space * (600_000 // len(space)) + after
    whole = encoding().encode_ordinary(text)
    assert tokenizer.encode_array(text).tolist() == whole
    assert WORDS.encode(text.encode(), []).tolist() == whole
    longer = "begin" + space * (1_200_000 // len(space)) + after
    for ids in (tokenizer.encode_array(longer), WORDS.encode(longer.encode(), [])):
        assert tokenizer.decode(ids.tolist()) == longer


def test_documents_stand_apart_and_each_has_its_own_tokens(
    corpora_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 64)
    monkeypatch.setattr(encode, "_TASK", 100)
    books = [
        "The first book. " * 40 + "\n",
        "Two\nlines",
        " led by a blank",
        f"spells {MARK} out",
        "🙂" * 50,
        "\ud800 half",
    ]
    lines = [json.dumps({"text": book, "id": i}) for i, book in enumerate(books)]
    lines[1:1] = ["", '{"text": "  "}', "   "]  # nothing in them, so no document
    (corpora_folder / "mine.jsonl").write_text("\n".join(lines))
    corpus = open_tokens("mine")
    ends = np.flatnonzero(corpus.tokens == END_OF_TEXT)
    assert (len(ends), corpus.documents) == (len(books) - 1, len(books))
    for book, ids in zip(books, np.split(np.asarray(corpus.tokens), ends), strict=True):
        assert ids[ids != END_OF_TEXT].tolist() == encoding().encode_ordinary(book)
    assert corpus.characters == sum(map(len, books))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("not json", "not JSON"),
        ("[1]", "no text"),
        ('{"txt": "a"}', "no text"),
        ('{"text": 3}', "no text"),
        ("[" * 100_000, "not JSON"),
        ("\xff", "not UTF-8"),
    ],
)
def test_a_line_that_is_no_document_is_named(line: str, reason: str, corpora_folder: Path) -> None:
    (corpora_folder / "mine.jsonl").write_bytes(b'{"text": "fine"}\n\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(CorpusError, match=rf"mine\.jsonl, line 3: {reason}"):
        open_tokens("mine")


def test_a_line_and_a_stretch_that_are_too_long_are_refused(
    corpora_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "LONGEST", 1 << 20)
    (corpora_folder / "long.jsonl").write_text('{"text": "' + "a b" * 400_000 + '"}')
    with pytest.raises(CorpusError, match="line 1: longer than 1 MiB"):
        open_tokens("long")
    (corpora_folder / "flat.txt").write_text("x" * 3_000_000)
    with pytest.raises(CorpusError, match="more than 1 MiB in one stretch"):
        open_tokens("flat")


def test_text_without_blanks_is_cut_at_its_signs(corpora_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 1000)
    monkeypatch.setattr(chunks, "LONGEST", 8000)
    text = "这是第一句话，没有空格。" * 2000
    (corpora_folder / "mine.txt").write_text(text, encoding="utf-8")
    assert open_tokens("mine").tokens.tolist() == encoding().encode_ordinary(text)


def test_where_a_file_stops_being_utf_8_is_told(corpora_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 64)
    (corpora_folder / "mine.txt").write_bytes(b"\xef\xbb\xbf" + b"good words " * 100 + b"\xff" + b" and more" * 50)
    with pytest.raises(CorpusError, match=r"not UTF-8 text \(byte 1,103\)"):
        open_tokens("mine")


def test_cancelling_leaves_nothing_behind(add_corpus: AddCorpus, corpora_folder: Path) -> None:
    add_corpus("mine", "Some words of text. " * 200_000)
    asked = iter([False] * 4 + [True] * 1000)
    with pytest.raises(CancelledError):
        open_tokens("mine", Progress(cancelled=lambda: next(asked)))
    assert [p.name for p in (corpora_folder / ".tokens").iterdir() if p.suffix != ".lock"] == []
    assert len(open_tokens("mine").tokens) > 0


def test_progress_reaches_the_size_of_the_file(add_corpus: AddCorpus) -> None:
    path = add_corpus("mine", "Some words of text. " * 100_000)
    told: list[tuple[int, int | None]] = []
    open_tokens("mine", Progress(lambda stage: told.append((stage.done, stage.total))))
    assert told[-1] == (path.stat().st_size, path.stat().st_size) and len(told) > 3
    assert told == sorted(told)
