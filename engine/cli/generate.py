"""`python -m engine.generate`: let a run's model continue a text."""

from __future__ import annotations

import argparse
import sys

from engine.cli.common import DONE, run_and_step, run_command


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.generate", description="Let a run's model continue a text.", allow_abbrev=False
    )
    parser.add_argument("run", metavar="RUN[@STEP]", help="the run, and perhaps the step of a checkpoint")
    parser.add_argument("--prompt", help="the beginning of the text (default: the run's sample prompt)")
    parser.add_argument("--length", type=int, default=200, help="tokens to generate (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 takes the likeliest token (default: 0.8)")
    parser.add_argument("--top-k", type=int, default=50, help="draw from this many likeliest; 0 from all (default: 50)")
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        help="draw from the fewest likeliest that have this probability together; 1 from all (default: 1)",
    )
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same text (default: 0)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    from engine.config import flag
    from engine.errors import ConfigError, Problem
    from engine.generate import check_sampling, load_model, stream_text
    from engine.labels import showable
    from engine.run import load_run

    try:
        check_sampling(options.length, options.temperature, options.top_k, options.seed, options.top_p)
    except ConfigError as error:
        raise ConfigError([Problem(flag(p.field), p.message) for p in error.problems]) from error
    run_id, step = run_and_step(options.run)
    prompt = load_run(run_id).config.sample_prompt if options.prompt is None else options.prompt
    model = load_model(run_id, step)
    show = showable if sys.stdout.isatty() else str  # a model may say what steers a terminal
    print(show(prompt), end="", flush=True)
    how = dict(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, seed=options.seed)
    pieces = stream_text(model, prompt, options.length, **how)
    for piece in pieces:
        print(show(piece), end="", flush=True)
    print()
    return DONE
