"""engine.corpora.normalize: hard-wrapped prose becomes one line a paragraph; lines that mean something stay."""

from __future__ import annotations

import json
import re
import textwrap
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.corpora.normalize import normalize_documents, normalize_file, normalize_text
from engine.corpora.progress import CancelledError, Progress
from engine.errors import CorpusError

LABELLED = Path(__file__).with_name("paragraphs.txt")


def labelled() -> list[tuple[str, str]]:
    """Label and block, in the order of the file: `prose` is to be unwrapped, anything else to be kept."""
    parts = re.split(r"^%% (.+)\n", LABELLED.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [(label, block.strip("\n")) for label, block in zip(parts[1::2], parts[2::2], strict=True)]


def without_blanks(text: str) -> str:
    return "".join(text.split())


def test_labelled_paragraphs_are_judged_rightly() -> None:
    examples = labelled()
    labels = [label for label, _ in examples]
    assert len(examples) >= 60 and labels.count("prose") >= 20 and len(set(labels)) >= 10
    made = normalize_text("\n\n".join(block for _, block in examples)).split("\n\n")
    assert len(made) == len(examples)
    wrong = [
        f"{label}: {block}"
        for (label, block), result in zip(examples, made, strict=True)
        if (("\n" not in result) if label == "prose" else (result == block)) is False
    ]
    assert len(wrong) / len(examples) <= 0.05, "\n---\n".join(wrong)


# ------------------------------------------------------------------------------------------------------- examples

PROSE = (
    "The lamps had been lit along the quay when the old pilot came down the steps, wrapped in a coat that had seen "
    "more winters than he cared to count, and stood for a while looking out over the water. Nobody spoke to him, for "
    "it was known that he had lost a son to the bar that spring, and the men at the capstan only touched their caps "
    "as he went by. The tide was making, and a thin rain had begun to fall upon the slates of the customs house."
)


def wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_on_hyphens=False)


@pytest.mark.parametrize("width", [55, 60, 65, 70, 72, 75, 80])
def test_a_wrapped_paragraph_becomes_one_line(width: int) -> None:
    assert normalize_text(wrapped(PROSE, width) + "\n") == PROSE + "\n"


def test_short_paragraphs_follow_the_width_around_them() -> None:
    short = "He turned up his collar, and asked of the boy beside him whether the packet had been sighted yet."
    text = "\n\n".join(wrapped(part, 70) for part in (PROSE, short, PROSE))
    assert normalize_text(text) == "\n\n".join((PROSE, short, PROSE))
    assert normalize_text(wrapped(short, 70)) == wrapped(short, 70)  # alone it shows nothing


def test_each_book_has_its_own_width() -> None:
    short = "He turned up his collar, and asked of the boy beside him whether the packet had been sighted yet."
    books = [[wrapped(part, width) for part in (PROSE, short) * 60] for width in (58, 76)]
    made = normalize_text("\n\n".join(books[0] + books[1])).split("\n\n")
    assert made.count(PROSE) == 120
    assert made.count(short) >= 100  # a few beside the border stand among paragraphs of the other width


def test_verse_between_prose_stays() -> None:
    verse = (
        "Tell me not, in mournful numbers,\n  Life is but an empty dream!\n"
        "For the soul is dead that slumbers,\n  And things are not what they seem."
    )
    prose = wrapped(PROSE, 70)
    assert normalize_text(f"{prose}\n\n{verse}\n\n{prose}\n") == f"{PROSE}\n\n{verse}\n\n{PROSE}\n"


def test_what_is_attached_to_a_paragraph_keeps_its_line() -> None:
    letter = f"My dear Sir,\n{wrapped(PROSE, 70)}\nYours faithfully,\nJ. Harker"
    assert normalize_text(letter) == f"My dear Sir,\n{PROSE}\nYours faithfully,\nJ. Harker"
    assert normalize_text(f"CHAPTER IV.\n{wrapped(PROSE, 70)}") == f"CHAPTER IV.\n{PROSE}"


def test_paragraphs_marked_by_indentation_alone_are_told_apart() -> None:
    block = textwrap.fill(PROSE, 70, initial_indent="    ")
    assert normalize_text("\n".join([block] * 5)) == "\n".join([f"    {PROSE}"] * 5)


@pytest.mark.parametrize(
    ("before", "after", "joined"),
    [
        ("well-", "known to all", "well-known to all"),
        ("a two-", "or three-masted", "a two- or three-masted"),
        ("up-", "to-date", "up-to-date"),
        ("night--", "for it", "night--for it"),
        ("night", "--for it", "night--for it"),
        ("night —", "for it", "night — for it"),
        ("night --", "for it", "night -- for it"),
        ("night", "-- for it", "night -- for it"),
        ("Mr. B----", "said so", "Mr. B---- said so"),
        ("night,", "for it", "night, for it"),
    ],
)
def test_dashes_at_a_line_end(before: str, after: str, joined: str) -> None:
    filler = "and the sea lay under them as grey as slate and as still as any stone"
    first, last = f"{filler[: 69 - len(before)].rsplit(' ', 1)[0]} {before}", f"{after} {filler}"
    text = "\n".join([filler, filler, first, last[:70].rsplit(" ", 1)[0], filler, "to the end."])
    made = normalize_text(text)
    assert "\n" not in made and f" {joined} " in made


def test_line_ends_of_windows_and_a_missing_last_one() -> None:
    text = wrapped(PROSE, 70).replace("\n", "\r\n")
    assert normalize_text(f"{text}\r\n\r\nTHE END\r\n") == f"{PROSE}\r\n\r\nTHE END\r\n"
    assert normalize_text(f"{text}\r\n\f\r\n\f{text}\r\n") == f"{PROSE}\r\n\f\r\n\f{PROSE}\r\n"  # pages
    assert normalize_text("") == "" and normalize_text("\n\n") == "\n\n" and normalize_text("One.") == "One."


# ----------------------------------------------------------------------------------------------------- properties

WORDS = st.sampled_from(
    [
        "a",
        "I",
        "the",
        "The",
        "And",
        "of",
        "sea",
        "--",
        "well-",
        "-known",
        "night,",
        "said.",
        "“Yes”",
        "12",
        "1.",
        "CHAPTER",
        "IV.",
        "[1]",
        "xiv",
        "or",
        "to",
        "—",
        "*",
        "|",
        "considerable",
        "understanding",
        "   ",
        "\t",
        "Mississippi",
        "U.S.A.",
        "\u00a0",
        "é" * 30,
    ]
)
LINES = st.lists(WORDS, max_size=16).map(" ".join)
BLOCKS = st.lists(LINES, max_size=8).map("\n".join) | st.tuples(
    st.lists(WORDS, min_size=5, max_size=90), st.integers(50, 90), st.sampled_from(["", "  ", "     "])
).map(lambda made: textwrap.fill(" ".join(made[0]), made[1], initial_indent=made[2]))
TEXTS = st.lists(BLOCKS | st.sampled_from([wrapped(PROSE, 70), wrapped(PROSE, 52)]), max_size=12).map("\n\n".join)


@given(TEXTS | st.text())
def test_nothing_but_white_space_changes(text: str) -> None:
    assert without_blanks(normalize_text(text)) == without_blanks(text)


@given(TEXTS)
def test_twice_is_once(text: str) -> None:
    once = normalize_text(text)
    assert normalize_text(once) == once


def test_the_labelled_text_twice_is_once_and_loses_nothing() -> None:
    text = "\n\n".join(block for _, block in labelled())
    once = normalize_text(text)
    assert once != text and normalize_text(once) == once and without_blanks(once) == without_blanks(text)


# ---------------------------------------------------------------------------------------------------------- files


def test_a_file_is_normalized_like_its_text(tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    text = "\n\n".join(block for _, block in labelled()) + "\n"
    source.write_bytes((text * 40).encode())
    stages = []
    progress = Progress(stages.append)
    progress.begin("Unwrapping", source.stat().st_size)
    normalize_file(source, target, progress)
    assert target.read_bytes().decode() == normalize_text(text * 40)
    assert stages[-1].done == source.stat().st_size


def test_memory_is_bounded_whatever_the_text(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    paragraph = wrapped(PROSE, 70)
    with source.open("w") as file:
        for _ in range(2_000):
            file.write(paragraph + "\n\n")
        file.write("no end of line " * 200_000)
        for _ in range(150_000):
            file.write("no blank line, but short ones\n")
    tracemalloc.start()
    normalize_file(source, tmp_path / "out.txt", Progress())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert source.stat().st_size > 8e6
    assert peak < 6e6
    assert without_blanks((tmp_path / "out.txt").read_text()) == without_blanks(source.read_text())


def test_documents_keep_their_other_fields(tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    book = {"source": "1", "text": wrapped(PROSE, 70) + "\n", "title": "Ebb – and\u2028flow \ud800"}
    source.write_text(json.dumps(book) + "\n\n" + json.dumps(book) + "\n")
    normalize_documents(source, target, Progress())
    made = [json.loads(line) for line in target.read_bytes().splitlines()]
    assert made == [book | {"text": PROSE + "\n"}] * 2


@pytest.mark.parametrize("line", [b"{", b"[]", b'{"text": 1}', b'{"texts": ""}', b'{"text": "\xff"}'])
def test_a_damaged_document_is_named(tmp_path: Path, line: bytes) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(CorpusError, match=r"line 2 is no JSON object with a text"):
        normalize_documents(source, tmp_path / "out.jsonl", Progress())


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_bytes("Glück".encode("latin-1"))
    with pytest.raises(CorpusError, match="is not UTF-8"):
        normalize_file(source, tmp_path / "out.txt", Progress())


def test_a_cancel_is_heard(tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text((wrapped(PROSE, 70) + "\n\n") * 8_000)
    with pytest.raises(CancelledError):
        normalize_file(source, tmp_path / "out.txt", Progress(cancelled=lambda: True))
