"""The README is true: its example runs, its table is the declaration's, its files exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from engine.cli.settings_table import settings_table
from engine.config import PRESETS, TrainConfig
from engine.corpora import find_corpus
from engine.corpora.known import KNOWN, expand
from engine.paths import PROJECT

README = (PROJECT / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LAB_RUNS", str(tmp_path))
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    small = "from tests.with_small_nano import shrink_nano\nshrink_nano(setattr)\n"
    result = subprocess.run(
        [sys.executable, "-c", small + example], cwd=PROJECT, capture_output=True, text=True, timeout=100
    )
    assert result.returncode == 0, result.stderr
    assert "train_loss" in result.stdout
    assert "completed 10" in result.stdout


def test_the_settings_table_is_the_declaration() -> None:
    assert settings_table() in README, "update it: python -m engine.cli.settings_table"


def test_the_presets_are_true() -> None:
    for name, preset in PRESETS.items():
        shape = f"{preset.layers} × {preset.heads} × {preset.width}"
        millions = TrainConfig(config=name).model.parameters / 1e6
        count = f"{millions:.1f}M" if millions < 10 else f"{millions:.0f}M"
        assert f"| `{name}` | {shape} | {preset.context_length} | {count} | {preset.purpose} |" in README


def test_every_corpus_it_names_exists() -> None:
    commands = re.findall(r"python -m engine\.(?:download|prepare)_corpora ([a-z][\w ]*)", README)
    names = {name for command in commands for name in command.split()}
    assert {"tinystories", "wikitext2", "shakespeare", "pg19_small", "pg19_small_normalized"} <= names
    for name in names:
        find_corpus(name)
    known = {corpus.name for corpus in KNOWN if corpus.family != "PG-19" and corpus.name == expand(corpus.name)[0]}
    listed = set(re.findall(r"`(\w+)`", README[README.index("| name | what |") :]))
    assert {name for name in known if not name.endswith(("_validation", "_test"))} <= listed


def test_every_file_and_link_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (PROJECT / target).exists(), target
    tree = re.search(r"```\nengine/.*?```", README, re.DOTALL)
    assert tree
    for name in re.findall(r"\b\w+\.py\b", tree[0]):
        assert list(PROJECT.glob(f"engine/{name}")) or list(PROJECT.glob(f"app/{name}")), name
