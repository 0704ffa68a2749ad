"""`python -m engine.estimate`: how much memory a run with these settings will need, and what would make it fit."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from typing import Any

from engine.cli.common import DONE, add_setting_flags, given_settings, run_command
from engine.config import TrainConfig, flag, from_dict, option
from engine.environment import has_bf16, problems_on_cpu, this_machine
from engine.errors import ConfigError, Problem
from engine.fit import Change, what_would_fit
from engine.memory import CARDS, GIB, Breakdown, estimate_memory


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.estimate",
        description="Estimate the memory of a run before it is started, from its settings alone.",
        allow_abbrev=False,
    )
    parser.add_argument("--limit-gb", metavar="GB", help="memory to compare with (default: this machine's)")
    parser.add_argument("--processes", default="1", metavar="N", help="that torchrun will start (1)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_setting_flags(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    config, limit = _read(options)
    bf16 = True  # a card that is only known by its memory is taken for one that can be bought
    if config.device == "auto" or limit is None:
        config, limit = _ask_this_machine(config, limit)
        bf16 = has_bf16(config.device)
    processes = int(options.processes)
    on_gpu = config.device != "cpu"
    if not on_gpu:
        limit /= processes  # they share the computer's memory
    estimate = estimate_memory(config, config.device, processes=processes)
    fits = estimate.total <= limit
    changes = [] if fits else what_would_fit(config, config.device, limit, has_bf16=bf16, processes=processes)
    if options.json:
        print(json.dumps(_as_json(config, estimate, limit, changes), indent=2))
    else:
        each = f", each of {processes} processes" if processes > 1 else ""
        print(f"{config.config} on {config.device}{each}, an estimate:")
        _print(estimate, limit, changes, None if on_gpu else estimate_memory(config, "cuda", processes=processes))
    return DONE


def _read(options: argparse.Namespace) -> tuple[TrainConfig, float | None]:
    """The settings, and the limit in bytes; all problems together."""
    problems: list[Problem] = []
    config, limit = TrainConfig(), None
    settings = given_settings(options)
    try:
        config = from_dict(settings)
    except ConfigError as error:
        problems += error.problems
    device, precision = (settings.get(name, "auto") for name in ("device", "precision"))
    if not {"device", "precision"} & {problem.field for problem in problems} and _device(device) == "cpu":
        problems += problems_on_cpu(precision)
    if options.limit_gb is not None:
        try:
            limit = float(options.limit_gb) * 1e9
        except ValueError:
            limit = float("nan")
        if not 0 < limit < float("inf"):
            problems.append(Problem("--limit-gb", f"{options.limit_gb!r} is not a number of GB above 0."))
    if not re.fullmatch("0*[1-9][0-9]{0,5}", options.processes):
        problems.append(Problem("--processes", f"{options.processes!r} is not a number of 1 or more."))
    if problems:
        raise ConfigError(problems)
    return config, limit


def _device(asked: str) -> str:
    """The device that a setting means; to know what `auto` stands for here loads torch."""
    return this_machine().device if asked == "auto" else asked


def _ask_this_machine(config: TrainConfig, limit: float | None) -> tuple[TrainConfig, float]:
    """What `auto` stands for here, and how much memory there is; loads torch."""
    here, device = this_machine(), _device(config.device)
    memory = here.memory_gib if device == "cpu" or here.device == "cpu" else here.device_memory_gib
    if limit is None and device != "cpu" and here.device == "cpu":
        message = f"there is no GPU here to compare {device} with. Say its memory: --limit-gb 24."
        raise ConfigError([Problem(flag("device"), message)])
    return replace(config, device=device), limit or memory * GIB


def _as_json(config: TrainConfig, estimate: Breakdown, limit: float, changes: list[Change]) -> dict[str, Any]:
    return {
        "device": config.device,
        "estimate_gib": estimate.gib,
        "limit_gib": limit / GIB,
        "fits": estimate.total <= limit,
        "would_fit": [
            {"settings": dict(c.settings), "saves_gib": c.saving / GIB, "total_gib": c.total / GIB} for c in changes
        ],
    }


def _print(estimate: Breakdown, limit: float, changes: list[Change], on_gpu: Breakdown | None) -> None:
    """Args: `on_gpu` is what a GPU would need, where the estimate is of a CPU."""
    for name, size in estimate.gib.items():
        print(f"  {name:<12} {size:8.3f} GiB")
    fitting = [f"{size} GB" for size in CARDS if (on_gpu or estimate).total <= size * 1e9]
    needs = f"On a GPU it would need {on_gpu.total / GIB:.3f} GiB, an estimate. " if on_gpu else ""
    print(f"{needs}Fits into cards of: {', '.join(fitting) or 'none of the common sizes'}.")
    if estimate.total <= limit:
        print(f"It fits into the {limit / GIB:.2f} GiB there are.")
        return
    print(f"It does not fit into the {limit / GIB:.2f} GiB there are.", end=" ")
    print(("Each of these would:" if changes[1:] else "This would:") if changes else "No settings do.")
    for change in changes:
        flags = " ".join(option(name, value) for name, value in change.settings.items())
        print(f"  {flags}   saves {change.saving / GIB:.2f} GiB")
