"""Unwrap hard-wrapped prose, and leave alone what has lines of its own: verse, lists, tables, headings, letterheads.

A text is seen as blocks between blank lines. A block is prose when its line breaks are those of a typist who filled
the line: where a line ended, there was little room left for the next word. Lines that begin with capitals (verse),
numbers or bullets (lists), columns (tables) and page numbers (contents) speak against it.

Blocks of four lines or more can show this by themselves. Shorter ones are held against the width at which the blocks
around them were wrapped. Only line ends and the blanks beside them change. Where a line ends in a hyphen or a dash, the
next one follows without a blank: transcribers of Project Gutenberg close up words that the printer divided, so a hyphen
at a line's end is part of a word such as well-known.

Normalizing twice is the same as once: a block that shows its width by itself is unwrapped, so a normalized text has no
width to hold short blocks against.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median_low

from engine.corpora.progress import Progress
from engine.errors import CorpusError

NARROWEST, WIDEST = 50, 90  # columns at which prose may be wrapped
ROOM = 0.8  # a line whose next word would have ended before this share of the width was ended on purpose
ROOM_ALONE = 0.86  # the same for blocks too short to show it by themselves
WINDOW = 40  # blocks before and after one whose width is taken for its own
MAX_LINES, MAX_CHARACTERS = 500, 1 << 18  # of a block; a longer one is cut, so that memory is bounded
_PIECE = 1 << 14  # characters of a line read at once

_OPENING = "\"'“‘«([_*—-"  # may stand before a line's first letter
_HEADING = re.compile(
    r"\s*(?:chapter|book|part|act|scene|canto|section|letter|volume|stave|lecture|sermon|fable|appendix|note)\s+"
    r"(?:[IVXLCDM]+|\d+|the\s+\w+|one|two|three|four|five|six|seven|eight|nine|ten)\b[.:—-]*(?:\s.{0,30})?",
    re.IGNORECASE,
)
_ITEM = re.compile(
    r"^[ \t]*(?:\(?\d{1,4}[.):]|\([a-zA-Z]{1,4}\)|[a-z]\)|[IVXLC]{1,6}[.)]|[*•·]|-(?!-)|\[\d{1,4}\])\s", re.MULTILINE
)
_COLUMNS = re.compile(r"\S(?: {3,}|\t)\S|\.{4}|\. \. \. \. |\|.*\|")
_COLUMN_SIGNS = ("   ", "\t", "....", ". . . .", "|")  # quick to look for: a block without them has no columns
_PAGE = re.compile(r"[\s.,](?:\d{1,4}[.,]?|[ivxlc]{1,7})$")
_BREAK_END = re.compile(r"[.!?:;,—\"'”’_*)\]-]$")
_LAST_DASH = re.compile(r"(?<![\s—-])(?:--?|—)$")
_FIRST_DASH = re.compile(r"(?:--|—)(?![\s—-])")
_SUSPENDED = re.compile(r"(?:and|or|to|nor|und|oder|et|ou)\s")  # after a hyphen that waits for its second half: two- or


# ----------------------------------------------------------------------------------------------------------- judging


def _begins_upper(line: str) -> bool:
    return line.lstrip().lstrip(_OPENING)[:1].isupper()


def _reach(line: str, following: str) -> int:
    """How far `line` would have reached with the first word of the line after it."""
    return len(line) + 1 + len(following.split(None, 1)[0])


def _has_lines_of_its_own(lines: list[str], width: int) -> bool:
    """Whether a block, its lines without their ends, is a table, contents, a list, a title or verse.

    Args:
        width: the length of its longest line.
    """
    if width > WIDEST:  # unwrapped already
        return True
    text = "\n".join(lines)
    return (
        len(_ITEM.findall(text)) >= 2
        or (
            any(sign in text for sign in _COLUMN_SIGNS)
            and sum(1 for line in lines if _COLUMNS.search(line)) * 4 >= len(lines)
        )
        or sum(1 for line in lines if _PAGE.search(line[-9:])) * 2 >= len(lines)
        or text.isupper()
        or _is_verse(lines, width)
    )


def _is_verse(lines: list[str], width: int) -> bool:
    if len(lines) < 4:
        return False
    capitals = sum(1 for line in lines[1:] if _begins_upper(line)) / (len(lines) - 1)
    if capitals < 0.6 or capitals == 1:
        return capitals == 1
    return any(_reach(*pair) <= width for pair in pairwise(lines))  # a filled line leaves no doubt


def _is_heading(line: str) -> bool:
    return len(line) <= 60 and bool(_HEADING.fullmatch(line) or (line.isupper() and len(line.split()) > 0))


def _paragraphs(lines: list[str], width: int) -> Iterator[slice]:
    """Cut a block where a line was ended on purpose, and where the indentation says that something new begins."""
    indents = [len(line) - len(line.lstrip()) for line in lines]
    counts = Counter(indents[1:])
    usual = min(counts, key=lambda indent: (-counts[indent], indent))
    start = 0
    for i in range(1, len(lines)):
        before, line = lines[i - 1], lines[i]
        short = _reach(before, line) < ROOM * width and (_begins_upper(line) or bool(_BREAK_END.search(before)))
        if short or abs(indents[i] - usual) >= 2 or (start == i - 1 and _is_heading(before)):
            yield slice(start, i)
            start = i
    yield slice(start, len(lines))


def _own_width(lines: list[str]) -> int:
    """The width at which a paragraph shows that it was wrapped; 0 when it shows none."""
    width = max(map(len, lines))
    if len(lines) < 4 or not NARROWEST <= width <= WIDEST:
        return 0
    indented = lines[1][0] in " \t"  # then the lines must be filled without doubt
    limit = width - 2 if indented else ROOM * width
    short = sum(1 for pair in pairwise(lines) if _reach(*pair) <= limit)
    return 0 if short * 6 > (0 if indented else len(lines)) else width


def _fits(lines: list[str], width: int) -> bool:
    """Whether a paragraph of any length was wrapped at `width`, its neighbours' width."""
    if len(lines) < 2 or not width or max(map(len, lines)) > width + 4 or lines[1][0] in " \t":
        return False
    share = 0.94 if all(map(_begins_upper, lines[1:])) else ROOM_ALONE
    return all(_reach(*pair) >= share * width for pair in pairwise(lines))


# ----------------------------------------------------------------------------------------------------------- joining


def _join(lines: list[str]) -> str:
    """One line of a paragraph's lines, which have no ends any more."""
    pieces = [lines[0]]
    for before, line in pairwise(lines):
        line = line.lstrip()
        pieces += ["" if _is_closed_up(before, line) else " ", line]
    return "".join(pieces)


def _is_closed_up(before: str, following: str) -> bool:
    """Whether no blank belongs between two lines; a longer row of dashes stands for a word that was left out."""
    if dash := _LAST_DASH.search(before):
        return dash.group() != "-" or not _SUSPENDED.match(following)
    return bool(_FIRST_DASH.match(following))


@dataclass
class _Block:
    """Lines between blank ones, with their ends, and the blank lines after them."""

    lines: list[str] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)
    width: int = 0
    paragraphs: list[list[str]] | None = None  # without line ends; None when there is nothing to unwrap

    def look(self) -> _Block:
        """Judge what the block shows by itself."""
        if len(self.lines) < 2:
            return self
        lines = [line.rstrip() for line in self.lines]
        width = max(map(len, lines))
        if _has_lines_of_its_own(lines, width):
            return self
        self.paragraphs = [lines[part] for part in _paragraphs(lines, width)]
        self.width = max(map(_own_width, self.paragraphs))
        return self

    def unwrapped(self, width: int) -> str:
        """The block with its prose unwrapped; `width` is that of the blocks around it."""
        if self.paragraphs is None:
            return "".join(self.lines)
        lines: list[str] = []
        position = 0
        for part in self.paragraphs:
            own = self.lines[position : position + len(part)]
            position += len(part)
            if len(part) > 1 and (_own_width(part) or _fits(part, width)):
                lines.append(_join(part) + own[-1][len(part[-1]) :])
            else:
                lines += own
        if len(lines) == len(self.lines):
            return "".join(lines)
        return _Block(lines).look().unwrapped(0)  # until it shows nothing more by itself


def _blocks(lines: Iterable[str]) -> Iterator[_Block]:
    block, characters = _Block(), 0
    for line in lines:
        if line.isspace():
            block.tail.append(line)
            if len(block.tail) < MAX_LINES:
                continue
        elif not block.tail and len(block.lines) < MAX_LINES and characters < MAX_CHARACTERS:
            block.lines.append(line)
            characters += len(line)
            continue
        yield block.look()
        block, characters = (_Block(), 0) if line.isspace() else (_Block([line]), len(line))
    yield block.look()


def normalize(lines: Iterable[str]) -> Iterator[str]:
    """A text with its hard-wrapped prose unwrapped, in pieces.

    Args:
        lines: of the text, with their ends. At most `2 * WINDOW` blocks are held at a time.
    """
    waiting: deque[_Block] = deque()
    widths: deque[int] = deque(maxlen=2 * WINDOW + 1)

    def finish() -> str:
        block = waiting.popleft()
        needed = block.paragraphs is not None
        known = [width for width in widths if width] if needed else []
        return block.unwrapped(median_low(known) if known else 0) + "".join(block.tail)

    for block in _blocks(lines):
        waiting.append(block)
        widths.append(block.width)
        if len(waiting) > WINDOW:
            yield finish()
    for _ in range(len(waiting)):
        yield finish()
        if len(widths) > WINDOW + 1:
            widths.popleft()


def normalize_text(text: str) -> str:
    """A whole text with its hard-wrapped prose unwrapped."""
    return "".join(normalize(io.StringIO(text, newline="\n")))


# ------------------------------------------------------------------------------------------------------------- files


def normalize_file(source: Path, target: Path, progress: Progress) -> None:
    """Normalize a flat text, in bounded memory.

    Args:
        source, target: UTF-8.
        progress: its stage counts the source's bytes.

    Raises:
        CorpusError: the source is not UTF-8.
        CancelledError: somebody asked to stop.
        OSError: the disk refuses.
    """
    with source.open("rb") as raw, target.open("w", encoding="utf-8", newline="") as output:
        text = io.TextIOWrapper(raw, encoding="utf-8", newline="\n")
        told = 0
        try:
            for piece in normalize(iter(lambda: text.readline(_PIECE), "")):
                output.write(piece)
                if (position := raw.tell()) - told >= 1 << 20:
                    progress.advance(position - told)
                    told = position
        except UnicodeDecodeError as error:
            raise CorpusError(f"{source} is not UTF-8 text. Delete it, and fetch it again.") from error
        progress.advance(raw.tell() - told)


def normalize_documents(source: Path, target: Path, progress: Progress) -> None:
    """Normalize the texts of a JSONL file, one document a line; other fields stay as they are.

    Raises:
        CorpusError: a line of the source is no JSON object with a `text`.
        CancelledError: somebody asked to stop.
        OSError: the disk refuses.
    """
    with (
        source.open("rb") as lines,
        target.open("w", encoding="utf-8", errors="backslashreplace", newline="") as output,
    ):
        for number, line in enumerate(lines, 1):
            if line.strip():
                document = _document(line, source, number)
                text = normalize_text(document["text"])
                output.write(json.dumps(document | {"text": text}, ensure_ascii=False) + "\n")
            progress.advance(len(line))


def _document(line: bytes, source: Path, number: int) -> dict[str, str]:
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or not isinstance(document.get("text"), str):
        raise CorpusError(f"{source} is damaged: line {number:,} is no JSON object with a text. Fetch it again.")
    return document
