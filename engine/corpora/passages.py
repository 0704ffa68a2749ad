"""Clean a passage of encyclopedic text, and judge whether it reads as whole prose. Pure functions; no files.

What is clean already comes back byte for byte. Signs that mean something in plain text are left alone: `$5` is money,
`f()` is a function, `3 < 4` is no tag.
"""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

MIN_WORDS = 20
MIN_LETTERS = 0.7  # of the characters that are not white space
MAX_FORMULAS = 3  # that had to be taken out whole; more of them leave sentences with holes

KEPT = "kept"

# ------------------------------------------------------------------------------------------------------------ LaTeX

_ARGUMENT = r"\{(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}"  # balanced braces, three deep
_DISPLAY = re.compile(r"\{\\(?:display|text|script)style\b")
_LINE_END = re.compile(r"\s*\n\s*")
_DOLLARS = re.compile(r"\$\$?(?=[^$\n]*(?:\\[A-Za-z]|[\^_{}]))[^$\n]{1,200}\$\$?|\\\((?:.|\n)*?\\\)|\\\[(?:.|\n)*?\\\]")
_COMMAND = re.compile(rf"(?<![A-Za-z:.])\\[A-Za-z]{{2,}}+\*?+(?:\[[^\]\n]*\])?+(?:{_ARGUMENT})*+(?!\{{)")
_PLAIN_FORMULA = re.compile(r"[A-Za-z0-9 +=.,()/<>-]{1,20}")


def _brace_end(text: str, start: int) -> int:
    """Where the brace that opens at `start` is closed, or -1."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] == "{" and text[i - 1] != "\\":
            depth += 1
        elif text[i] == "}" and text[i - 1] != "\\":
            depth -= 1
            if depth == 0:
                return i + 1
    return -1


def _formula_start(text: str, brace: int) -> int:
    """Where the formula begins whose LaTeX opens at `brace`.

    The API's plain text holds a formula twice: token by token on short indented lines, and then as LaTeX.
    """
    start = brace
    while (end := text.rfind("\n", 0, start)) >= 0 and not text[end:start].strip():
        line = text[text.rfind("\n", 0, end) + 1 : end]
        if line.strip() and (line[0] not in " \t" or len(line.strip()) > 40):
            return end
        start = end - len(line)
    return start


def _remove_formulas(text: str) -> tuple[str, int]:
    """The text without LaTeX, and how many formulas left a hole; a plain one, such as `{\\displaystyle n}`, stays."""
    pieces, position, holes = [], 0, 0
    while match := _DISPLAY.search(text, position):
        end = _brace_end(text, match.start())
        if end < 0:
            break
        formula = text[match.end() : end - 1].strip()
        plain = _PLAIN_FORMULA.fullmatch(formula)
        pieces += [
            text[position : max(position, _formula_start(text, match.start()))],
            f" {formula} " if plain else " ",
        ]
        holes += not plain
        after = _LINE_END.match(text, end)  # what follows belongs to the same sentence
        position = after.end() if after else end
    text = "".join(pieces) + text[position:]
    for pattern in (_DOLLARS, _COMMAND):
        text, count = pattern.subn(" ", text)
        holes += count
    return text, holes


# ----------------------------------------------------------------------------------------------------------- markup

_TAGS = (
    "abbr|b|bdi|big|blockquote|br|center|cite|code|dd|del|div|dl|dt|em|font|gallery|h[1-6]|hr|i|img|includeonly|ins|kbd|"
    "li|link|math|meta|noinclude|nowiki|ol|onlyinclude|p|poem|pre|q|ref|references|s|samp|section|small|span|strong|sub|"
    "sup|table|tbody|td|templatestyles|th|time|tr|tt|u|ul|var|wbr|a"
)
_REMOVED = [
    re.compile(r"<!--.*?-->", re.S),
    re.compile(r"<ref\b[^<>]*/>", re.I),
    re.compile(r"<(ref|math|gallery|style|script|templatestyles)\b[^<>]*(?<!/)>.*?</\1\s*>", re.S | re.I),
    re.compile(r"^\{\|(?:(?!^\{\|).)*?^\|\}[ \t]*\n?", re.S | re.M),  # a table; nested ones from the inside
    re.compile(r"\{\{(?:(?!\{\{|\}\}).)*\}\}", re.S),  # a template; nested ones from the inside
    re.compile(r"\[\[:?(?:File|Image|Category|Media):(?:[^\[\]]|\[\[[^\[\]]*\]\]|\[[^\[\]]*\])*\]\]", re.I),
    re.compile(r"^={2,6}[^=\n]+={2,6}[ \t]*$\n?", re.M),
    re.compile(r"__[A-Z]{4,}__"),
]
_REPLACED = [
    (re.compile(r"\[\[(?:[^\[\]|]*\|)*([^\[\]|]*)\]\]"), r"\1"),
    (re.compile(r"\[(?:https?|ftp)://[^\s\]]+\s+([^\]\n]+)\]"), r"\1"),
    (re.compile(r"\[(?:https?|ftp)://[^\s\]]+\]"), ""),
    (re.compile(r"'''''(?=\S)(.+?)(?<=\S)'''''"), r"\1"),
    (re.compile(r"'''(?=\S)(.+?)(?<=\S)'''"), r"\1"),
    (re.compile(r"''(?=\S)(.+?)(?<=\S)''(?!')"), r"\1"),
    (re.compile(r"<br\s*/?>", re.I), "\n"),
    (re.compile(rf"</?(?:{_TAGS})\b(?:\s[^<>]*)?/?>", re.I), ""),
    (re.compile(r"\[(?:\d{1,3}|note \d+|citation needed|clarification needed)\]"), ""),
]
_ADDRESS = re.compile(r"\b(?:(?:https?|ftp)://|www\.(?=[\w-]+\.))[^\s<>\[\]]+", re.I)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_LEFT_OVER = re.compile(r"\{\{|\}\}|\[\[|\]\]|^\{\||^\|[-}]|\\[A-Za-z]{2,}\s*\{|\{\\|</?ref\b", re.M | re.I)

# ------------------------------------------------------------------------------------------------------------ blanks

_JOINERS = "\u200c\u200d"  # they shape letters in some scripts
_UNSEEN = re.compile(
    r"[^\S\n ]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
_TIDIED = [
    (re.compile(r"[ ]{2,}"), " "),
    (re.compile(r"\{[ ]+\}"), ""),
    (re.compile(r"\((?:[ ]*(?:listen|help·info)[ ]*)\)"), "()"),  # the label of a pronunciation's recording
    (re.compile(r"\([ ]*(?:[;,:][ ]*)+"), "("),
    (re.compile(r"[ ]*(?:[;,][ ]*)+\)"), ")"),
    (re.compile(r"\([ ]+"), "("),
    (re.compile(r"(?<=\S)[ ]+\)"), ")"),
    (re.compile(r"(?<![^\s(])\([ ]*\)[ ]?"), ""),
    (re.compile(r"(?<=\S)[ ]+(?=,(?:\s|$))"), ""),
    (re.compile(r"(?<=[^\s.])[ ]+(?=[.](?:\s|$))(?![.][ ]?[.])"), ""),
    (re.compile(r"[ ]+$|^[ ]+", re.M), ""),
    (re.compile(r"\n{3,}"), "\n\n"),
]


def _after_address(match: re.Match[str]) -> str:
    """What follows a web address in its match: the sentence's signs, and a bracket that was opened before it."""
    address = match.group().rstrip(".,;:!?\"'”’")
    while address.endswith(")") and address.count(")") > address.count("("):
        address = address[:-1].rstrip(".,;:!?\"'”’")
    return match.group()[len(address) :]


def _seen(match: re.Match[str]) -> str:
    """White space becomes a blank; what cannot be seen goes, but for what shapes letters."""
    sign = match.group()
    if sign in _JOINERS:
        return sign
    return " " if sign.isspace() and sign not in "\r\x1c\x1d\x1e\x1f" else ""


def _clean_once(text: str) -> tuple[str, int]:
    text = _UNSEEN.sub(_seen, text)
    text, holes = _remove_formulas(text)
    for pattern in _REMOVED:
        while True:
            text, count = pattern.subn("", text)
            if not count:
                break
    for pattern, replacement in _REPLACED:
        text = pattern.sub(replacement, text)
    text = _ADDRESS.sub(_after_address, text)
    text = _ENTITY.sub(lambda match: html.unescape(match.group()), text)
    for pattern, replacement in _TIDIED:
        text = pattern.sub(replacement, text)
    return text.strip(), holes


def _clean(text: str) -> tuple[str, int]:
    """Clean until nothing changes: what one rule takes away can bare the work of another."""
    holes = 0
    while True:
        cleaner, more = _clean_once(text)
        holes += more
        if cleaner == text:
            return text, holes
        text = cleaner


def clean(text: str) -> str:
    """The text without LaTeX, wiki markup, HTML, web addresses, emptied parentheses and signs that cannot be seen.

    Cleaning what is clean changes nothing.
    """
    return _clean(text)[0]


# ------------------------------------------------------------------------------------------------------------- judge

_DISAMBIGUATION = re.compile(r"\b(?:may|can|could|might) (?:also |most commonly )?(?:refer to|mean|stand for)\s*:?$")
_SENTENCE_END = re.compile(r"[.!?。！？][\"'”’»)\]]*$")  # of a line
_SENTENCE_ENDS = re.compile(r"[.!?。！？][\"'”’»)\]]*(?:\s|$)")
_ELLIPSIS = re.compile(r"(?:\.\.\.|…)[\"'”’»)\]]*$")
_ITEM = re.compile(r"\s*(?:[*#•·–—|!;:-]|\d{1,3}[.)]\s)")


def judge(text: str) -> str:
    """Why a cleaned passage is no whole prose, in a few words; "" when it is."""
    if not text:
        return "empty"
    lines = [line for line in text.split("\n") if line]
    if _DISAMBIGUATION.search(lines[0]):
        return "disambiguation"
    if _LEFT_OVER.search(text):
        return "markup left over"
    if len(text.split()) < MIN_WORDS:
        return "too short"
    if _letter_share(text) < MIN_LETTERS:
        return "mostly no letters"
    whole = [bool(_SENTENCE_END.search(line)) and not _ITEM.match(line) for line in lines]
    if len(lines) >= 3 and sum(whole) * 2 < len(lines):
        return "mostly a list"
    if not _SENTENCE_ENDS.search(text):
        return "no sentence end"
    if not _SENTENCE_END.search(lines[-1]) or _ELLIPSIS.search(lines[-1]):
        return "cut off"
    return ""


def _letter_share(text: str) -> float:
    signs = [sign for sign in text if not sign.isspace()]
    return sum(sign.isalpha() or unicodedata.category(sign)[0] == "M" for sign in signs) / len(signs)


def refine(text: str) -> tuple[str, str]:
    """Clean a passage and judge it.

    Returns:
        The cleaned text, and why it is to be dropped ("" when it is kept).
    """
    cleaned, holes = _clean(text)
    return cleaned, judge(cleaned) or ("too many formulas" if holes > MAX_FORMULAS else "")


def sift(passages: Iterable[tuple[str, str]], counts: Counter[str]) -> Iterator[tuple[str, str]]:
    """The passages that are kept, cleaned; of equal texts the first.

    Args:
        passages: pairs of source and text.
        counts: is told what became of each: `KEPT`, or the reason it was dropped for.
    """
    known: set[bytes] = set()
    for source, text in passages:
        cleaned, reason = refine(text)
        digest = hashlib.blake2b(cleaned.encode(), digest_size=16).digest()
        if not reason and digest in known:
            reason = "duplicate"
        counts[reason or KEPT] += 1
        if not reason:
            known.add(digest)
            yield source, cleaned


def summary(counts: Counter[str]) -> str:
    """What became of the passages, such as `kept 812 of 1,000: 120 too short, 68 cut off`."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common() if reason != KEPT and count)
    return f"kept {counts[KEPT]:,} of {counts.total():,}" + (f": {dropped}" if dropped else "")
