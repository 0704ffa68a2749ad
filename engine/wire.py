"""How the processes of one run talk: rank 0 gives orders, the others obey, and each notices when the other end is gone.

One TCP connection from each rank to rank 0, JSON objects a line. The operating system closes a connection when its
process ends, however it ends: so a death is known at once, and a slow process is never taken for a dead one. (Where a
whole machine vanishes, TCP's own keep-alive notices within a minute.) Tensors don't come this way.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import platform
import queue
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

GRACE_S = 5.0  # for rank 0 to notice by itself that a rank is lost
WRITING_S = 20.0  # for what it is writing by then; torchrun kills 30 s after its SIGTERM
_CONNECT_S, _HELLO_S = 120.0, 10.0
_LONGEST = 2**20  # bytes of a message
_KEEP_ALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


class RankLostError(RuntimeError):
    """A rank ended while the others were training."""


class _Line:
    """One connection: JSON objects in both directions."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._file = connection.makefile("rb")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE:
            if hasattr(socket, name):  # not on every system
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The next message; None once the other end is gone."""
        try:
            value = json.loads(self._file.readline(_LONGEST))
        except (OSError, ValueError, RecursionError):  # reset, timed out; nothing, or half a line
            return None
        return value if isinstance(value, dict) else None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Leader:
    """Rank 0's end.

    Args:
        size: of the world.
        one_machine: whether all ranks are on this machine; nothing outside can connect then.

    Attributes:
        invitation: where and with which key the others connect; give it to them.
        lost: a sentence that names the rank that ended, "" while all are there.
        stop_asked: whether another rank got a signal to stop.
    """

    def __init__(self, size: int, *, one_machine: bool) -> None:
        self._size = size
        self._key = secrets.token_hex(16)
        self._server = socket.create_server(("127.0.0.1" if one_machine else "", 0), backlog=size)
        self.invitation = {
            "hosts": ["127.0.0.1"] if one_machine else list(_own_addresses()),
            "port": self._server.getsockname()[1],
            "key": self._key,
        }
        self.lost = ""
        self.stop_asked = False
        self._lines: list[_Line] = []
        self._closing = False
        self._loss = threading.Event()
        self._noticed = threading.Event()  # by the main thread, which then ends this process in order
        self._writing = threading.Lock()
        self._when_stuck: Callable[[], None] = lambda: None

    def welcome(self) -> None:
        """Wait until all other ranks are connected.

        Raises:
            TimeoutError: some did not come.
        """
        self._server.settimeout(_CONNECT_S)
        while len(self._lines) < self._size - 1:
            connection, _ = self._server.accept()
            connection.settimeout(_HELLO_S)
            line = _Line(connection)
            hello = line.receive() or {}
            if not hmac.compare_digest(str(hello.get("key")).encode("utf-8", "replace"), self._key.encode()):
                line.close()
                continue
            connection.settimeout(None)
            self._lines.append(line)
            name = f"Rank {hello['rank']} (host {hello['host']}, process {hello['pid']})"
            threading.Thread(target=self._listen, args=(line, name), name=name, daemon=True).start()
        self._server.close()

    def _listen(self, line: _Line, name: str) -> None:
        while message := line.receive():
            if message.get("what") == "stop":
                self.stop_asked = True
            elif message.get("what") == "failed":
                self._lose(f"{name} failed: {message.get('sentence')}")
        self._lose(f"{name} ended without a word: it was killed, or its machine or network failed.")

    def _lose(self, sentence: str) -> None:
        if self.lost or self._closing:
            return
        self.lost = sentence
        self._loss.set()
        # A GPU that waits for a dead rank holds the main thread forever, beyond the reach of any signal.
        threading.Thread(target=self._end_by_force, name="end by force", daemon=True).start()

    def _end_by_force(self) -> None:
        if self._noticed.wait(GRACE_S):
            return
        if self._writing.locked() and self._writing.acquire(timeout=WRITING_S) and self._noticed.wait(GRACE_S):
            return  # the main thread was not stuck, but at work on a checkpoint, which is whole now
        self._when_stuck()
        print(f"Failed: {self.lost}", file=sys.stderr, flush=True)
        os._exit(1)

    @property
    def writing(self) -> AbstractContextManager[Any]:
        """Around what needs no other rank and should be finished even when one is lost, such as writing a file."""
        return self._writing

    def when_stuck(self, write_down: Callable[[], None]) -> None:
        """What to do when a rank was lost and the main thread hangs, before this process is ended by force."""
        self._when_stuck = write_down

    def lost_within(self, seconds: float) -> str:
        """The sentence for a lost rank, which may become known a moment after a failure that it caused."""
        if self._loss.wait(seconds):
            self._noticed.set()
        return self.lost

    def order(self, what: str, **values: Any) -> None:
        """Tell all other ranks what to do next.

        Raises:
            RankLostError: one of them is gone.
        """
        for line in self._lines:
            try:
                line.send({"what": what, **values})
            except OSError:
                self._loss.wait(GRACE_S)
            if self.lost:
                raise RankLostError(self.lost)

    def close(self) -> None:
        """Hang up. Ranks that were not told to end before are ended by it."""
        self._closing = True
        self._noticed.set()
        for line in self._lines:
            line.close()
        self._server.close()


def _own_addresses() -> Iterator[str]:
    """Where other machines may reach this one, the likeliest first."""
    master = os.environ["MASTER_ADDR"]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 9))  # sends nothing; finds the way there
        yield str(probe.getsockname()[0])
    yield master
    yield platform.node()


class Follower:
    """The end of any other rank.

    Args:
        rank: of this process.
        invitation: the leader's.

    Raises:
        OSError: the leader cannot be reached.
    """

    def __init__(self, rank: int, invitation: dict[str, Any]) -> None:
        self._line = _Line(_connect(invitation["hosts"], invitation["port"]))
        self._line.send({"key": invitation["key"], "rank": rank, "host": platform.node(), "pid": os.getpid()})
        self._orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="orders", daemon=True).start()

    def _listen(self) -> None:
        while message := self._line.receive():
            self._orders.put(message)
            if message["what"] == "end":
                return
        os._exit(0)  # rank 0 is gone, says why if it can, and there is nothing to save here

    def next_order(self) -> dict[str, Any]:
        """Wait for what rank 0 wants next; `what` says it."""
        return self._orders.get()

    def tell(self, what: str, **values: Any) -> None:
        """Tell rank 0 that this rank was asked to `stop`, or has `failed`."""
        with contextlib.suppress(OSError):
            self._line.send({"what": what, **values})


def _connect(hosts: list[str], port: int) -> socket.socket:
    problem: OSError = OSError("no address")
    for host in hosts:
        try:
            connection = socket.create_connection((host, port), timeout=_HELLO_S)
        except OSError as error:
            problem = error
            continue
        connection.settimeout(None)
        return connection
    raise problem
