"""Home: what this is, what it runs on, what is going on, and a first run at one click."""

import streamlit as st

from app.widgets import actions, formats, run_parts
from app.widgets.guard import guard
from app.widgets.machine import machine
from app.widgets.plot import preload
from app.widgets.snapshot import snapshot
from engine import session
from engine.config import TrainConfig
from engine.library import summary_of
from engine.run import active_runs, list_runs

SMOKE = TrainConfig(config="nano", corpus="verdict", epochs=3)


@st.fragment(run_every=2.0)
@guard()
def going_on(before: list[str]) -> None:
    """The run that trains now, wherever it was started; when another one begins or ends, the page is drawn anew."""
    active = active_runs()
    if [run.id for run in active] != before:
        st.rerun()
    for run in active:
        shot = snapshot(run)
        last = shot.last
        with st.container(border=True):
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(f"**{formats.plain(shot.name)}**", width="content")
                run_parts.state_badge(shot.state)
            step = int(last.get("step", 0))
            text = f"Step {step:,} of {shot.total_steps:,}"
            if last:
                text += f" · training loss {formats.loss(last['train_loss'])} · {formats.rate(last['tokens_per_s'])}"
            st.progress(min(1.0, step / max(1, shot.total_steps)), text=text)
            actions.run_link(run.id, "Watch it live")


def recent_runs(count: int = 5) -> None:
    """The newest runs, each with its outcome."""
    for run in list_runs()[:count]:
        shot = snapshot(run)
        with st.container(horizontal=True, vertical_alignment="center"):
            run_parts.state_badge(shot.shown_state)
            actions.details_link(run.id, shot.name, icon=":material/show_chart:")
            loss = formats.loss(summary_of(run.id).train_loss)
            st.caption(f"training loss {loss} · {formats.moment(shot.info.get('created'))}", width="content")


runs = list_runs()
st.title("LLM pretraining lab", anchor=False)
st.write(
    "Train a small GPT from scratch, watch its loss fall, read what it writes, and find out why it learns, "
    "or why it does not."
)
going_on([run.id for run in active_runs()])
left, right = st.columns([3, 2], gap="large")
with left:
    if not runs:
        st.subheader("Your first run", anchor=False)
    else:
        st.subheader("Smoke run", anchor=False)
    st.write(
        "A GPT of 9.9 million parameters reads Edith Wharton's short story *The Verdict* three times. It takes about "
        "half a minute on two cores, and shows that everything works: the training loss falls from 10.8 to below 7."
    )
    if st.button("Smoke run", type="primary", icon=":material/rocket_launch:"):
        actions.launch(lambda: session.start(SMOKE, name="Smoke run"))
    st.page_link(actions.PRETRAINING, label="Choose the settings yourself", icon=":material/tune:")
with right:
    st.subheader("This machine", anchor=False)
    m = machine()
    with st.container(border=True):
        st.metric("Device", "GPU (CUDA)" if m.device == "cuda" else "CPU", help=m.device_name)
        st.caption(formats.plain(m.device_name))
        with st.grid(3, min_column_width=70, gap="small"):
            st.metric("Memory", f"{m.device_memory_gib:.0f} GiB")
            st.metric("Threads", str(m.threads))
            st.metric("Precision", m.precision, help="What a run takes when its precision is auto.")
if runs:
    st.subheader("Recent runs", anchor=False)
    recent_runs()
    st.page_link("views/runs.py", label="All runs", icon=":material/stacked_line_chart:")
preload()
