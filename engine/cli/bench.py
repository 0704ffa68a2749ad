"""`python -m engine.bench`: measure this machine."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from engine.cli.common import DONE, add_setting_flags, given_settings, run_command
from engine.config import TrainConfig, from_dict
from engine.errors import ConfigError, Problem, is_out_of_memory
from engine.memory import GIB, estimate_memory

EXAMPLES = """examples:
  python -m engine.bench train --config nano
  python -m engine.bench train --config medium --batch-size 64 --compile on
  python -m engine.bench tokenize --corpus verdict
  python -m engine.bench memory --config small
  python -m engine.bench watch --seconds 40"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.bench",
        description="Measure this machine: what was reached, beside the limit it is held against.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="train|tokenize|watch|memory")
    for name, help in (
        ("train", "training steps, beside the rate of matrix products"),
        ("tokenize", "text to tokens, beside tiktoken alone"),
        ("watch", "training with the page open in a browser, beside training alone"),
        ("memory", "the most that a run holds, beside its estimate"),
    ):
        kind = kinds.add_parser(name, help=help, allow_abbrev=False)
        kind.add_argument("--json", action="store_true", help="print JSON")
        if name != "memory":  # which takes the same few steps always
            kind.add_argument(
                "--seconds", type=_seconds, default=10.0, help="how long to measure, of watch each segment (10)"
            )
        if name == "memory":
            kind.add_argument("--processes", type=_count, default=1, metavar="N", help="that train together (1)")
        if name in ("train", "memory"):
            add_setting_flags(kind)
        if name == "tokenize":
            kind.add_argument("--corpus", default="verdict", help="a corpus that is here (default: verdict)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _MEASURES[options.kind](options))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError("it must be above 0, up to 3600")
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= 64):
        raise argparse.ArgumentTypeError("it must be a number from 1 to 64")
    return int(text)


def _train(options: argparse.Namespace) -> int:
    config = _resolved(options)
    from engine.bench.train import measure_training

    speed = _or_out_of_memory(config, lambda: measure_training(config, options.seconds))
    if options.json:
        return _json(config=_settings(config), **asdict(speed), utilization=speed.utilization)
    print(f"{_described(config)}, steps alone, without validation, samples and saving:")
    print(f"  {speed.tokens_per_s:12,.0f} tokens/s   (blocks differ by {speed.spread:.0%})")
    print(f"  {speed.step_s * 1e3:12,.2f} ms a step")
    print(f"  {speed.first_step_s:12,.2f} s until the first step was done")
    print(f"  {speed.warm_up_s:12,.2f} s until full speed")
    print(f"  {speed.flops / 1e12:12,.3f} TFLOP/s of the model's operations")
    print(f"  {speed.matmul_flops / 1e12:12,.3f} TFLOP/s of a large matrix product in turns with them, the limit")
    print(f"  {speed.utilization:12.1%} of it")
    print(f"  {speed.peak_gib:12,.2f} GiB at most")
    print(f"computed with {', '.join(f'{what} {which}' for what, which in speed.computed_with.items())}")
    for sentence in speed.lacking:
        print(sentence, file=sys.stderr)
    return DONE


def _memory(options: argparse.Namespace) -> int:
    config = _resolved(options)
    from engine.bench.memory import measure_memory

    estimate = estimate_memory(config, config.device, processes=options.processes)
    used = _or_out_of_memory(config, lambda: measure_memory(config, options.processes))
    expected = estimate.peak_allocated if config.device != "cpu" else estimate.total
    if options.json:
        return _json(config=_settings(config), measured_gib=used / GIB, estimate_gib=expected / GIB)
    what = "allocated on the GPU" if config.device != "cpu" else "held by a fresh process"
    each = f" by each of {options.processes} processes" if options.processes > 1 else ""
    print(f"{_described(config)}{each}, the most that was {what} in a few steps:")
    print(f"  {used / GIB:8.3f} GiB measured")
    print(f"  {expected / GIB:8.3f} GiB estimated, {expected / used - 1:+.1%}")
    return DONE


def _tokenize(options: argparse.Namespace) -> int:
    from engine.bench.tokenize import measure_tokenizing

    speed = measure_tokenizing(options.corpus, options.seconds)
    if options.json:
        return _json(corpus=options.corpus, **asdict(speed), utilization=speed.utilization)
    print(f"{options.corpus}, {speed.tokens:,} tokens made on {speed.cores} cores, read and checked:")
    print(f"  {speed.tokens_per_s:12,.0f} tokens/s")
    print(
        f"  {speed.tiktoken_tokens_per_s * speed.cores:12,.0f} tokens/s of tiktoken alone on as many cores, the limit"
    )
    print(f"  {speed.utilization:12.1%} of it")
    return DONE


def _watch(options: argparse.Namespace) -> int:
    from engine.bench.watch import measure_watching

    cost = measure_watching(options.seconds)
    if options.json:
        segments = [asdict(segment) for segment in cost.segments]
        return _json(segments=segments, ratios=cost.ratios, ratio=cost.ratio, drift=cost.drift)
    print("nano, trained by the app on this machine; seconds of the processor that were used in each second:")
    for segment in cost.segments:
        print(
            f"  {segment.tokens_per_s:10,.0f} tokens/s {'with the page open' if segment.watched else 'alone':<18}   "
            f"app {segment.app:.2f}, browser {segment.browser:.3f}, elsewhere {segment.elsewhere:.2f}"
        )
    print(f"  {cost.ratio:10.1%} of the pace is left while the page is open (limit: 95%): {_percent(cost.ratios)}")
    print(f"             each beside the mean of its neighbours. Alone, from one to the next: {_percent(cost.drift)}")
    return DONE


def _percent(shares: tuple[float, ...]) -> str:
    return ", ".join(f"{share:.1%}" for share in shares)


_MEASURES: dict[str, Callable[[argparse.Namespace], int]] = {
    "train": _train,
    "tokenize": _tokenize,
    "watch": _watch,
    "memory": _memory,
}


def _resolved(options: argparse.Namespace) -> TrainConfig:
    """The settings, with what `auto` and 0 stand for on this machine."""
    from engine.environment import default_threads, resolve_device
    from engine.start import device_problems

    values = given_settings(options)
    try:
        config = from_dict(values)
    except ConfigError as error:
        raise ConfigError([*error.problems, *device_problems(values, error.problems)]) from error
    device, precision = resolve_device(config.device, config.precision)
    return replace(
        config,
        device=device,
        precision=precision,
        threads=config.threads or default_threads(),
        context_length=config.model.context_length,
        learning_rate=config.learning_rate or config.preset.learning_rate,
        warmup_steps=max(0, config.warmup_steps),
    )


def _or_out_of_memory(config: TrainConfig, measure: Callable[[], Any]) -> Any:
    try:
        return measure()
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"memory ran out on {config.device}; take a smaller batch, context or preset."
        raise ConfigError([Problem("batch_size", message)]) from error


def _settings(config: TrainConfig) -> dict[str, Any]:
    names: tuple[str, ...] = (
        "config",
        "batch_size",
        "context_length",
        "grad_accum_steps",
        "precision",
        "optimizer",
        "attention_impl",
    )
    names = (*names, "gradient_checkpointing", "compile", "device", "threads")
    return {name: getattr(config, name) for name in names}


def _described(config: TrainConfig) -> str:
    batch = f"{config.sequences_per_step} × {config.context_length:,} tokens a step"
    return f"{config.config}, {batch}, {config.precision} on {config.device}"


def _json(**values: Any) -> int:
    print(json.dumps(values, indent=2))
    return DONE
