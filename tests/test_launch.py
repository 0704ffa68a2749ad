"""launch.sh and the files of the set-up: what can be told without installing anything."""

import re
import socket
import subprocess
import tomllib
from pathlib import Path

import pytest
from streamlit import config as streamlit_config

PROJECT = Path(__file__).resolve().parents[1]
LAUNCH = PROJECT / "launch.sh"


def launch(*options: str, cwd: Path = PROJECT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LAUNCH, *options], cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
    )


@pytest.mark.parametrize("script", ["launch.sh", ".ci/run"])
def test_scripts_parse_and_may_be_executed(script: str) -> None:
    path = PROJECT / script
    subprocess.run(["bash", "-n", path], check=True)
    assert path.stat().st_mode & 0o100  # who else may execute it is for the umask to say


def test_help_names_every_option_from_any_folder(tmp_path: Path) -> None:
    result = launch("--help", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    for word in ("test", "check", "--port", "--host", "--no-browser", "--help", "LAB_TORCH"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--bogus"], "Unknown option: --bogus."),
        (["tset"], "Unknown option: tset."),
        (["--port"], "--port needs a value."),
        (["--host="], "--host needs a value."),
        (["check", "more"], "check takes no options."),
        *[(["--port", port], f"--port {port} is not a port") for port in ("0", "65536", "-1", "8e3", "99999999")],
    ],
)
def test_a_wrong_option_is_one_sentence_and_exit_2(options: list[str], complaint: str) -> None:
    result = launch(*options)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(complaint)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("form", ["--port {}", "--port={}"])
def test_a_port_that_was_asked_for_and_is_in_use_is_refused(form: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        result = launch("--no-browser", *form.format(port).split())
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith(f"Port {port} is in use:")
    assert result.stderr.count("\n") == 1


def test_a_host_that_is_not_this_machine_is_refused() -> None:
    result = launch("--no-browser", "--host", "203.0.113.1", "--port", "8501")  # an address kept for documentation
    assert result.returncode == 1
    assert result.stderr.startswith("Cannot listen on 203.0.113.1, port 8501:")
    assert "Traceback" not in result.stderr


def test_every_requirement_has_one_exact_version() -> None:
    lines = [line.split("#")[0].strip() for line in (PROJECT / "requirements.txt").read_text().splitlines()]
    pins = [line for line in lines if line]
    assert len(pins) > 10
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9_.-]+==\d+(\.\d+)*", pin)] == []


def test_streamlit_knows_every_setting_and_the_app_stays_on_this_machine() -> None:
    settings = tomllib.loads((PROJECT / ".streamlit/config.toml").read_text())
    known = streamlit_config.get_config_options()
    named = [f"{section}.{name}" for section, options in settings.items() for name in _flat(options)]
    assert [name for name in named if name not in known] == []
    server = settings["server"]
    assert server["address"] == "127.0.0.1"
    assert set(server["allowedHosts"]) == {"localhost", "127.0.0.1", "::1"}
    assert server["enableCORS"] and server["enableXsrfProtection"]
    assert settings["client"]["showErrorDetails"] == "none"
    assert settings["browser"]["gatherUsageStats"] is False


def _flat(options: dict) -> list[str]:
    """Names of the options of a section, those of its tables with the table's name before them."""
    names = []
    for name, value in options.items():
        names += [f"{name}.{inner}" for inner in _flat(value)] if isinstance(value, dict) else [name]
    return names
