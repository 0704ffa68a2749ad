"""Numbers and times as people read them."""

from __future__ import annotations

import pytest

from app.widgets import formats


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (formats.count(14336), "14,336"),
        (formats.short_count(9_938_080), "9.94 M"),
        (formats.short_count(999_700), "1,000 k"),
        (formats.short_count(640), "640"),
        (formats.rate(1234.5), "1.23 k tok/s"),
        (formats.rate(95.24), "95.2 tok/s"),
        (formats.loss(6.0678), "6.068"),
        (formats.perplexity(10.825), "50,262"),
        (formats.perplexity(1.0), "2.72"),
        (formats.perplexity(1e6), formats.DASH),
        (formats.duration(3.21), "3.2 s"),
        (formats.duration(192), "3 min 12 s"),
        (formats.duration(59.7), "1 min 0 s"),
        (formats.duration(3 * 3600 + 300), "3 h 5 min"),
        (formats.duration(2 * 86400 + 3600), "2 d 1 h"),
        (formats.size(119_000_000), "113 MiB"),
        (formats.size(20_479), "20 KiB"),
    ],
)
def test_numbers(shown: str, wanted: str) -> None:
    assert shown == wanted


@pytest.mark.parametrize("write", [formats.count, formats.short_count, formats.rate, formats.loss, formats.perplexity])
@pytest.mark.parametrize("missing", [None, float("nan"), float("inf")])
def test_what_was_not_measured_is_a_dash(write, missing: float | None) -> None:
    assert write(missing) == formats.DASH


def test_times_that_cannot_be_read_are_a_dash() -> None:
    assert formats.moment(None) == formats.moment("yesterday") == formats.clock("") == formats.DASH


def test_a_persons_text_is_no_markdown() -> None:
    assert formats.plain("a *b* [c](d)\n# e :red[f]") == r"a \*b\* \[c\]\(d\) \# e \:red\[f\]"
