"""`python -m engine.prepare_corpora`: make the corpora that are not downloaded as they are."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from engine.cli.common import DONE, FAILED, run_command
from engine.cli.progress import Bars, interruptible
from engine.corpora import Corpus, jobs
from engine.corpora.known import KNOWN, expand
from engine.corpora.prepare import prepare
from engine.corpora.progress import CancelledError, Progress
from engine.corpora.sources import Normalized, WikipediaIntros
from engine.errors import ConfigError, LabError, Problem

EXAMPLES = """examples:
  python -m engine.prepare_corpora --list
  python -m engine.prepare_corpora wikipedia_ga_intros
  python -m engine.prepare_corpora wikipedia_ga_intros --limit 500
  python -m engine.prepare_corpora wikipedia_ga_intros --from-jsonl passages.jsonl
  python -m engine.prepare_corpora pg19_small_normalized  # train, validation and test; fetches pg19_small if needed

Ctrl-C stops; what was fetched is kept, and the same command goes on from there. LAB_WIKIPEDIA_API points to another
wiki's API; LAB_CONTACT tells Wikipedia how to reach you.
exit codes: 0 done, 1 failed or cancelled, 2 wrong usage"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.prepare_corpora",
        description="Make the corpora that need preparation.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", metavar="NAME", nargs="*", help="what to make; a family brings all its splits")
    parser.add_argument("--list", action="store_true", help="show what can be made, and what is here")
    parser.add_argument(
        "--from-jsonl", metavar="FILE", type=Path, help='passages of your own, {"source": …, "text": …} a line'
    )
    parser.add_argument("--limit", metavar="N", type=int, default=0, help="only so many articles, for a quick corpus")
    options = parser.parse_args(arguments)
    return run_command(lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    if options.list == bool(options.names):
        raise ConfigError([Problem("usage", "say names to prepare, or --list (see --help).")])
    if options.list:
        return _list()
    corpora = _resolve(options.names)
    _check(options, corpora)
    failed: list[str] = []
    for corpus in corpora:
        try:
            _make(corpus, options.from_jsonl, options.limit)
        except CancelledError:
            print(
                f"{corpus.name}: cancelled. What was fetched is kept; the same command goes on from there.",
                file=sys.stderr,
            )
            return FAILED
        except LabError as error:  # the others can be made all the same
            failed.append(f"{corpus.name}: {error}")
    if failed:
        raise LabError("\n".join(failed))
    return DONE


def _preparable() -> list[Corpus]:
    return [corpus for corpus in KNOWN if isinstance(corpus.origin, Normalized | WikipediaIntros)]


def _resolve(wanted: list[str]) -> list[Corpus]:
    """The corpora that are meant, each once; all names that cannot be prepared are told together."""
    preparable = {corpus.name: corpus for corpus in _preparable()}
    known = {corpus.name for corpus in KNOWN}
    problems = []
    names: dict[str, None] = {}
    for name in wanted:
        expanded = expand(name)
        names.update(dict.fromkeys(expanded))
        if not preparable.keys() >= set(expanded):
            why = "needs no preparation" if known >= set(expanded) else "is not known"
            problems.append(
                Problem(name, f"it {why}; `python -m engine.prepare_corpora --list` shows what can be made.")
            )
    if problems:
        raise ConfigError(problems)
    return [preparable[name] for name in names]


def _check(options: argparse.Namespace, corpora: list[Corpus]) -> None:
    """Refuse flags that do not fit."""
    problems = []
    only_passages = all(isinstance(corpus.origin, WikipediaIntros) for corpus in corpora)
    if options.from_jsonl is not None and not only_passages:
        problems.append(Problem("--from-jsonl", "only wikipedia_ga_intros is made of passages; name it alone."))
    if options.limit and not only_passages:
        problems.append(Problem("--limit", "only wikipedia_ga_intros is made of articles; name it alone."))
    if options.limit < 0:
        problems.append(Problem("--limit", f"{options.limit} is no number of articles; 0 takes all."))
    if options.limit and options.from_jsonl is not None:
        problems.append(Problem("--limit", "it cannot be combined with --from-jsonl."))
    if problems:
        raise ConfigError(problems)


def _make(corpus: Corpus, from_jsonl: Path | None, limit: int) -> None:
    """Make one corpus, with bars, and say what came of it."""
    if corpus.is_here:
        print(f"{corpus.name}: is here, {_extent(corpus)} in {corpus.path}. To make it anew, delete this file first.")
        return
    sentences: list[str] = []
    bars = Bars()

    def work(progress: Progress) -> None:
        with interruptible(corpus.name):
            prepare(corpus, progress, from_jsonl=from_jsonl, limit=limit, say=sentences.append)

    try:
        jobs.run(corpus.name, "prepare", work, bars.tell)
    except KeyboardInterrupt:
        raise CancelledError("Cancelled.") from None
    finally:
        bars.close()
    for sentence in sentences:
        print(sentence)
    print(f"{corpus.name}: ready, {_extent(corpus)} in {corpus.path}")


def _extent(corpus: Corpus) -> str:
    """Size, and documents where there are any."""
    size = corpus.path.stat().st_size
    words = f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"
    if corpus.mode != "documents":
        return words
    with corpus.path.open("rb") as file:
        count = sum(1 for line in file if line.strip())
    return f"{words}, {count:,} document{'' if count == 1 else 's'}"


def _list() -> int:
    for corpus in _preparable():
        if corpus.is_here:
            state = f"here, {corpus.path.stat().st_size / 1e6:,.1f} MB"
        elif isinstance(corpus.origin, Normalized):
            state = f"can be made from {corpus.origin.of}"
        else:
            state = "can be made through Wikipedia's API"
        print(f"{corpus.name:<40} {state}\n    {corpus.description}")
    print("\nA name without train, validation or test, such as pg19_small_normalized, stands for all three.")
    return DONE
