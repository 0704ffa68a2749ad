"""This machine, looked at once."""

import streamlit as st

from engine.environment import Machine, this_machine


@st.cache_data(show_spinner="Looking at this machine …")
def machine() -> Machine:
    """Facts about this machine; they don't change while the app runs."""
    return this_machine()
