"""The invariants of `records`, `queue` and `assign` as code: run after every event in tests, never in production.

Change a line there, change it here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..errors import InternalError
from .assign import LOW, TARGET, TARGET_MAX, LaneQueue
from .core import Scheduler
from .records import State, Task, Worker

#: Sums of estimates and of amounts may be off by this much, since they are kept by adding and subtracting floats.
TOLERANCE = 1e-6

_LIVE = frozenset({State.WAITING, State.READY, State.PROCESSING, State.FINISHED, State.ERRED})
_UNFINISHED = frozenset({State.WAITING, State.READY, State.PROCESSING})
_ENDED = frozenset({State.FINISHED, State.ERRED})


def validate(scheduler: Scheduler) -> None:
    """Check every invariant of a scheduler, between two events.

    Takes time in proportion to all that the scheduler knows.

    Raises:
        InternalError: its text lists every invariant that is broken, and what breaks it.
    """
    broken = list(_everything(scheduler))
    if broken:
        raise InternalError("\n    ".join(["broken invariants of the scheduler:", *broken]))


def _everything(scheduler: Scheduler) -> Iterator[str]:
    for key, task in scheduler.tasks.items():
        if task.key != key:
            yield f"{task} is filed under {key!r}"
        if not task.seq > 0:
            yield f"{task} has no number, though it was submitted"
    tasks = scheduler.live_tasks()
    for task in tasks:
        yield from (f"{task}: {what}" for what in _task(task, scheduler))
    numbers = Counter(t.seq for task in tasks for t in (task, *(task.twins or ())) if t.seq)
    for seq, count in numbers.items():
        if count > 1:
            yield f"{count} tasks have the number {seq}"
    for address, worker in scheduler.workers.items():
        if worker.address != address:
            yield f"{worker} is filed under {address!r}"
        yield from (f"{worker}: {what}" for what in _worker(worker, scheduler))
    if set(scheduler.workers.values()) != set(scheduler.assignment.workers):
        yield "the workers that are given work are not the ones that are here"
    yield from _queues(scheduler, tasks)
    if scheduler._stopped is not None:
        late = [task for task in tasks if task.state is State.READY and not task.pinned]
        late += [t for w in scheduler.assignment.loaded for t in w.outstanding.values() if not t.pinned]
        if late:
            yield f"it is stopped, but these are ready, or were not called back: {late}"


def _task(task: Task, scheduler: Scheduler) -> Iterator[str]:
    state = task.state
    if state not in _LIVE:
        yield f"is known, but {state.name}"
    if task.claims != task.held + task.kept + len(task.twins or ()):
        yield f"{task.claims} claims, not one each for held={task.held}, kept={task.kept}, twins={task.twins}"
    if not task.claims and not task.dependents:
        yield "nobody wants it"
    if task.kept and state not in _UNFINISHED:
        yield "fire-and-forget claims it beyond its end"
    if (task.outcome is not None) != (state in _ENDED):
        yield f"outcome {task.outcome!r}"
    if state is State.FINISHED and task.call is not None:
        yield "still has its call"
    if not 0 <= task.failures <= task.options.retries + (state is State.ERRED):
        yield f"{task.failures} failures, {task.options.retries} retries"
    allowed = task.options.allowed_failures
    if allowed is None:
        allowed = scheduler.allowed_failures
    if not 0 <= task.deaths <= allowed + (state is State.ERRED):
        yield f"{task.deaths} deaths, {allowed} are allowed"
    if task.options.detached and (state in _ENDED or not task.kept):
        yield f"is detached, but still here, with kept={task.kept}"
    if task.options.detached and (task.dependents or task.twins):
        yield f"is detached, but others need it: {task.dependents}, {task.twins}"
    if (task.worker is not None) != (state is State.PROCESSING):
        yield f"is at {task.worker}"
    if task.worker is not None:
        if scheduler.workers.get(task.worker.address) is not task.worker:
            yield f"is at {task.worker}, which is not here"
        if task.worker.outstanding.get(task.seq) is not task:
            yield f"is unknown to {task.worker}"
    yield from _edges(task, scheduler)
    yield from _twins(task)


def _edges(task: Task, scheduler: Scheduler) -> Iterator[str]:
    missing = 0
    for dependency in dict.fromkeys(task.dependencies):
        missing += dependency.state is not State.FINISHED
        if task not in (dependency.dependents or ()):
            yield f"is not among the dependents of {dependency}"
        if dependency.seq and dependency.claims and scheduler.tasks.get(dependency.key) is not dependency:
            yield f"depends on {dependency}, which no key leads to"
        if not dependency.seq and (dependency.state is not State.FINISHED or dependency.claims):
            yield f"{dependency} is data for it, but {dependency.state.name} with {dependency.claims} claims"
    if task.state is State.FINISHED and task.dependencies:
        yield f"is finished, but holds on to {task.dependencies}"
    if task.missing != (missing if task.state is State.WAITING else 0):
        yield f"missing is {task.missing}, dependencies {task.dependencies}"
    if (missing and task.state in (State.READY, State.PROCESSING)) or (task.state is State.WAITING and not missing):
        yield f"is {task.state.name} with dependencies {task.dependencies}"
    if task.dependents is not None and not task.dependents:
        yield "has an empty set of dependents"
    numbers = [dependent.seq for dependent in task.dependents or ()]
    if numbers != sorted(numbers):
        yield f"dependents are not in the order of their submission: {numbers}"
    for dependent in task.dependents or ():
        if dependent.state not in _UNFINISHED | {State.ERRED}:
            yield f"is held on to by {dependent}"
        if task not in dependent.dependencies:
            yield f"is not among the dependencies of {dependent}"
        if task.state is State.ERRED and dependent.state is not State.ERRED:
            yield f"has failed, but not {dependent}, which depends on it"


def _twins(task: Task) -> Iterator[str]:
    twins = task.twins or []
    if len(set(twins)) != len(twins):
        yield f"a twin is there twice: {twins}"
    for twin in twins:
        if twin.state is not State.TWIN or twin.twins != [task] or twin.key != task.key:
            yield f"runs for {twin}, which is no twin of it"
        if twin.outcome is not task.outcome:
            yield f"{twin} has the outcome {twin.outcome!r} instead of {task.outcome!r}"
        if twin.dependencies or twin.dependents or twin.call is not None or twin.worker is not None:
            yield f"{twin} has a life of its own"


def _worker(worker: Worker, scheduler: Scheduler) -> Iterator[str]:
    for seq, task in worker.outstanding.items():
        if task.seq != seq:
            yield f"{task} is filed under {seq}"
        # What came of a forgotten task, of one that turned out to be a twin or failed by order, has no taker.
        unwanted = task.state in (State.FORGOTTEN, State.TWIN, State.ERRED) and task.worker is None
        if not unwanted and (task.state is not State.PROCESSING or task.worker is not worker):
            yield f"has {task}, which does not know of it"
        if not task.cost > 0:
            yield f"{task} costs {task.cost}"
    load = sum(task.cost for task in worker.outstanding.values())
    if abs(worker.load - load) > TOLERANCE:
        yield f"load is {worker.load}, its tasks are {load}"
    for name, amount in worker.free.items():
        if amount < -TOLERANCE:
            yield f"has lent {-amount} {name} more than there is"
    assignment, count = scheduler.assignment, len(worker.outstanding)
    if (worker in assignment.loaded) != (count > worker.slots and not worker.recalling):
        yield f"with {count} tasks, recalling={worker.recalling}: is it loaded? {worker in assignment.loaded}"
    hungry = worker in assignment.hungry
    # The target may have changed since it was decided, so only its bounds count.
    least, most = (LOW * target * worker.slots for target in (TARGET, TARGET_MAX))
    if worker.recalling:
        if hungry:
            yield "is hungry while it is to give back what it has"
    elif worker.quota <= 0:
        if hungry or not count:
            yield f"with {count} tasks it has used up its quota: is hungry, or should have been dismissed"
    elif count < worker.slots or (not worker.stuck and worker.load < least - TOLERANCE):
        if not hungry:
            yield f"with {count} tasks, load {worker.load}, stuck={worker.stuck}: is not hungry"
    elif hungry and (worker.stuck or worker.load > most + TOLERANCE):
        yield f"with {count} tasks, load {worker.load}, stuck={worker.stuck}: is hungry"


def _queues(scheduler: Scheduler, tasks: list[Task]) -> Iterator[str]:
    assignment = scheduler.assignment
    queued: Counter[Task] = Counter()
    for lane in (assignment.common, *assignment.lanes.values()):
        ready = lane.queue.ready()
        queued.update(ready)
        if len(lane.queue) != len(ready):
            yield f"lane {lane.lane} counts {len(lane.queue)} tasks and has {len(ready)}"
        wrong = [task for task in ready if task.options.lane != lane.lane]
        if wrong:
            yield f"lane {lane.lane} has {wrong}"
        order = [(-task.options.priority, task.seq) for task in ready]
        if order != sorted(order):
            yield f"lane {lane.lane} is out of order: {order}"
    for task in tasks:
        if queued.pop(task, 0) != (task.state is State.READY):
            yield f"{task} is queued too often, or not at all"
    if queued:
        yield f"tasks are queued that no key leads to: {list(queued)}"
    for key, lane in assignment.lanes.items():
        yield from (f"lane {key}: {what}" for what in _lane(lane, scheduler))
    for worker, lanes in assignment.workers.items():
        if set(lanes) != {lane for lane in assignment.lanes.values() if worker in lane.workers}:
            yield f"{worker} has other lanes than those that have it"


def _lane(lane: LaneQueue, scheduler: Scheduler) -> Iterator[str]:
    rule = lane.lane
    if rule is None or not len(lane.queue):
        yield "is kept though nothing is in it"
        return
    everyone = list(scheduler.assignment.workers)
    named = everyone
    if rule.workers is not None:
        named = [w for w in everyone if w.name in rule.workers or w.address in rule.workers]
    fitting = named if named or rule.strict else everyone
    if list(lane.workers) != fitting:
        yield f"serves {list(lane.workers)} instead of {fitting}"
