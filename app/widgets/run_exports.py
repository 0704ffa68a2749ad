"""A run as files for other programs and for another lab."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from app.widgets import formats
from app.widgets.downloads import Download, downloads, zipped
from app.widgets.snapshot import Snapshot
from engine.archive import write_archive
from engine.checkpoint import Checkpoint
from engine.tensorboard import write_events

_CHOICES = ("all checkpoints", "the newest checkpoint", "no checkpoints")


def exports(shot: Snapshot) -> None:
    """The metrics, and the whole run."""
    run, empty = shot.run, not shot.last
    st.subheader("Metrics", anchor=False)
    csv, parquet = f"{run.id}-metrics.csv", f"{run.id}-metrics.parquet"
    downloads(
        [
            Download("CSV", csv, lambda path: run.metrics.to_csv(path, index=False), disabled=empty),
            Download("Parquet", parquet, lambda path: run.metrics.to_parquet(path, index=False), disabled=empty),
            Download(
                "TensorBoard (.zip)",
                f"{run.id}-tensorboard.zip",
                zipped(lambda folder: write_events(run.folder, folder)),
                help="An event file with metrics and samples.",
                disabled=empty,
            ),
        ]
    )
    st.subheader("The whole run", anchor=False)
    st.write(
        "An archive holds everything about the run. Another lab imports it on its Runs page and can go on with it."
    )
    choice = st.segmented_control("With", _CHOICES, default=_CHOICES[0], required=True, key="archive-with")

    def write(path: Path) -> None:  # the checkpoints of now: the page may be as old as the run's training is long
        write_archive(run, path, [checkpoint.step for checkpoint in _packed(run.checkpoints, choice)])

    downloads([Download("Download as archive", f"{run.id}.zip", write)])
    packed = _packed(shot.checkpoints, choice)
    size = formats.size(sum(checkpoint.bytes for checkpoint in packed))
    st.caption(f"About {size}." if packed else "Settings, metrics, samples and log: a few KiB to some MiB.")


def _packed(checkpoints: list[Checkpoint], choice: str) -> list[Checkpoint]:
    whole = [checkpoint for checkpoint in checkpoints if not checkpoint.problem]
    return {_CHOICES[0]: whole, _CHOICES[1]: whole[-1:]}.get(choice, [])
