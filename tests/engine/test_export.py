"""engine.export: what is taken along is what the run holds, in other programs' formats."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from engine import tokenizer
from engine.checkpoint import Contents, save
from engine.cli.export import main
from engine.config import TrainConfig, to_dict
from engine.hf import vocabulary_and_merges
from engine.model import GPT
from engine.paths import PROJECT
from engine.run import load_run
from engine.start import new_run
from engine.tensorboard import write_events

TEXT = "Every evening, it's 12345 o'clock…\n\n  naïve café — 東京 🙂🙂\tI'LL  don't "
TEXT += "we've <b>x</b>   \n \r\n end\x00\u00a0 "


@pytest.fixture
def add_run() -> Any:
    """Make a run whose checkpoint holds weights far from their initial values."""

    def add(tied: bool = True) -> tuple[str, GPT]:
        run = new_run(TrainConfig(corpus="verdict", context_length=32, batch_size=1, tie_embeddings=tied))
        run.close()
        model = GPT(run.config.model).eval()
        model.initialize(1)
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
        weights = {name: w for name, w in model.state_dict().items() if not (tied and name == "head.weight")}
        save(run.folder, Contents(weights, {}, {}), {"step": 3, "train_loss": 4.5, "tokens": 96}, to_dict(run.config))
        return run.folder.name, model

    return add


def gpt2(w: dict[str, torch.Tensor], config: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
    """GPT-2's forward pass as its paper's code has it (openai/gpt-2, src/model.py), on GPT-2's names."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + config["layer_norm_epsilon"]).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    def conv1d(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    time, width, heads = len(ids), config["n_embd"], config["n_head"]
    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:time]
    for layer in range(config["n_layer"]):
        block = f"transformer.h.{layer}"
        parts = conv1d(norm(x, f"{block}.ln_1"), f"{block}.attn.c_attn").split(width, -1)
        q, k, v = (part.view(time, heads, -1).transpose(0, 1) for part in parts)
        scores = q @ k.transpose(1, 2) / math.sqrt(width // heads)
        scores = scores.masked_fill(torch.ones(time, time).triu(1).bool(), -1e10)
        y = (F.softmax(scores, -1) @ v).transpose(0, 1).reshape(time, width)
        x = x + conv1d(y, f"{block}.attn.c_proj")
        h = conv1d(norm(x, f"{block}.ln_2"), f"{block}.mlp.c_fc")
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + conv1d(h, f"{block}.mlp.c_proj")
    head = w["transformer.wte.weight"] if config["tie_word_embeddings"] else w["lm_head.weight"]
    return norm(x, "transformer.ln_f") @ head.T


@pytest.mark.parametrize("tied", [True, False])
def test_the_exported_model_is_gpt2_with_the_same_logits(tied: bool, add_run: Any, tmp_path: Path) -> None:
    run_id, model = add_run(tied)
    folder = tmp_path / "model"
    assert main([f"{run_id}@3", "--to", "hf", str(folder)]) == 0
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1, "others may read some files only"
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    assert ("lm_head.weight" in weights) is not tied
    assert weights["transformer.h.5.mlp.c_fc.weight"].shape == (160, 640)
    assert {w.dtype for w in weights.values()} == {torch.float32}
    ids = torch.tensor(tokenizer.encode("The tower kept its light burning, and nobody asked for whom."))
    with torch.no_grad():
        expected = model(ids[None])
    assert float(expected.abs().max()) > 1, "logits near zero would be equal to anything"
    torch.testing.assert_close(gpt2(weights, config, ids)[None], expected, atol=1e-4, rtol=0)
    assert "| step | 3 |" in (folder / "README.md").read_text()
    if python := os.environ.get("LAB_TRANSFORMERS_PYTHON") or (
        sys.executable if importlib.util.find_spec("transformers") else ""
    ):
        text = torch.tensor(list(TEXT.encode()), dtype=torch.uint8)
        facts = {"ids": ids[None], "logits": expected, "text": text, "text_ids": torch.tensor(tokenizer.encode(TEXT))}
        save_file(facts, tmp_path / "expected.safetensors")
        command = [python, PROJECT / "tests" / "hf_export_check.py", folder, tmp_path / "expected.safetensors"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        print(result.stdout)


def test_merges_are_complete_and_in_order() -> None:
    vocabulary, merges = vocabulary_and_merges()
    assert sorted(vocabulary.values()) == list(range(50257))
    assert [vocabulary[a + b] for a, b in merges] == list(range(256, 50256))
    assert merges[:3] == [("Ġ", "t"), ("Ġ", "a"), ("h", "e")]  # as in the published merges.txt


# --------------------------------------------------------------------------------------------- tensorboard


def crc32c(data: bytes) -> int:
    """Bit by bit, and so unlike the one that is tested."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def unmask(masked: int) -> int:
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def records(path: Path) -> Iterator[bytes]:
    content, at = path.read_bytes(), 0
    while at < len(content):
        length, check = struct.unpack_from("<QI", content, at)
        assert unmask(check) == crc32c(content[at : at + 8])
        data = content[at + 12 : at + 12 + length]
        assert unmask(struct.unpack_from("<I", content, at + 12 + length)[0]) == crc32c(data)
        yield data
        at += length + 16


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value

    while at < len(data):
        key = varint()
        match key & 7:
            case 0:
                yield key >> 3, varint()
            case 1:
                yield key >> 3, struct.unpack_from("<d", data, at)[0]
                at += 8
            case 2:
                size = varint()
                yield key >> 3, data[at : at + size]
                at += size
            case 5:
                yield key >> 3, struct.unpack_from("<f", data, at)[0]
                at += 4


def table() -> tuple[pd.DataFrame, pd.DataFrame]:
    time = pd.Timestamp("2026-11-25T10:00:00.500Z")
    metrics = pd.DataFrame(
        {"step": [1, 200, 70000], "time": time, "train_loss": [10.8, 3.25, 1e300], "val_loss": [None, 3.5, None]}
    )
    text = " <b>x</b>\n# no heading"
    return metrics, pd.DataFrame({"step": [200], "time": time, "prompt": ["Every"], "text": [text]})


def written(folder: Path) -> Path:
    """The same as a run's folder, and a step whose loss was measured and is none."""
    metrics, samples = (pa.Table.from_pandas(frame, preserve_index=False) for frame in table())
    last = {"step": [70001], "time": [None], "train_loss": [math.nan], "val_loss": [None]}
    metrics = pa.concat_tables([metrics, pa.table(last, schema=metrics.schema)])
    for name, content in (("metrics", metrics), ("samples", samples)):
        pq.write_table(content, folder / f"{name}.parquet")
    return folder


def test_check_value_of_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720's polynomial; the usual check value


def test_a_reader_gets_the_same_scalars_back(tmp_path: Path) -> None:
    (target := tmp_path / "events").mkdir()
    write_events(written(tmp_path), target)
    [path] = target.iterdir()
    events = [dict(fields(data)) for data in records(path)]
    assert events[0][3] == b"brain.Event:2"
    assert events[1][1] == 1795600800.5 and [event[2] for event in events[1:]] == [1, 200, 70000, 70001, 200]
    scalars = [[dict(fields(v)) for _, v in fields(event[5])] for event in events[1:]]
    assert [{v[1].decode(): v.get(2) for v in row} for row in scalars[:3]] == [
        {"train_loss": float(np.float32(10.8))},
        {"train_loss": 3.25, "val_loss": 3.5},
        {"train_loss": float("inf")},
    ]
    [loss] = scalars[3]
    assert loss[1] == b"train_loss" and math.isnan(loss[2])
    tensor = dict(fields(scalars[4][0][8]))
    assert tensor[8] == b"    Every <b>x</b>\n    # no heading"


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="tensorboard is not installed")
def test_tensorboard_itself_reads_it(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (target := tmp_path / "events").mkdir()
    write_events(written(tmp_path), target)
    reader = EventAccumulator(str(target)).Reload()
    assert [(e.step, e.value) for e in reader.Scalars("val_loss")] == [(200, 3.5)]


# ------------------------------------------------------------------------------------------------- command


@pytest.mark.parametrize("name", ["csv", "parquet"])
def test_metrics_come_back_as_they_were(name: str, add_run: Any, tmp_path: Path, monkeypatch: Any) -> None:
    run_id, _ = add_run()
    monkeypatch.setattr("engine.run.Run.metrics", property(lambda _: table()[0]))
    path = tmp_path / f"metrics.{name}"
    assert main([run_id, "--to", name, str(path)]) == 0
    found = pd.read_csv(path, parse_dates=["time"]) if name == "csv" else pd.read_parquet(path)
    pd.testing.assert_frame_equal(found, table()[0], check_dtype=False)
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_overwritten_and_every_refusal_is_a_sentence(add_run: Any, tmp_path: Path, capsys: Any) -> None:
    run_id, _ = add_run()
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    cases = [
        (run_id, "hf", "kept", "not overwritten"),
        (run_id, "tensorboard", "file", "not overwritten"),
        (run_id, "csv", "file", "not overwritten"),
        (run_id, "parquet", "kept", "not overwritten"),
        (run_id, "csv", "link", "not overwritten"),
        (run_id, "hf", "absent/model", "There is no folder"),
        (run_id + "@4", "hf", "new", "no checkpoint at step 4; it has: 3"),
        (run_id + "@x", "hf", "new", "is not a step"),
        (run_id + "@", "hf", "new", "is not a step"),
        (run_id + "@3", "csv", "new", "takes the whole run"),
        ("../" + run_id, "csv", "new", "not the id of a run"),
        ("20260101-000000-nano-x-0000", "hf", "new", "There is no run"),
    ]
    before = sorted(path for path in tmp_path.rglob("*"))
    for run, name, target, sentence in cases:
        assert main([run, "--to", name, str(tmp_path / target)]) != 0
        error = capsys.readouterr().err
        assert sentence in error and error.count("\n") == 1, error
    assert sorted(path for path in tmp_path.rglob("*")) == before
    assert (kept / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_is_filled_and_damaged_rows_are_told(add_run: Any, tmp_path: Path) -> None:
    run_id, _ = add_run()
    (tmp_path / "logs").mkdir()
    (load_run(run_id).folder / "metrics" / "000001.parquet").write_bytes(b"torn")
    command = [sys.executable, "-m", "engine.export", run_id, "--to", "tensorboard", str(tmp_path / "logs")]
    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "logs").iterdir())) == 1
    assert result.stderr == "000001.parquet in metrics is damaged or foreign and was left out.\n"
