"""The playground: the same text as the command line's, told token by token, and nobody generates for nobody."""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.widgets import generation, playground
from app.widgets.generation import Generation
from engine import tokenizer
from engine.checkpoint import Contents, save
from engine.config import ModelConfig
from engine.generate import Choice, stream_choices, stream_text
from engine.model import GPT
from tests.app.test_pages import DONE, Make, Open, expect_sound, press, texts

HOW: dict[str, Any] = dict(temperature=1.5, top_k=40, top_p=0.9, seed=3)


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(ModelConfig(layers=1, heads=1, width=8, context_length=16))
    model.initialize(3)
    with torch.no_grad():
        model.token_embedding.weight.mul_(40)
    return model.eval()


def start(model: GPT, length: int = 30, wanted: Any = lambda: True) -> Generation:
    return Generation(model, "run", "Every evening", length, HOW, wanted)


def test_it_is_the_text_of_the_command_line_with_the_models_probabilities(model: GPT) -> None:
    running = start(model)
    running.wait(60)
    assert not running.running and not running.failed
    assert "".join(t["text"] for t in running.tokens) == "".join(stream_text(model, "Every evening", 30, **HOW))
    ids = tokenizer.encode("Every evening")
    for told, choice in zip(running.tokens, stream_choices(model, ids, 30, **HOW), strict=True):
        assert (told["id"], told["p"], told["drawn"]) == (choice.token, choice.probability, choice.drawn_with)
        assert [(token, p) for _, p, token in told["best"]] == choice.likeliest(5)
        assert told["show"] == tokenizer.show(choice.token)


def test_characters_of_several_tokens_and_halves_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [*tokenizer.encode("a東<b>"), *tokenizer.encode("🙂")[:1]]
    logits = torch.zeros(50257)

    def says(*_: Any, **__: Any) -> Iterator[Choice]:
        return (Choice(i, logits, logits.softmax(0)) for i in ids)

    monkeypatch.setattr(generation, "stream_choices", says)
    running = Generation(None, "run", "", len(ids), HOW, lambda: True)  # type: ignore[arg-type]
    running.wait(10)
    told = [token["text"] for token in running.tokens]
    assert "".join(told) == tokenizer.decode(ids) == "a東<b>\ufffd"
    assert told[:3] == ["a", "", "東"] and running.tokens[1]["show"] == "<E6 9D>"


def test_it_stops_when_asked_and_when_nobody_looks(model: GPT) -> None:
    before = threading.active_count()
    running = start(model, 100_000)
    while len(running.tokens) < 3:
        time.sleep(0.005)
    running.stop()
    running.wait(10)
    assert not running.running and 3 <= len(running.tokens) < 100_000
    looks = iter([True, True, False])
    left = start(model, 100_000, lambda: next(looks))
    left.wait(10)
    assert len(left.tokens) == 2 and threading.active_count() == before


def test_a_failure_is_a_sentence(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: Any, **__: Any) -> Iterator[Choice]:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(generation, "stream_choices", breaks)
    running = start(model)
    running.wait(10)
    assert "Generating failed" in running.failed and not running.tokens


def test_the_page_generates_and_says_the_command(
    open_page: Open, make_run: Make, model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(make_run(DONE), Contents({"w": torch.zeros(1)}, {}, {}), {"step": 20, "train_loss": 5.0}, {})
    monkeypatch.setattr(playground, "_model", lambda *_: model)
    page = open_page("run", id=DONE, part="Playground")
    page.text_area[0].set_value("It's <b>")
    page.number_input(key="play-length").set_value(12)
    page.number_input(key="play-top-p").set_value(0.9)
    page = press(page, "Generate")
    page.session_state["generation"].wait(60)
    page.run()
    expect_sound(page)
    [shown] = [json.loads(c.proto.json) for c in page.get("bidi_component") if "choices" in c.proto.component_name]
    how: dict[str, Any] = dict(temperature=0.8, top_k=50, top_p=0.9, seed=0)
    assert "".join(t["text"] for t in shown["tokens"]) == "".join(stream_text(model, "It's <b>", 12, **how))
    assert shown["prompt"] == "It's <b>" and "12 tokens" in texts(page)
    command = shlex.split(next(c.value for c in page.code if "engine.generate" in c.value))
    assert command[3:] == [
        *(f"{DONE}@20", "--prompt=It's <b>", "--length", "12"),
        *("--temperature", "0.8", "--top-k", "50", "--top-p", "0.9", "--seed", "0"),
    ]


def test_a_checkpoint_that_does_not_fit_is_a_sentence(open_page: Open, make_run: Make) -> None:
    folder: Path = make_run(DONE)
    save(folder, Contents({"w": torch.zeros(1)}, {}, {}), {"step": 20}, {})
    page = press(open_page("run", id=DONE, part="Playground"), "Generate")
    expect_sound(page)
    assert "does not fit its model" in page.error[0].value
