"""engine.generate: text from a model, reproducible and whole."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from engine import generate as generate_function
from engine import tokenizer
from engine.checkpoint import Contents, find_checkpoint, load, save
from engine.cli.generate import main
from engine.config import ModelConfig, TrainConfig, to_dict
from engine.errors import CheckpointError, ConfigError, RunError
from engine.files import remove_folder
from engine.generate import check_sampling, sampling_weights, stream_choices, stream_text, stream_tokens
from engine.labels import write_labels
from engine.model import GPT
from engine.paths import PROJECT, runs_dir
from engine.start import new_run

HOW: dict[str, Any] = dict(temperature=0.8, top_k=50, seed=1)


@pytest.fixture(scope="module")
def model() -> GPT:
    """A model with opinions: random weights, large enough that its predictions are far from even."""
    model = GPT(ModelConfig(layers=2, heads=2, width=32, context_length=16))
    model.initialize(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(5)
    return model.eval()


def tokens(model: GPT, prompt: list[int], length: int = 20, **how: Any) -> list[int]:
    return list(stream_tokens(model, prompt, length, **(HOW | how)))


def test_greedy_takes_the_likeliest_token_every_time(model: GPT) -> None:
    prompt = tokenizer.encode("The tower")
    ids = list(prompt)
    for _ in range(8):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids[-16:]]))[0, -1].argmax()))
    assert tokens(model, prompt, 8, temperature=0, seed=1) == ids[len(prompt) :]
    assert tokens(model, prompt, 8, temperature=0, seed=2) == ids[len(prompt) :]


def test_one_candidate_is_greedy(model: GPT) -> None:
    assert tokens(model, [5], top_k=1, temperature=1.5) == tokens(model, [5], temperature=0)


def test_a_seed_decides_the_text(model: GPT) -> None:
    first = tokens(model, [5], seed=1, temperature=1.5)
    assert tokens(model, [5], seed=1, temperature=1.5) == first
    assert tokens(model, [5], seed=2, temperature=1.5) != first


def test_only_the_likeliest_are_drawn(model: GPT) -> None:
    with torch.no_grad():
        allowed = set(model(torch.tensor([[5]]))[0, -1].topk(3).indices.tolist())
    drawn = {tokens(model, [5], 1, top_k=3, temperature=5.0, seed=seed)[0] for seed in range(60)}
    assert drawn == allowed


@pytest.mark.parametrize("temperature", [0.7, 2.0])
def test_tokens_are_drawn_as_often_as_the_model_says(model: GPT, temperature: float) -> None:
    with torch.no_grad():
        logits = model(torch.tensor([[5]]))[0, -1]
    best = logits.topk(4)
    expected = (best.values / temperature).softmax(0)
    draws = [tokens(model, [5], 1, top_k=4, temperature=temperature, seed=seed)[0] for seed in range(400)]
    for index, share in zip(best.indices.tolist(), expected.tolist(), strict=True):
        assert draws.count(index) / 400 == pytest.approx(share, abs=0.1)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-40])
def test_a_tiny_temperature_is_greedy_and_no_crash(temperature: float, model: GPT) -> None:
    assert tokens(model, [5], 4, temperature=temperature, top_k=0) == tokens(model, [5], 4, temperature=0)


def test_all_tokens_may_be_drawn_from(model: GPT) -> None:
    everything = tokens(model, [5], 12, top_k=0, temperature=5.0)
    assert everything == tokens(model, [5], 12, top_k=50257, temperature=5.0)
    assert everything != tokens(model, [5], 12, top_k=2, temperature=5.0)


def nucleus(probabilities: list[float], top_p: float) -> set[int]:
    """Slowly, as the paper says it: take the likeliest one by one until together they have top-p."""
    taken: set[int] = set()
    together = 0.0
    for index in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        if taken and together >= top_p:
            break
        taken.add(index)
        together += probabilities[index]
    return taken


@given(
    st.lists(st.integers(-80, 80).map(lambda n: n / 10), min_size=1, max_size=12, unique=True),
    st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.9, 0.99, 1.0]),
    st.integers(0, 12),
    st.sampled_from([0.3, 1.0, 2.0]),
)
def test_top_p_is_the_nucleus_of_what_top_k_left(
    values: list[float], top_p: float, top_k: int, temperature: float
) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    kept = sorted(range(len(values)), key=lambda i: -values[i])[: top_k or None]
    scaled = [math.exp(v / temperature) if i in kept else 0.0 for i, v in enumerate(values)]
    probabilities = [v / sum(scaled) for v in scaled]
    sums = [sum(sorted(probabilities, reverse=True)[:n]) for n in range(len(values))]
    assume(all(abs(total - top_p) > 1e-6 for total in sums[1:]))  # at the very edge rounding decides
    found = sampling_weights(logits, temperature, top_k, top_p)
    expected = nucleus(probabilities, top_p) if top_p < 1 else set(kept)
    assert {i for i, weight in enumerate(found.tolist()) if weight} == {i for i in expected if probabilities[i]}
    for i in expected:
        assert float(found[i]) == pytest.approx(probabilities[i], abs=1e-9)
    assert logits.tolist() == values


def test_top_p_decides_what_is_drawn(model: GPT) -> None:
    with torch.no_grad():
        probabilities = (model(torch.tensor([[5]]))[0, -1] / 2.0).softmax(0)
    best = probabilities.sort(descending=True)
    top_p = float(best.values[:2].sum()) + float(best.values[2]) / 2  # within the third
    drawn = {tokens(model, [5], 1, top_k=0, top_p=top_p, temperature=2.0, seed=seed)[0] for seed in range(80)}
    assert drawn == set(best.indices[:3].tolist())
    assert tokens(model, [5], top_p=0.0, temperature=1.5) == tokens(model, [5], temperature=0)
    assert tokens(model, [5], top_p=1.0, temperature=1.5) == tokens(model, [5], temperature=1.5)


@pytest.mark.parametrize("how", [{}, {"temperature": 0}, {"top_k": 3, "top_p": 0.5}])
def test_choices_tell_what_was_drawn_from(how: dict[str, Any], model: GPT) -> None:
    how = HOW | how
    choices = list(stream_choices(model, [5], 10, **how))
    assert [choice.token for choice in choices] == tokens(model, [5], 10, **how)
    ids = [5]
    for choice in choices:
        with torch.no_grad():
            expected = model(torch.tensor([ids[-16:]]))[0, -1].softmax(0)
        assert choice.probability == pytest.approx(float(expected[choice.token]), rel=1e-4)
        five = choice.likeliest(5)
        assert [i for i, _ in five] == expected.topk(5).indices.tolist()
        assert [p for _, p in five] == pytest.approx(expected.topk(5).values.tolist(), rel=1e-4)
        assert 0 < choice.drawn_with <= 1 and float(choice.weights.sum()) <= 1.0001
        if how["temperature"] == 0:
            assert choice.drawn_with == 1 and choice.token == five[0][0]
        ids.append(choice.token)


def test_a_prompt_longer_than_the_context_counts_with_its_end(model: GPT) -> None:
    long = tokenizer.encode("one two three four five six seven eight nine ten " * 5)
    assert len(long) > 16
    assert tokens(model, long, temperature=0) == tokens(model, long[-16:], temperature=0)


def test_nothing_is_generated_when_nothing_is_asked(model: GPT) -> None:
    assert tokens(model, [5], 0) == []
    assert list(stream_text(model, "x", 0, **HOW)) == []


def test_an_empty_prompt_starts_a_new_text(model: GPT) -> None:
    pieces = "".join(stream_text(model, "", 5, **HOW))
    assert pieces == tokenizer.decode(tokens(model, [tokenizer.END_OF_TEXT], 5))


def test_the_prompt_is_not_changed(model: GPT) -> None:
    prompt = [5, 6]
    tokens(model, prompt)
    assert prompt == [5, 6]


def test_streaming_joins_to_the_whole(model: GPT) -> None:
    prompt = "Every evening"
    pieces = list(stream_text(model, prompt, 40, **HOW))
    assert len(pieces) > 10
    assert "".join(pieces) == tokenizer.decode(tokens(model, tokenizer.encode(prompt), 40))


def streamed(ids: list[int], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pieces of text that come out when the model says exactly these tokens."""

    def says(*_: Any, **__: Any) -> Iterator[int]:
        yield from ids

    monkeypatch.setitem(stream_text.__globals__, "stream_tokens", says)
    return list(stream_text(None, "", len(ids), **HOW))  # type: ignore[arg-type]


@given(st.text(min_size=1))
def test_characters_of_several_tokens_arrive_whole(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        pieces = streamed(tokenizer.encode(text), patch)
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


BYTES = st.sampled_from(range(256))  # GPT-2's first 256 tokens are the single bytes


@given(st.lists(BYTES | st.integers(0, 50255), max_size=30))
def test_whatever_a_model_says_streams_to_what_it_said(ids: list[int]) -> None:
    """An untrained model says bytes that are no characters; none of them may spoil a character after them."""
    with pytest.MonkeyPatch.context() as patch:
        assert "".join(streamed(ids, patch)) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("numbers", "field"),
    [
        ((-1, 0.8, 50, 0), "length"),
        ((100_001, 0.8, 50, 0), "length"),
        ((5, -0.1, 50, 0), "temperature"),
        ((5, 5.1, 50, 0), "temperature"),
        ((5, float("nan"), 50, 0), "temperature"),
        ((5, 0.8, -1, 0), "top_k"),
        ((5, 0.8, 50, -1), "seed"),
        ((5, 0.8, 50, 2**64), "seed"),
        ((5, 0.8, 50, 0, -0.1), "top_p"),
        ((5, 0.8, 50, 0, 1.1), "top_p"),
        ((5, 0.8, 50, 0, float("nan")), "top_p"),
    ],
)
def test_numbers_out_of_range(numbers: tuple[Any, ...], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_sampling(*numbers)
    assert [p.field for p in caught.value.problems] == [field]


def test_all_numbers_out_of_range_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        check_sampling(-1, 9.0, -1, -1, 2.0)
    assert {p.field for p in caught.value.problems} == {"length", "temperature", "top_k", "seed", "top_p"}


# ---------------------------------------------------------------------------------------- from a stored run


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder of runs with one nano run in it whose checkpoint holds initial weights."""
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAB_RUNS", str(folder / "runs"))
        patch.setenv("LAB_CORPORA", str(folder / "corpora"))
        patch.setattr("os.fsync", lambda _: None)  # it only costs time here
        run = new_run(TrainConfig(corpus="tiny", context_length=32, batch_size=1))
        run.close()
        model = GPT(run.config.model)
        model.initialize(1)
        weights = {name: w for name, w in model.state_dict().items() if name != "head.weight"}
        save(run.folder, Contents(weights, {}, {}), {"step": 3}, to_dict(run.config))
        yield folder / "runs", run.id


@pytest.fixture
def run_id(stored: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LAB_RUNS", str(stored[0]))
    return stored[1]


def test_a_runs_model_continues_a_prompt(run_id: str) -> None:
    text = generate_function(run_id, "Every evening", length=6, seed=4)
    assert text and text == generate_function(run_id, "Every evening", step=3, length=6, seed=4)
    assert not text.startswith("Every evening")


def test_generating_leaves_the_global_random_numbers_alone(run_id: str) -> None:
    """A training in the same process draws its dropout from them."""
    state = torch.get_rng_state()
    generate_function(run_id, "x", length=3)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", [2**70, -(2**70)])
def test_a_seed_out_of_range_is_a_sentence(seed: int, run_id: str) -> None:
    with pytest.raises(ConfigError, match="seed"):
        generate_function(run_id, "x", length=1, seed=seed)


@pytest.mark.parametrize("step", [None, 3])
def test_a_checkpoint_that_is_pruned_while_it_is_read(
    step: int | None, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest is then another one; one that was asked for is gone, which is not to be damaged."""
    folder = tmp_path / "runs" / run_id
    shutil.copytree(runs_dir() / run_id, folder)
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "runs"))
    older = folder / "checkpoints" / "step-000003"
    contents = load(find_checkpoint(folder), weights_only=True)
    read = Path.open

    def delete_first(path: Path, *arguments: Any, **how: Any) -> Any:
        if path == older / "model.safetensors" and path.exists():
            save(folder, contents, {"step": 4}, {})
            remove_folder(older)
        return read(path, *arguments, **how)

    monkeypatch.setattr(Path, "open", delete_first)
    if step is None:
        assert generate_function(run_id, "x", length=2) == generate_function(run_id, "x", step=4, length=2)
    else:
        with pytest.raises(CheckpointError, match="no checkpoint at step 3; it has: 4"):
            generate_function(run_id, "x", step=step)
    assert not older.exists()


def test_what_is_not_there_is_told(run_id: str) -> None:
    with pytest.raises(RunError, match="There is no run"):
        generate_function("20260101-000000-nano-tiny-0000", "x")
    with pytest.raises(RunError, match="not the id of a run"):
        generate_function("../" + run_id, "x")
    with pytest.raises(CheckpointError, match="no checkpoint at step 4; it has: 3"):
        generate_function(run_id, "x", step=4)
    with pytest.raises(ConfigError):
        generate_function(run_id, "x", length=-1)


def test_the_command_says_what_is_wrong(run_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run_id, "--top-p", "1.5", "--temperature", "nan", "--seed", "-1"]) == 2
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        "--temperature",
        "--seed",
        "--top-p",
    ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_an_output_that_cannot_be_written_is_a_sentence(run_id: str) -> None:
    command = [sys.executable, "-m", "engine.runs", "list"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, cwd=PROJECT, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stderr.startswith("The output cannot be written") and result.stderr.count("\n") == 1
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    write_labels(runs_dir() / run_id, {"name": "東京", "starred": True})
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60, env=ascii_only)
    assert result.returncode == 0 and result.stdout.endswith("  ??\n"), result.stderr
