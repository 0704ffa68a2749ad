"""engine.tokenizer: GPT-2's ids, any text there and back, no network."""

from __future__ import annotations

import base64
import hashlib
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken_ext.openai_public
from hypothesis import given
from hypothesis import strategies as st

from engine import tokenizer
from engine.errors import LabError
from engine.paths import ASSETS

VOCABULARY = ASSETS / "gpt2.tiktoken"

# As written in openai/gpt-2, src/encoder.py.
ORIGINAL_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

TEXTS = st.text() | st.text(st.sampled_from("ab 's1.\n\t\r\u00a0é漢🙂\u200d\u0301"))


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the tokenizer asked the network")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def tiktokens_own() -> tiktoken.Encoding:
    """The encoding as tiktoken itself defines it (r50k_base is gpt2 in one file), built from the shipped ranks."""

    def from_assets(_: str, expected_hash: str) -> dict[bytes, int]:
        raw = VOCABULARY.read_bytes()
        assert hashlib.sha256(raw).hexdigest() == expected_hash  # tiktoken's, not the lab's
        return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, raw.splitlines())}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", from_assets)
        return tiktoken.Encoding(**tiktoken_ext.openai_public.r50k_base())


@pytest.fixture(scope="module")
def as_published(tiktokens_own: tiktoken.Encoding) -> tiktoken.Encoding:
    """The encoding with the pattern of GPT-2's first publication."""
    return tiktoken.Encoding(
        "published",
        pat_str=ORIGINAL_PATTERN,
        mergeable_ranks=tiktokens_own._mergeable_ranks,
        special_tokens={"<|endoftext|>": 50256},
    )


def test_known_ids() -> None:
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.decode([15496, 995]) == "Hello world"


def test_no_network_and_no_cache_left_by_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    tokenizer.encoding.cache_clear()
    assert tokenizer.encode("Hello world") == [15496, 995]


@given(TEXTS)
def test_ids_are_tiktokens(tiktokens_own: tiktoken.Encoding, as_published: tiktoken.Encoding, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == tiktokens_own.encode_ordinary(text)
    assert ids == as_published.encode_ordinary(text)


def test_ids_of_the_corpora_are_tiktokens(tiktokens_own: tiktoken.Encoding) -> None:
    for path in sorted(Path(__file__).parents[2].joinpath("corpora").glob("*.txt"))[:5]:
        text = path.read_text(encoding="utf-8")[:100_000]
        assert tokenizer.encode(text) == tiktokens_own.encode_ordinary(text)


@given(TEXTS)
def test_any_text_comes_back_unchanged(text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.END_OF_TEXT for i in ids)  # no text makes the special token


def test_the_special_token_is_text_when_it_is_written() -> None:
    ids = tokenizer.encode("before<|endoftext|>after")
    assert tokenizer.END_OF_TEXT not in ids
    assert tokenizer.decode(ids) == "before<|endoftext|>after"


def test_a_character_cut_in_two_is_replaced() -> None:
    ids = tokenizer.encode("🙂")
    assert len(ids) > 1
    assert tokenizer.decode(ids[:-1]).startswith("\ufffd")


@pytest.mark.parametrize("caching", ["tiktoken's own folder", "switched off"])
@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_a_damaged_vocabulary_is_told_in_a_sentence(
    damage: str, caching: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever tiktoken's own cache holds or does not hold: the lab reads what it ships."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "" if caching == "switched off" else str(tmp_path / "cache"))
    path = tmp_path / VOCABULARY.name
    shutil.copy(VOCABULARY, path)
    monkeypatch.setattr(tokenizer, "ASSETS", tmp_path)
    tokenizer.encoding.cache_clear()
    try:
        tokenizer.encoding()  # it was whole once; nothing that remembers it may hide the damage
        tokenizer.encoding.cache_clear()
        whole = path.read_bytes()
        if damage == "missing":
            path.unlink()
        else:
            path.write_bytes(whole[:1000] if damage == "cut" else whole.replace(b" 1000\n", b" 1001\n"))
        with pytest.raises(LabError, match="restore it from the project") as caught:
            tokenizer.encoding()
        assert str(path) in str(caught.value)
    finally:
        tokenizer.encoding.cache_clear()
