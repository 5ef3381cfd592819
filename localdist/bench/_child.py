"""The process in which one peer is measured: `python -m localdist.bench._child PEER MEASUREMENT...`.

It writes one JSON object per line to its standard output: `{"measurement": name, "samples": ..., "facts": ...}` or
`{"measurement": name, "error": text}` as each is done, so that what was measured before a crash is not lost, and
`{"closed": true}` last. Whatever peers print goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from typing import TYPE_CHECKING

from localdist.bench._measure import MEASURE, Bench, Reading, warm_up
from localdist.bench._peers import PEERS, adapter
from localdist.bench._rows import MEASUREMENTS, QUICK, USUAL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["main"]


def _private_stdout() -> int:
    """Return a descriptor of standard output and let everybody else's output go to standard error, in any language."""
    private = os.dup(1)
    os.dup2(2, 1)
    return private


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one peer and write what was found, as this module's docstring says. Return 0 when all went well.

    Measurements that want a peer that is not started (`start`, `import`, `core-...`) must come alone, and those of
    localdist's `Executor` not with those of its `Client`.
    """
    parser = argparse.ArgumentParser(prog="localdist.bench._child")
    parser.add_argument("peer", choices=list(PEERS))
    parser.add_argument("measurements", nargs="+", choices=list(MEASUREMENTS), metavar="MEASUREMENT")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args(arguments)
    descriptor = _private_stdout()

    def say(**line: object) -> None:
        os.write(descriptor, json.dumps(line).encode() + b"\n")

    names: list[str] = options.measurements
    peer = adapter(options.peer, executor=any(MEASUREMENTS[name].executor for name in names))()
    bench = Bench(peer, (QUICK if options.quick else USUAL).limited(peer.limits), options.workers)
    started = any(MEASUREMENTS[name].started for name in names)
    failed = False
    if started:
        try:
            peer.load()
            peer.start(options.workers)
            warm_up(bench)
        except Exception as error:  # noqa: BLE001  (peers raise what they like; the parent is told)
            traceback.print_exc()
            say(measurement=", ".join(names), error=f"could not start: {_describe(error)}")
            return 1
    for name in names:
        failed |= not _measure(name, bench, say)
    if started:
        peer.close()
    say(closed=True)
    return int(failed)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _measure(name: str, bench: Bench, say: Callable[..., None]) -> bool:
    """Take one measurement and report it; a failure is reported too, and the next measurement may still go well."""
    try:
        reading: Reading = MEASURE[name](bench)
    except Exception as error:  # noqa: BLE001  (the same)
        traceback.print_exc()
        say(measurement=name, error=_describe(error))
        return False
    say(measurement=name, samples=reading.samples, facts=reading.facts)
    return True


if __name__ == "__main__":
    sys.exit(main())
