"""The parent of a benchmark: which peers take part, a process for each, round after round, and what they said.

Nothing is measured in this process, and no peer's failure ends the run: it is reported by the peer's name.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from time import perf_counter
from typing import TYPE_CHECKING, Any

import psutil

from localdist.bench._peers import PEERS
from localdist.bench._rows import EXECUTOR, MEASUREMENTS, rows_of, select
from localdist.bench._table import report, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Outcome", "Settings", "add_arguments", "main", "run"]

_CORE = "localdist.bench._core"  # the simulation of the scheduler core
_TIMEOUT = 120.0  # seconds for one process; the slowest peer needs about 25
_ROUNDS = 3  # the median of three rounds ignores one bad spell
_STARTS = 2  # processes in one round that time a start


@dataclass(frozen=True, slots=True)
class Settings:
    """What to run.

    Attributes:
        measurements: names, see `_rows.MEASUREMENTS`.
        peers: names, see `_peers.PEERS`; localdist is the one that the others are compared with.
        workers: worker processes of each peer.
        rounds: how often each peer has its turn.
        quick: sizes for tests, of which no figure means anything.
        timeout: seconds after which one process of a peer is ended.
    """

    measurements: tuple[str, ...]
    peers: tuple[str, ...]
    workers: int = 2
    rounds: int = _ROUNDS
    quick: bool = False
    timeout: float = _TIMEOUT


@dataclass(slots=True)
class Outcome:
    """What a run found.

    Attributes:
        samples: row -> peer -> figures of all rounds.
        facts: row -> peer -> what else was seen.
        failures: peer -> what went wrong there, each text once.
        left_out: peer or measurement -> why it was not measured at all.
        skipped: measurement -> peer -> why that peer does not take part in it.
        seconds: how long the run took.
    """

    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    facts: dict[str, dict[str, dict[str, object]]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    seconds: float = 0.0

    def take(self, peer: str, line: dict[str, Any]) -> None:
        """Take in one line of a child, as `_child` describes it."""
        if "error" in line:
            self.fail(peer, f"{line['measurement']}: {line['error']}")
        for row, figures in line.get("samples", {}).items():
            self.samples.setdefault(row, {}).setdefault(peer, []).extend(figures)
        for row, facts in line.get("facts", {}).items():
            self.facts.setdefault(row, {})[peer] = facts

    def fail(self, peer: str, text: str) -> None:
        """Note a failure; the same text from a later round adds nothing."""
        texts = self.failures.setdefault(peer, [])
        if text not in texts:
            texts.append(text)


def _taking_part(settings: Settings, outcome: Outcome) -> dict[str, list[str]]:
    """Return the measurements of each peer that can take part; note in `outcome` who and what is left out, and why."""
    names = list(settings.measurements)
    if find_spec("numpy") is None:
        for name in [name for name in names if MEASUREMENTS[name].needs_numpy]:
            outcome.left_out[name] = "NumPy is not installed"
    if find_spec(_CORE) is None:
        for name in [name for name in names if name.startswith("core-")]:
            outcome.left_out[name] = "there is no simulation of the core"
    plan: dict[str, list[str]] = {}
    for peer_name in settings.peers:
        peer = PEERS[peer_name]
        if not peer.installed():
            outcome.left_out[peer_name] = "not installed"
            continue
        plan[peer_name] = []
        for name in names:
            if name in outcome.left_out or (MEASUREMENTS[name].localdist_only and peer_name != "localdist"):
                continue
            work = MEASUREMENTS[name].work
            reason = peer.skips.get(name) or peer.skips.get(work)
            if reason is not None:
                outcome.skipped.setdefault(name, {})[peer_name] = reason
            elif name == work or work not in names or peer_name == "localdist":
                plan[peer_name].append(name)
    return plan


def _jobs(peer: str, names: Sequence[str], number: int) -> list[list[str]]:
    """Return the measurements of one peer in round `number` (from 0), as lists that share a process each."""
    together = [name for name in names if not MEASUREMENTS[name].own_process]
    jobs = [together]
    if peer == "localdist":  # two adapters
        jobs = [[name for name in together if MEASUREMENTS[name].executor is executor] for executor in (False, True)]
    for name in names:
        measurement = MEASUREMENTS[name]
        is_start = measurement.work == "start"
        once = measurement.first_round_only or (is_start and PEERS[peer].slow_start)
        if measurement.own_process and (number == 0 or not once):
            jobs.extend([name] for _ in range(_STARTS if is_start and not once else 1))
    return [job for job in jobs if job]


def _share(settings: Settings, outcome: Outcome) -> None:
    """Copy the figures of peers into the rows of localdist's `Executor`, where they did the same work for another."""
    for row in rows_of(settings.measurements):
        work = row.name.removeprefix(EXECUTOR)
        for peer, samples in outcome.samples.get(work, {}).items():
            if work != row.name and peer != "localdist":
                outcome.samples.setdefault(row.name, {})[peer] = samples
                outcome.facts.setdefault(row.name, {})[peer] = outcome.facts.get(work, {}).get(peer, {})


def run(settings: Settings, progress: Callable[[str], None]) -> Outcome:
    """Measure all peers, one process after the other, and return what was found.

    Args:
        settings: what to run.
        progress: called with a short text after each turn of a peer.

    Returns:
        What was measured, and what failed, with its reason: a peer that crashes or hangs ends only its own process.
    """
    outcome = Outcome()
    began = perf_counter()
    plan = _taking_part(settings, outcome)
    for number in range(settings.rounds):
        # Every other round runs backwards, so that none always has the same neighbour, or a machine grown warm.
        for peer in list(plan)[:: -1 if number % 2 else 1]:
            turn_began = perf_counter()
            for names in _jobs(peer, plan[peer], number):
                _run_child(peer, names, settings, outcome)
            progress(f"round {number + 1} of {settings.rounds}: {peer}, {perf_counter() - turn_began:.0f} s")
    _share(settings, outcome)
    outcome.seconds = perf_counter() - began
    return outcome


def _run_child(peer: str, names: Sequence[str], settings: Settings, outcome: Outcome) -> None:
    """Run one process and take in its lines; say in `outcome` how it failed, if it did."""
    command = [sys.executable, "-W", "ignore", "-m", "localdist.bench._child", peer, *names]
    command += ["--workers", str(settings.workers)] + (["--quick"] if settings.quick else [])
    # Files instead of pipes: daemons that a peer leaves behind would keep a pipe open, and reading it would never end.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        # A session of its own (where there is such a thing) makes its orphans findable when it crashed.
        process = subprocess.Popen(
            command, stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            code: int | None = process.wait(settings.timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end_all(process)
        stdout.seek(0)
        lines = [json.loads(line) for line in stdout.read().splitlines()]
        stderr.seek(0)
        last_words = stderr.read().decode(errors="replace").strip().splitlines()[-1:]
    for line in lines:
        outcome.take(peer, line)
    if {"closed": True} in lines or any("error" in line for line in lines):
        return
    done = {line["measurement"] for line in lines}
    where = next((name for name in names if name not in done), "close")
    how = f"no end after {settings.timeout:g} s" if code is None else f"the process ended with code {code}"
    outcome.fail(peer, f"{where}: {how}{''.join(': ' + text for text in last_words)}")


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """End a child that still runs, and whatever it started and left behind."""
    family: list[psutil.Process] = []
    if process.poll() is None:
        try:
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []  # it ended in between
        process.kill()
    if sys.platform != "win32":
        with suppress(ProcessLookupError, PermissionError):  # nobody is left in its group (macOS: or only zombies)
            os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `python -m localdist bench` to `parser`."""
    parser.add_argument("--json", action="store_true", help="print JSON with every sample instead of the table")
    parser.add_argument("--rows", type=_names, metavar="NAME,...", help=f"only these of: {', '.join(MEASUREMENTS)}")
    parser.add_argument("--peers", type=_names, metavar="NAME,...", help=f"localdist and these of: {', '.join(PEERS)}")
    parser.add_argument(
        "--workers", type=_positive, default=2, metavar="N", help="worker processes of each (default: 2)"
    )
    parser.add_argument("--repeat", type=_positive, default=_ROUNDS, metavar="N", help=f"rounds (default: {_ROUNDS})")
    parser.add_argument("--full", action="store_true", help="also what takes minutes: a million tasks")
    parser.add_argument("--quick", action="store_true", help="one round of tiny sizes, to see that everything runs")
    parser.add_argument(
        "--timeout", type=float, default=_TIMEOUT, metavar="SECONDS", help=f"for one process (default: {_TIMEOUT:g})"
    )


def main(options: argparse.Namespace) -> int:
    """Run the benchmark as `options` (from a parser with `add_arguments`) say, print it, and return the exit code.

    Returns:
        0 also when a goal was missed or a peer failed, as the table says so; 2 for a row or peer that does not exist.
    """
    try:
        measurements = select(options.rows, full=options.full)
        unknown = [name for name in options.peers or [] if name not in PEERS]
        if unknown:
            raise ValueError(f"no peer {unknown[0]!r}; there are: {', '.join(PEERS)}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    wanted = set(options.peers if options.peers is not None else PEERS) | {"localdist"}
    settings = Settings(
        measurements,
        tuple(name for name in PEERS if name in wanted),
        options.workers,
        1 if options.quick else options.repeat,
        options.quick,
        options.timeout,
    )
    outcome = run(settings, lambda text: print(text, file=sys.stderr, flush=True))
    found = report(settings, outcome)
    print(json.dumps(found, indent=2) if options.json else table(found))
    return 0
