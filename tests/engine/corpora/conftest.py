"""What the tests of corpora share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from engine.corpora import patience
from tests.web import Web


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """The servers that corpora come from, with nothing on them yet; the product asks them, and waits little."""
    monkeypatch.setattr(patience, "FIRST_WAIT_S", 0.0002)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with Web() as servers:
        for name, value in servers.environment.items():
            monkeypatch.setenv(name, value)
        yield servers
