"""Rank 0's end of the wire, as seen from the other end of its sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from engine import wire
from engine.wire import Leader, RankLostError


@pytest.fixture
def leader() -> Iterator[Leader]:
    """Of a world of two."""
    leader = Leader(2, one_machine=True)
    yield leader
    leader.close()


def call(leader: Leader, **message: Any) -> socket.socket:
    """Connect, and say something."""
    connection = socket.create_connection((leader.invitation["hosts"][0], leader.invitation["port"]), timeout=5)
    say(connection, **message)
    return connection


def say(connection: socket.socket, **message: Any) -> None:
    """Send one message."""
    connection.sendall(json.dumps(message).encode() + b"\n")


def welcome_one(leader: Leader) -> socket.socket:
    """The other rank, connected."""
    other = call(leader, key=leader.invitation["key"], rank=1, host="there", pid=7)
    leader.welcome()
    return other


def test_a_stranger_is_sent_away(leader: Leader) -> None:
    waiting = threading.Thread(target=leader.welcome)
    waiting.start()
    strangers = [call(leader, key="wrong", rank=1, host="there", pid=7), call(leader)]
    assert [stranger.recv(10) for stranger in strangers] == [b"", b""]
    friend = call(leader, key=leader.invitation["key"], rank=1, host="there", pid=7)
    waiting.join(5)
    assert not waiting.is_alive()
    leader.order("step")
    assert json.loads(friend.recv(100)) == {"what": "step"}


def test_a_stop_on_another_rank_reaches_rank_0(leader: Leader) -> None:
    other = welcome_one(leader)
    assert not leader.stop_asked
    say(other, what="stop")
    deadline = time.monotonic() + 5
    while not leader.stop_asked and time.monotonic() < deadline:
        time.sleep(0.01)
    assert leader.stop_asked and leader.lost == ""


@pytest.mark.parametrize("half", [b"", b'{"what": "st'])
def test_a_rank_whose_connection_ends_is_named(leader: Leader, half: bytes) -> None:
    other = welcome_one(leader)
    other.sendall(half)
    other.close()
    assert leader.lost_within(5).startswith("Rank 1 (host there, process 7) ended without a word")
    with pytest.raises(RankLostError, match="Rank 1"):
        leader.order("step")


def test_the_first_failure_counts(leader: Leader) -> None:
    other = welcome_one(leader)
    say(other, what="failed", sentence="Memory ran out.")
    assert leader.lost_within(5) == "Rank 1 (host there, process 7) failed: Memory ran out."
    other.close()
    time.sleep(0.1)
    assert leader.lost.endswith("Memory ran out.")


def test_hanging_up_is_no_loss(leader: Leader) -> None:
    other = welcome_one(leader)
    leader.order("end")
    leader.close()
    assert other.recv(100) == b'{"what": "end"}\n' and other.recv(1) == b""
    assert leader.lost_within(0.2) == ""


@pytest.fixture
def ended(leader: Leader, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when rank 0 would end by force; it has 0.2 s to notice a loss, and 1 s for what it writes."""
    ended = threading.Event()
    monkeypatch.setattr(wire, "GRACE_S", 0.2)
    monkeypatch.setattr(wire, "WRITING_S", 1.0)
    monkeypatch.setattr(wire.os, "_exit", lambda _: ended.set())
    return ended


def test_what_rank_0_writes_is_finished_when_a_rank_is_lost(leader: Leader, ended: threading.Event) -> None:
    other = welcome_one(leader)
    with leader.writing:
        other.close()
        assert not ended.wait(0.4)
    with pytest.raises(RankLostError):  # as the next step would
        leader.order("step")
    assert leader.lost_within(0) and not ended.wait(0.4)


@pytest.mark.parametrize("writing_s", [0.0, 0.4, 5.0])
def test_a_rank_0_that_is_stuck_ends_by_force(
    leader: Leader, ended: threading.Event, writing_s: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, after what it wrote is done, or when that takes too long."""
    noted: list[str] = []
    leader.when_stuck(lambda: noted.append(leader.lost))
    other = welcome_one(leader)
    with leader.writing if writing_s else contextlib.nullcontext():
        other.close()
        assert ended.wait(writing_s) == (writing_s == 5.0)
    assert ended.wait(2)
    assert noted == [leader.lost] and capsys.readouterr().err == f"Failed: {leader.lost}\n"
