"""Many words at once: GPT-2's byte pairs several times as fast as one by one, with the very same ids.

A text consists of few distinct words. So the text is cut into the pattern's matches with array arithmetic, each
distinct match is tokenized once by tiktoken, and the rest is looked up. The arithmetic knows ASCII alone: stretches
with other characters are left whole, from one safe cut to the next (see `chunks`), and are looked up, or tokenized, as
one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engine import tokenizer

Ids = NDArray[np.uint16]
Places = NDArray[np.int64]

_SPACE, _LETTER, _DIGIT, _SIGN, _FOREIGN = range(5)
_MARK = tokenizer.MARK.encode()
_APOSTROPHE, _BLANK = ord("'"), ord(" ")
_SLOTS = 18  # bits of the table's index
_HASH = np.uint64(0x9E3779B97F4A7C15)  # 2^64 divided by the golden ratio (Knuth, volume 3, section 6.4)
_MOST_WORDS = 300_000  # kept; a text that has more distinct ones begins anew
_KEEP = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)  # the first n bytes of eight


def _kinds() -> NDArray[np.uint8]:
    """The kind of each byte, as the pattern sees it. Zero bytes are foreign, since keys end with them."""
    kinds = np.full(256, _FOREIGN, dtype=np.uint8)
    for code in range(1, 128):
        sign = chr(code)
        kinds[code] = (
            _SPACE if sign in "\t\n\v\f\r " else _LETTER if sign.isalpha() else _DIGIT if sign.isdigit() else _SIGN
        )
    return kinds


_KINDS = _kinds()


class Words:
    """Tokenizes pieces of text and remembers their words. For one thread."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._entries: dict[bytes, int] = {}  # word -> number of its entry
        self._pool = np.empty(1 << 16, dtype=np.uint16)  # ids of all entries, one after the other
        self._offset = np.empty(1 << 15, dtype=np.int64)  # of an entry, in the pool
        self._count = np.empty(1 << 15, dtype=np.int64)  # of ids
        self._used = 0  # of the pool
        # The words of up to 16 bytes, in a table without chains: who finds the slot taken is looked up above.
        self._slot_head = np.zeros(1 << _SLOTS, dtype=np.uint64)  # the first eight bytes, and zeros behind a word's end
        self._slot_tail = np.zeros(1 << _SLOTS, dtype=np.uint64)  # the next eight
        self._slot_entry = np.zeros(1 << _SLOTS, dtype=np.int64)
        self._learn(_MARK, [tokenizer.END_OF_TEXT])

    def encode(self, data: bytes, marks: list[int]) -> Ids:
        """The ids of a piece of text.

        Args:
            data: UTF-8, cut where `chunks` allows it.
            marks: places in it where `<|endoftext|>` stands for the token that separates documents, rising.
        """
        if not data:
            return np.empty(0, dtype=np.uint16)
        codes = np.frombuffer(data, dtype=np.uint8)
        kinds = _KINDS[codes]
        foreign = np.flatnonzero(kinds == _FOREIGN)
        if len(foreign) > len(data) // 16:  # then most stretches would be foreign
            return _one_by_one(data, marks)
        if len(self._entries) > _MOST_WORDS:
            self._forget()
        starts, stretches = _starts(codes, kinds, foreign, np.array(marks, dtype=np.int64))
        entries = self._look_up(data, starts, stretches)
        counts = self._count[entries]
        ends = np.cumsum(counts)
        places = np.repeat(self._offset[entries] - (ends - counts), counts)
        places += np.arange(len(places))
        return self._pool[places]

    def _look_up(self, data: bytes, starts: Places, stretches: Places) -> Places:
        """The entry of each word; `stretches` are the numbers of those that are foreign stretches."""
        lengths = np.diff(starts, append=len(data))
        eight = np.ndarray(len(data) + 8, dtype="<u8", buffer=data + bytes(16), strides=(1,))  # from each place on
        head = eight[starts] & _KEEP[np.minimum(lengths, 8)]
        tail = eight[starts + 8 * (lengths > 8)] & _KEEP[np.clip(lengths - 8, 0, 8)]
        slots = (head * _HASH ^ tail) * _HASH >> np.uint64(64 - _SLOTS)
        found = (self._slot_head[slots] == head) & (self._slot_tail[slots] == tail) & (lengths <= 16)
        found[stretches] = False
        entries = self._slot_entry[slots]
        unknown = np.flatnonzero(~found)
        numbers = []
        for place in unknown.tolist():
            begin = starts[place]
            word = data[begin : begin + lengths[place]]
            number = self._entries.get(word)
            if number is None:
                number = self._learn(word, tokenizer.encode_array(word.decode("utf-8")))
                slot = slots[place]
                if len(word) <= 16 and not self._slot_head[slot] and word.isascii() and 0 not in word:
                    self._slot_head[slot], self._slot_tail[slot] = head[place], tail[place]
                    self._slot_entry[slot] = number
            numbers.append(number)
        entries[unknown] = numbers
        return entries

    def _learn(self, word: bytes, ids: Ids | list[int]) -> int:
        number = len(self._entries)
        if number == len(self._count):
            self._offset, self._count = (np.concatenate([a, np.empty_like(a)]) for a in (self._offset, self._count))
        while self._used + len(ids) > len(self._pool):
            self._pool = np.concatenate([self._pool, np.empty_like(self._pool)])
        self._pool[self._used : self._used + len(ids)] = ids
        self._entries[word] = number
        self._offset[number], self._count[number] = self._used, len(ids)
        self._used += len(ids)
        return number


def _starts(
    codes: NDArray[np.uint8], kinds: NDArray[np.uint8], foreign: Places, marks: Places
) -> tuple[Places, Places]:
    """Where each match of the pattern starts, and which of them are foreign stretches left whole."""
    size = len(codes)
    starts = np.empty(size, dtype=bool)
    starts[0] = True
    np.not_equal(kinds[1:], kinds[:-1], out=starts[1:])
    space = kinds == _SPACE
    behind = marks + len(_MARK)

    # White space in front of something else: its last character goes with what follows if it is a blank, and stands
    # alone if not. In front of a mark the text ends, and a run stays whole.
    ends = np.flatnonzero(space[:-1] & ~space[1:]) + 1
    if len(marks):
        ends = np.setdiff1d(ends, marks, assume_unique=True)
        starts[(marks[:, None] + np.arange(len(_MARK))).ravel()] = False
        starts[marks] = True
        starts[behind[behind < size]] = True
    starts[ends - 1] = True
    starts[ends[codes[ends - 1] == _BLANK]] = False

    # Contractions: 's 'd 'm 't 'll 've 're, where a match starts with the apostrophe.
    at = np.flatnonzero((codes == _APOSTROPHE) & starts)
    if len(at):
        one, two = (np.where(at + k < size, codes[np.minimum(at + k, size - 1)], 0) for k in (1, 2))
        short = np.isin(one, list(b"sdmt"))
        long = np.zeros_like(short)
        for pair in (b"ll", b"ve", b"re"):
            long |= (one == pair[0]) & (two == pair[1])
        starts[at[short | long] + 1] = False
        after = np.concatenate([at[short] + 2, at[long] + 3])
        starts[after[after < size]] = True

    if not len(foreign):
        return np.flatnonzero(starts), np.empty(0, dtype=np.int64)
    cuts = np.flatnonzero(space[1:] & (kinds[:-1] != _SPACE) & (kinds[:-1] != _FOREIGN)) + 1
    bounds = np.concatenate([[0], cuts, [size]])
    if len(marks):
        bounds = np.sort(np.concatenate([bounds, marks, behind]))
    last = np.searchsorted(bounds, foreign, side="right")
    last = last[np.diff(last, prepend=-1) > 0]
    for begin, end in zip(bounds[last - 1].tolist(), bounds[last].tolist(), strict=True):
        starts[begin] = True
        starts[begin + 1 : end] = False
    places = np.flatnonzero(starts)
    return places, np.searchsorted(places, bounds[last - 1])


def _one_by_one(data: bytes, marks: list[int]) -> Ids:
    parts: list[Ids] = []
    begin = 0
    for mark in marks:
        parts += [
            tokenizer.encode_array(data[begin:mark].decode("utf-8")),
            np.array([tokenizer.END_OF_TEXT], np.uint16),
        ]
        begin = mark + len(_MARK)
    return np.concatenate([*parts, tokenizer.encode_array(data[begin:].decode("utf-8"))])
