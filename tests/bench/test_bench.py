"""The benchmark as its users run it: a process of its own, and what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest

from localdist.bench._measure import MEASURE, Bench, WrongResultError, warm_up
from localdist.bench._peers import PEERS, ChunkingPeer, Localdist, LocaldistExecutor, Peer, Stdlib, adapter
from localdist.bench._rows import BEST_PEER, EXECUTOR, MEASUREMENTS, QUICK, USUAL, Goal, rows_of, select
from localdist.bench._run import Outcome, Settings, _jobs, _taking_part, run
from localdist.bench._table import _judge, report, table

POOLS = ("stdlib", "mp.Pool")
COMPARABLE = (
    "submit",
    "map",
    "roundtrip",
    "memory-10k-pending",
    "memory-10k-finished",
    "start",
    "import",
    "import-use",
)
ARRAYS = ("result", "result-read", "argument", "broadcast")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "localdist", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=55)


@pytest.fixture(scope="module")
def found() -> Any:
    """What `--json` prints for the two pools that every Python has."""
    rows = "submit,map,roundtrip,result,argument,broadcast,chain,start,import,memory-10k"
    done = bench("--quick", "--json", "--peers", ",".join(POOLS), "--rows", rows)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_json_has_a_figure_for_each_row_and_pool(found: Any) -> None:
    """Every pool has positive samples in every row it can take part in, and failed nowhere."""
    rows = {row["name"]: row for row in found["rows"]}
    for pool in POOLS:
        assert found["peers"][pool] == {"version": Stdlib.version(), "state": "measured", "failures": []}
        for name in COMPARABLE + (ARRAYS if find_spec("numpy") else ()):
            figure = rows[name]["figures"][pool]
            assert figure["samples"], (name, pool)
            assert min(figure["samples"]) <= figure["median"] <= max(figure["samples"])
            # A hundred small tasks may fit into memory that the process had already; all else takes something.
            assert figure["median"] > 0 or name.startswith("memory"), (name, pool)


@pytest.mark.slow
def test_json_says_what_was_done(found: Any) -> None:
    """The settings, the size of the work, and who does not take part in a row, are all in the JSON."""
    assert found["settings"]["workers"] == 2
    assert found["settings"]["quick"] is True
    rows = {row["name"]: row for row in found["rows"]}
    assert rows["submit"]["figures"]["stdlib"]["facts"] == {"tasks": QUICK.submit}
    assert rows["import"]["figures"]["stdlib"]["facts"] == {"numpy_imported": False}
    assert found["skipped"]["chain"] == dict.fromkeys(POOLS, "takes no futures as arguments")
    assert not set(POOLS) & set(rows["chain"]["figures"])


@pytest.mark.slow
def test_json_judges_every_goal(found: Any) -> None:
    """Each goal of a row is there; it is open exactly when a figure is missing that it needs."""
    for row in found["rows"]:
        (expected,) = (r for r in rows_of(tuple(MEASUREMENTS)) if r.name == row["name"])
        assert len(row["goals"]) == len(expected.goals) + len(expected.facts)
        for goal, judged in zip(expected.goals, row["goals"], strict=False):
            compared = {"localdist"} | ({goal.of} if goal.of in PEERS else set())
            assert (judged["met"] is None) == (not compared <= set(row["figures"])), judged


@pytest.mark.slow
def test_peers_do_the_work_of_client_and_executor_once() -> None:
    """The executor's rows show the figures that peers have for the same work; localdist does it with both."""
    names = ("submit", "executor-submit", "executor-chunks")
    plan = _taking_part(Settings(names, ("localdist", "stdlib")), Outcome())
    assert plan == {"localdist": list(names), "stdlib": ["submit", "executor-chunks"]}
    outcome = run(Settings(names, ("localdist", "stdlib", "joblib"), rounds=1, quick=True), lambda _: None)
    assert outcome.failures == {}
    assert outcome.samples["executor-submit"]["stdlib"] == outcome.samples["submit"]["stdlib"]
    assert outcome.samples["executor-submit"]["localdist"] != outcome.samples["submit"]["localdist"]
    assert outcome.facts["executor-submit"] == {peer: {"tasks": QUICK.submit} for peer in ("localdist", "stdlib")}
    assert set(outcome.samples["executor-chunks"]) == {"localdist", "stdlib"}
    if "joblib" not in outcome.left_out:
        assert outcome.skipped["executor-submit"] == {"joblib": "has no futures"}


@pytest.mark.slow
def test_an_executor_row_alone_is_measured_with_peers_too() -> None:
    """Without the client's row of the same work, peers do that work for the executor's row."""
    outcome = run(Settings(("executor-submit",), ("stdlib",), rounds=1, quick=True), lambda _: None)
    assert outcome.failures == {}
    assert set(outcome.samples) == {"executor-submit"}
    assert set(outcome.samples["executor-submit"]) == {"stdlib"}


def test_client_and_executor_have_a_process_each() -> None:
    """No process of localdist measures both; a peer, which is the same for both, needs only one."""
    names = ["submit", "executor-submit", "executor-chunks", "executor-start"]
    both = [["submit"], ["executor-submit", "executor-chunks"], ["executor-start"], ["executor-start"]]
    assert _jobs("localdist", names, 0) == both
    assert _jobs("localdist", ["executor-submit"], 0) == [["executor-submit"]]
    assert _jobs("stdlib", ["submit", "executor-chunks"], 0) == [["submit", "executor-chunks"]]
    assert adapter("localdist", executor=True) is LocaldistExecutor
    assert adapter("localdist", executor=False) is Localdist
    assert adapter("stdlib", executor=True) is Stdlib


@pytest.mark.slow
def test_the_table_is_readable() -> None:
    """The table names peers, rows with their unit, goals with a verdict, and what is not comparable."""
    done = bench("--quick", "--peers", "stdlib", "--rows", "submit,chain")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.split()[:1] == ["localdist"] and line.split()[-1] == "stdlib" for line in lines)
    assert any(line.split()[:2] == ["submit", "tasks/s"] for line in lines)
    assert any(line.startswith("    goal >= 5x stdlib: ") for line in lines)
    assert "not comparable: stdlib takes no futures as arguments: chain" in lines


@pytest.mark.slow
def test_a_hanging_peer_is_named_and_ends_nothing_else() -> None:
    """A peer's process that does not end in time is ended and reported, with the measurement it was at."""
    outcome = run(Settings(("submit",), ("stdlib",), rounds=1, quick=True, timeout=0.0), lambda _: None)
    assert outcome.failures == {"stdlib": ["submit: no end after 0 s"]}
    assert outcome.samples == {}


@pytest.mark.slow
def test_a_failing_measurement_is_named() -> None:
    """A child that cannot start its peer says so once, with the error, and the run goes on to the next peer."""
    outcome = run(Settings(("submit",), POOLS, workers=-1, rounds=2, quick=True), lambda _: None)
    assert set(outcome.failures) == set(POOLS)
    for failures in outcome.failures.values():
        (text,) = failures
        assert text.startswith("submit: could not start: ValueError: ")


@pytest.mark.parametrize("arguments", [("--rows", "nonsense"), ("--peers", "nonsense")])
def test_unknown_names_are_refused_with_those_that_exist(arguments: tuple[str, str]) -> None:
    """A row or a peer that does not exist ends the command with code 2 and a list of what there is."""
    done = bench("--quick", *arguments)
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert ("roundtrip" if arguments[0] == "--rows" else "stdlib") in done.stderr
    assert done.stdout == ""


def test_select_takes_names_without_their_ending() -> None:
    """`memory` means every `memory-...`, but a million tasks only with `full` or by full name."""
    assert select(["memory"], full=False) == ("memory-10k", "memory-100k")
    assert select(["memory", "submit"], full=True) == ("submit", "memory-10k", "memory-100k", "memory-1m")
    assert select(["memory-1m"], full=False) == ("memory-1m",)
    assert "core-1m" not in select(None, full=False)
    assert select(None, full=True) == tuple(MEASUREMENTS)


def test_every_measurement_has_a_function_and_names_are_unique() -> None:
    """Rows are data: each measurement has its function, each row one name, each goal compares with what exists."""
    assert set(MEASURE) == set(MEASUREMENTS)
    rows = rows_of(tuple(MEASUREMENTS))
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert {goal.of for row in rows for goal in row.goals} - {None} <= {BEST_PEER} | set(PEERS) | set(names)
    assert all(m.executor == m.name.startswith(EXECUTOR) for m in MEASUREMENTS.values())
    for peer in PEERS.values():
        assert set(peer.skips) <= set(MEASUREMENTS)
        # localdist's other adapter does the executor's rows
        assert ("executor-chunks" in peer.skips) != (issubclass(peer, ChunkingPeer) or peer is Localdist)
        USUAL.limited(peer.limits)


@pytest.mark.parametrize(
    ("goal", "figure", "other", "met"),
    [
        (Goal(">=", 5, "stdlib"), 50.0, 10.0, True),
        (Goal(">=", 5, "stdlib"), 49.0, 10.0, False),
        (Goal(">", 1, "mp.Pool"), 10.0, 10.0, False),
        (Goal("<=", 0.5, "stdlib"), 5.0, 10.0, True),
        (Goal("<=", 0.5, "stdlib"), 5.1, 10.0, False),
        (Goal("<=", 40), 40.0, 1.0, True),
        (Goal("<=", 40), 40.1, 2.0, False),
    ],
)
def test_goals(goal: Goal, figure: float, other: float, met: bool) -> None:
    """A goal with a peer scales with that peer's figure; one without stands alone."""
    assert goal.met(figure, other) is met


def test_report_computes_medians_ratios_and_verdicts() -> None:
    """Ratios say how many times as good localdist is, for rates and for times; the median ignores an outlier."""
    settings = Settings(("submit", "roundtrip", "import"), ("localdist", "stdlib", "ray"))
    outcome = Outcome(
        samples={
            "submit": {"localdist": [60.0, 60.0, 1.0], "stdlib": [10.0]},
            "roundtrip": {"localdist": [60.0], "stdlib": [90.0]},
            "import": {"localdist": [20.0]},
        },
        facts={"import": {"localdist": {"numpy_imported": True}}},
        left_out={"ray": "not installed"},
    )
    found = report(settings, outcome)
    submit, roundtrip, imported, _ = found["rows"]
    assert submit["figures"]["localdist"]["median"] == 60.0
    assert submit["ratios"] == {"stdlib": 6.0}
    assert [goal["met"] for goal in submit["goals"]] == [True, None, None]
    assert roundtrip["ratios"] == {"stdlib": 1.5}
    assert [goal["met"] for goal in roundtrip["goals"]] == [False]
    assert [goal["met"] for goal in imported["goals"]] == [True, False]
    text = table(found)
    assert "left out: ray: not installed" in text
    assert "goal <= 0.5x stdlib: NOT MET (0.667x)" in text


def test_a_row_is_flat_compared_with_the_same_row_of_fewer_tasks() -> None:
    """A goal may name another row of localdist: a task among many must cost about what it costs among 10,000."""
    settings = Settings(("memory-10k", "memory-100k"), ("localdist",))
    samples = {"memory-10k-pending": {"localdist": [800.0]}, "memory-100k-pending": {"localdist": [1100.0]}}
    rows = {row["name"]: row for row in report(settings, Outcome(samples=samples))["rows"]}
    assert [goal["met"] for goal in rows["memory-100k-pending"]["goals"]] == [True, False]


@pytest.mark.parametrize(
    ("peers", "met", "why"),
    [
        ({"stdlib": 50.0, "mp.Pool": 100.0, "loky": 60.0}, True, "0.9x mp.Pool"),
        ({"stdlib": 50.0, "mp.Pool": 101.0, "loky": 60.0}, False, "0.891x mp.Pool"),
        ({"loky": 60.0}, True, "1.5x loky"),
        ({}, None, "no figure of the best peer"),
    ],
)
def test_a_goal_may_be_set_by_the_best_peer(peers: dict[str, float], met: bool | None, why: str) -> None:
    """The best peer is the one with the best figure of the row, by whatever name, and the verdict names it."""
    samples = {"executor-chunks": {"localdist": [90.0]} | {peer: [figure] for peer, figure in peers.items()}}
    found = report(Settings(("executor-chunks",), tuple(PEERS)), Outcome(samples=samples))
    assert found["rows"][0]["goals"] == [{"goal": ">= 0.9x the best peer", "met": met, "why": why}]


def test_the_best_peer_of_a_time_is_the_fastest() -> None:
    """Where less is better, the best peer is the one with the smallest figure."""
    row = replace(MEASUREMENTS["executor-roundtrip"].rows[0], goals=(Goal("<=", 1, BEST_PEER),))
    medians = {row.name: {"localdist": 20.0, "stdlib": 40.0, "loky": 10.0}}
    assert _judge(row.goals[0], row, medians)["why"] == "2x loky"


class Liar(ChunkingPeer):
    """A peer that is fast because it computes nothing."""

    name = "liar"
    module = "nowhere"
    use = "import nowhere"

    def load(self) -> None:
        return

    def start(self, workers: int) -> None:
        return

    def close(self) -> None:
        return

    def submit(self, function: Any, *args: Any) -> Any:
        return args

    def gather(self, futures: Any) -> list[Any]:
        return [0 for _ in futures]

    def map(self, function: Any, values: Any, chunksize: int = 1) -> list[Any]:
        return [0 for _ in values]


@pytest.mark.parametrize(
    "name", ["submit", "map", "roundtrip", "chain", "tree", "start", "executor-map", "executor-chunks"]
)
def test_wrong_results_have_no_figure(name: str) -> None:
    """A peer that answers fast and wrong is refused, in every measurement of small tasks."""
    with pytest.raises(WrongResultError, match="instead of"):
        MEASURE[name](Bench(Liar(), QUICK, 2))
    with pytest.raises(WrongResultError):
        warm_up(Bench(Liar(), QUICK, 2))


def test_numbers_are_never_used_twice() -> None:
    """No task of a measurement repeats a call, so a peer that remembers results gains nothing."""
    context = Bench(Liar(), QUICK, 2)
    first, second = context.fresh(10), context.fresh(5)
    assert not set(first) & set(second)
    assert (len(first), len(second)) == (10, 5)


def test_a_missing_peer_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is not installed is no failure: the outcome names it."""

    class Missing(Stdlib):
        module = "no_such_package.inside"

    assert not Missing.installed()
    monkeypatch.setattr("localdist.bench._run.PEERS", {"missing": Missing})
    outcome = run(Settings(("submit",), ("missing",), rounds=1), lambda _: None)
    assert outcome.left_out == {"missing": "not installed"}
    assert outcome.failures == {}


@pytest.mark.parametrize("peer", PEERS.values(), ids=list(PEERS))
def test_peers_are_known_without_importing_them(peer: type[Peer]) -> None:
    """Looking for a peer imports nothing of it: the parent stays small, and a broken peer cannot hurt it."""
    if peer.name in {"localdist", *POOLS}:
        assert peer.installed()
        return
    program = f"import sys\nfrom localdist.bench._peers import PEERS\nPEERS[{peer.name!r}].installed()\n"
    program += f"print({peer.module!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
