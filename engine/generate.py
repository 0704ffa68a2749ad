"""Text from a model: one token after the other, each drawn from what the model predicts.

Draws from a generator of its own, so that sampling during training changes nothing in the training.

As a command: `python -m engine.generate RUN --prompt "Once upon a time"`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine import tokenizer
from engine.errors import CheckpointError, ConfigError, Problem

if TYPE_CHECKING:
    import torch

    from engine.checkpoint import Checkpoint
    from engine.model import GPT


def generate(
    run_id: str,
    prompt: str,
    *,
    step: int | None = None,
    length: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """Continue a prompt with a run's model.

    Args:
        run_id: of the run.
        prompt: the beginning; an empty one starts a new text.
        step: of the checkpoint; None takes the newest.
        length: tokens to generate.
        temperature: below 1 prefers likely tokens; 0 always takes the likeliest.
        top_k: draw from this many likeliest tokens; 0 draws from all.
        top_p: draw from the fewest likeliest tokens that have this probability together; 1 draws from all.
        seed: the same seed gives the same text.

    Returns:
        The continuation, without the prompt.

    Raises:
        RunError, CheckpointError: there is no such run or usable checkpoint.
        ConfigError: a number is out of range.
    """
    check_sampling(length, temperature, top_k, seed, top_p)
    model = load_model(run_id, step)
    return "".join(stream_text(model, prompt, length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed))


def check_sampling(length: int, temperature: float, top_k: int, seed: int, top_p: float = 1.0) -> None:
    """Raise a ConfigError that names every number that is out of range."""
    problems = []
    if not 0 <= length <= 100_000:
        problems.append(Problem("length", f"{length} is out of range; it must be from 0 to 100000."))
    if not 0 <= temperature <= 5:
        problems.append(Problem("temperature", f"{temperature:g} is out of range; it must be from 0 to 5."))
    if not 0 <= seed < 2**63:
        problems.append(Problem("seed", f"{seed} is out of range; it must be from 0 to 2⁶³ - 1."))
    if top_k < 0:
        problems.append(Problem("top_k", f"{top_k} is out of range; it must not be negative."))
    if not 0 <= top_p <= 1:
        problems.append(Problem("top_p", f"{top_p:g} is out of range; it must be from 0 to 1."))
    if problems:
        raise ConfigError(problems)


def load_model(run_id: str, step: int | None = None) -> GPT:
    """A run's model, on the CPU, ready for generation.

    Raises:
        RunError, CheckpointError: there is no such run or usable checkpoint.
    """
    return load_checkpoint(run_id, step)[1]


def load_checkpoint(run_id: str, step: int | None = None) -> tuple[Checkpoint, GPT]:
    """Like `load_model`, with the checkpoint that it is of."""
    from engine.start import checkpoint_of

    checkpoint = checkpoint_of(run_id, step)
    while True:
        try:
            return checkpoint, _model_of(checkpoint)
        except CheckpointError:
            newer = checkpoint_of(run_id, step)
            if newer.path == checkpoint.path:  # else the run trains, and has deleted it for a newer one
                raise
            checkpoint = newer


def _model_of(checkpoint: Checkpoint) -> GPT:
    from engine.checkpoint import load
    from engine.model import GPT
    from engine.run import load_run
    from engine.step import load_weights

    config = load_run(checkpoint.run_id).config
    model = GPT(config.model, attention_impl=config.attention_impl)
    try:
        load_weights(model, load(checkpoint, weights_only=True).model)
    except (KeyError, RuntimeError) as error:
        fit = f"Checkpoint {checkpoint.path.name} of run {checkpoint.run_id} does not fit its model."
        raise CheckpointError(fit) from error
    return model.eval()


def stream_text(
    model: GPT, prompt: str, length: int, *, temperature: float, top_k: int, top_p: float = 1.0, seed: int
) -> Iterator[str]:
    """The continuation in pieces, as they come; characters of several tokens arrive whole."""
    ids = prompt_ids(prompt)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for token in stream_tokens(model, ids, length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed):
        piece = decoder.decode(tokenizer.encoding().decode_single_token_bytes(token))
        if piece:
            yield piece
    rest = decoder.decode(b"", final=True)
    if rest:
        yield rest


def prompt_ids(prompt: str) -> list[int]:
    """What the model sees of a prompt; an empty one is the end of another text."""
    return tokenizer.encode(prompt) or [tokenizer.END_OF_TEXT]


def stream_tokens(
    model: GPT, ids: list[int], length: int, *, temperature: float, top_k: int, top_p: float = 1.0, seed: int
) -> Iterator[int]:
    """Up to `length` token ids that continue `ids`; the model sees as many of the last ones as its context holds."""
    choices = stream_choices(model, ids, length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    return (choice.token for choice in choices)


@dataclass(frozen=True)
class Choice:
    """A token that was drawn, and what it was drawn from.

    Attributes:
        token: its id.
        logits: (V,), the model's.
        weights: (V,), the probabilities that it was drawn with: after temperature, top-k and top-p.
    """

    token: int
    logits: torch.Tensor
    weights: torch.Tensor

    def likeliest(self, count: int) -> list[tuple[int, float]]:
        """The likeliest tokens, with the probabilities that the model itself gives them."""
        best = self.logits.softmax(dim=0).topk(count)
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    @property
    def probability(self) -> float:
        """What the model itself gave the token."""
        return float(self.logits.softmax(dim=0)[self.token])

    @property
    def drawn_with(self) -> float:
        """The probability with which it was drawn."""
        return float(self.weights[self.token] / self.weights.sum())


def stream_choices(
    model: GPT, ids: list[int], length: int, *, temperature: float, top_k: int, top_p: float = 1.0, seed: int
) -> Iterator[Choice]:
    """Like `stream_tokens`, with the probabilities of each step."""
    import torch

    device = model.token_embedding.weight.device
    generator = torch.Generator().manual_seed(seed)
    context = model.config.context_length
    ids = list(ids)
    for _ in range(length):
        window = torch.tensor([ids[-context:]], device=device)  # (1, T)
        with torch.no_grad():
            logits = model.head(model.hidden(window)[0, -1]).float().cpu()  # (V,)
        weights = sampling_weights(logits, temperature, top_k, top_p)
        ids.append(int(torch.multinomial(weights, 1, generator=generator)) if temperature else int(weights.argmax()))
        yield Choice(ids[-1], logits, weights)


def sampling_weights(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """What a token is drawn by, in proportion: the model's probabilities after temperature, top-k and then top-p.

    Top-p is nucleus sampling (arXiv:1904.09751): the likeliest tokens, at least one, up to that with which their
    probabilities reach top-p together.

    Args:
        logits: (V,).

    Returns:
        (V,), zero for what cannot be drawn.
    """
    import torch

    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(), len(logits)).float()
    logits = (logits - logits.max()) / temperature  # at most 0, so that a tiny temperature does no harm
    if 0 < top_k < len(logits):
        logits[logits < logits.topk(top_k).values[-1]] = -torch.inf
    weights = logits.softmax(dim=0)
    if top_p < 1:
        ordered, order = weights.sort(descending=True, stable=True)
        before = ordered.cumsum(dim=0) - ordered  # what the likelier ones have together
        beyond = before >= top_p
        beyond[0] = False
        weights[order[beyond]] = 0.0
    return weights


if __name__ == "__main__":
    import sys

    from engine.cli.generate import main

    sys.exit(main())
