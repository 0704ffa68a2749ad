"""What a run will be, before it starts: its size, the time it takes, the memory it needs. Estimates say so."""

from __future__ import annotations

import json
from dataclasses import replace

import streamlit as st

from app.widgets import charts, formats, would_fit
from app.widgets.form_fields import change as change_fields
from app.widgets.formats import plain
from app.widgets.machine import machine
from app.widgets.plot import plot
from engine import session
from engine.config import TrainConfig
from engine.environment import GIB, has_bf16, resolve_device
from engine.errors import ConfigError, LabError
from engine.fit import what_would_fit
from engine.memory import CARDS, Breakdown, estimate_memory
from engine.pace import Pace, measure_pace, pace_of_earlier_runs
from engine.plan import Plan
from engine.run import list_runs

_ASKED_RUNS = 50  # newest runs whose pace is looked at


def outlook(plan: Plan, asked: TrainConfig) -> None:
    """The run in numbers.

    Args:
        asked: the settings that the plan was made from.
    """
    _size(plan)
    _time(plan)
    memory(asked)


def _size(plan: Plan) -> None:
    config = plan.config
    with st.grid("auto", min_column_width=150, gap="small"):
        st.metric("Parameters", formats.short_count(config.model.parameters))
        st.metric("Steps", formats.count(plan.total_steps))
        st.metric("Tokens", formats.count(plan.tokens))
        st.metric("Steps an epoch", f"{plan.steps_per_epoch:,.4g}")
        st.metric(
            "Effective batch",
            f"{config.tokens_per_step:,} tokens",
            f"{config.sequences_per_step:,} sequence{'s' if config.sequences_per_step > 1 else ''}",
            delta_color="off",
            delta_arrow="off",
            help=f"What one step learns from: {config.sequences_per_step:,} × {config.model.context_length:,} tokens.",
        )


def _time(plan: Plan) -> None:
    key = ("pace", plan.config)
    pace: Pace | None = st.session_state.get(key) or pace_of_earlier_runs(
        plan.config, list_runs()[:_ASKED_RUNS], machine().device_name
    )
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        if pace is None:
            st.markdown("**Time**: no run like it on this device yet.", width="content")
        else:
            st.markdown(
                f"**Time**: about {formats.duration(pace.seconds(plan))} at {formats.rate(pace.tokens_per_s)}, an "
                f"estimate from {plain(pace.basis)}.",
                width="content",
            )
        if st.button(
            "Measure", icon=":material/timer:", key="measure-pace", help="Trains a throw-away model for some seconds."
        ):
            try:
                with st.spinner("Measuring some steps …"):
                    st.session_state[key] = measure_pace(plan)
            except LabError as error:
                st.error(plain(str(error)), icon=":material/error:")
            else:
                st.rerun(scope="fragment")


def memory(asked: TrainConfig) -> None:
    """The memory of a run with these settings, whatever its text; nothing where this machine cannot train with them.

    Args:
        asked: checked settings, where `auto` may still be open.
    """
    try:
        device, precision = resolve_device(asked.device, asked.precision)
    except ConfigError:  # told beside its field
        return
    config, here = replace(asked, device=device, precision=precision), machine()
    limit = (here.memory_gib if device == "cpu" else here.device_memory_gib) * GIB
    estimate = estimate_memory(config, device, held=session.held_memory())
    here_is = ("this machine" if device == "cpu" else "this GPU", limit / GIB)
    figure = charts.memory_figure(_gib(estimate), here_is, {} if device == "cpu" else _CARDS)
    what = f"of this {'computer' if device == 'cpu' else 'GPU'}'s {formats.size(limit)}"
    title = f"Memory: about {formats.size(estimate.total)} {what}, an estimate"
    plot(json.dumps(figure), key="plot-memory", height=150, title=title)
    if estimate.total > limit:
        _what_would_fit(config, estimate, limit)
    if device == "cpu":
        _on_a_card(asked)


_CARDS = {f"{size} GB": size * 10**9 / GIB for size in CARDS}


def _gib(estimate: Breakdown) -> dict[str, float]:
    return {name: size / GIB for name, size in estimate.parts.items()}


def _on_a_card(asked: TrainConfig) -> None:
    """What a GPU would need for it, which is not what the process here does."""
    needed = estimate_memory(asked, "cuda")
    card = next((size for size in CARDS if needed.total <= size * 10**9), None)
    fits = f"a card of {card} GB would do" if card else "none of the common cards would do"
    title = f"On a GPU it would need about {formats.size(needed.total)}, an estimate: {fits}"
    plot(json.dumps(charts.memory_figure(_gib(needed), None, _CARDS)), key="plot-card-memory", height=150, title=title)


def _what_would_fit(config: TrainConfig, estimate: Breakdown, limit: float) -> None:
    """Say that memory will not do, and offer each change that would make it do."""
    short = f"This run needs about {formats.size(estimate.total)}, an estimate, and there are {formats.size(limit)}."
    besides = estimate.total - estimate_memory(config).total  # what the app's process holds more
    changes = what_would_fit(config, config.device, limit - besides, has_bf16=has_bf16(config.device))
    ahead = ("Each of these would fit:" if changes[1:] else "This would fit:") if changes else "No settings fit."
    st.error(f"{short} {ahead}", icon=":material/memory:")
    would_fit.offer([(change.settings, change.saving) for change in changes], change_fields, key="fit")
