"""The scheduler with fake workers on a virtual clock, so that rare orders of events happen at will, and again.

Messages take a random time, in order within one pipe and in any order between pipes; workers die, with what they were
running and whatever was on its way to them; tasks fail, ask to be run again, take a thousand times longer than
expected, are cancelled and released. The same seed gives the same course of events, on every machine.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from random import Random
from typing import Any

from .._schedule import actions, events
from .._schedule.core import Scheduler
from .._schedule.records import Ending, Group, Key, Options, State, Task, Worker
from .._schedule.validate import validate
from ..errors import InternalError

#: How long a fake worker takes to start, in seconds of virtual time.
_START = 0.05
#: Time over which the fake client submits its tasks, in seconds of virtual time.
_SUBMITTING = 0.2
#: Names and typical durations, in seconds, of the functions that are called; the last one is what `long` chooses.
_KINDS = (("tiny", 2e-5), ("small", 5e-4), ("medium", 5e-3))


@dataclass(frozen=True)
class History:
    """What happened in a simulation. Times are in seconds of the virtual clock."""

    #: (time, what, key), in order: begun, ended, died
    events: Sequence[tuple[float, str, Key]]
    #: key -> "FINISHED", "ERRED" or "FORGOTTEN" (cancelled, or not wanted any more)
    outcomes: dict[Key, str]
    #: how many workers died, and how many times one was asked to give back all that it had not begun
    deaths: int
    recalls: int
    #: how many workers were dismissed, because they had used up their quota
    dismissals: int
    #: the longest time that a task, ready to run, had not begun although the scheduler knew of an idle slot
    longest_wait: float
    #: when the last task ended
    seconds: float


class _FakeWorker:
    """A worker as `localdist._worker` is one: slots that take from a queue in order, and a service thread."""

    def __init__(self, world: _World, record: Worker) -> None:
        self.world = world
        self.record = record
        self.alive = True
        self.queue: deque[Task] = deque()
        self.running: list[Task] = []
        self.cancelled: set[int] = set()
        self.begun = 0
        #: when the last message in each pipe arrives
        self._last = dict.fromkeys(("tasks", "control", "replies"), 0.0)

    def send(self, pipe: str, deliver: Callable[[], None]) -> None:
        """Deliver after a random time, after whatever was sent before in the same pipe."""
        world = self.world
        self._last[pipe] = max(self._last[pipe], world.now + world.random.random() * world.latency)
        world.at(self._last[pipe], deliver)

    # -- what it is told

    def take(self, tasks: Sequence[Task]) -> None:
        """Let tasks travel to it."""
        self.send("tasks", lambda: self._arrive(tasks))

    def _arrive(self, tasks: Sequence[Task]) -> None:
        if self.alive:
            self.queue.extend(tasks)
            self._begin()

    def cancel(self, seqs: Sequence[int]) -> None:
        """Let the order travel to it not to begin these."""
        self.send("control", lambda: self.cancelled.update(seqs))

    def recall(self) -> None:
        """Let the order travel to it to give back all that it has not begun."""
        self.send("control", self._give_back)

    def _give_back(self) -> None:
        if self.alive:
            seqs = [task.seq for task in self.queue]
            self.queue.clear()
            self._answer(events.TasksRecalled(self.record, seqs))

    def end(self) -> None:
        """End as it was told to, having nothing to do."""
        if self.running or self.queue:
            raise InternalError(f"{self.record} was dismissed, but has {[*self.running, *self.queue]}")
        self.alive = False

    def die(self) -> None:
        """End at once. What it wrote before is still read, and then its end is noticed."""
        world, self.alive = self.world, False
        world.running -= Counter(self.running)
        self.send("replies", lambda: world.worker_died(self))

    # -- what it does

    def _begin(self) -> None:
        while self.queue and len(self.running) < self.record.slots:
            task = self.queue.popleft()
            if task.seq in self.cancelled:
                self._answer(events.TasksRecalled(self.record, [task.seq], whole=False))
                continue
            self.running.append(task)
            self.begun += 1
            if self.begun > self.world.quota:
                raise InternalError(f"{self.record} began {self.begun} tasks, its quota was {self.world.quota}")
            seconds, ending = self.world.begun(task)
            self.world.at(self.world.now + seconds, partial(self._end, task, seconds, ending))

    def _end(self, task: Task, seconds: float, ending: Ending) -> None:
        if self.alive:
            self.running.remove(task)
            outcome = self.world.ended(task, ending)
            self._answer(events.TasksReported(self.record, [(task.seq, ending, outcome, seconds)]))
            self._begin()

    def _answer(self, event: events.Event) -> None:
        self.send("replies", lambda: self.world.handle(event))


@dataclass
class _Job:
    """What the fake client knows of a task."""

    task: Task
    seconds: float
    #: what its runs come to, in order; after these it succeeds
    endings: list[Ending] = field(default_factory=list)
    ready_for: float = 0.0
    runs: int = 0


class _World:
    """Clock, scheduler, workers and client."""

    def __init__(self, seed: int, latency: float, long: float, quota: float) -> None:
        self.random = Random(seed)
        self.latency = latency
        self.long = long
        self.quota = quota
        self.now = 0.0
        self.core = Scheduler(allowed_failures=3)
        self._number = 0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._tick: float | None = None
        self.workers: dict[Worker, _FakeWorker] = {}
        self.jobs: dict[Task, _Job] = {}
        self.groups = [Group(name) for name, _ in _KINDS]
        #: jobs that can run and have not begun
        self.waiting: dict[Task, _Job] = {}
        self.running: Counter[Task] = Counter()
        self.made: set[str] = set()
        self.dropped: set[str] = set()
        self.held: dict[Task, None] = {}
        self.log: list[tuple[float, str, Key]] = []
        self.deaths = self.recalls = self.dismissals = self.joined = 0
        self.longest_wait = 0.0

    # -- clock

    def at(self, time: float, what: Callable[[], None]) -> None:
        """Do something at a time; things of the same time are done in the order in which this was called."""
        self._number += 1
        heappush(self._agenda, (time, self._number, what))

    def run(self) -> None:
        """Go on until nothing is left to do."""
        while self._agenda:
            time, _, what = heappop(self._agenda)
            self._wait_until(time)
            what()

    def _wait_until(self, time: float) -> None:
        idle = any(len(w.outstanding) < w.slots for w in self.core.workers.values())
        for job in self.waiting.values():
            job.ready_for = job.ready_for + time - self.now if idle else 0.0
            self.longest_wait = max(self.longest_wait, job.ready_for)
        self.now = time

    # -- scheduler

    def handle(self, event: events.Event) -> None:
        """Give the scheduler an event, check it, do what it asks for."""
        for action in self.core.handle(event, self.now):
            if isinstance(action, actions.Dispatch):
                for task in action.tasks:
                    self._check_inputs(task)
                self.workers[action.worker].take(action.tasks)
            elif isinstance(action, actions.Recall):
                if action.seqs is not None:
                    self.workers[action.worker].cancel(action.seqs)
                else:
                    self.recalls += 1
                    self.workers[action.worker].recall()
            elif isinstance(action, actions.Dismiss):
                self._dismiss(action.worker)
            elif isinstance(action, actions.Drop):
                self._drop(action.outcomes)
        validate(self.core)
        for task, job in self.jobs.items():
            can_run = task.state in (State.READY, State.PROCESSING) and not self.running[task]
            if can_run and task not in self.waiting:
                job.ready_for = 0.0
                self.waiting[task] = job
            elif not can_run:
                self.waiting.pop(task, None)
        due = self.core.next_deadline()
        if due is not None and (self._tick is None or due < self._tick):
            self._tick = max(due, self.now)
            self.at(self._tick, self._deadline)

    def _deadline(self) -> None:
        self._tick = None
        self.handle(events.DeadlineReached())

    def _check_inputs(self, task: Task) -> None:
        for dependency in task.dependencies:
            if dependency.state is not State.FINISHED or dependency.outcome in self.dropped:
                raise InternalError(f"{task} was sent to a worker, but there is no value of {dependency}")

    def _drop(self, outcomes: Sequence[Any]) -> None:
        for outcome in outcomes:
            if outcome in self.dropped:
                raise InternalError(f"{outcome} was dropped twice")
            if outcome in self.made:
                self.dropped.add(outcome)

    # -- workers

    def join(self, name: int, slots: int) -> None:
        """Start a worker."""
        self.joined += 1
        worker = _FakeWorker(self, Worker(f"worker-{self.joined}", name, slots, quota=self.quota))
        self.workers[worker.record] = worker
        self.handle(events.WorkerJoined(worker.record))

    def _replace(self, record: Worker) -> None:
        self.at(self.now + _START, lambda: self.join(record.name, record.slots))

    def _dismiss(self, record: Worker) -> None:
        self.dismissals += 1
        self.workers.pop(record).end()
        self._replace(record)

    def kill_one(self) -> None:
        """Let one of the workers die, the busiest ones first."""
        alive = [worker for worker in self.workers.values() if worker.alive]
        if alive:
            busy = [worker for worker in alive if worker.running] or alive
            self.random.choice(busy).die()

    def worker_died(self, worker: _FakeWorker) -> None:
        """Tell the scheduler of a death, and start another worker of that name."""
        self.deaths += 1
        record = worker.record
        self.log.append((self.now, "died", record.address))
        replaced = self.workers.pop(record, None) is None  # it was dismissed before its end was noticed
        self.handle(events.WorkerLeft(record, 1, -9))
        if not replaced:
            self._replace(record)

    def begun(self, task: Task) -> tuple[float, Ending]:
        """Say how long a run of this task takes, and what comes of it."""
        job = self.jobs[task]
        self.running[task] += 1
        self.waiting.pop(task, None)
        if self.running[task] > 1:
            raise InternalError(f"{task} runs twice at once")
        self.log.append((self.now, "begun", task.key))
        job.runs += 1
        return job.seconds, (job.endings.pop(0) if job.endings else Ending.SUCCESS)

    def ended(self, task: Task, ending: Ending) -> Any:
        """Make the outcome of a run."""
        self.running[task] -= 1
        self.log.append((self.now, "ended", task.key))
        if ending is Ending.SUCCESS:
            value = f"value of {task.key}, run {self.jobs[task].runs}"
            self.made.add(value)
            return value
        return f"error of {task.key}" if ending is Ending.ERROR else None

    # -- client

    def submit(self, count: int) -> None:
        """Submit some tasks, which may depend on any that are held."""
        tasks = [self._make() for _ in range(count)]
        self.held.update(dict.fromkeys(tasks))
        self.handle(events.TasksSubmitted(tasks))

    def _make(self) -> Task:
        random = self.random
        kind = random.randrange(len(_KINDS))
        seconds = _KINDS[kind][1] * random.uniform(0.5, 2)
        if random.random() < self.long:
            seconds = random.uniform(0.1, 1)
        held = list(self.held)
        dependencies = random.sample(held, min(len(held), random.choice((0, 0, 0, 1, 2, 3))))
        options = Options(priority=random.choice((0, 0, 0, 1)), retries=random.choice((0, 0, 2)))
        key = f"{_KINDS[kind][0]}-{len(self.jobs)}"
        task = Task(key, self.groups[kind], None, "call", tuple(dependencies), options)
        odd = random.choices(((), (Ending.ERROR,), (Ending.RESCHEDULED,), (Ending.ERROR,) * 3), (90, 4, 4, 2))[0]
        self.jobs[task] = _Job(task, seconds, list(odd))
        return task

    def let_go(self, count: int, how: str) -> None:
        """Release, cancel or keep some of the tasks that are held."""
        tasks = self.random.sample(list(self.held), min(count, len(self.held)))
        if how == "keep":
            self.handle(events.TasksKept(tasks))
        if how == "cancel":
            self.handle(events.TasksCancelled(tasks, "simulated"))
        for task in tasks:
            del self.held[task]
        self.handle(events.TasksReleased(tasks))

    def plan(self, tasks: int, deaths: int) -> None:
        """Put what the client does, and the deaths, on the agenda."""
        random, left = self.random, tasks
        while left:
            count = min(left, random.choice((1, 1, 2, 10, 50)))
            left -= count
            self.at(random.uniform(0, _SUBMITTING), partial(self.submit, count))
        for how in ("release", "cancel", "keep"):
            for _ in range(tasks // 50):
                count = random.randint(1, 4)
                self.at(random.uniform(0, _SUBMITTING), partial(self.let_go, count, how))
        for _ in range(deaths):
            self.at(random.uniform(0, 2 * _SUBMITTING), self.kill_one)


def simulate(
    seed: int,
    *,
    workers: int = 4,
    slots: int = 1,
    tasks: int = 200,
    deaths: int = 5,
    latency: float = 5e-4,
    long: float = 0.03,
    quota: float = float("inf"),
) -> History:
    """Let the scheduler run random tasks on fake workers, and check it after every event.

    Args:
        seed: the same seed and arguments give the same history.
        workers: how many there are; one that dies, or is dismissed, is replaced.
        slots: tasks that a worker runs at a time.
        tasks: how many are submitted; some depend on others, fail, are cancelled, released or kept.
        deaths: how many workers die.
        latency: the longest time that a message takes, in seconds.
        long: the share of tasks that take up to a second although others that call the same function are short.
        quota: how many tasks a worker may begin before it is dismissed.

    Returns:
        What happened.

    Raises:
        InternalError: an invariant of the scheduler was broken; a task ran twice at once, without its inputs, or was
            lost; a value was dropped twice, while it was needed, or never; a worker began more than its quota, or was
            dismissed while it had something to do.
    """
    world = _World(seed, latency, long, quota)
    for name in range(workers):
        world.join(name, slots)
    world.plan(tasks, deaths)
    world.run()
    lost = [task for task in world.held if task.state not in (State.FINISHED, State.ERRED, State.FORGOTTEN)]
    if lost:
        stories = [str(line) for line in world.core.story(lost[0].key)]
        raise InternalError(f"{len(lost)} tasks never ended, the first is {lost[0]}: {stories}")
    outcomes = {task.key: task.state.name for task in world.jobs}
    seconds = world.now
    world.let_go(len(world.held), "release")
    world.run()
    if world.core.tasks or world.made != world.dropped:
        kept = sorted(world.made - world.dropped)
        raise InternalError(f"nobody wants anything, but these are kept: {list(world.core.tasks)}, {kept}")
    return History(world.log, outcomes, world.deaths, world.recalls, world.dismissals, world.longest_wait, seconds)
