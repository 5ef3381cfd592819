"""Checksums, lines and words of all files in a folder, and which of them are duplicates: a script for a process pool.

It is written as one writes it for `concurrent.futures.ProcessPoolExecutor`: `map` with chunks for the many small calls,
`submit` and `as_completed` for those that take different times. What makes it run on localdist is the import of
`Executor`, and nothing else: ``--stdlib`` runs the same functions on the standard library's pool, ``--check`` runs both
and compares. It reads Python's standard library, or the folder that it is given.

    python examples/checksums.py --check
    python examples/checksums.py ~/Pictures
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import sysconfig
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TYPE_CHECKING, NamedTuple

from localdist import Executor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from concurrent import futures

POOLS: dict[str, Callable[..., futures.Executor]] = {"localdist": Executor, "concurrent.futures": ProcessPoolExecutor}
CHUNKSIZE = 32  # files in one task: enough that handing them out costs little, few enough for all workers to get some
SHOWN = 8  # lines of each table


class Summary(NamedTuple):
    """What is known of one file."""

    path: str
    size: int  # in bytes
    lines: int
    words: int
    checksum: str  # SHA-256, in hexadecimal; empty for a file that could not be read
    problem: str  # why it could not; empty for the others


class Found(NamedTuple):
    """What is known of a folder."""

    summaries: list[Summary]  # in the order of the paths
    duplicates: list[list[str]]  # paths of files that are equal, the largest files first


def find_files(root: str) -> list[str]:
    """Return the paths of all regular files below `root`, sorted, without what Python or pip put there on its own."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in ("__pycache__", "site-packages", "dist-packages")]
        found += [os.path.join(folder, name) for name in names]
    return sorted(path for path in found if os.path.isfile(path))


def summarize(path: str) -> Summary:
    """Read one file: what each call of the pool does first."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        return Summary(path, 0, 0, 0, "", error.strerror or type(error).__name__)
    checksum = hashlib.sha256(content).hexdigest()
    return Summary(path, len(content), content.count(b"\n"), len(content.split()), checksum, "")


def equal_files(paths: Sequence[str]) -> list[str]:
    """Return those of `paths` whose content is that of the first one, byte by byte."""
    with open(paths[0], "rb") as file:
        content = file.read()
    equal = [paths[0]]
    for path in paths[1:]:
        with open(path, "rb") as file:
            if file.read() == content:
                equal.append(path)
    return equal


def suspects(summaries: Iterable[Summary]) -> list[list[Summary]]:
    """Return groups of two or more files, not empty, that have the same checksum."""
    groups = defaultdict(list)
    for summary in summaries:
        if summary.size:
            groups[summary.checksum].append(summary)
    return [group for group in groups.values() if len(group) > 1]


def examine(new_pool: Callable[..., futures.Executor], paths: Sequence[str], workers: int | None) -> Found:
    """Read all files, then compare those that have equal checksums; `new_pool` is all that varies."""
    with new_pool(max_workers=workers) as executor:
        summaries = list(executor.map(summarize, paths, chunksize=CHUNKSIZE))
        sizes = {
            executor.submit(equal_files, [summary.path for summary in group]): group[0].size
            for group in suspects(summaries)
        }
        confirmed = [(sizes[future], future.result()) for future in as_completed(sizes)]
    confirmed.sort(key=lambda pair: (-pair[0], pair[1]))
    return Found(summaries, [equal for _, equal in confirmed if len(equal) > 1])


def report(found: Found, root: str) -> str:
    """Return the text that is printed."""
    read = [summary for summary in found.summaries if not summary.problem]
    text = [f"{len(read):,} files below {root}, {sum(summary.size for summary in read) / 1e6:,.1f} MB", ""]
    by_kind = defaultdict(list)
    for summary in read:
        by_kind[os.path.splitext(summary.path)[1] or "(none)"].append(summary)
    text.append(f"{'kind':<12} {'files':>8} {'lines':>12} {'words':>12} {'bytes':>14}")
    for kind, group in sorted(by_kind.items(), key=lambda item: (-len(item[1]), item[0]))[:SHOWN]:
        lines, words, size = sum(s.lines for s in group), sum(s.words for s in group), sum(s.size for s in group)
        text.append(f"{kind:<12} {len(group):>8,} {lines:>12,} {words:>12,} {size:>14,}")
    text += ["", f"files that exist more than once: {len(found.duplicates)}"]
    for equal in found.duplicates[:SHOWN]:
        text.append("  " + " = ".join(os.path.relpath(path, root) for path in equal))
    problems = [summary for summary in found.summaries if summary.problem]
    text += ["", f"files that could not be read: {len(problems)}"]
    text += [f"  {os.path.relpath(summary.path, root)}: {summary.problem}" for summary in problems]
    return "\n".join(text)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Checksums, lines, words and duplicates of the files in a folder.")
    parser.add_argument("folder", nargs="?", default=sysconfig.get_path("stdlib"), help="default: Python's library")
    parser.add_argument("--stdlib", action="store_true", help="use concurrent.futures.ProcessPoolExecutor instead")
    parser.add_argument("--check", action="store_true", help="use both, one after the other, and compare")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (default: the pool's)")
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        parser.error("--workers must be positive")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine a folder; return 0, or 1 when `--check` finds a difference, or 2 when there are no files."""
    options = parse(arguments)
    paths = find_files(options.folder)
    if not paths:
        print(f"no files below {options.folder}", file=sys.stderr)
        return 2
    used = list(POOLS) if options.check else ["concurrent.futures" if options.stdlib else "localdist"]
    results, times = [], []
    for name in used:
        began = time.perf_counter()
        results.append(examine(POOLS[name], paths, options.workers))
        times.append(f"{name}: {time.perf_counter() - began:.2f} s, the start of workers included")
    print(report(results[0], options.folder), "", *times, sep="\n")
    if not options.check:
        return 0
    equal = results[0] == results[1]
    print(f"check: {'both results are equal' if equal else 'FAILED, the results differ'}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
