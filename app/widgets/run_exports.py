"""A run as files for other programs and for another lab."""

from __future__ import annotations

import streamlit as st

from app.widgets import formats
from app.widgets.downloads import Download, downloads, zipped
from app.widgets.snapshot import Snapshot
from engine.archive import write_archive
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
    whole = [checkpoint for checkpoint in shot.checkpoints if not checkpoint.problem]
    choice = st.segmented_control("With", _CHOICES, default=_CHOICES[0], required=True, key="archive-with")
    packed = {_CHOICES[0]: whole, _CHOICES[1]: whole[-1:]}.get(choice, [])
    steps = [checkpoint.step for checkpoint in packed]
    size = sum(checkpoint.bytes for checkpoint in packed)
    downloads([Download("Download as archive", f"{run.id}.zip", lambda path: write_archive(run, path, steps))])
    st.caption(
        f"About {formats.size(size)}." if steps else "Settings, metrics, samples and log: a few KiB to some MiB."
    )
