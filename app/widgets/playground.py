"""Talk to a checkpoint: a prompt goes in, a text streams out, and each token tells how likely it was."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

import streamlit as st
from streamlit import runtime
from streamlit.runtime.scriptrunner import get_script_run_ctx

from app.widgets import formats
from app.widgets.choices import choices
from app.widgets.formats import plain
from app.widgets.generation import Generation
from app.widgets.guard import guard
from app.widgets.run_checkpoints import choose
from app.widgets.snapshot import Snapshot
from engine.checkpoint import Checkpoint
from engine.errors import LabError
from engine.generate import load_model
from engine.run import active_runs

TICK_S = 0.3
MOST_TOKENS = 1000  # on the page; the command line has no such limit


def playground(shot: Snapshot) -> None:
    """Ask for a checkpoint, a prompt and how to draw; generate."""
    whole = [checkpoint for checkpoint in shot.checkpoints if not checkpoint.problem]
    if not whole:
        st.caption(
            "There is no checkpoint to talk to yet. One is saved at the end, at regular steps, and on *Save now*."
        )
        return
    chosen = choose(whole, key="playground-checkpoint")
    config = shot.run.config
    prompt = st.text_area("Prompt", config.sample_prompt, key=f"prompt-{shot.run.id}", height=100)
    length, how = _settings(config.sample_temperature, config.sample_top_k)
    if active_runs():
        st.caption(":material/speed: A run is being trained on this machine. Generating takes time from it.")
    _start(shot, chosen, prompt, length, how)
    st.caption("The same text in a terminal:")
    st.code(_command(shot.run.id, chosen.step, prompt, length, how), language="bash", wrap_lines=True)


def _settings(temperature: float, top_k: int) -> tuple[int, dict[str, Any]]:
    with st.grid("auto", min_column_width=120, gap="small"):
        length = st.number_input("Tokens", 1, MOST_TOKENS, 200, key="play-length", help="How many to generate.")
        how = {
            "temperature": st.number_input(
                "Temperature",
                0.0,
                5.0,
                temperature,
                0.1,
                key="play-temperature",
                help="Below 1 prefers the likely tokens, above 1 gives the unlikely a chance; 0 takes the likeliest.",
            ),
            "top_k": st.number_input(
                "Top-k", 0, 50257, top_k, key="play-top-k", help="Draw from this many likeliest tokens. 0: from all."
            ),
            "top_p": st.number_input(
                "Top-p",
                0.0,
                1.0,
                1.0,
                0.05,
                key="play-top-p",
                help="Draw from the fewest likeliest tokens that have this probability together. 1: from all.",
            ),
            "seed": st.number_input(
                "Seed", 0, 2**31 - 1, 0, key="play-seed", help="The same seed gives the same text."
            ),
        }
    return length, how


def _start(shot: Snapshot, chosen: Checkpoint, prompt: str, length: int, how: dict[str, Any]) -> None:
    if st.button("Generate", type="primary", icon=":material/play_arrow:", key="play-go"):
        if earlier := st.session_state.get("generation"):
            earlier.stop()
        try:
            model = _model(str(chosen.path), chosen.saved, shot.run.id, chosen.step)
        except LabError as error:
            st.error(plain(str(error)), icon=":material/error:")
            return
        st.session_state["generation"] = Generation(model, shot.run.id, prompt, length, how, _watched())
    generation = st.session_state.get("generation")
    if generation is not None and generation.run_id == shot.run.id:
        st.fragment(_output, run_every=TICK_S if generation.running else None)(generation, generation.running)


@st.cache_resource(max_entries=2, show_spinner="Reading the checkpoint …")
def _model(path: str, saved: str, run_id: str, step: int) -> Any:
    """Once for all pages. Path and time name the file: another one at the same step is another model."""
    return load_model(run_id, step)


def _watched() -> Callable[[], bool]:
    """Whether the page that asks now is still open in a browser."""
    context = get_script_run_ctx()
    if context is None or not runtime.exists():  # in a test of the page
        return lambda: True
    server, session_id = runtime.get_instance(), context.session_id
    return lambda: server.is_active_session(session_id)


@guard()
def _output(generation: Generation, was_running: bool) -> None:
    running = generation.running  # before the tokens are read: what comes after is in the next tick
    if running != was_running:
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        if running:
            st.button("Stop", icon=":material/stop:", on_click=generation.stop, key="play-stop")
        words = f"{len(generation.tokens):,} tokens · {formats.rate(generation.tokens_per_s)}"
        st.caption(words if running else f"{words} · point at a token to see how likely it was")
    if generation.failed:
        st.error(plain(generation.failed), icon=":material/error:")
    choices(id(generation), generation.prompt, generation.tokens, key="play-text")


def _command(run_id: str, step: int, prompt: str, length: int, how: dict[str, Any]) -> str:
    """What gives the same text in a terminal."""
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in how.items())
    return f"python -m engine.generate {run_id}@{step} --prompt={shlex.quote(prompt)} --length {length} {options}"
