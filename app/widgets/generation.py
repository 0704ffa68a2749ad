"""A text that is being generated in a thread of its own, so that it streams, can be stopped, and ends with its page."""

from __future__ import annotations

import codecs
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine import tokenizer
from engine.generate import Choice, prompt_ids, stream_choices

if TYPE_CHECKING:
    from engine.model import GPT

ALTERNATIVES = 5
_log = logging.getLogger("lab")


class Generation:
    """Starts at once.

    Args:
        model: shared with others and only read.
        run_id: whose model it is.
        prompt: the beginning.
        length: tokens to generate.
        how: temperature, top_k, top_p and seed, as of `engine.generate.stream_choices`.
        wanted: asked before each token; whether somebody still looks.

    Attributes:
        tokens: what was generated so far, each for the page; only ever appended to while it runs.
        failed: a sentence when it could not go on.
    """

    def __init__(
        self, model: GPT, run_id: str, prompt: str, length: int, how: dict[str, Any], wanted: Callable[[], bool]
    ) -> None:
        self.run_id, self.prompt, self.tokens, self.failed = run_id, prompt, [], ""
        self._stop = threading.Event()
        self._started = self._ended = time.monotonic()
        self._thread = threading.Thread(
            target=self._run, args=(model, length, how, wanted), name="playground", daemon=True
        )
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether more is to come."""
        return self._thread.is_alive()

    @property
    def tokens_per_s(self) -> float | None:
        """Since the first token was asked for; None before there is one."""
        seconds = (time.monotonic() if self.running else self._ended) - self._started
        return len(self.tokens) / seconds if self.tokens and seconds > 0 else None

    def stop(self) -> None:
        """End it before the next token."""
        self._stop.set()

    def wait(self, timeout_s: float | None = None) -> None:
        """Until it is over."""
        self._thread.join(timeout_s)

    def _run(self, model: GPT, length: int, how: dict[str, Any], wanted: Callable[[], bool]) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            for choice in stream_choices(model, prompt_ids(self.prompt), length, **how):
                if self._stop.is_set() or not wanted():
                    break
                piece = decoder.decode(tokenizer.encoding().decode_single_token_bytes(choice.token))
                self.tokens.append(_for_the_page(choice, piece))
        except (RuntimeError, MemoryError):
            _log.exception("Generating failed.")
            self.failed = "Generating failed; the terminal that runs the lab says more. Most often memory ran out."
        rest = decoder.decode(b"", final=True)
        if rest and self.tokens:
            self.tokens[-1] = {**self.tokens[-1], "text": self.tokens[-1]["text"] + rest}
        self._ended = time.monotonic()


def _for_the_page(choice: Choice, piece: str) -> dict[str, Any]:
    """A token as the page shows it.

    `text` is what it adds to the text, empty for a part of a character; `show` names the token itself; `p` is what the
    model gave it, `drawn` with what probability it was drawn, `best` the likeliest with theirs.
    """
    return {
        "text": piece,
        "show": tokenizer.show(choice.token),
        "id": choice.token,
        "p": choice.probability,
        "drawn": choice.drawn_with,
        "best": [[tokenizer.show(token), p, token] for token, p in choice.likeliest(ALTERNATIVES)],
    }
