"""A run's checkpoints, and what can be done with one: verify, go on from it, take it along, delete it."""

from __future__ import annotations

import shutil

import streamlit as st

from app.widgets import actions, formats, run_parts
from app.widgets.branch import branch_button, describe
from app.widgets.downloads import Download, downloads, zipped
from app.widgets.formats import plain
from app.widgets.guard import guard
from app.widgets.snapshot import Snapshot
from engine import session
from engine.archive import write_archive
from engine.checkpoint import FILES, Checkpoint, verify
from engine.errors import LabError
from engine.hf import write_hf
from engine.run import delete_checkpoint


def checkpoints(shot: Snapshot) -> None:
    """The list, and the actions for the one that is chosen."""
    run_parts.checkpoints(shot)
    if not shot.checkpoints:
        return
    chosen = choose(shot.checkpoints, key="checkpoint")
    with st.container(horizontal=True):
        if not shot.is_damaged:  # whose settings nobody knows
            continue_button(shot, chosen)
        if not shot.is_damaged and not chosen.problem:
            branch_button(shot, [chosen])
        checked = st.button("Verify", icon=":material/verified:", help="Compares the SHA-256 of each file.")
        why = "It cannot be deleted while the run is being trained." if shot.is_active else None
        if st.button("Delete …", icon=":material/delete:", disabled=shot.is_active, help=why):
            _confirm_deletion(shot.run.id, chosen)
    if checked:
        _verify(chosen)
    if not chosen.problem:
        downloads(_files(shot, chosen))


def choose(found: list[Checkpoint], *, key: str) -> Checkpoint:
    """Ask for one, the newest first."""
    by_step = {checkpoint.step: checkpoint for checkpoint in reversed(found)}
    step = st.selectbox("Checkpoint", list(by_step), format_func=lambda step: describe(by_step[step]), key=key)
    return by_step.get(step, found[-1])


def continue_button(shot: Snapshot, chosen: Checkpoint) -> None:
    """Exactly as it would have gone on: the run itself from its newest checkpoint, a new run from an older one."""
    newest = chosen.step == shot.resume_step
    over = chosen.step >= shot.total_steps
    why = "The run continues." if newest else "A new run with the same settings repeats what followed."
    if over:
        why = "The run is complete here. Branch it with more epochs."
    if st.button(
        "Continue from here",
        icon=":material/play_arrow:",
        type="primary" if newest else "secondary",
        disabled=over or shot.is_active or bool(chosen.problem),
        help=why,
    ):
        try:
            if newest:
                actions.resume(shot.run.id)
            else:
                actions.launch(lambda: session.branch(shot.run.id, chosen.step, {}))
        except LabError as error:
            st.error(plain(str(error)), icon=":material/error:")


def _verify(chosen: Checkpoint) -> None:
    with st.spinner("Reading the files …"):
        try:
            verify(chosen)
        except LabError as error:
            st.error(plain(str(error)), icon=":material/error:")
            return
    st.success(
        f"Step {chosen.step:,} is whole: the SHA-256 of its {len(FILES)} files are those of its manifest.",
        icon=":material/verified:",
    )


def _files(shot: Snapshot, chosen: Checkpoint) -> list[Download]:
    """What can be taken along of a checkpoint."""
    run = shot.run
    weights = chosen.path / "model.safetensors"
    size = formats.size(weights.stat().st_size if weights.exists() else 0)
    name = f"{run.id}-step-{chosen.step:06d}"
    return [
        Download(
            "Weights (.safetensors)",
            f"{name}.safetensors",
            lambda path: shutil.copyfile(weights, path),
            help=f"The model's weights in fp32, {size}.",
        ),
        Download(
            "Archive with this checkpoint (.zip)",
            f"{name}.zip",
            lambda path: write_archive(run, path, [chosen.step]),
            help=f"The run with this checkpoint alone, for another lab: about {formats.size(chosen.bytes)}.",
        ),
        Download(
            "Hugging Face folder (.zip)",
            f"{name}-hf.zip",
            zipped(lambda folder: write_hf(run.id, chosen.step, folder)),
            help=f"A GPT-2 model that transformers loads, {size}.",
        ),
    ]


@st.dialog("Delete a checkpoint")
@guard()
def _confirm_deletion(run_id: str, chosen: Checkpoint) -> None:
    st.write("This deletes the checkpoint for good. The run, its metrics and its other checkpoints stay:")
    st.text(describe(chosen))
    with st.container(horizontal=True):
        if st.button("Delete", type="primary", icon=":material/delete:"):
            try:
                delete_checkpoint(run_id, chosen.step)
                st.rerun()
            except LabError as error:
                st.error(plain(str(error)))
        if st.button("Cancel"):
            st.rerun()
