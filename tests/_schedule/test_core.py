"""What becomes of a task: the rules of `localdist._schedule.core` and `lifetime`, one by one."""

from __future__ import annotations

import pytest

from localdist._schedule import actions, events
from localdist._schedule.records import Ending, State, Worker
from localdist.errors import InvalidTransition, KilledWorker
from tests._schedule.kit import Bench, keys

ANN, BOB = object(), object()


@pytest.fixture
def b() -> Bench:
    return Bench("a")


# -- submit, values


def test_task_runs_and_ends(b: Bench) -> None:
    """A task goes to an idle worker at once, and its end is announced with its value."""
    task = b.run("x")
    assert b.dispatched == {"a": ["x"]}
    b.report(task)
    assert (b.finished, b.failed, task.outcome, task.call) == (["x"], [], "value of x", None)


def test_dependencies_in_order(b: Bench) -> None:
    """A task waits for every dependency, and runs when the last one has its value; duplicates count once."""
    x, y = b.run("x"), b.run("y")
    z = b.run("z", x, y, x)
    assert z.missing == 2
    b.report(x)
    assert z.state is State.WAITING
    b.report(y)
    assert b.dispatched == {"a": ["z"]}
    assert keys(z.dependencies) == ["x", "y", "x"]


def test_value_is_dropped_when_the_last_holder_goes(b: Bench) -> None:
    """A value is kept for its claim and for each dependent that has not run, and dropped once when all are gone."""
    x = b.run("x")
    y = b.run("y", x)
    b.report(x)
    b.release(x)
    assert (b.dropped, x.state) == ([], State.FINISHED)
    b.report(y)
    assert (b.dropped, x.state) == (["value of x"], State.FORGOTTEN)
    b.release(y)
    assert b.dropped == ["value of y"]
    assert not b.core.tasks


def test_release_spreads_to_what_was_needed_only_for_it(b: Bench) -> None:
    """Releasing the last of a chain forgets all of it: queued tasks never run, running ones are recalled."""
    x = b.run("x")
    y = b.run("y", x)
    z = b.run("z", y)
    b.release(x, y)
    assert [t.state for t in (x, y, z)] == [State.PROCESSING, State.WAITING, State.WAITING]
    b.release(z)
    assert [t.state for t in (x, y, z)] == [State.FORGOTTEN] * 3
    assert b.recalled == [("a", [x.seq])]
    b.report(x)
    assert (b.finished, b.dropped) == ([], ["value of x"])


def test_second_release_takes_nothing_from_others(b: Bench) -> None:
    """A submitter has one claim: cancelling and then releasing takes it once, so that twins and dependents live on."""
    x = b.run("x", owner=ANN)
    twin = b.run("x", owner=BOB)
    b.cancel(x)
    b.release(x)
    assert (x.state, x.claims) == (State.PROCESSING, 1)
    b.report(x)
    assert twin in b.asked(actions.Announce)[0].finished


def test_stored_value_is_finished(b: Bench) -> None:
    """Data is FINISHED at once; a second one under the key is a twin, and its own copy is dropped."""
    first, second = b.make("d"), b.make("d")
    for number, task in enumerate((first, second)):
        task.call, task.outcome = None, f"v{number}"
        b.tell(events.ValuesStored([task]))
    assert (first.state, second.state, second.outcome) == (State.FINISHED, State.TWIN, "v0")
    assert (b.dropped, b.finished) == (["v1"], ["d"])
    b.release(first)
    assert b.dropped == []
    b.release(second)
    assert b.dropped == ["v0"]


# -- data of one call


def test_data_of_a_call_lives_as_long_as_the_call_needs_it(b: Bench) -> None:
    """Data made for one task (NEW, with an outcome, no claims) is FINISHED with it, and dropped when it has run."""
    data = b.data("large")
    x = b.run("x", data)
    assert (data.state, b.dispatched) == (State.FINISHED, {"a": ["x"]})
    b.report(x)
    assert (data.state, b.dropped) == (State.FORGOTTEN, ["large"])


def test_data_of_a_failed_call_stays_for_a_retry(b: Bench) -> None:
    """The inputs of a failed task are kept until it is released: `retry` needs them."""
    x = b.run("x", b.data("large"))
    b.fail(x)
    assert b.dropped == []
    b.tell(events.TasksRetried([x]))
    assert b.dispatched == {"a": ["x"]}
    b.report(x)
    assert b.dropped == ["large"]


def test_data_of_a_call_that_is_not_needed(b: Bench) -> None:
    """Data of a twin, of a task whose inputs are gone, and of one that is released is dropped once."""
    b.run("x")
    b.run("x", b.data("of a twin"))
    assert b.dropped == ["of a twin"]
    gone = b.run("gone")
    b.release(gone)
    lost = b.run("lost", b.data("before"), gone, b.data("after"))
    assert (sorted(b.dropped), lost.state, b.cancelled) == (["after", "before"], State.FORGOTTEN, ["lost"])
    assert b.asked(actions.AnnounceCancelled)[0].reason == "lost dependencies"
    y = b.run("y", b.data("unused"))
    b.release(y)
    assert "unused" in b.dropped


@pytest.mark.parametrize("claims", [0, 1])
def test_unsubmitted_task_cannot_be_depended_on(claims: int, b: Bench) -> None:
    """A NEW task without a value, or one that somebody claims, is no data: InvalidTransition."""
    task = b.make("new")
    task.claims = claims
    task.outcome = "value" if claims else None
    with pytest.raises(InvalidTransition, match="new"):
        b.core.handle(events.TasksSubmitted([b.make("x", task)]), 0.0)


# -- twins


def test_twins_run_once(b: Bench) -> None:
    """Tasks with the same key run once, and all of them are told; late ones at once."""
    first, second = b.run("x", owner=ANN), b.run("x", owner=BOB)
    assert b.dispatched == {}
    b.report(first)
    assert b.finished == ["x", "x"]
    third = b.run("x")
    assert (b.finished, third.outcome, b.dispatched) == (["x"], "value of x", {})
    b.release(first, third)
    assert (first.state, second.outcome) == (State.FINISHED, "value of x")
    b.release(second)
    assert b.dropped == ["value of x"]


def test_depending_on_a_twin_is_depending_on_its_run(b: Bench) -> None:
    """A dependency that is a twin stands for the task that runs for it, also when the twin is released."""
    x, twin = b.run("x"), b.run("x")
    y = b.run("y", twin)
    b.release(twin, x)
    b.report(x)
    assert (keys(y.dependencies), b.dispatched) == (["x"], {"a": ["y"]})


@pytest.mark.parametrize("way", ["submitted", "sent", "stored"])
def test_a_key_that_only_a_dependent_needs_is_free(way: str) -> None:
    """A task with the key of one that nobody claims any more is no twin: both run, each for those who want it."""
    b = Bench("a", "b")  # one runs `deep`, the other is idle
    deep = b.run("deep")
    old = b.run("x", deep)
    y = b.run("y", old)
    b.release(deep, old)
    assert (old.state, old.claims) == (State.WAITING, 0)
    new = b.make("x")
    if way == "submitted":
        b.submit(new)
        assert list(b.dispatched.values()) == [["x"]]
    elif way == "sent":
        new.seq = b.core.take_number()
        b.tell(events.TaskSent(next(w for w in b.w if not w.outstanding), new))
    else:
        new.call, new.outcome = None, "value of x"
        b.tell(events.ValuesStored([new]))
        assert b.dropped == []
    assert b.core.tasks["x"] is new
    if way != "stored":
        b.report(new)
        assert b.finished == ["x"]
    z = b.run("z", new)
    b.report(deep)
    b.report(z)
    b.report(old, "the old value")
    assert (b.dropped, b.finished, list(b.dispatched.values())) == (["value of deep"], [], [["y"]])
    b.report(y)
    assert (b.dropped, b.finished) == (["the old value"], ["y"])
    assert b.core.tasks["x"] is new
    b.release(new)
    assert b.dropped == ["value of x"]
    b.release(y, z)
    assert not b.core.tasks


@pytest.mark.parametrize("way", ["cancelled", "dropped", "failed"])
def test_an_end_with_a_key_that_was_taken_over(b: Bench, way: str) -> None:
    """A task that has lost its key goes with its dependent, whatever becomes of that; the new one is left alone."""
    old = b.run("x")
    y = b.run("y", old)
    b.release(old)
    new = b.run("x")
    if way == "cancelled":
        b.cancel(y)
        assert (b.cancelled, old.state, new.state) == (["y"], State.FORGOTTEN, State.READY)
    elif way == "failed":
        b.fail(old)
        assert (b.failed, b.dispatched) == (["y"], {"a": ["x"]})
        b.release(y)
        assert (old.state, new.state) == (State.FORGOTTEN, State.PROCESSING)
    else:
        b.tell(events.AllDropped("a test"))
        assert {old.state, y.state, new.state} == {State.FORGOTTEN}
        assert not b.core.tasks


def test_a_finished_task_keeps_nothing_of_its_call(b: Bench) -> None:
    """Call and function, which may carry large data, are let go when a task has finished; a failed one may be retried."""
    x = b.run("x")
    b.report(x)
    assert (x.call, x.function) == (None, None)
    y = b.run("y")
    b.fail(y)
    assert (y.call, y.function) == ("call", "function")


def test_twin_of_a_failed_task_fails(b: Bench) -> None:
    """A task whose key has failed gets that error at once."""
    b.fail(b.run("x"), "E")
    twin = b.run("x")
    assert (b.failed, twin.outcome) == (["x"], "E")


def test_sent_task_is_under_way() -> None:
    """A task that was sent at once is PROCESSING; if it is a twin, or its worker is gone, nothing is lost."""
    b = Bench("a", "b")
    task = b.make("x")
    task.seq = b.core.take_number()
    b.tell(events.TaskSent(b.w[1], task))
    assert (task.worker, b.dispatched) == (b.w[1], {})
    twin = b.make("x")
    twin.seq = b.core.take_number()
    b.tell(events.TaskSent(b.w[0], twin))
    assert twin.state is State.TWIN
    b.tell(events.TasksReported(b.w[0], [(twin.seq, Ending.SUCCESS, "unwanted", 0.1)]))
    assert (b.dropped, b.finished) == (["unwanted"], [])
    b.report(task)
    assert b.finished == ["x", "x"]
    orphan = b.make("y")
    orphan.seq = b.core.take_number()
    b.tell(events.TaskSent(Worker("gone", "gone", 1), orphan))
    assert list(b.dispatched.values()) == [["y"]]


# -- errors, retries, reschedule


def test_error_spreads_to_dependents(b: Bench) -> None:
    """Whatever depends on a failed task, directly or not, submitted before or after, fails with the same error."""
    x = b.run("x")
    y = b.run("y", x)
    z = b.run("z", x, y)
    b.fail(x, "E")
    late = b.run("late", z)
    assert [t.outcome for t in (x, y, z, late)] == ["E"] * 4
    assert b.failed == ["late"]


def test_retries(b: Bench) -> None:
    """A task with n retries runs n more times after an error; the errors in between are dropped."""
    x = b.run("x", retries=2)
    for number in range(2):
        b.fail(x, f"E{number}")
        assert (b.failed, b.dropped, b.dispatched) == ([], [f"E{number}"], {"a": ["x"]})
    b.fail(x, "E2")
    assert (b.failed, x.outcome) == (["x"], "E2")


def test_reschedule_is_no_retry(b: Bench) -> None:
    """A task that asks to run again is queued again, as often as it asks, and not counted as failed."""
    x = b.run("x")
    for _ in range(5):
        b.report(x, None, Ending.RESCHEDULED)
        assert (b.dispatched, x.failures) == ({"a": ["x"]}, 0)
    b.report(x)
    assert b.finished == ["x"]


def test_retry_runs_what_failed_and_what_it_stems_from(b: Bench) -> None:
    """`retry` runs the failed task and the failed ones above it, and no others; all their handles are pending again."""
    x = b.run("x")
    twin = b.run("x")
    other = b.run("other")
    y, z = b.run("y", x, other, x), b.run("z", x)
    b.fail(x)
    b.tell(events.TasksRetried([y]))
    pending = keys(t for action in b.asked(actions.AnnouncePending) for t in action.tasks)
    assert sorted(pending) == ["x", "x", "y"]
    assert (twin.outcome, z.state, y.missing) == (None, State.ERRED, 2)
    b.report(other)
    b.report(x)
    b.report(y)
    assert b.finished == ["y"]


def test_retry_of_a_finished_task_changes_nothing(b: Bench) -> None:
    """Only failed tasks run again."""
    x = b.run("x")
    b.report(x)
    b.tell(events.TasksRetried([x]))
    assert b.out == []


# -- deaths


def test_death_blames_what_was_running() -> None:
    """The worker's first tasks, one per slot, are blamed; those behind them run elsewhere without a mark."""
    b = Bench("a")
    b.group(seconds=1e-4)
    tasks = b.submit(*[b.make(i) for i in range(3)])
    b.die(b.w[0])
    assert [t.deaths for t in tasks] == [1, 0, 0]
    assert [t.state for t in tasks] == [State.READY] * 3
    b.join("again")
    assert b.dispatched == {"again": [0, 1, 2]}


def test_known_culprits_are_blamed() -> None:
    """Where it is known what had begun, that is blamed and nothing else."""
    b = Bench("a", slots=2)
    x, y = b.submit(b.make("x"), b.make("y"))
    b.die(b.w[0], begun=[y.seq])
    assert (x.deaths, y.deaths) == (0, 1)


def test_dismissal_blames_nobody(b: Bench) -> None:
    """A worker that was told to stop takes nothing with it."""
    x = b.run("x")
    b.die(b.w[0], blame=False)
    assert (x.state, x.deaths) == (State.READY, 0)


@pytest.mark.parametrize("allowed", [0, 3])
def test_killed_worker_after_allowed_failures(allowed: int) -> None:
    """A task survives `allowed_failures` deaths; at the next it fails with KilledWorker, and so do its dependents."""
    b = Bench("a", allowed_failures=allowed)
    x = b.run("x")
    y = b.run("y", x)
    for number in range(allowed):
        b.die(b.w[-1])
        b.join(number)
        assert x.state is State.PROCESSING
    last = b.w[-1]
    b.die(last)
    assert sorted(b.failed) == ["x", "y"]
    error = y.outcome
    assert isinstance(error, KilledWorker)
    assert (error.task, error.last_worker, error.allowed_failures) == ("x", last.address, allowed)
    assert (error.pid, error.exitcode) == (7, -11)


def test_finished_values_survive_deaths(b: Bench) -> None:
    """What a worker has finished does not go with it."""
    x = b.run("x")
    b.report(x)
    b.die(b.w[0])
    assert (x.state, b.out) == (State.FINISHED, [])


def test_words_of_a_dismissed_worker(b: Bench) -> None:
    """Reports of a worker that is gone change nothing, and the values in them are dropped."""
    x = b.run("x")
    worker = b.w[0]
    b.die(worker)
    b.tell(events.TasksReported(worker, [(x.seq, Ending.SUCCESS, "late", 0.1)]))
    assert (b.dropped, x.state) == (["late"], State.READY)
    b.tell(events.TasksRecalled(worker, [x.seq]))
    b.die(worker)
    assert (b.out, x.deaths) == ([], 1)


# -- cancel


def test_cancel_takes_dependents_along(b: Bench) -> None:
    """Cancelling takes the dependents of the same owner; what runs is recalled; finished values are dropped."""
    w = b.run("w", owner=ANN)
    b.report(w)
    x = b.run("x", w, owner=ANN)
    y = b.run("y", x, owner=ANN)
    b.cancel(w)
    assert sorted(b.cancelled) == ["w", "x", "y"]
    assert b.asked(actions.AnnounceCancelled)[0].reason == "a test"
    assert (b.dropped, b.recalled) == (["value of w"], [("a", [x.seq])])
    assert y.state is State.FORGOTTEN
    b.cancel(w)
    assert b.out == []


def test_cancel_leaves_what_others_own(b: Bench) -> None:
    """Another owner's dependents, and what they need, live on; so do twins, and their dependents."""
    x = b.run("x", owner=ANN)
    mine, theirs = b.run("mine", x, owner=ANN), b.run("theirs", x, owner=BOB)
    b.cancel(x)
    assert (sorted(b.cancelled), mine.state) == (["mine", "x"], State.FORGOTTEN)
    b.report(x)
    b.report(theirs)
    assert (b.finished, b.dropped) == (["theirs"], ["value of x"])


def test_cancel_finds_own_twins_among_dependents(b: Bench) -> None:
    """A dependent that runs for another owner first is cancelled for the owner who cancels, and only for that one."""
    x = b.run("x", owner=ANN)
    theirs, mine = b.run("y", x, owner=BOB), b.run("y", x, owner=ANN)
    b.cancel(x)
    assert (mine.state, theirs.state) == (State.FORGOTTEN, State.WAITING)


def test_force_cancels_for_everyone(b: Bench) -> None:
    """With `force` all handles of the key and of everything that depends on it are cancelled, whoever has them."""
    x = b.run("x", owner=ANN)
    twin, y = b.run("x", owner=BOB), b.run("y", x, owner=BOB)
    b.cancel(twin, force=True)
    assert sorted(b.cancelled) == ["x", "x", "y"]
    assert {t.state for t in (x, twin, y)} == {State.FORGOTTEN}
    assert not b.core.tasks


def test_cancelled_call_runs_anew(b: Bench) -> None:
    """The same call submitted after its cancellation runs, although the cancelled one may still be running."""
    x = b.run("x")
    b.cancel(x)
    again = b.run("x")
    assert again.state is State.READY
    b.report(x)
    assert (b.dropped, b.dispatched) == (["value of x"], {"a": ["x"]})
    b.report(again)
    assert b.finished == ["x"]


# -- fire and forget


def test_kept_task_runs_without_claims(b: Bench) -> None:
    """A kept task and what it needs run although all handles are gone; its value is dropped then."""
    x = b.run("x")
    y = b.run("y", x)
    b.tell(events.TasksKept([y, y]))
    b.release(x, y)
    b.report(x)
    assert b.dispatched == {"a": ["y"]}
    b.report(y)
    assert sorted(b.dropped) == ["value of x", "value of y"]
    assert (b.finished, b.core.tasks) == ([], {})


def test_kept_task_that_fails_is_forgotten(b: Bench) -> None:
    """The error of a kept task that nobody holds is dropped with it."""
    x = b.run("x")
    b.tell(events.TasksKept([x]))
    b.release(x)
    b.fail(x, "E")
    assert (b.failed, b.dropped, b.core.tasks) == ([], ["E"], {})


# -- detached tasks


@pytest.mark.parametrize("ending", [Ending.SUCCESS, Ending.ERROR])
def test_detached_task_leaves_when_it_ends(b: Bench, ending: Ending) -> None:
    """A detached task that has ended is unknown to the scheduler, and its outcome stays until it is released."""
    x = b.detached("x", b.data("large"))
    b.report(x, "outcome", ending)
    assert (b.finished + b.failed, x.outcome, b.core.tasks) == (["x"], "outcome", {})
    assert b.dropped == ["large"]  # after an error too: nobody can ask for a retry
    b.release(x)
    assert (b.dropped, x.state) == (["outcome"], State.FORGOTTEN)


def test_detached_task_runs_though_its_future_was_dropped(b: Bench) -> None:
    """A detached task that was released before it ended runs; its end is announced, and its outcome dropped."""
    b.run("before")
    x, y = b.detached("x"), b.detached("y")
    b.release(x, y)
    assert (x.state, b.dropped) == (State.READY, [])
    b.report(b.core.tasks["before"])
    b.report(x)
    assert (b.finished, b.failed, b.dropped) == (["x"], [], ["value of x"])
    b.fail(y, "E")
    assert (b.finished, b.failed, b.dropped) == ([], ["y"], ["E"])
    assert list(b.core.tasks) == ["before"]


def test_pinned_task_is_neither_withdrawn_nor_stopped(b: Bench) -> None:
    """Who was told that a task is as good as running finds it so, although it waits again; the others are cancelled."""
    b.run("before")
    x, y, _ = b.detached("x"), b.detached("y"), b.detached("z")
    x.pinned = True
    b.withdraw(x, y)
    assert (b.cancelled, x.state) == (["y"], State.READY)
    b.stop()
    assert (b.cancelled, x.state) == (["z"], State.READY)
    b.report(b.core.tasks["before"])
    assert b.dispatched == {"a": ["x"]}


def test_detached_task_is_cancelled(b: Bench) -> None:
    """A detached task can be cancelled while it waits and while it runs, and afterwards its outcome is dropped."""
    x, y = b.detached("x"), b.detached("y")
    b.cancel(x, y)
    assert (sorted(b.cancelled), b.recalled, b.core.tasks) == (["x", "y"], [("a", [x.seq])], {})
    b.report(x)
    z = b.detached("z")
    b.report(z)
    b.cancel(z)
    assert (b.cancelled, b.dropped) == (["z"], ["value of z"])


def test_detached_task_fails_with_what_it_needs(b: Bench) -> None:
    """The error of a dependency ends a detached task, which does not hold on to the failed one."""
    x = b.run("x")
    before = b.detached("before", x)
    b.fail(x, "E")
    after = b.detached("after", x)
    assert (before.outcome, after.outcome, list(b.core.tasks)) == ("E", "E", ["x"])
    b.release(x)
    assert (x.state, b.dropped) == (State.FORGOTTEN, ["E"])


def test_restart_leaves_what_has_left(b: Bench) -> None:
    """A restart cancels detached tasks that have not ended; it drops nothing that their submitters hold."""
    done, failed = b.detached("done"), b.detached("failed", b.run("x"))
    b.report(done)
    b.fail(b.core.tasks["x"])
    b.detached("y")
    b.tell(events.AllDropped("a restart"))
    assert (sorted(b.cancelled), b.core.tasks) == (["x", "y"], {})
    assert (done.outcome, failed.outcome) == ("value of done", "error")


def test_deaths_that_a_task_allows(b: Bench) -> None:
    """`Options.allowed_failures` stands for the scheduler's, in both directions."""
    never, often = b.run("never", allowed_failures=0), b.run("often", allowed_failures=5)
    b.die(b.w[0])
    assert isinstance(never.outcome, KilledWorker)
    assert (never.outcome.allowed_failures, often.state) == (0, State.READY)
    for number in range(5):
        b.die(b.join(number))
        assert often.deaths == number + 1
    assert often.state is State.READY
    b.die(b.join("last"))
    assert (b.failed, often.outcome.allowed_failures) == (["often"], 5)


# -- withdrawn, failed by order, stopped


def test_withdrawing_leaves_what_is_at_a_worker(b: Bench) -> None:
    """What waits in the queue, or for a dependency, is cancelled with its dependents; the rest is left alone."""
    done = b.run("done", group="another")
    b.report(done)
    x = b.run("x")
    y = b.run("y", x)
    z = b.run("z", y)
    ready = b.run("ready")
    b.withdraw(done, x, y, ready)
    assert (sorted(b.cancelled), b.recalled) == (["ready", "y", "z"], [])
    assert b.asked(actions.AnnounceCancelled)[0].reason == "a test"
    assert [t.state for t in (done, x, z)] == [State.FINISHED, State.PROCESSING, State.FORGOTTEN]
    b.report(x)
    assert b.finished == ["x"]


def test_withdrawing_a_twin(b: Bench) -> None:
    """A twin is withdrawn when that which runs for it is at no worker; the other claims are left alone."""
    x, of_running = b.run("x"), b.run("x")
    y, of_queued = b.run("y"), b.run("y")
    b.withdraw(of_running, of_queued)
    assert [t.state for t in (x, of_running, y, of_queued)] == [
        State.PROCESSING,
        State.TWIN,
        State.READY,
        State.FORGOTTEN,
    ]
    assert b.cancelled == ["y"]


def test_failing_by_order(b: Bench) -> None:
    """What has not ended fails with the given error; running tasks are recalled, and what comes of them is dropped."""
    done = b.detached("done", group="another")
    b.report(done)
    running, ready, waiting = b.detached("running"), b.detached("ready"), b.detached("waiting", b.run("before"))
    b.fail_by_order(done, running, ready, waiting)
    assert (b.failed, b.finished) == (["running", "ready", "waiting"], [])
    assert {t.outcome for t in (running, ready, waiting)} == {"an order"}
    assert (done.outcome, b.recalled) == ("value of done", [("a", [running.seq])])
    assert list(b.core.tasks) == ["before"]
    b.report(running)
    assert (b.dropped, b.finished, b.dispatched) == (["value of running"], [], {"a": ["before"]})
    assert running.outcome == "an order"


def test_failing_by_order_what_nobody_holds(b: Bench) -> None:
    """A detached task whose future was dropped is forgotten when it is failed, wherever it is."""
    running, ready = b.detached("running"), b.detached("ready")
    b.release(running, ready)
    b.fail_by_order(running, ready)
    assert (b.failed, b.dropped) == (["running", "ready"], ["an order"] * 2)
    assert b.recalled == [("a", [running.seq])]
    b.die(b.w[0])
    assert (b.out, b.core.tasks) == ([], {})


def test_stop_cancels_what_has_not_begun(b: Bench) -> None:
    """A stop cancels what is ready or waits, for all who claim it; what was begun ends as ever."""
    b.group(seconds=1e-5)
    x = b.run("x", owner=ANN)
    y = b.run("y", x, owner=BOB)
    ready = b.run("ready", group="unknown", owner=ANN)
    theirs = b.run("ready", owner=BOB)
    b.run("after", ready, owner=BOB)
    b.stop()
    assert sorted(b.cancelled) == ["after", "ready", "ready", "y"]
    assert b.asked(actions.AnnounceCancelled)[0].reason == "a stop"
    assert {t.state for t in (y, ready, theirs)} == {State.FORGOTTEN}
    b.report(x)
    assert (b.finished, b.dispatched) == (["x"], {})


def test_nothing_begins_after_a_stop() -> None:
    """What is submitted later, given back, to be retried, or left by a dead worker is cancelled instead of queued."""
    b = Bench("a", "b", "c")
    b.group(seconds=1e-5)
    x = b.run("x", retries=3)
    y, z = b.run("y"), b.run("z")
    b.stop()
    assert b.cancelled == []
    b.run("late")
    assert (b.cancelled, b.dispatched) == (["late"], {})
    b.fail(x)
    assert (b.cancelled, b.failed) == (["x"], [])
    b.report(y, None, Ending.RESCHEDULED)
    assert b.cancelled == ["y"]
    assert z.worker is not None
    b.die(z.worker)
    assert b.cancelled == ["z"]
    assert b.asked(actions.AnnounceCancelled)[0].reason == "a stop"
    b.join("d")
    assert (b.out, b.core.tasks) == ([], {})


def test_stop_calls_back_what_waits_at_workers(b: Bench) -> None:
    """Workers are told at once to give back what they have not begun; more that waits there later is called back too."""
    b.group(seconds=1e-5)
    tasks = b.submit(*[b.make(i) for i in range(4)])
    b.stop()
    assert (b.recalled, b.cancelled) == ([("a", None)], [])
    b.tell(events.TasksRecalled(b.w[0], [tasks[3].seq]))  # the others were still on their way to it
    assert (b.cancelled, b.recalled) == ([3], [("a", None)])
    b.tell(events.TasksRecalled(b.w[0], [t.seq for t in tasks[1:3]]))
    assert (sorted(b.cancelled), b.recalled) == ([1, 2], [])
    b.report(tasks[0])
    assert (b.finished, b.dispatched) == ([0], {})


def test_stop_takes_what_only_a_failed_task_needs(b: Bench) -> None:
    """A task that has lost its key, and that a failed task keeps for a retry, does not begin after a stop either."""
    failing, x = b.run("failing"), b.run("x")
    old = b.run("old", x)
    y = b.run("y", failing, old)
    b.fail(failing)
    b.release(failing, old)
    b.run("old")  # takes over the key
    assert (x.state, old.state, y.state) == (State.PROCESSING, State.WAITING, State.ERRED)
    b.stop()
    assert {old.state, y.state} == {State.FORGOTTEN}
    b.report(x)
    assert (b.finished, b.dispatched) == (["x"], {})


# -- restart


def test_all_dropped(b: Bench) -> None:
    """A restart cancels every handle, drops every value, and leaves nothing."""
    done = b.run("done")
    b.report(done)
    x = b.run("x", done, b.data("large"))
    b.run("x")
    b.run("y", x)
    b.tell(events.AllDropped("scheduler-restart"))
    assert sorted(b.cancelled) == ["done", "x", "x", "y"]
    assert b.asked(actions.AnnounceCancelled)[0].reason == "scheduler-restart"
    assert sorted(b.dropped) == ["large", "value of done"]
    assert (b.recalled, b.core.tasks) == ([("a", [x.seq])], {})


# -- story


def test_story_tells_what_happened(b: Bench) -> None:
    """The story of a key lists what happened to it in order, with the number and time of the event."""
    x = b.run("x", retries=1)
    b.run("other")
    b.fail(x, later=1.5)
    told = b.core.story("x")
    assert [line.what for line in told] == ["submitted", "dispatched", "raised, retry 1 of 1", "dispatched"]
    assert [line.event for line in told] == [2, 2, 4, 4]
    assert (told[-1].time, told[-1].where) == (1.5, b.w[0].address)


def test_story_is_bounded() -> None:
    """However many tasks there are, no more than `story_keys` keys are remembered, the newest ones."""
    b = Bench("a", story_keys=10)
    for number in range(50):
        b.release(b.run(number))
    remembered = b.core.story(*range(50))
    assert 0 < sum(len(line.keys) for line in remembered) <= 10
    assert b.core.story(49)
    b.submit(*[b.make(("many", i)) for i in range(30)])
    assert sum(len(line.keys) for line in b.core.story(*[("many", i) for i in range(30)])) <= 10
