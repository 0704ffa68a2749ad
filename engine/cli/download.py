"""`python -m engine.download_corpora`: get corpora, add a text of one's own, or list what there is."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from engine.cli.common import DONE, run_command
from engine.cli.progress import Bars, interruptible
from engine.corpora import Corpus, find_corpus, jobs, list_corpora, open_tokens
from engine.corpora.add import add_file
from engine.corpora.known import KNOWN, expand
from engine.corpora.progress import CancelledError, Progress
from engine.corpora.state import state_of
from engine.errors import ConfigError, LabError, Problem
from engine.plan import too_small_for

_QUICK = 50_000_000  # bytes that are tokenized and measured within some seconds

EXAMPLES = """examples:
  python -m engine.download_corpora --list
  python -m engine.download_corpora tinystories
  python -m engine.download_corpora wikitext2 shakespeare
  python -m engine.download_corpora pg19_small            # flat text: train, validation and test
  python -m engine.download_corpora pg19_docs_small       # the same books, one a document
  python -m engine.download_corpora --add notes.md --name my_notes

An interrupted download goes on where it was when the same command is given again. HF_ENDPOINT, LAB_SHAKESPEARE_URL,
LAB_PG19_URL and LAB_WIKIPEDIA_API point to mirrors; with HF_HUB_OFFLINE=1 nothing is asked of the hub.
exit codes: 0 done, 1 failed, 2 wrong usage"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.download_corpora",
        description="Download corpora, or add a text of your own.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "names", metavar="NAME", nargs="*", help="what to download; a corpus brings its official splits"
    )
    parser.add_argument("--list", action="store_true", help="show all corpora and their state")
    parser.add_argument("--json", action="store_true", help="with --list: print JSON")
    parser.add_argument("--all", action="store_true", help="download everything, the whole of PG-19 included")
    parser.add_argument(
        "--tokenize", action="store_true", help="also tokenize and measure; training does it when needed"
    )
    parser.add_argument("--add", metavar="FILE", type=Path, help="make a corpus of a .txt, .md or .jsonl file")
    parser.add_argument("--name", default="", help="with --add: the name of the corpus (default: the file's)")
    options = parser.parse_args(arguments)
    return run_command(lambda: _main(options))


def _main(options: argparse.Namespace) -> int:
    _check(options)
    if options.list:
        return _list(as_json=options.json)
    if options.add is not None:
        return _add(options.add, options.name, tokenize=options.tokenize)
    names = [c.name for c in KNOWN if c.origin] if options.all else _resolve(options.names)
    return _download(names, tokenize=options.tokenize)


def _check(options: argparse.Namespace) -> None:
    """Refuse flags that do not fit together, all at once."""
    problems = []
    if [bool(options.names), options.list, options.all, options.add is not None].count(True) != 1:
        problems.append(Problem("usage", "say one of: names to download, --all, --list, or --add FILE (see --help)."))
    if options.json and not options.list:
        problems.append(Problem("--json", "it goes with --list only."))
    if options.name and options.add is None:
        problems.append(Problem("--name", "it goes with --add only."))
    if options.tokenize and options.list:
        problems.append(Problem("--tokenize", "it does not go with --list."))
    if problems:
        raise ConfigError(problems)


def _resolve(wanted: list[str]) -> list[str]:
    """The corpora that are meant, each once; all unknown names are told together."""
    problems = []
    for name in wanted:
        try:
            find_corpus(name)
        except LabError as error:
            problems.append(Problem(name, str(error)))
    if problems:
        raise ConfigError(problems)
    return list(dict.fromkeys(corpus for name in wanted for corpus in expand(name)))


def _download(names: list[str], *, tokenize: bool) -> int:
    """Get them one after the other; one that fails does not keep the others from being tried."""
    failed: list[str] = []
    corpora = [find_corpus(name) for name in names]
    if tokenize:
        corpora.sort(key=lambda corpus: corpus.validation != "")  # a ladder is measured on the validation text
    for corpus in corpora:
        was_here = corpus.is_here
        try:
            work_on(corpus, tokenize=tokenize)
        except CancelledError:
            failed.append(f"{corpus.name}: cancelled. What was fetched is kept; the same command goes on from there.")
            break
        except LabError as error:
            failed.append(str(error) if corpus.name in str(error) else f"{corpus.name}: {error}")
        else:
            print(f"{corpus.name}: {'is here' if was_here else 'ready'}, {_size(corpus)} in {corpus.path}", flush=True)
    if failed:
        raise LabError("\n".join(failed))
    return DONE


def work_on(corpus: Corpus, *, tokenize: bool) -> None:
    """Download one corpus, and tokenize and measure it if that is wished, with bars.

    Raises:
        LabError: it could not be done; `CancelledError` after Ctrl-C, or when somebody cancelled it elsewhere.
    """
    from engine.corpora.download import download

    def work(progress: Progress) -> None:
        with interruptible(corpus.name):
            jobs.work_on(corpus, progress) if tokenize else download(corpus, progress)

    if corpus.is_here and not tokenize:
        return
    bars = Bars()
    try:
        jobs.run(corpus.name, "tokenize" if corpus.is_here else "download", work, bars.tell)
    except KeyboardInterrupt:
        raise CancelledError("Cancelled.") from None
    finally:
        bars.close()


def _add(path: Path, name: str, *, tokenize: bool) -> int:
    bars = Bars()
    try:
        corpus = add_file(path, name, Progress(bars.tell))
    except KeyboardInterrupt:
        raise CancelledError(f"{path}: cancelled. Nothing was added.") from None
    finally:
        bars.close()
    print(f"{corpus.name}: added, {_size(corpus)} in {corpus.path}")
    if tokenize or corpus.path.stat().st_size < _QUICK:
        work_on(corpus, tokenize=True)
        count = len(open_tokens(corpus.name).tokens)
        print(f"{count:,} tokens. {too_small_for(count)}".rstrip())
    print(f"To train on it: python -m engine.train --corpus {corpus.name}")
    return DONE


def _size(corpus: Corpus) -> str:
    size = corpus.path.stat().st_size
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size:,} bytes"


def _row(corpus: Corpus) -> dict[str, Any]:
    state = state_of(corpus)
    return {
        "name": corpus.name,
        "state": state.word,
        "built_in": corpus.built_in,
        "bytes": state.bytes,
        "kept_bytes": state.kept,
        "expected_bytes": corpus.size or None,
        "tokens": state.tokens,
        "documents": state.documents,
        "validation": corpus.validation,
        "licence": corpus.licence,
        "source": corpus.source,
        "description": corpus.description,
    }


def _list(*, as_json: bool) -> int:
    rows = [_row(corpus) for corpus in list_corpora()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return DONE
    for row in rows:
        size = row["bytes"] or row["expected_bytes"]
        about = "" if row["bytes"] else "~"
        shown = "" if size is None else f"{about}{size / 1e6:,.1f} MB"
        tokens = f"{row['tokens']:,} tokens" if row["tokens"] else ""
        word = "built in" if row["built_in"] and not tokens else row["state"]
        print(f"{row['name']:<40} {word:<18} {shown:>13}  {tokens}".rstrip())
        print(f"    {row['description']}")
    print(
        "\nA PG-19 name without train, validation or test, such as pg19_small or pg19_docs_small, stands for all three."
    )
    return DONE
