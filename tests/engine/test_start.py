"""engine.start: a corpus is paired with its official validation text, and a run's ladder is there when it starts."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine import TrainConfig, train
from engine.cli.train import main
from engine.config import to_dict
from engine.corpora import jobs, ladder, open_tokens
from engine.corpora.ladder import cached_ladder
from engine.corpora.progress import CancelledError, Progress, Stage
from engine.corpora.tokens import tokens_dir
from engine.errors import ConfigError, CorpusError
from engine.files import write_json
from engine.paths import PROJECT
from engine.run import Run, load_run
from engine.start import QUICK_LADDER, branch_run, new_run, plan_run, read_settings, tokenize, with_official_validation

AddCorpus = Callable[[str, str], Path]

VERDICT = (PROJECT / "corpora" / "verdict.txt").read_text(encoding="utf-8")
TRAIN, VALIDATION, OTHER = VERDICT[:12_000], VERDICT[12_000:16_000], VERDICT[16_000:]
SMALL = TrainConfig(
    config="nano", context_length=16, batch_size=1, max_steps=1, eval_every=1, sample_length=0, device="cpu", threads=1
)

pytestmark = pytest.mark.usefixtures("small_nano")


@pytest.fixture
def splits(add_corpus: AddCorpus) -> AddCorpus:
    """Two corpora with official validation texts, all different."""
    add_corpus("wikitext2", TRAIN)
    add_corpus("wikitext2_validation", VALIDATION)
    add_corpus("pg19_train_small", OTHER)
    add_corpus("pg19_validation_small", VALIDATION[:2_000])
    return add_corpus


def started(**settings: Any) -> Run:
    """A run that was opened and closed without training."""
    active = new_run(replace(SMALL, **settings))
    active.close()
    return active.reader


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ pairing


def test_the_official_validation_text_is_recorded_and_measured_on(splits: AddCorpus) -> None:
    run = train(replace(SMALL, corpus="wikitext2"))
    assert (run.config.corpus, run.config.val_corpus) == ("wikitext2", "wikitext2_validation")
    facts = run.info["corpus_sha256"], run.info["val_corpus_sha256"]
    assert facts == (sha256(TRAIN), sha256(VALIDATION))
    assert run.info["requested"].get("val_corpus") is None and run.info["requested"]["corpus"] == "wikitext2"
    plan, text = plan_run(run.config)
    assert plan.train_tokens == len(open_tokens("wikitext2").tokens), "all of the text is for training"
    assert plan.val_tokens == len(text.validation) == len(open_tokens("wikitext2_validation").tokens)
    losses = run.metrics["val_loss"].dropna()
    assert len(losses) and losses.between(5, 12).all()


def test_the_loss_is_that_of_the_official_text(splits: AddCorpus) -> None:
    """Another validation text, another loss; the training is the same."""
    first = train(replace(SMALL, corpus="wikitext2")).metrics
    splits("wikitext2_validation", "zebra xylophone quartz " * 300)
    second = train(replace(SMALL, corpus="wikitext2")).metrics
    assert list(first.train_loss) == list(second.train_loss)
    assert not set(first.val_loss.dropna()) & set(second.val_loss.dropna())


def test_a_corpus_without_one_keeps_its_own_end() -> None:
    run = started(corpus="tiny")
    assert run.config.val_corpus == "" and "val_corpus_sha256" not in run.info


def test_one_that_was_asked_for_comes_first(splits: AddCorpus) -> None:
    run = started(corpus="wikitext2", val_corpus="pg19_small")
    assert run.config.val_corpus == "pg19_train_small" and run.info["val_corpus_sha256"] == sha256(OTHER)


@pytest.mark.parametrize("alias", ["pg19_small", "pg19_small_train", "pg19_train_small"])
def test_any_way_of_writing_a_name(splits: AddCorpus, alias: str) -> None:
    run = started(corpus=alias)
    assert (run.config.corpus, run.config.val_corpus) == ("pg19_train_small", "pg19_validation_small")
    assert "pg19_train_small" in run.id or "pg19-train-small" in run.id


def test_names_are_resolved_without_touching_the_rest(splits: AddCorpus) -> None:
    config = replace(SMALL, corpus="pg19_small", learning_rate=0.01)
    assert with_official_validation(config) == replace(
        config, corpus="pg19_train_small", val_corpus="pg19_validation_small"
    )
    for unknown in (replace(SMALL, corpus="nothing"), replace(SMALL, val_corpus="nothing")):
        with pytest.raises(CorpusError, match="There is no corpus 'nothing'"):
            with_official_validation(unknown)


def test_a_missing_validation_text_is_one_sentence_that_says_how_to_get_it(
    add_corpus: AddCorpus, runs_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_corpus("wikitext2", TRAIN)
    with pytest.raises(ConfigError) as caught:
        new_run(replace(SMALL, corpus="wikitext2"))
    (problem,) = caught.value.problems
    assert problem.field == "val_corpus"
    assert problem.message == (
        "Corpus wikitext2_validation is not downloaded yet. Download it on the Corpora page, or with "
        "`python -m engine.download_corpora wikitext2_validation`."
    )
    assert main(["--corpus", "wikitext2", "--context-length", "16", "--batch-size", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.err == f"--val-corpus: {problem.message}\n" and printed.out == ""
    assert list(runs_folder.glob("[!.]*")) == []


def test_the_text_that_is_trained_on_is_no_validation_text(add_corpus: AddCorpus) -> None:
    add_corpus("wikitext2", TRAIN)
    add_corpus("wikitext2_validation", TRAIN)  # the same under another name
    for settings in ({"corpus": "tiny", "val_corpus": "tiny"}, {"corpus": "wikitext2"}):
        with pytest.raises(ConfigError, match="this is the text that is trained on") as caught:
            new_run(replace(SMALL, **settings))
        assert [problem.field for problem in caught.value.problems] == ["val_corpus"]


def test_all_that_is_missing_is_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        new_run(replace(SMALL, corpus="wikitext2"))
    assert [problem.field for problem in caught.value.problems] == ["corpus", "val_corpus"]


def test_what_the_machine_lacks_is_told_with_what_else_is_wrong() -> None:
    settings = to_dict(SMALL) | {"corpus": "nowhere", "batch_size": 0, "precision": "fp16", "device": "cpu"}
    with pytest.raises(ConfigError) as caught:
        read_settings(settings)
    assert [problem.field for problem in caught.value.problems] == ["batch_size", "corpus", "precision"]
    with pytest.raises(ConfigError) as caught:
        new_run(TrainConfig(**settings))
    assert [problem.field for problem in caught.value.problems] == ["batch_size", "corpus", "precision"]
    with pytest.raises(ConfigError) as caught:
        read_settings(settings | {"device": "abacus"})  # the machine cannot be asked for it
    assert [problem.field for problem in caught.value.problems] == ["batch_size", "device", "corpus"]


# ------------------------------------------------------------------------------------------------ branches


@pytest.fixture
def parent(splits: AddCorpus) -> Run:
    return train(replace(SMALL, corpus="wikitext2", epochs=1, dropout=0.05))


def branched(parent: Run, **changes: Any) -> Run:
    active = branch_run(parent.id, None, {"max_steps": 6} | changes)
    active.close()
    return load_run(active.id)


def test_a_branch_takes_the_validation_of_its_own_corpus(parent: Run) -> None:
    run = branched(parent, corpus="pg19_small")
    assert (run.config.corpus, run.config.val_corpus) == ("pg19_train_small", "pg19_validation_small")
    assert run.info["val_corpus_sha256"] == sha256(VALIDATION[:2_000])
    assert run.info["parent"]["changes"]["val_corpus"] == ["wikitext2_validation", "pg19_validation_small"]
    assert run.info["progress"]["position"] == 0, "a new text is read from its beginning"
    run = branched(parent, corpus="tiny")
    assert run.config.val_corpus == "" and "val_corpus_sha256" not in run.info
    run = branched(parent, corpus="pg19_small", val_corpus="tiny")
    assert run.config.val_corpus == "tiny"
    for changes in ({}, {"corpus": "wikitext2"}):
        run = branched(parent, **changes)
        assert run.config.val_corpus == "wikitext2_validation"
        assert "val_corpus" not in run.info["parent"]["changes"]


def test_all_that_forbids_a_branch_is_told_together(parent: Run) -> None:
    changes = {"config": "small", "context_length": 8192, "corpus": "nowhere", "precision": "fp16", "epochs": 0.0}
    with pytest.raises(ConfigError) as caught:
        branch_run(parent.id, None, changes)
    fields = [problem.field for problem in caught.value.problems]
    assert fields == ["config", "context_length", "epochs", "corpus", "precision"]
    assert "start a new run" in caught.value.problems[0].message.lower()
    with pytest.raises(ConfigError, match="it decides the shapes of the weights"):
        branch_run(parent.id, None, {"tie_embeddings": False})


def test_what_was_asked_of_a_branch_is_what_was_asked_of_its_parent_and_the_changes(parent: Run) -> None:
    asked = parent.info["requested"]
    assert asked["dropout"] == 0.05 and "learning_rate" not in asked and "val_corpus" not in asked
    assert branched(parent, learning_rate=0.002).info["requested"] == asked | {"max_steps": 6, "learning_rate": 0.002}
    child = branched(parent, dropout=TrainConfig().dropout)
    assert child.info["requested"] == asked | {"max_steps": 6, "dropout": TrainConfig().dropout}
    for damage in (None, [], "x"):
        write_json(parent.folder / "run.json", {**parent.info, "requested": damage})
        assert branched(parent).info["requested"] == {"max_steps": 6}


# ------------------------------------------------------------------------------------------------ the ladder


def kept_ladder(run: Run) -> ladder.Ladder | None:
    fraction = run.config.val_fraction
    return cached_ladder(run.info["corpus_sha256"], run.info.get("val_corpus_sha256"), fraction)


@pytest.mark.parametrize(
    "settings", [{"corpus": "tiny"}, {"corpus": "tiny", "val_fraction": 0.2}, {"corpus": "pg19_small"}]
)
def test_a_run_on_a_small_corpus_has_its_ladder(settings: dict[str, Any], splits: AddCorpus) -> None:
    run = started(**settings)
    found = kept_ladder(run)
    assert found is not None
    plan, _ = plan_run(run.config)
    assert (found.train_tokens, found.val_tokens) == (plan.train_tokens, plan.val_tokens)
    assert found.rungs[0].loss == pytest.approx(math.log(50257))


def test_a_large_one_does_not_keep_the_run_from_starting(splits: AddCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.start.QUICK_LADDER", 100)
    assert QUICK_LADDER > 1_000_000
    run = started(corpus="tiny")
    assert kept_ladder(run) is None
    tokenize(replace(SMALL, corpus="tiny"), Progress())
    assert kept_ladder(run) is not None


def test_tokenize_makes_all_that_a_run_needs_and_tells_it(splits: AddCorpus) -> None:
    titles: list[str] = []

    def tell(stage: Stage) -> None:
        if stage.title not in titles:
            titles.append(stage.title)

    tokenize(replace(SMALL, corpus="pg19_small"), Progress(tell))
    assert titles == [
        "Tokenizing PG-19, train, small",
        "Tokenizing PG-19, validation, small",
        "Measuring the loss ladder",
    ]
    titles.clear()
    tokenize(replace(SMALL, corpus="pg19_small"), Progress(tell))
    assert titles == []


def test_tokenize_can_be_cancelled(splits: AddCorpus) -> None:
    with pytest.raises(CancelledError):
        tokenize(replace(SMALL, corpus="wikitext2"), Progress(cancelled=lambda: True))
    assert list(tokens_dir().glob("*.uint16")) == [] and not any(p.suffix == ".part" for p in tokens_dir().iterdir())


def test_the_ladder_of_the_page_is_that_of_a_run_with_the_default(splits: AddCorpus) -> None:
    assert started(corpus="tiny").config.val_fraction == jobs.VAL_FRACTION
