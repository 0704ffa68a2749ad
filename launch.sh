#!/usr/bin/env bash
# Sets the lab up (.venv, requirements.txt) when it has to, then opens it, tests it or checks it. See --help.
# Kept to what bash 3.2 knows, which is what macOS ships.
set -euo pipefail
# PYTHONHOME would send the new environment to another Python's library; CDPATH makes cd print.
unset CDPATH PYTHONHOME
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

venv_python=.venv/bin/python
stamp=.venv/installed       # what was installed; "incomplete" from the start of an install to its end
pip_log=.venv/install.log

usage() {
    cat <<'HELP'
Usage: ./launch.sh [options]              set up what is missing and open the app in the browser
       ./launch.sh test [pytest options]  set up, get a Chromium for the browser tests, run the tests
       ./launch.sh check                  set up, check formatting, lint and types

Options
  --port N       port of the app (default: 8501, or the next free one)
  --host H       address to listen on (default: 127.0.0.1, this machine only)
  --no-browser   open no browser
  --help         show this text

Environment
  PYTHON         the Python to make .venv with (3.11 or newer; default: the first one found)
  LAB_TORCH=cpu  take PyTorch's CPU build, far smaller to download; it counts while torch is not yet in .venv
  CHROMIUM       the Chromium or Chrome for the browser tests

To start over, delete .venv and run ./launch.sh again.
HELP
}

say() { printf '%s\n' "$*"; }
die() { printf '%s\n' "$*" >&2; exit 1; }
misuse() { printf '%s See ./launch.sh --help.\n' "$*" >&2; exit 2; }

# ---- Python and .venv

find_python() {  # prints the path of the first Python that is new enough
    local candidate path candidates=(python3 python3.14 python3.13 python3.12 python3.11 python)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        path=$("$candidate" -c 'import sys; print(sys.executable if sys.version_info >= (3, 11) else "")' 2>/dev/null) || continue
        if [ -n "$path" ]; then
            printf '%s\n' "$path"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        die "PYTHON=$PYTHON is not a Python 3.11 or newer: correct it, or unset it to use the first one found."
    fi
    die "No Python 3.11 or newer was found: install one (https://www.python.org/downloads), or set PYTHON to its path."
}

fingerprint() {  # what .venv has to match; fails where .venv is missing, broken or too old
    "$venv_python" -c '
import hashlib, pathlib, sys
import pip
assert sys.version_info >= (3, 11) and sys.prefix != sys.base_prefix
print(sys.version.split()[0], hashlib.sha256(pathlib.Path("requirements.txt").read_bytes()).hexdigest())
' 2>/dev/null
}

any_python() { if fingerprint >/dev/null; then printf '%s\n' "$venv_python"; else find_python; fi; }

is_current() {
    local wanted
    wanted=$(fingerprint) && [ "$wanted" = "$(cat "$stamp" 2>/dev/null)" ]
}

set_up() {
    if is_current; then return; fi
    trap 'say; say "Interrupted: run ./launch.sh again to finish the set-up."; exit 130' INT
    lock
    if ! is_current; then
        # A package that was copied by half looks installed to pip, so what was interrupted is made anew.
        if [ "$(cat "$stamp" 2>/dev/null)" = incomplete ] || ! fingerprint >/dev/null; then make_venv; fi
        install_requirements
    fi
    exec 9<&-
    trap - INT
}

lock() {  # the kernel's, on an open file: never left behind, and kept by a pip that outlives this script
    local python
    python=$(any_python)
    exec 9<requirements.txt
    if "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; then return; fi
    say "Another ./launch.sh is setting up; waiting for it ..."
    "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' 2>/dev/null || die "Could not lock requirements.txt."
}

make_venv() {
    local python version
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    "$python" -c 'import venv, ensurepip' 2>/dev/null \
        || die "$python lacks the venv module: install it (on Debian and Ubuntu: sudo apt-get install python$version-venv)."
    if [ -e .venv ]; then
        say "Making .venv anew with Python $version, since the one there is not usable ..."
    else
        say "Making .venv with Python $version ..."
    fi
    "$python" -m venv --clear .venv || die "Could not make .venv in $PWD: see the lines above."
}

install_requirements() {
    local started=$SECONDS pip_options=()
    if [ "${LAB_TORCH:-}" = cpu ]; then
        # Its versions end in +cpu, which pip ranks above the same version without.
        pip_options=(--extra-index-url https://download.pytorch.org/whl/cpu)
    elif [ -n "${LAB_TORCH:-}" ]; then
        misuse "LAB_TORCH=$LAB_TORCH is not known: it can only be cpu."
    fi
    if [ -e "$stamp" ]; then
        say "Installing what changed in requirements.txt ..."
    else
        say "Installing requirements.txt into .venv (the first time it takes some minutes) ..."
        hint_cpu_build
    fi
    echo incomplete >"$stamp"
    if ! "$venv_python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
        ${pip_options[@]+"${pip_options[@]}"} --requirement requirements.txt >"$pip_log" 2>&1 </dev/null; then
        rm "$stamp"  # pip ended by itself and left nothing by half
        tail -n 15 "$pip_log" >&2
        die "Installing requirements.txt failed: see the lines above (all of them are in $pip_log) and run ./launch.sh again."
    fi
    fingerprint >"$stamp"
    say "Installed in $((SECONDS - started)) s."
}

hint_cpu_build() {
    if [ "$(uname -sm)" = "Linux x86_64" ] && [ -z "${LAB_TORCH:-}" ] && ! command -v nvidia-smi >/dev/null; then
        say "No NVIDIA GPU was seen here: LAB_TORCH=cpu ./launch.sh downloads gigabytes less."
    fi
}

# ---- the app

free_port() {  # python, host, first port, how many to try: prints the first port that can be had
    "$1" - "${@:2}" <<'PY'
import errno
import socket
import sys

host, first, tries = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
last = min(first + tries - 1, 65535)
for port in range(first, last + 1):
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
        with socket.socket(family, kind, protocol) as client:
            client.settimeout(0.5)
            if client.connect_ex(address) == 0:  # macOS binds beside a server that listens on all addresses
                continue
    except OSError as problem:
        if problem.errno == errno.EADDRINUSE:
            continue
        sys.exit(f"Cannot listen on {host}, port {port}: {problem.strerror}. Choose another --host or --port.")
    print(port)
    sys.exit()
if tries == 1:
    sys.exit(f"Port {first} is in use: choose another one with --port, or leave --port out to take a free one.")
sys.exit(f"The ports {first} to {last} are all in use: choose another one with --port.")
PY
}

allowed_hosts() {  # the names by which a browser may reach an app that listens on $1, one a line
    "$venv_python" - "$1" <<'PY'
import pathlib
import socket
import sys
import tomllib

import psutil

config = tomllib.loads(pathlib.Path(".streamlit/config.toml").read_text())
name = socket.gethostname()
addresses = [a.address for interface in psutil.net_if_addrs().values() for a in interface
             if a.family in (socket.AF_INET, socket.AF_INET6)]
for host in dict.fromkeys([*config["server"]["allowedHosts"], sys.argv[1], name, f"{name}.local", *addresses]):
    print(host)
PY
}

wants_browser() {  # on Linux without a display, xdg-open may start a text browser in this terminal
    [ "$browser" = yes ] && { [ "$(uname -s)" != Linux ] || [ -n "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; }
}

open_app() {
    local port=8501 host=127.0.0.1 browser=yes tries=100 chosen
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) usage; exit ;;
            --no-browser) browser=no ;;
            --port=*) port=${1#*=} tries=1 ;;
            --host=*) host=${1#*=} ;;
            --port | --host)
                [ $# -ge 2 ] || misuse "$1 needs a value."
                if [ "$1" = --port ]; then port=$2 tries=1; else host=$2; fi
                shift ;;
            *) misuse "Unknown option: $1." ;;
        esac
        shift
    done
    is_port "$port" || misuse "--port $port is not a port: it must be a number from 1 to 65535."
    [ -n "$host" ] || misuse "--host needs a value."

    if [ $tries = 1 ]; then free_port "$(any_python)" "$host" "$port" 1 >/dev/null; fi  # before an install of minutes
    set_up
    chosen=$(free_port "$venv_python" "$host" "$port" $tries)
    if [ "$chosen" -ne "$port" ]; then say "Port $port is in use; taking $chosen."; fi
    serve "$host" "$chosen"
}

is_port() { [[ $1 =~ ^[1-9][0-9]{0,4}$ ]] && [ "$1" -le 65535 ]; }

serve() {
    local host=$1 port=$2 shown=$1 name options=()
    case $host in
        127.0.0.1 | localhost | ::1) ;;
        *)
            while IFS= read -r name; do options+=("--server.allowedHosts=$name"); done < <(allowed_hosts "$host")
            say "Whoever can reach this machine's port $port can use the lab: it asks for no password." ;;
    esac
    case $host in
        0.0.0.0 | ::) shown=localhost ;;
        *:*) shown="[$host]" ;;
    esac
    if wants_browser; then options+=(--server.headless=false); else options+=(--server.headless=true); fi
    say "The lab opens at http://$shown:$port (Ctrl-C ends it)."
    # python -m, since the scripts in .venv/bin hold absolute paths and break when the folder is moved.
    exec "$venv_python" -m streamlit run app/Home.py --server.address="$host" --server.port="$port" \
        --logger.hideWelcomeMessage=true "${options[@]}"
}

# ---- tests and checks

works() {  # Ubuntu's chromium is a snap, which cannot read the profiles that Playwright makes in /tmp
    local version
    version=$("$1" --version 2>/dev/null </dev/null) && case $version in *snap*) false ;; esac
}

system_chromium() {
    local candidate path
    for candidate in chromium chromium-browser google-chrome google-chrome-stable \
        "/Applications/Chromium.app/Contents/MacOS/Chromium" \
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"; do
        if path=$(command -v "$candidate") && works "$path"; then
            printf '%s\n' "$path"
            return
        fi
    done
    return 1
}

playwright_chromium() {
    local path
    path=$("$venv_python" -c '
from playwright.sync_api import sync_playwright
with sync_playwright() as playwright:
    print(playwright.chromium.executable_path)
' 2>/dev/null </dev/null) && works "$path" && printf '%s\n' "$path"
}

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi; }

apt_chromium() {  # not on Ubuntu, where the package is the snap
    command -v apt-get >/dev/null && as_root true 2>/dev/null && ! grep -qs '^ID=ubuntu' /etc/os-release || return 1
    say "Installing Chromium with apt-get ..." >&2
    { as_root apt-get update; as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install --yes --no-install-recommends chromium; } >.venv/apt.log 2>&1 </dev/null \
        || { tail -n 5 .venv/apt.log >&2; return 1; }
    system_chromium
}

download_chromium() {  # Playwright gives up by itself on a download that stalls
    say "Downloading Chromium with Playwright ..." >&2
    {
        if command -v apt-get && as_root true; then "$venv_python" -m playwright install-deps chromium || true; fi
        "$venv_python" -m playwright install chromium
    } >.venv/playwright.log 2>&1 </dev/null || { tail -n 5 .venv/playwright.log >&2; return 1; }
    playwright_chromium
}

find_chromium() {
    if [ -n "${CHROMIUM:-}" ]; then
        works "$CHROMIUM" || die "CHROMIUM=$CHROMIUM does not run: correct it, or unset it to use the first one found."
        command -v "$CHROMIUM"
        return
    fi
    system_chromium || playwright_chromium || apt_chromium || download_chromium \
        || die "The browser tests need Chromium and none could be had: install Chromium or Chrome, or set CHROMIUM to its path." \
            "All other tests run with: $venv_python -m pytest --ignore tests/browser"
}

run_tests() {
    set_up
    LAB_CHROMIUM=$(find_chromium)
    export LAB_CHROMIUM
    exec "$venv_python" -m pytest "$@"
}

run_checks() {
    [ $# -eq 0 ] || misuse "check takes no options."
    set_up
    local status=0
    "$venv_python" -m ruff format --check . || status=1
    "$venv_python" -m ruff check . || status=1
    "$venv_python" -m mypy engine || status=1
    exit $status
}

case ${1:-} in
    test) shift; run_tests "$@" ;;
    check) shift; run_checks "$@" ;;
    *) open_app "$@" ;;
esac
