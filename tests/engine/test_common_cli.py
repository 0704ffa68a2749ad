"""engine.cli.common: what all commands read alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.cli.common import run_and_step
from engine.cli.export import main as export
from engine.cli.generate import main as generate
from engine.cli.train import main as train
from engine.errors import ConfigError

COMMANDS: dict[str, Callable[[str, Path], int]] = {
    "train": lambda run, _: train(["--branch", run]),
    "generate": lambda run, _: generate([run]),
    "export": lambda run, folder: export([run, "--to", "hf", str(folder / "new")]),
}


def test_a_run_and_its_step() -> None:
    assert run_and_step("20261122-a") == ("20261122-a", None)
    assert run_and_step("20261122-a@0") == ("20261122-a", 0)
    assert run_and_step("20261122-a@400") == ("20261122-a", 400)
    for wrong in ("@", "@x", "@-1", "@4.0", "@ 4", "@٣", "@4@5", "@" + "9" * 5000):
        with pytest.raises(ConfigError, match="is not a step"):
            run_and_step(f"a{wrong}")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_step_that_is_none(command: str, tmp_path: Path, capsys: Any) -> None:
    assert COMMANDS[command]("20261122-a@", tmp_path) == 2
    assert capsys.readouterr().err == "RUN@STEP: '' is not a step; write RUN@STEP, such as 20261122-a@400.\n"
    assert not list(tmp_path.iterdir())
