"""Going on from a checkpoint: exactly, or with changed settings as a run of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import streamlit as st

from app.widgets import actions, formats
from app.widgets.form_fields import ask_changes, in_words_of_the_form
from app.widgets.formats import plain
from app.widgets.guard import guard
from app.widgets.snapshot import Snapshot
from engine import session
from engine.branching import differences_that_matter
from engine.checkpoint import Checkpoint
from engine.config import SETTINGS, TrainConfig, label
from engine.errors import ConfigError, LabError
from engine.start import plan_branch, shared_out


def branch_button(shot: Snapshot, checkpoints: list[Checkpoint], *, key: str = "branch") -> None:
    """Offer to branch, when there is something to branch from; `key` tells two such buttons of a page apart."""
    if checkpoints and st.button("Branch …", icon=":material/call_split:", key=f"{key}-{shot.run.id}"):
        _dialog(shot, checkpoints)


@st.dialog("Branch from a checkpoint", width="large")
@guard()
def _dialog(shot: Snapshot, checkpoints: list[Checkpoint]) -> None:
    st.write(
        "A branch is a new run that starts with a checkpoint's weights and changed settings. The run itself stays as "
        "it is" + ("; to go on with it unchanged, close this and press Resume." if shot.resume_step else ".")
    )
    by_step = {checkpoint.step: checkpoint for checkpoint in reversed(checkpoints)}
    step = st.selectbox("Checkpoint", list(by_step), format_func=lambda s: describe(by_step[s]), key="branch-step")
    changes = ask_changes(shot.run.config, key="branch")
    st.caption(_stays(shot.run.config))
    if not changes:
        return
    problem = _preview(shot, step, changes)
    if st.button(
        "Start the branch", type="primary", icon=":material/play_arrow:", disabled=bool(problem), key="branch-go"
    ):
        try:
            actions.launch(lambda: session.branch(shot.run.id, step, changes))
        except LabError as error:
            st.error(plain(str(error)), icon=":material/error:")


def _stays(config: TrainConfig) -> str:
    """What a branch cannot change, and why."""
    architecture = {name: getattr(config, name) for name, f in SETTINGS.items() if f.metadata["architecture"]}
    kept = [f"{label(name).lower()} {formats.setting(value)}" for name, value in architecture.items()]
    return plain(f"It keeps {', '.join(kept)}: they decide the shapes of the weights. For others, start a new run.")


def describe(checkpoint: Checkpoint) -> str:
    """A checkpoint in one line: step, losses, size, when; or what is wrong with it."""
    if checkpoint.problem:
        return f"step {checkpoint.step:,} · damaged: {checkpoint.problem}"
    progress = checkpoint.progress
    parts = [f"step {checkpoint.step:,}", f"training loss {formats.loss(progress.get('train_loss'))}"]
    if progress.get("val_step") == checkpoint.step:
        parts.append(f"validation loss {formats.loss(progress.get('val_loss'))}")
    return " · ".join([*parts, formats.size(checkpoint.bytes), formats.moment(checkpoint.saved)])


def _preview(shot: Snapshot, step: int, changes: dict[str, Any]) -> bool:
    """List what will differ and what it does; returns whether something forbids the branch."""
    old = shared_out(shot.run)
    try:
        plan = plan_branch(shot.run.id, step, changes)
    except ConfigError as error:
        for problem in error.problems:
            message = plain(in_words_of_the_form(problem.message))
            st.error(f"**{plain(label(problem.field))}**: {message}", icon=":material/block:")
        wrong = {problem.field for problem in error.problems}
        _differences(old, replace(old, **{name: value for name, value in changes.items() if name not in wrong}))
        return True
    except LabError as error:
        st.error(plain(str(error)), icon=":material/error:")
        return True
    st.markdown(f"From step {step:,} to step {plan.total_steps:,}.")
    _differences(old, plan.config)
    return False


def _differences(old: TrainConfig, new: TrainConfig) -> None:
    lines = []
    for difference in differences_that_matter(old, new):
        before, after = plain(formats.setting(difference.old)), plain(formats.setting(difference.new))
        lines.append(f"- **{plain(label(difference.name))}**: {before} → {after}. {plain(difference.effect)}")
    if lines:
        st.markdown("\n".join(["What differs:", *lines]))
