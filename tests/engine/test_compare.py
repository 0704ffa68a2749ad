"""Runs held against each other: what differs, what came of it, and the same place of each curve."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine import TrainConfig, branch_run, compare, load_run, train
from engine.config import SETTINGS, to_dict
from engine.corpora import open_tokens
from engine.corpora.density import bits_per_byte, bytes_per_token
from engine.data import split
from engine.errors import RunError
from engine.history import ancestors, history
from engine.metrics import METRICS
from engine.tokenizer import END_OF_TEXT, decode

CREATED = pd.Timestamp("2026-11-22T15:30:00Z")


@pytest.fixture
def write_run(runs_folder: Path):
    """Write a run's folder: step i, from `after` + 1 on, has losses[i - after - 1]."""

    def write(
        run_id: str,
        losses: list[float],
        *,
        validation: dict[int, float] | None = None,
        after: int = 0,
        tokens: int = 100,
        seconds: float = 1.0,
        settings: dict[str, Any] | None = None,
        **info: Any,
    ) -> str:
        steps = np.arange(after + 1, after + len(losses) + 1)
        rows = pd.DataFrame(
            {
                "step": steps,
                "epoch": steps / 10,
                "tokens": steps * tokens,
                "elapsed_s": steps * seconds,
                "time": CREATED + pd.to_timedelta(2 * steps, unit="s"),
                "train_loss": losses,
                "val_loss": [(validation or {}).get(int(step)) for step in steps],
                "learning_rate": 1e-3,
                "grad_norm": 1.0,
                "tokens_per_s": tokens / seconds,
                "memory_gib": [1.0 + 0.01 * (step % 5) for step in steps],
            }
        )
        config = to_dict(dataclasses.replace(TrainConfig(), **(settings or {})))
        folder = runs_folder / run_id
        folder.mkdir()
        described = {
            "name": f"Run {run_id}",
            "state": "completed",
            "created": CREATED.isoformat(),
            "config": config,
            "corpus_sha256": "0" * 64,
            **info,
        }
        (folder / "run.json").write_text(json.dumps(described))
        table = pa.Table.from_pandas(rows, preserve_index=False).select(METRICS.names).cast(METRICS)
        pq.write_table(table, folder / "metrics.parquet")
        return run_id

    return write


def test_settings_that_differ_and_all_of_them(write_run) -> None:
    a = write_run("a", [5.0], settings={"learning_rate": 1e-3})
    b = write_run("b", [5.0], settings={"learning_rate": 2e-3, "seed": 7})
    c = write_run("c", [5.0], settings={"learning_rate": 1e-3})
    found = compare([a, b, c])
    assert list(found.settings.index) == list(SETTINGS) and list(found.settings.columns) == [a, b, c]
    assert list(found.differences.index) == ["learning_rate", "seed"]
    assert found.differences.loc["seed"].to_list() == [1337, 7, 1337]
    assert compare([a, c]).differences.empty
    assert compare([a]).differences.empty


def test_results_are_what_was_measured(write_run) -> None:
    losses = [10.0 - 0.05 * i for i in range(100)]
    a = write_run("a", losses, validation={50: 6.0, 80: 5.5, 100: 5.8}, parameters=123)
    row = compare([a]).results.loc[a]
    assert (row["name"], row["state"], row["parameters"], row["steps"], row["tokens"]) == (
        "Run a",
        "completed",
        123,
        100,
        10_000,
    )
    assert row["train_loss"] == pytest.approx(np.mean(losses[-5:]))  # the last twentieth
    assert (row["val_loss"], row["best_val_loss"]) == (5.8, 5.5)
    assert row["perplexity"] == pytest.approx(math.exp(5.8))
    assert (row["tokens_per_s"], row["elapsed_s"], row["wall_s"]) == (100.0, 100.0, 200.0)
    assert row["memory_gib"] == pytest.approx(1.04)
    assert math.isnan(row["bits_per_byte"])  # its text is not here


def test_the_best_is_marked_where_runs_can_be_compared(write_run) -> None:
    a = write_run("a", [5.0], validation={1: 4.0})
    b = write_run("b", [4.0], validation={1: 4.5}, tokens=200)
    c = write_run("c", [6.0])
    found = compare([a, b, c])
    assert found.best("train_loss") == [b] and found.best("val_loss") == [a]
    assert found.best("tokens_per_s") == [b] and found.best("memory_gib") == [a, b, c]
    assert found.best("steps") == [] and found.best("name") == []
    assert found.best("train_loss", found.same_tokens.table) == [a]  # b has done no step within 100 tokens
    assert compare([a, c]).best("val_loss") == []  # nothing to be better than
    other = write_run("d", [1.0], validation={1: 1.0}, corpus_sha256="1" * 64)
    mixed = compare([a, b, other])
    assert not mixed.same_corpus and not mixed.same_validation
    assert mixed.best("train_loss") == mixed.best("val_loss") == mixed.best("perplexity") == []
    assert mixed.best("tokens_per_s") == [b]


def test_the_same_tokens_are_the_most_that_all_have_reached(write_run) -> None:
    a = write_run("a", [10.0 - 0.05 * i for i in range(100)], validation={30: 9.0, 60: 8.0})
    b = write_run("b", [9.0 - 0.1 * i for i in range(20)], validation={20: 7.0}, tokens=200)
    reading = compare([a, b]).same_tokens
    assert (reading.axis, reading.at) == ("tokens", 4000.0)
    at_a, at_b = reading.table.loc[a], reading.table.loc[b]
    assert at_a["step"] == 40 and at_b["step"] == 20
    assert at_a["train_loss"] == pytest.approx(np.mean([10.0 - 0.05 * i for i in (38, 39)]))  # 3,800 < tokens ≤ 4,000
    assert at_b["train_loss"] == pytest.approx(7.1)
    assert (at_a["val_loss"], at_a["val_at"]) == (9.0, 3000)
    assert (at_b["val_loss"], at_b["val_at"]) == (7.0, 4000)


def test_the_same_time_is_read_on_the_training_clock(write_run) -> None:
    a = write_run("a", [5.0] * 9 + [1.0], seconds=1.0)
    b = write_run("b", [6.0, 4.0, 3.0], seconds=2.5, validation={3: 3.5})
    reading = compare([a, b]).same_time
    assert reading.at == 7.5
    assert reading.table["step"].to_list() == [7, 3]
    assert reading.table["train_loss"].to_list() == [5.0, 3.0]
    assert math.isnan(reading.table.loc[a, "val_loss"]) and reading.table.loc[b, "val_at"] == 7.5


def test_what_is_not_a_number_is_no_loss(write_run) -> None:
    a = write_run("a", [5.0] * 19 + [math.nan])
    b = write_run("b", [5.0] * 20)
    found = compare([a, b])
    assert math.isnan(found.results.loc[a, "train_loss"])
    assert found.best("train_loss") == []


def test_a_run_that_has_measured_nothing_is_dashes(write_run) -> None:
    a, b = write_run("a", [], state="failed"), write_run("b", [5.0, 4.0])
    found = compare([a, b])
    assert found.same_tokens.at == 200
    assert found.results.loc[a].drop(["name", "state"]).isna().all()
    assert found.same_tokens.table.loc[a].isna().all()
    assert compare([a]).same_time.at is None


def test_damaged_folders_are_compared_as_far_as_they_can_be_read(write_run, runs_folder: Path) -> None:
    a, b = write_run("a", [5.0]), write_run("b", [4.0])
    (runs_folder / b / "run.json").write_text("{")
    (runs_folder / a / "metrics.parquet").write_bytes(b"no table")
    found = compare([a, b])
    assert found.results.loc[b, "train_loss"] == 4.0 and math.isnan(found.results.loc[a, "train_loss"])
    assert found.settings[b].isna().all()


def test_runs_that_are_not_there_are_refused(write_run) -> None:
    with pytest.raises(RunError, match="There is no run b"):
        compare([write_run("a", [5.0]), "b"])
    with pytest.raises(RunError, match="name at least one run"):
        compare([])
    with pytest.raises(RunError, match=r"a list of ids: compare\(\['a'\]\)"):
        compare("a")
    with pytest.raises(RunError, match="is not the id of a run"):
        compare([load_run("a")])  # type: ignore[list-item]
    assert list(compare(["a", "a"]).results.index) == ["a"]


# ------------------------------------------------------------------------------------------------ branches


def branch(parent: str, step: int) -> dict[str, Any]:
    return {"parent": {"run": parent, "step": step, "changes": {}}}


def test_a_branch_has_its_parents_rows_before_its_own(write_run) -> None:
    a = write_run("a", [9.0] * 100)
    b = write_run("b", [8.0] * 30, after=40, **branch(a, 40))
    c = write_run("c", [7.0] * 10, after=50, **branch(b, 50))
    assert ancestors(c, load_run) == [(b, 50), (a, 40)]
    rows = history(c, load_run, ["step", "train_loss"])
    assert rows["step"].tolist() == list(range(1, 61))
    assert rows["train_loss"].tolist() == [9.0] * 40 + [8.0] * 10 + [7.0] * 10
    assert rows.own == 50


def test_a_branch_is_read_where_it_was_still_its_parent(write_run) -> None:
    a = write_run("a", [9.0] * 100, validation={20: 8.5})
    b = write_run("b", [2.0] * 60, after=40, **branch(a, 40))
    short = write_run("short", [9.5] * 30)
    found = compare([b, short])
    assert found.same_tokens.at == 3000
    assert found.same_tokens.table.loc[b, "train_loss"] == 9.0  # the parent's, as b began at 4,000 tokens
    assert found.same_tokens.table.loc[b, "val_at"] == 2000
    assert found.results.loc[b, "train_loss"] == 2.0 and math.isnan(found.results.loc[b, "val_loss"])


def test_a_long_way_to_the_branch_does_not_blur_its_end(write_run) -> None:
    a = write_run("a", [9.0] * 1000)
    b = write_run("b", [8.0] * 38 + [3.0] * 2, after=1000, **branch(a, 1000))
    assert compare([b]).results.loc[b, "train_loss"] == 3.0  # the last two of its 40 steps are the last twentieth
    assert compare([b]).results.loc[b, "wall_s"] == 2000 + 2080  # it claims to have been started when its parent was
    assert compare([b]).results.loc[b, "elapsed_s"] == 1040


def test_a_loss_on_the_parents_text_is_not_the_branchs(write_run) -> None:
    a = write_run("a", [2.0] * 40, validation={20: 1.5, 40: 1.4})
    on_other = {"corpus_sha256": "1" * 64}
    b = write_run("b", [8.0] * 60, after=40, validation={60: 7.0}, **branch(a, 40), **on_other)
    c = write_run("c", [9.0] * 50, validation={30: 8.5}, **on_other)
    found = compare([b, c])
    assert found.same_corpus and found.same_tokens.at == 5000
    assert found.same_tokens.table.loc[b, "train_loss"] == 8.0
    assert math.isnan(found.same_tokens.table.loc[b, "val_loss"])  # the parent's 1.4 is of another text
    short = write_run("short", [9.5] * 30, validation={30: 9.0}, **on_other)
    assert math.isnan(compare([b, short]).same_tokens.table.loc[b, "train_loss"])
    assert compare([b, c]).best("val_loss", found.same_tokens.table) == []


def test_a_grandparent_on_the_same_text_counts(write_run) -> None:
    a = write_run("a", [2.0] * 20)
    b = write_run("b", [8.0] * 30, after=20, corpus_sha256="1" * 64, **branch(a, 20))
    c = write_run("c", [3.0] * 10, after=50, **branch(b, 50))
    short, long = write_run("short", [9.0] * 15), write_run("long", [9.0] * 40)
    assert compare([c, short]).same_tokens.table.loc[c, "train_loss"] == 2.0
    assert math.isnan(compare([c, long]).same_tokens.table.loc[c, "train_loss"])


def test_texts_that_nobody_knows_are_not_the_same(write_run) -> None:
    a, b = (
        write_run(name, [loss], validation={1: loss}, corpus_sha256=None) for name, loss in (("a", 5.0), ("b", 4.0))
    )
    found = compare([a, b])
    assert not found.same_corpus and not found.same_validation and found.best("val_loss") == []


def test_a_parent_that_is_gone_or_its_own_child_is_no_error(write_run) -> None:
    a = write_run("a", [8.0] * 10, after=40, **branch("gone", 40))
    assert ancestors(a, load_run) == [] and history(a, load_run, ["step"])["step"][0] == 41
    b = write_run("b", [8.0] * 10, **branch("c", 5))
    write_run("c", [8.0] * 10, **branch("b", 5))
    assert ancestors(b, load_run) == [("c", 5)]
    write_run("d", [8.0], parent={"run": 7, "step": "x"})
    assert ancestors("d", load_run) == []
    apart = compare([a, b])  # a has nothing up to where b ended
    assert apart.same_tokens.at == 1000 and math.isnan(apart.same_tokens.table.loc[a, "train_loss"])


@pytest.mark.usefixtures("small_nano")
def test_a_real_branch_goes_on_from_its_parents_numbers() -> None:
    settings = TrainConfig(corpus="tiny", batch_size=1, context_length=32, sample_length=0, save_every=2, epochs=100)
    parent = train(dataclasses.replace(settings, max_steps=6, eval_every=2))
    active = branch_run(parent.id, 2, {"max_steps": 4, "learning_rate": 1e-5})
    child = train(active.config, active)
    rows = history(child.id, load_run, ["step", "tokens", "elapsed_s"])
    assert rows["step"].tolist() == [1, 2, 3, 4] and rows.own == 2
    assert rows["tokens"].tolist() == [32, 64, 96, 128] and (np.diff(rows["elapsed_s"]) > 0).all()
    found = compare([parent.id, child.id])
    assert {"learning_rate", "max_steps"} <= set(found.differences.index)
    assert found.same_tokens.at == 128
    assert found.results["bits_per_byte"].notna().all()  # its text is here


# ------------------------------------------------------------------------------------------------ bytes


def test_bits_per_byte_counts_the_bytes_of_the_validation_text(add_corpus) -> None:
    add_corpus("mine", "Schöne Grüße, dear reader. " * 200)
    opened = open_tokens("mine")
    part = split(opened.tokens, 0.25)[1].tolist()
    found = bytes_per_token("mine", opened.source_sha256, 0.25)
    assert found == pytest.approx(len(decode(part).encode()) / len(part), rel=0.01)  # a character may be cut in two
    assert bits_per_byte(math.log(2) * found, found) == pytest.approx(1.0)


def test_separators_stand_for_no_bytes(corpora_folder: Path) -> None:
    (corpora_folder / "docs.jsonl").write_text("".join(json.dumps({"text": f"Text {i}."}) + "\n" for i in range(50)))
    opened = open_tokens("docs")
    letters = [token for token in opened.tokens.tolist() if token != END_OF_TEXT]
    assert len(letters) < len(opened.tokens)
    found = bytes_per_token("docs", opened.source_sha256)
    assert found == len(decode(letters).encode()) / len(opened.tokens)


def test_bytes_of_another_text_are_not_known(add_corpus) -> None:
    add_corpus("mine", "Some text.")
    assert bytes_per_token("mine", "0" * 64) is None  # not tokenized yet
    opened = open_tokens("mine")
    assert bytes_per_token("mine", "0" * 64) is None
    assert bytes_per_token("nothing", opened.source_sha256) is None
    assert bytes_per_token("mine", opened.source_sha256, 0.0) is None
