"""What is measured and what is to be reached, as data: the rows of the benchmark's table."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "BEST_PEER",
    "COUNTS",
    "EXECUTOR",
    "MEASUREMENTS",
    "QUICK",
    "USUAL",
    "Goal",
    "Measurement",
    "Row",
    "Sizes",
    "rows_of",
    "select",
]

OPERATORS: Final[Mapping[str, Callable[[float, float], bool]]] = MappingProxyType(
    {">=": operator.ge, ">": operator.gt, "<=": operator.le}
)

EXECUTOR: Final = "executor-"
"""How the names of measurements and rows begin in which localdist takes part with its `Executor`."""

COUNTS: Final[Mapping[str, int]] = MappingProxyType({"10k": 10_000, "100k": 100_000, "1m": 1_000_000})
"""Numbers of tasks at which memory and the core are measured, by the ending of the measurement's name."""

BEST_PEER: Final = "the best peer"
"""What a goal is compared with that names no peer: the peer that has the best figure of the row."""

FLAT: Final = 1.25
"""How much more a task may cost among many than among 10,000 and still count as flat (dictionaries grow in steps)."""


@dataclass(frozen=True, slots=True)
class Goal:
    """`figure <op> limit`, or with `of`: `figure <op> limit * figure of that`.

    `of` is a peer, or `BEST_PEER`, or the name of another row of localdist.
    """

    op: str
    limit: float
    of: str | None = None

    def text(self, unit: str) -> str:
        """Return the goal in words; `unit` is the row's."""
        if self.of is None:
            return f"{self.op} {self.limit:g} {unit}"
        return f"{self.op} {self.limit:.3g}x {self.of}"

    def met(self, figure: float, other: float) -> bool:
        """Say whether `figure` reaches the goal; `other` is the figure of what `of` names, and ignored without `of`."""
        return OPERATORS[self.op](figure, self.limit * other if self.of else self.limit)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        name: how `--json` calls it.
        unit: of its figures.
        more_is_better: True for rates, False for times and sizes.
        work: what is done and what is timed, in one line.
        goals: what localdist is to reach.
        facts: what must be true of localdist besides, by the name under which the measurement reports it.
    """

    name: str
    unit: str
    more_is_better: bool
    work: str
    goals: tuple[Goal, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one function of `_measure` finds out; usually one row, sometimes two that come from the same work.

    Attributes:
        name: how `--rows` calls it.
        rows: the lines that it fills.
        own_process: True when it must not share a process, where others would have left memory, or a warm state.
        first_round_only: True for what does not vary, such as memory.
        needs_numpy: True when it moves arrays.
        full_only: True when it runs only with `--full`, as it takes minutes with slow peers.
        started: True when the function receives a peer that runs and is warm.
        localdist_only: True when there is nothing to compare with.
        executor: True when localdist takes part with its `Executor` instead of its `Client`. The name then begins with
            `EXECUTOR`.
    """

    name: str
    rows: tuple[Row, ...]
    own_process: bool = False
    first_round_only: bool = False
    needs_numpy: bool = False
    full_only: bool = False
    started: bool = True
    localdist_only: bool = False
    executor: bool = False

    @property
    def work(self) -> str:
        """The name without `EXECUTOR`: of the measurement, if there is one, in which the peers do the same work."""
        return self.name.removeprefix(EXECUTOR)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work a measurement does. `nbytes` and `shrink` apart these are numbers of tasks.

    Attributes:
        submit, map, roundtrip, chain, tree: tasks in one sample of that measurement (`tree`: a power of two less one).
        chunks: calls in one sample of `executor-chunks`.
        chunksize: of them in one task.
        broadcast: tasks that get the same array.
        nbytes: size of an array in bytes.
        arrays: arrays moved, one after the other, in one round.
        warm_arrays: arrays moved before those, untimed.
        shrink: the numbers in `COUNTS` are divided by this.
        budget: a sample is repeated (at most four times more) while all of them took less than this, in seconds.
    """

    submit: int = 5_000
    map: int = 100_000
    roundtrip: int = 500
    chain: int = 1_000
    tree: int = 4_095
    chunks: int = 2_000_000
    chunksize: int = 5_000
    broadcast: int = 50
    nbytes: int = 200_000_000
    arrays: int = 5
    warm_arrays: int = 6
    shrink: int = 1
    budget: float = 1.0

    def limited(self, limits: Mapping[str, int]) -> Sizes:
        """Return these sizes, with those named in `limits` no larger than there."""
        return replace(self, **{name: min(limit, getattr(self, name)) for name, limit in limits.items()})


USUAL: Final = Sizes()
QUICK: Final = Sizes(
    submit=50,
    map=200,
    roundtrip=10,
    chain=20,
    tree=31,
    chunks=1_000,
    chunksize=50,
    broadcast=4,
    nbytes=2_000_000,
    arrays=2,
    warm_arrays=1,
    shrink=100,
    budget=0.0,
)
"""For tests: everything runs, nothing is worth comparing."""


def _memory(count: str) -> Measurement:
    flat = count != "10k"
    name = f"memory-{count}"

    def row(state: str, work: str) -> Row:
        goals = (Goal("<=", 1536),) + ((Goal("<=", FLAT, f"memory-10k-{state}"),) if flat else ())
        return Row(f"{name}-{state}", "B/task", False, work, goals)

    pending = row(
        "pending", f"{count} x submit(inc, i) while workers are held: growth of the client process's own memory"
    )
    finished = row("finished", "the same futures, all finished, results fetched and dropped")
    return Measurement(name, (pending, finished), own_process=True, first_round_only=True, full_only=count == "1m")


def _core(count: str) -> Measurement:
    flat = count != "10k"
    name = f"core-{count}"
    time_goals = (Goal("<=", FLAT, "core-10k-time"),) if flat else ()
    size_goals = (Goal("<=", FLAT, "core-10k-memory"),) if flat else ()
    rows = (
        Row(
            f"{name}-time",
            "us/task",
            False,
            f"the scheduler core alone, 1,000 simulated workers, {count} tasks",
            time_goals,
        ),
        Row(f"{name}-memory", "B/task", False, "its memory at the peak of that run", size_goals),
    )
    return Measurement(
        name, rows, own_process=True, first_round_only=True, full_only=count == "1m", started=False, localdist_only=True
    )


def _executor(like: Measurement, *goals: Goal) -> Measurement:
    """Return the measurement of the same work with localdist's `Executor`; `goals` are those of its first row."""
    first, *others = (
        replace(row, name=EXECUTOR + row.name, work=f"{row.work}; localdist with its Executor", goals=())
        for row in like.rows
    )
    return replace(like, name=EXECUTOR + like.name, rows=(replace(first, goals=goals), *others), executor=True)


_CLIENT = (
    Measurement(
        "submit",
        (
            Row(
                "submit",
                "tasks/s",
                True,
                "5,000 x submit(inc, i), gathered (mp.Pool: apply_async)",
                (Goal(">=", 5, "stdlib"), Goal(">", 1, "mp.Pool"), Goal(">=", 100, "dask")),
            ),
        ),
    ),
    Measurement(
        "map",
        (
            Row(
                "map",
                "tasks/s",
                True,
                "map(inc, range(100_000)), a future each, gathered (pools: chunksize=1; joblib: its batches)",
                (Goal(">=", 2, "mp.Pool"),),
            ),
        ),
    ),
    Measurement(
        "roundtrip",
        (
            Row(
                "roundtrip",
                "us",
                False,
                "one inc(i) submitted and its result awaited, p50 of 500 in sequence",
                (Goal("<=", 0.5, "stdlib"),),
            ),
        ),
    ),
    Measurement(
        "result",
        (
            Row(
                "result",
                "GB/s",
                True,
                "200 MB array as result, until one element was read and (where possible) one written",
                (Goal(">=", 4, "ray"),),
                {"writeable": True},
            ),
            Row("result-read", "GB/s", True, "the same, until every element was read"),
        ),
        needs_numpy=True,
    ),
    Measurement(
        "argument",
        (
            Row(
                "argument",
                "GB/s",
                True,
                "200 MB array with new content as argument of a task that reads its first and last element",
                (Goal(">=", 4, "ray"),),
                {"writeable": True},
            ),
        ),
        needs_numpy=True,
    ),
    Measurement(
        "broadcast",
        (
            Row(
                "broadcast",
                "GB/s",
                True,
                "one 200 MB array to 50 tasks, sum of what they get (ray: put once, dask: scattered)",
            ),
            Row("broadcast-stored", "arrays", False, "growth of shared memory meanwhile", (Goal("<=", 1.5),)),
        ),
        needs_numpy=True,
    ),
    Measurement(
        "chain",
        (
            Row(
                "chain",
                "tasks/s",
                True,
                "1,000 tasks, each with the future before as argument",
                (Goal(">=", 50, "dask"),),
            ),
        ),
    ),
    Measurement(
        "tree", (Row("tree", "tasks/s", True, "4,095 tasks: 2,048 leaves, summed in pairs", (Goal(">=", 50, "dask"),)),)
    ),
    Measurement(
        "start",
        (Row("start", "ms", False, "constructor to first result, the import done", (Goal("<=", 1.5, "loky"),)),),
        own_process=True,
        started=False,
    ),
    Measurement(
        "import",
        (
            Row(
                "import",
                "ms",
                False,
                "import of the package, files in the cache",
                (Goal("<=", 40),),
                {"numpy_imported": False},
            ),
            Row("import-use", "ms", False, "import of the name that one needs", (), {"numpy_imported": False}),
        ),
        own_process=True,
        started=False,
    ),
    *(_memory(count) for count in COUNTS),
    *(_core(count) for count in COUNTS),
)

_OF = {m.name: m for m in _CLIENT}

_EXECUTOR = (
    _executor(_OF["submit"], Goal(">=", 5, "stdlib")),
    _executor(_OF["map"], Goal(">=", 5, "stdlib")),
    Measurement(
        "executor-chunks",
        (
            Row(
                "executor-chunks",
                "calls/s",
                True,
                "map(inc, range(2_000_000), chunksize=5_000), the results as a list; localdist with its Executor",
                (Goal(">=", 0.9, BEST_PEER),),
            ),
        ),
        executor=True,
    ),
    _executor(_OF["roundtrip"], Goal("<=", 0.5, "stdlib")),
    _executor(_OF["result"], Goal(">=", 10, "stdlib")),
    _executor(_OF["argument"], Goal(">=", 10, "stdlib")),
    _executor(_OF["start"], Goal("<=", 1.5, "loky")),
)

MEASUREMENTS: Final[Mapping[str, Measurement]] = MappingProxyType({m.name: m for m in (*_CLIENT, *_EXECUTOR)})
"""All there is, in the order of the table."""


def rows_of(names: tuple[str, ...]) -> list[Row]:
    """Return the lines that the measurements `names` fill, in the order of the table."""
    return [row for name, measurement in MEASUREMENTS.items() if name in names for row in measurement.rows]


def select(wanted: list[str] | None, *, full: bool) -> tuple[str, ...]:
    """Return the names of the measurements to run, in the order of the table.

    Args:
        wanted: names, one without its ending means all with any (`memory`: `memory-10k`, ...); None: all.
        full: include those that take minutes. Naming one in full includes it too.

    Raises:
        ValueError: a name that no measurement has; the text lists those that there are.
    """
    if wanted is None:
        return tuple(name for name, m in MEASUREMENTS.items() if full or not m.full_only)
    found = set()
    for want in wanted:
        matches = {n for n, m in MEASUREMENTS.items() if n.startswith(want + "-") and (full or not m.full_only)}
        matches |= {want} & MEASUREMENTS.keys()
        if not matches:
            raise ValueError(f"no row {want!r}; there are: {', '.join(MEASUREMENTS)}")
        found |= matches
    return tuple(name for name in MEASUREMENTS if name in found)
