"""Working over a network: failures that pass are tried again, and one that hangs cannot delay a cancel."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

from engine.corpora.progress import Progress

T = TypeVar("T")

ATTEMPTS = 6  # without anything gained, before giving up
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0  # between attempts, doubling; together about half a minute
LONGEST_REQUESTED_WAIT_S = 120.0  # a server that asks for more patience than this is told to the user
CONNECT_S, READ_S = 10.0, 30.0  # how long a server may take to accept, and how long it may be silent


class Trouble(Exception):
    """Why an attempt failed, as the end of a sentence that named the server.

    Attributes:
        lasting: it is no use to try again soon.
        unreachable: the server never answered.
        wait_s: how long the server asked to be left alone.
    """

    def __init__(
        self, reason: str, *, lasting: bool = False, unreachable: bool = False, wait_s: float | None = None
    ) -> None:
        self.lasting = lasting
        self.unreachable = unreachable
        self.wait_s = wait_s
        super().__init__(reason)


def refusal(status: int, phrase: str, headers: Mapping[str, str]) -> Trouble:
    """What an answer that is no success means: busy servers (408, 425, 429, 5xx) are asked again, others are not."""
    reason = f"it answered {status} {phrase}".rstrip()
    if status not in (408, 425, 429) and status < 500:
        return Trouble(reason, lasting=True)
    wait_s = _retry_after(headers.get("Retry-After", ""))
    if wait_s is not None and wait_s > LONGEST_REQUESTED_WAIT_S:
        return Trouble(f"{reason} and asks to be left alone for {wait_s:,.0f} seconds", lasting=True)
    return Trouble(reason, wait_s=wait_s)


def _retry_after(value: str) -> float | None:
    """Seconds; the header holds them, or a date (RFC 9110, section 10.2.3)."""
    if value.strip().isdecimal():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    return None


def persist(attempt: Callable[[], T], progress: Progress, gained: Callable[[], int] = lambda: 0) -> T:
    """Call `attempt` until it succeeds, waiting longer each time (exponential back-off with jitter).

    Args:
        attempt: raises `Trouble` when it fails.
        progress: asked during the waits.
        gained: a number that grows when a failed attempt was of use all the same; patience then begins anew.

    Raises:
        Trouble: it will not pass, or has not passed.
        CancelledError: somebody asked to stop.
    """
    failures, most = 0, gained()
    while True:
        try:
            return attempt()
        except Trouble as trouble:
            failures = 1 if gained() > most else failures + 1
            most = max(most, gained())
            if trouble.lasting or failures >= ATTEMPTS:
                raise
            wait_s = trouble.wait_s
        if wait_s is None:
            wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
        _wait(wait_s, progress)


def _wait(seconds: float, progress: Progress) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        progress.check()
        time.sleep(min(left, 0.1))


def in_background(produce: Callable[[], Iterator[T]], progress: Progress) -> Generator[T]:
    """What `produce` yields, made in a thread of its own, and a few items ahead.

    A thread that waits for a network cannot be interrupted; this one can be left behind. It must change nothing but
    what it yields, and ends by itself.

    Raises:
        CancelledError: somebody asked to stop.
        Exception: whatever `produce` raises.
    """
    ready: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(maxsize=8)
    left = threading.Event()

    def offer(items: list[T], error: BaseException | None = None) -> None:
        while not left.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put((items, error), timeout=0.1)

    def work() -> None:
        try:
            for item in produce():
                offer([item])
                if left.is_set():
                    return
            offer([])
        except BaseException as error:
            offer([], error)

    threading.Thread(target=work, name="network", daemon=True).start()
    try:
        while True:
            progress.check()
            try:
                items, error = ready.get(timeout=0.1)
            except queue.Empty:
                continue
            if error is not None:
                raise error
            if not items:
                return
            yield from items
    finally:
        left.set()
