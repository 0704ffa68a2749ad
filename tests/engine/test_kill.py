"""A run that is killed at any moment stays readable, loses two seconds at most, and resumes exactly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.metrics import METRICS
from engine.tables import TableWriter, read_table
from tests.kill_runs import Chain, Launcher, Moment, make_reference, places

MOMENTS = [
    Moment("save", "write", "half", 6),
    Moment("save", "rename", "before", 1),
    Moment("compact", "rename", "before", 1),
    Moment("rewind/compact", "delete", "after", 2),
    Moment("rewind", "rename", "after", 1),
    Moment("random", when="first step", after_s=0.05),  # a small model may be done sooner than one thinks
    Moment("finish/compact", "rename", "after", 1),
]


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="only Linux tells at once that a process has ended")
def test_killed_and_resumed_over_and_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short form of `python tests/kill_runs.py`."""
    monkeypatch.setenv("LAB_RUNS", str(tmp_path / "runs"))
    with Launcher(small=True) as launcher:
        chain = Chain(launcher, 16, make_reference(launcher, tmp_path / "reference", 16))
        for moment in MOMENTS:
            chain.kill_at(moment)
        chain.finish()
    assert len(chain.findings) >= len(MOMENTS) and chain.equal >= 1


class Killed(BaseException):
    pass


@pytest.mark.parametrize("deletions", range(5))
def test_a_rewind_that_is_killed_leaves_no_gap_and_no_older_row(
    deletions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Segments of one row each are deleted one by one; whenever that ends, the steps that are left have no hole."""
    writer = TableWriter(tmp_path, "metrics", METRICS)
    for row in ({"step": 1}, {"step": 2}, {"step": 2, "val_loss": 5.0}, {"step": 3}, {"step": 4}):
        writer.append(row)
        writer.flush()
    unlink, left = Path.unlink, iter(range(deletions))

    def killed(path: Path, missing_ok: bool = False) -> None:
        if path.parent.name == "metrics" and next(left, None) is None:
            raise Killed
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", killed)
        writer.compact(last_step=2)
    rows = read_table(tmp_path, "metrics", METRICS)[0]
    assert list(rows["step"]) == [1, 2, 3, 4] and rows["val_loss"][1] == 5.0
    TableWriter(tmp_path, "metrics", METRICS).compact(last_step=2)
    rows = read_table(tmp_path, "metrics", METRICS)[0]
    assert list(rows["step"]) == [1, 2] and rows["val_loss"][1] == 5.0


def test_the_long_form_kills_inside_saves_and_flushes() -> None:
    assert len(places()) == len(set(places())) >= 20
