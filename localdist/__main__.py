"""The command line: `python -m localdist bench`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that `arguments` (default: those of this process) name, and return the exit code.

    Raises:
        SystemExit: the arguments make no sense, or ask for help.
    """
    from localdist.bench import _run  # what only this command needs is not loaded by `import localdist.__main__`

    parser = argparse.ArgumentParser(prog="python -m localdist", description="A task executor for one machine.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    bench = commands.add_parser(
        "bench",
        help="measure localdist and every installed peer on the same work",
        description="Measure localdist and every installed peer in turns on the same work; print figures and goals.",
    )
    _run.add_arguments(bench)
    bench.set_defaults(run=_run.main)
    options = parser.parse_args(arguments)
    code: int = options.run(options)
    return code


if __name__ == "__main__":
    sys.exit(main())
