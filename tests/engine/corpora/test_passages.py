"""engine.corpora.passages: markup goes, clean text stays byte for byte, fragments are dropped with a reason."""

from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.corpora.passages import clean, judge, refine, sift, summary

INTRO = (
    "The Mallard Reach Light is a lighthouse on the northern shore of the Selkirk estuary. It was built in 1871 to "
    "mark the bar, which had claimed eleven ships in a decade, and was automated in 1986."
)

CLEAN = [
    INTRO,
    "It sold 3,000 copies at $5 and $10 each; critics called it “[a] minor masterpiece” (and some didn't).",
    "He said: 'Wait . . . not yet ...' and left at 10:30 a.m. (UTC+2).",
    "For 3 < 4 and 5 > 2, f() returns x_1; the .NET runtime and C++/CLI agree – 90% of R&B fans don't.",
    "Björk Guðmundsdóttir (born 21 November 1965) is an Icelandic singer.\nShe rose with the Sugarcubes.",
    "The path C:\\Windows\\System32 holds it. So does ~/.config/app.",
    'AT&T\'s 5\'10" tall mascot, "Bell", weighed 12 kg. What a sight!',
    "It is the set {1, 2, 3}; its members are odd, or not.",
    "Émile's café—the “Zinc”—opened in May 1901 … and closed.",
    "می‌خواهم is Persian; 👩‍🚀 is an astronaut.",
]


@pytest.mark.parametrize("text", CLEAN)
def test_clean_text_stays_byte_for_byte(text: str) -> None:
    assert clean(text) == text


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        # LaTeX
        ("For all {\\displaystyle n} it holds.", "For all n it holds."),
        ("a group {\\displaystyle \\mathbb {Z} /n\\mathbb {Z} } of order n", "a group of order n"),
        (
            "The formula\n  \n    \n        E\n        =\n        m\n    \n    {\\displaystyle E=mc^{2}}\n  , is",
            "The formula, is",
        ),
        ("half is \\frac{1}{2} of it", "half is of it"),
        ("let $x^2 + y_1$ be even", "let be even"),
        ("the ratio \\(\\alpha/\\beta\\) is fixed", "the ratio is fixed"),
        # wiki markup
        ("'''Ada''' was ''very'' '''''bright'''''.", "Ada was very bright."),
        ("the [[Analytical Engine|engine]] of [[Babbage]]", "the engine of Babbage"),
        ("[[File:Ada.jpg|thumb|upright|A [[portrait]] of her]]She was", "She was"),
        ("She was.\n[[Category:Writers]]", "She was."),
        ("{{Infobox person|name={{nowrap|Ada}}|born=1815}}\nAda was", "Ada was"),
        ("Ada<ref name=\"a\">Toole, p. 3.</ref> was<ref name=b /> born.", "Ada was born."),
        ("== Life ==\nShe lived.\n=== Death ===\nShe died.", "She lived.\nShe died."),
        ("Before.\n{| class=\"wikitable\"\n|-\n! Year\n| 1815\n|}\nAfter.", "Before.\nAfter."),
        ("It won.[12][note 3] It lost.[citation needed]", "It won. It lost."),
        ("__NOTOC__Text.", "Text."),
        # HTML
        ("<p>One <b>bold</b><br/>two <span style=\"x\">three</span></p>", "One bold\ntwo three"),
        ("R&amp;B, 5&nbsp;km, &#8211; and &lt;", "R&B, 5 km, – and <"),
        ("a<!-- hidden\nremark --> b", "a b"),
        # addresses
        ("See https://example.org/a_(b)?c=d#e. Then go.", "See. Then go."),
        ("Its site (http://www.example.org/x) closed.", "Its site closed."),
        ("the [https://example.org official site] says", "the official site says"),
        ("visit www.example.org/path, or not", "visit, or not"),
        # what a pronunciation leaves behind
        ("Ada ( ; born 10 December 1815) was", "Ada (born 10 December 1815) was"),
        ("Ada (, ; ) was", "Ada was"),
        ("Ada () was", "Ada was"),
        ("Ada ( (listen); Greek: Ἄδα ) was", "Ada (Greek: Ἄδα) was"),
        ("Ada (1815–1852; ) was", "Ada (1815–1852) was"),
        # blanks and signs that cannot be seen
        ("one  two\u00a0three\tfour \nfive", "one two three four\nfive"),
        ("a\u200bb\u00adc\ufeff\u200ed\x07e\ud800f", "abcdef"),
        ("one\r\n\r\n\r\n\r\ntwo", "one\n\ntwo"),
        ("one , two .", "one, two."),
    ],
)  # fmt: skip
def test_markup_is_cleaned(raw: str, cleaned: str) -> None:
    assert clean(raw) == cleaned


@pytest.mark.parametrize("text", [INTRO, INTRO + "\n" + INTRO.replace("northern", "southern"), INTRO + " “Yes!”"])
def test_whole_prose_is_kept(text: str) -> None:
    assert refine(text) == (text, "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("{{Short description|Nothing else}}", "empty"),
        ("Ada was a mathematician.", "too short"),
        ("Mercury may refer to:\nMercury (planet)\nMercury (element)", "disambiguation"),
        ("Mercury most commonly refers to the planet. Mercury may also refer to:\nMercury (element)", "disambiguation"),
        (f"{INTRO} It was", "cut off"),
        (INTRO + " The tower is painted in red and", "cut off"),
        (INTRO + " It was restored after the flood of ...", "cut off"),
        (INTRO + " Its keepers were:", "cut off"),
        (INTRO.replace(".", ""), "no sentence end"),
        ("Keepers of the light:\n" + "\n".join(f"* John Smith the {n}th" for n in range(9)), "mostly a list"),
        ("Track listing\n" + "\n".join(f"{n}. A Song of the Sea." for n in range(12)), "mostly a list"),
        (" ".join(f"{n:04}: 12.5/7 = {n * 3} km." for n in range(30)), "mostly no letters"),
        (INTRO + " {{unclosed template.", "markup left over"),
        (INTRO + " [[unclosed link.", "markup left over"),
        (INTRO + " \\frac{a is open.", "markup left over"),
        (INTRO + " ".join([" where {\\displaystyle \\alpha ^{2}} holds and"] * 4) + " more.", "too many formulas"),
    ],
)  # fmt: skip
def test_fragments_are_dropped(text: str, reason: str) -> None:
    assert refine(text)[1] == reason


def test_judge_speaks_of_cleaned_text() -> None:
    assert judge(INTRO) == ""
    assert refine(f"'''{INTRO[:25]}'''{INTRO[25:]}") == (INTRO, "")


def test_sifting_drops_equal_texts_and_counts_everything() -> None:
    counts: Counter[str] = Counter()
    passages = [("a", INTRO), ("b", "Short."), ("c", f"{INTRO} "), ("d", INTRO[:-1]), ("e", INTRO + " " + INTRO)]
    assert list(sift(passages, counts)) == [("a", INTRO), ("e", INTRO + " " + INTRO)]
    assert counts == {"kept": 2, "too short": 1, "duplicate": 1, "cut off": 1}
    assert summary(counts).startswith("kept 2 of 5: 1 ")
    assert (
        summary(Counter({"kept": 1812, "too short": 120, "cut off": 68}))
        == "kept 1,812 of 2,000: 120 too short, 68 cut off"
    )
    assert summary(Counter({"kept": 3})) == "kept 3 of 3"


PIECES = st.sampled_from(
    ["{", "}", "{{", "}}", "[[", "]]", "|", "'''", "''", "<ref>", "</ref>", "<b>", "<", ">", "&amp;", "&lt;", "$", "=="]
) | st.sampled_from(
    [
        "\\frac",
        "{\\displaystyle ",
        "\\(",
        "\\)",
        "(",
        ")",
        ";",
        ",",
        ".",
        " ",
        "  ",
        "\n",
        "http://a.b/",
        "a",
        "{|",
        "|}",
    ]
)


@given(st.lists(PIECES, max_size=25).map("".join) | st.text())
def test_cleaning_twice_is_cleaning_once(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned
    cleaned.encode()  # never a lone surrogate


@pytest.mark.parametrize(
    "piece", ["{{", "[[", "<ref>", "{|\n", "(", "\n  ", "{\\displaystyle ", "$\\a", "''", "<!--", " ,", "=="]
)
def test_no_text_takes_forever(piece: str) -> None:
    began = time.process_time()
    clean(piece * 2_000)
    assert time.process_time() - began < 2
