"""Count what Python's standard library is made of: one task per file, and a tree of tasks that adds the counts up.

Reads every ``.py`` file of the interpreter that runs this script (or of ``--root DIR``), tokenizes each in a task of
its own, and merges the results eight at a time, until one is left. ``--check`` does the same work again in a plain
loop and compares.

    python examples/census.py --check
"""

from __future__ import annotations

import argparse
import keyword
import os
import sys
import sysconfig
import time
import tokenize
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, TypedDict

from localdist import Client

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from localdist import Future

FAN_IN = 8  # results that one merge adds up: a tree of four levels for some thousands of files
KEPT_FUNCTIONS = 10
SHOWN_NAMES = 15


class Counts(TypedDict):
    """What was counted in one file or in many. A plain dict when the script runs, so it is quick to pickle."""

    files: int
    lines: int
    tokens: int
    names: Counter[str]
    longest: list[tuple[int, str, int, str]]  # of functions: lines, path, first line, name; longest first
    unreadable: list[tuple[str, str]]  # path and reason, sorted; these files count nowhere else


class Function(NamedTuple):
    """A function that the tokenizer is inside of."""

    name: str
    first_line: int
    depth: int


def find_files(root: str) -> list[str]:
    """Return the paths of all ``.py`` files below `root`, sorted, without packages that were installed later."""

    def complain(error: OSError) -> None:
        print(f"cannot list: {error}", file=sys.stderr)

    found = []
    for folder, subfolders, files in os.walk(root, onerror=complain):
        subfolders[:] = [name for name in subfolders if name not in ("site-packages", "dist-packages")]
        found += [os.path.join(folder, name) for name in files if name.endswith(".py")]
    return sorted(found)


def size(path: str) -> int:
    """Return the size of a file in bytes, 0 when it cannot be asked for: the task that reads it will say why."""
    try:
        return os.path.getsize(path)
    except OSError:
        return 0


def count_file(path: str) -> Counts:
    """Tokenize one file; a file that cannot be read, decoded or tokenized is reported in ``unreadable``."""
    try:
        with tokenize.open(path) as file:
            lines = file.readlines()
        return count_lines(path, lines)
    except (OSError, SyntaxError, UnicodeDecodeError, tokenize.TokenError) as error:
        reason = f"{type(error).__name__}: {error}".replace(f" for '{path}'", "")
        return {"files": 0, "lines": 0, "tokens": 0, "names": Counter(), "longest": [], "unreadable": [(path, reason)]}


def count_lines(path: str, lines: Sequence[str]) -> Counts:
    """Count the tokens and names of a source text, and find its functions with their lengths in lines."""
    tokens, depth, last_line, at_start = 0, 0, 0, False
    names: Counter[str] = Counter()
    inside: list[Function] = []
    functions: list[tuple[int, str, int, str]] = []
    previous = ""
    for kind, text, (line, _), _, _ in tokenize.generate_tokens(iter(lines).__next__):
        tokens += 1
        if kind == tokenize.INDENT:
            depth += 1
        elif kind == tokenize.DEDENT:
            depth -= 1
        elif kind == tokenize.NEWLINE:
            last_line, at_start = line, True
        elif kind not in (tokenize.NL, tokenize.COMMENT):
            # The first word of a statement as deep as a function's own "def" ends that function.
            while at_start and inside and inside[-1].depth >= depth:
                done = inside.pop()
                functions.append((last_line - done.first_line + 1, path, done.first_line, done.name))
            at_start = False
            if kind == tokenize.NAME and not keyword.iskeyword(text):
                names[text] += 1
                if previous == "def":
                    inside.append(Function(text, line, depth))
            previous = text
    return {
        "files": 1,
        "lines": len(lines),
        "tokens": tokens,
        "names": names,
        "longest": keep_longest(functions),
        "unreadable": [],
    }


def keep_longest(functions: Iterable[tuple[int, str, int, str]]) -> list[tuple[int, str, int, str]]:
    """Return the longest functions, longest first; equal lengths in order of path and line, so no run differs."""
    return sorted(functions, key=lambda f: (-f[0], *f[1:]))[:KEPT_FUNCTIONS]


def merge(parts: Sequence[Counts]) -> Counts:
    """Add counts up. The order and grouping of `parts` make no difference to the result."""
    names: Counter[str] = Counter()
    for part in parts:
        names.update(part["names"])
    return {
        "files": sum(part["files"] for part in parts),
        "lines": sum(part["lines"] for part in parts),
        "tokens": sum(part["tokens"] for part in parts),
        "names": names,
        "longest": keep_longest(function for part in parts for function in part["longest"]),
        "unreadable": sorted(entry for part in parts for entry in part["unreadable"]),
    }


def count_parallel(client: Client, paths: Sequence[str]) -> Counts:
    """Count all files in tasks, and merge the results in a tree of tasks; only the root comes back here."""
    # Large files first: none is left to run alone at the end. A file can change, so reading it is no pure call.
    ordered = sorted(paths, key=size, reverse=True)
    level: list[Future] = client.map(count_file, ordered, pure=False)
    while len(level) > 1:
        # A merge that can run goes before the next file, because it frees the results that it takes.
        level = [
            client.submit(merge, level[i : i + FAN_IN], pure=False, priority=1) for i in range(0, len(level), FAN_IN)
        ]
    result: Counts = level[0].result()
    return result


def differences(one: Counts, other: Counts) -> list[str]:
    """Name the fields in which two counts differ."""
    return [field for field in one if one[field] != other[field]]  # type: ignore[literal-required]  # all are fields


def report(counts: Counts, root: str) -> str:
    """Return the text that is printed."""
    named = counts["names"].total()
    text = [
        f"census of {root}",
        "",
        f"  files        {counts['files']:>12,}   and {len(counts['unreadable'])} that could not be read",
        f"  lines        {counts['lines']:>12,}",
        f"  tokens       {counts['tokens']:>12,}",
        f"  names        {named:>12,}   of them {len(counts['names']):,} different",
        "",
        "most used names",
    ]
    most = sorted(counts["names"].items(), key=lambda item: (-item[1], item[0]))[:SHOWN_NAMES]
    text += [f"  {count:>9,}  {name}" for name, count in most]
    text += ["", "longest functions, in lines"]
    for length, path, line, name in counts["longest"]:
        text.append(f"  {length:>9,}  {name}  ({os.path.relpath(path, root)}:{line})")
    text += ["", f"files that could not be read: {len(counts['unreadable'])}"]
    for path, reason in counts["unreadable"]:
        text.append(f"  {os.path.relpath(path, root)}\n      {' '.join(reason.split())[:100]}")
    return "\n".join(text)


def positive(text: str) -> int:
    """Read a number of one or more from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not positive")
    return number


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Count what Python's standard library is made of, on all cores.")
    parser.add_argument("--check", action="store_true", help="count again in a plain loop, compare, show both times")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N files")
    parser.add_argument("--workers", type=positive, metavar="N", help="worker processes (default: one per core)")
    parser.add_argument("--root", default=sysconfig.get_path("stdlib"), metavar="DIR", help="folder to read instead")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the census; return 0, or 1 when `--check` finds a difference, or 2 when there is nothing to count."""
    options = parse(arguments)
    paths = find_files(options.root)[: options.limit]
    if not paths:
        print(f"no .py file below {options.root}", file=sys.stderr)
        return 2
    start = time.perf_counter()
    with Client(n_workers=options.workers, threads_per_worker=1) as client:  # tokenizing holds the interpreter's lock
        workers = len(client.nthreads())
        counts = count_parallel(client, paths)
        parallel = time.perf_counter() - start
    print(report(counts, options.root))
    print(f"\nparallel: {parallel:.2f} s on {workers} workers, their start included")
    if not options.check:
        return 0
    start = time.perf_counter()
    expected = merge([count_file(path) for path in paths])
    serial = time.perf_counter() - start
    print(f"serial:   {serial:.2f} s, {serial / parallel:.2f} times as long")
    differing = differences(counts, expected)
    print(f"check:    {'FAILED, these differ: ' + ', '.join(differing) if differing else 'both results are equal'}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
