"""A corpus file cut into pieces that can be tokenized one by one, with the same tokens as the whole.

GPT-2's pattern (see `engine.tokenizer`) looks ahead but never back, and each of its matches ends where white space
begins. So a text may be cut in front of white space that follows something else: what is left of the cut ends as it
would have, and what is right of it begins as it would have. Property tests hold this to whole-text tiktoken.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engine.errors import CorpusError

CHUNK = 1 << 19  # bytes: small enough for the cache of a core, large enough to be worth a task
LONGEST = 1 << 26  # bytes of a stretch without any place to cut, or of one JSON line; both are held in memory
BOM = b"\xef\xbb\xbf"

_ASCII_SPACES = frozenset(b" \t\n\v\f\r\x1c\x1d\x1e\x1f")
# Signs that end a run of letters in every version of Unicode; for scripts that are written without blanks.
_SIGNS = frozenset(".,;:!?)…。、，；：！？「」『』（）《》")


@dataclass(frozen=True)
class Piece:
    """A stretch of text.

    Attributes:
        data: UTF-8; cut so that its tokens are those it has in the whole text.
        offset: of its first byte in the file, or of its line.
        opens: whether a document begins with it that is not the first.
    """

    data: bytes
    offset: int
    opens: bool = False


def text_pieces(path: Path, seen: Callable[[bytes], None]) -> Iterator[Piece]:
    """The pieces of a plain text file.

    Args:
        path: UTF-8, with or without a byte order mark.
        seen: called with every block that was read, for a hash and for progress.

    Raises:
        CorpusError: it has a stretch that cannot be cut and is too long to be held.
    """
    with path.open("rb") as file:
        rest, offset, wanted = b"", 0, CHUNK
        while block := file.read(CHUNK):
            seen(block)
            if offset == 0 and not rest and block.startswith(BOM):
                block, offset = block[len(BOM) :], len(BOM)
            rest += block
            if len(rest) < wanted:
                continue
            cut = last_cut(rest)
            if cut:
                yield Piece(rest[:cut], offset)
                rest, offset, wanted = rest[cut:], offset + cut, CHUNK
            elif len(rest) > LONGEST:
                raise CorpusError(
                    f"{path} has more than {LONGEST >> 20} MiB in one stretch without a place to cut (from byte "
                    f"{offset:,}): this is no text. Remove the stretch, or break it into lines of words."
                )
            else:
                wanted = 2 * len(rest)
        if rest:
            yield Piece(rest, offset)


def document_pieces(path: Path, seen: Callable[[bytes], None]) -> Iterator[Piece]:
    """The pieces of a JSONL file, one document a line, its text in the field `text`.

    Lines and documents without any text are passed over.

    Raises:
        CorpusError: a line is no such object, or too long to be held.
    """
    with path.open("rb") as file:
        offset, first = 0, True
        for number, line in enumerate(iter(lambda: file.readline(LONGEST), b""), start=1):
            seen(line)
            start, offset = offset, offset + len(line)
            if len(line) == LONGEST:
                raise CorpusError(f"{path}, line {number:,}: longer than {LONGEST >> 20} MiB. Split the document.")
            line = line.removeprefix(BOM) if start == 0 else line
            text = _text_of(path, number, line) if line.strip() else ""
            if not text.strip():
                continue
            # Half a surrogate pair can be written in JSON, but is no character; tiktoken replaces it likewise.
            data = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
            opens, first = not first, False
            while len(data) > 2 * CHUNK and (cut := last_cut(data[:CHUNK])):
                yield Piece(data[:cut], start, opens)
                data, opens = data[cut:], False
            yield Piece(data, start, opens)


def _text_of(path: Path, number: int, line: bytes) -> str:
    wanted = 'an object with a field "text", such as {"text": "Once upon a time …"}'
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}, line {number:,}: not UTF-8 (byte {error.start:,} of the line). Save it as UTF-8."
        ) from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path}, line {number:,}: not JSON. Each line must be {wanted}.") from error
    if not isinstance(value, dict) or not isinstance(value.get("text"), str):
        raise CorpusError(f"{path}, line {number:,}: no text. Each line must be {wanted}.")
    text: str = value["text"]
    return text


def last_cut(data: bytes) -> int:
    """The last position where `data` may be cut, or 0 when there is none."""
    position = len(data)
    while (position := max(data.rfind(b" ", 0, position), data.rfind(b"\n", 0, position))) > 0:
        position = len(data[:position].rstrip(b" \n\t\r"))  # where this run of white space begins
        if position and not _is_space_before(data, position):
            return position
    return _last_sign(data)


def _is_space_before(data: bytes, position: int) -> bool:
    """Whether a white-space character, in Unicode's or in Python's sense, ends at `position`."""
    if data[position - 1] < 0x80:
        return data[position - 1] in _ASCII_SPACES
    character = data[max(0, position - 4) : position].decode("utf-8", "ignore")[-1:]
    return not character or character.isspace()


def _last_sign(data: bytes) -> int:
    """The last position between a letter and a sign that ends any run of letters, in text without blanks."""
    tail = data[-4096:]
    start = len(data) - len(tail)
    while tail and tail[0] & 0xC0 == 0x80:  # begin with a whole character
        tail, start = tail[1:], start + 1
    text = tail.decode("utf-8", "ignore")  # the last character may be cut in two
    for i in range(len(text) - 1, 0, -1):
        if text[i] in _SIGNS and unicodedata.category(text[i - 1]).startswith("L"):
            cut = start + len(text[:i].encode())
            return cut if data[cut : cut + len(text[i].encode())] == text[i].encode() else 0
    return 0
