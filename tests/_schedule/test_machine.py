"""The scheduler against a plain model, in every order of events that Hypothesis can think of."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from localdist._schedule import actions, events
from localdist._schedule.assign import STALL
from localdist._schedule.core import Scheduler
from localdist._schedule.records import Ending, Group, Lane, Options, State, Task, Worker
from localdist._schedule.validate import validate
from localdist.errors import KilledWorker
from tests._schedule.model import ERRED, FINISHED, GONE, PENDING, Handle, Model, Run

LANES = [
    None,
    None,
    None,
    Lane(frozenset(["a"])),
    Lane(frozenset(["a", "b"])),
    Lane(frozenset(["b"]), strict=False),
    Lane(resources=(("GPU", 1),)),
    Lane(frozenset(["a"]), resources=(("GPU", 0.5),)),
]
KEYS = st.sampled_from([f"k{i}" for i in range(8)])
OWNERS = st.sampled_from(["ann", "bob"])
OPTIONS = st.builds(
    Options,
    priority=st.sampled_from([-1, 0, 0, 0, 2.5]),
    retries=st.sampled_from([0, 0, 1, 2]),
    lane=st.sampled_from(LANES),
    owner=OWNERS,
    allowed_failures=st.sampled_from([None, None, 0, 2]),
)
DETACHED_OPTIONS = OPTIONS.map(lambda options: replace(options, detached=True))
QUOTAS = st.sampled_from([float("inf")] * 3 + [1, 2, 5])
NAMES = ["a", "b", "c"]
DURATIONS = st.sampled_from([0.0, 1e-5, 5e-4, 1e-3, 0.5])
STEPS = st.sampled_from([0.0, 1e-4, 1e-2])
HANDLES: Bundle[Any] = Bundle("handles")
RELEASED: Bundle[Any] = Bundle("released")
#: tasks that leave the scheduler when they end; nothing depends on them
DETACHED: Bundle[Any] = Bundle("detached")


class SchedulerAgainstModel(RuleBasedStateMachine):
    """Each rule is one event, told to both; afterwards both have to agree."""

    def __init__(self) -> None:
        super().__init__()
        self.core = Scheduler(allowed_failures=1, story_keys=50)
        self.model = Model(allowed_failures=1)
        self.now = 0.0
        self.made: list[str] = []
        self.workers: dict[str, Worker] = {}
        self.resources: dict[str, float] = {}
        self.recalling: set[str] = set()
        self.groups = [Group("f"), Group("g")]
        self.first: dict[Run, Task] = {}
        self.told: set[int] = set()
        self.dropped: Counter[Any] = Counter()
        self.joined = self.calls = 0

    # -- the two sides

    def tell(self, event: events.Event) -> None:
        """Give the event to the scheduler; the model has had it already."""
        model = self.model
        if model.stopped and model.ready():
            model.cancel_unbegun()
        used_up = model.used_up()
        out = self.core.handle(event, self.now)
        validate(self.core)
        self.check_dismissals([action.worker for action in out if isinstance(action, actions.Dismiss)], used_up)
        finished: list[Task] = []
        failed: list[Task] = []
        cancelled: list[Task] = []
        pending: list[Task] = []
        dropped: list[Any] = []
        for action in out:
            if isinstance(action, actions.Dispatch):
                self.check_dispatch(action.worker, action.tasks)
            elif isinstance(action, actions.Recall):
                self.check_recall(action, event)
            elif isinstance(action, actions.Dismiss):
                continue
            elif isinstance(action, actions.Announce):
                finished += action.finished
                failed += action.failed
            elif isinstance(action, actions.AnnounceCancelled):
                cancelled += action.tasks
            elif isinstance(action, actions.AnnouncePending):
                pending += action.tasks
            else:
                dropped += [o for o in action.outcomes if isinstance(o, str) and o.startswith("value")]
        for ours, theirs in (
            (finished, model.finished),
            (failed, model.failed),
            (cancelled, model.cancelled),
            (pending, model.pending),
        ):
            assert Counter(ours) == Counter(theirs)
        assert Counter(dropped) == Counter(model.dropped)
        self.dropped.update(dropped)
        model.begin()

    def check_dismissals(self, dismissed: list[Worker], used_up: set[str]) -> None:
        """A worker is dismissed when it has used up its quota and reported it all, neither earlier nor later."""
        assert sorted(worker.address for worker in dismissed) == sorted(used_up)
        for address in used_up:
            self.model.dismiss(address)
            self.recalling.discard(address)
            del self.workers[address]

    def check_dispatch(self, worker: Worker, tasks: Any) -> None:
        """Only what is wanted, whose inputs are there, and that is nowhere else is sent, to where it may run."""
        assert self.workers[worker.address] is worker
        assert not self.model.stopped
        assert len(tasks) <= self.model.quota[worker.address]
        runs = {task: run for run, task in self.first.items()}
        for task in tasks:
            run = runs[task]
            assert run in self.model.ready()
            assert self.may_run(task, worker)
            self.model.dispatch(run, worker.address)

    def may_run(self, task: Task, worker: Worker) -> bool:
        lane = task.options.lane
        if lane is None:
            return True
        if lane.workers is not None:
            fits = worker.name in lane.workers
            if not fits and (lane.strict or any(w.name in lane.workers for w in self.workers.values())):
                return False
        return all(self.free(worker, name) >= amount for name, amount in lane.resources)

    def free(self, worker: Worker, name: str) -> float:
        """Count anew what a worker's tasks have left of a resource."""
        held = 0.0
        for run in self.model.at[worker.address]:
            lane = self.first[run].options.lane
            held += sum(amount for n, amount in (lane.resources if lane is not None else ()) if n == name)
        return self.resources[worker.address] - held

    def check_recall(self, action: actions.Recall, event: events.Event) -> None:
        address = action.worker.address
        if action.seqs is None:
            assert address not in self.recalling
            assert len(self.model.at[address]) > self.model.slots[address]
            if not self.model.stopped and len(self.workers) == 1:
                assert isinstance(event, events.DeadlineReached)
                assert self.now >= action.worker.last_report + STALL
            self.recalling.add(address)
            return
        by_seq = {self.first[run].seq: run for run in self.model.at[address]}
        for seq in action.seqs:
            assert by_seq[seq].status != PENDING
            assert seq not in self.told
            self.told.add(seq)

    def make(self, key: Any, options: Options, deps: Any, data: int, group: int) -> tuple[Task, list[Any]]:
        inputs, values = [], []
        for _ in range(data):
            part = Task(("data", len(self.made)), self.groups[0], None, None)
            part.claims, part.outcome = 0, self.value()
            inputs.append(part)
            values.append(part.outcome)
        inputs += [handle.task for handle in deps]
        task = Task(key, self.groups[group], "function", "call", tuple(inputs), options)
        if options.detached:
            task.kept, task.claims = True, 2
        return task, values

    def value(self) -> str:
        self.made.append(f"value {len(self.made)}")
        return self.made[-1]

    def note(self, handle: Handle) -> Handle:
        self.first.setdefault(handle.run, handle.task)
        return handle

    # -- rules: tasks

    @rule(target=HANDLES, key=KEYS, options=OPTIONS, deps=st.lists(HANDLES, max_size=3), data=st.integers(0, 2))
    def submit(self, key: str, options: Options, deps: list[Handle], data: int) -> Any:
        return self.submit_one(key, options, deps, data)

    def submit_one(self, key: Any, options: Options, deps: list[Handle], data: int) -> Handle:
        self.now += 1e-5
        task, values = self.make(key, options, deps, data, 0)
        handle = self.note(self.model.submit(task, options, key, deps, values))
        self.tell(events.TasksSubmitted([task]))
        return handle

    @rule(target=DETACHED, options=DETACHED_OPTIONS, deps=st.lists(HANDLES, max_size=2), data=st.integers(0, 2))
    def submit_detached(self, options: Options, deps: list[Handle], data: int) -> Any:
        return self.submit_one(self.new_key(), options, deps, data)

    def new_key(self) -> Any:
        self.calls += 1
        return ("detached", self.calls)

    @rule(target=HANDLES, count=st.integers(1, 12), options=OPTIONS, chained=st.booleans(), dep=st.none() | HANDLES)
    def submit_many(self, count: int, options: Options, chained: bool, dep: Handle | None) -> Any:
        tasks: list[Task] = []
        made: list[Handle] = []
        for number in range(count):
            deps = [made[-1]] if chained and made else [dep] if dep is not None else []
            task, _ = self.make(("many", self.calls, number), options, deps, 0, 1)
            made.append(self.note(self.model.submit(task, options, task.key, deps)))
            tasks.append(task)
        self.calls += 1
        self.tell(events.TasksSubmitted(tasks))
        return multiple(*made)

    @rule(target=HANDLES, key=KEYS, options=OPTIONS, died=st.sampled_from([False, False, True]))
    def send(self, key: str, options: Options, died: bool) -> Any:
        """A client sends a task to an idle worker, and the scheduler hears of it afterwards."""
        return self.send_one(key, options, died)

    @rule(target=DETACHED, options=DETACHED_OPTIONS, died=st.sampled_from([False, False, True]))
    def send_detached(self, options: Options, died: bool) -> Any:
        return self.send_one(self.new_key(), options, died)

    def send_one(self, key: Any, options: Options, died: bool) -> Any:
        worker = self.core.assignment.idle_worker()
        if worker is None:
            return multiple()
        options = replace(options, lane=None)
        task, _ = self.make(key, options, [], 0, 0)
        handle = self.note(self.model.submit(task, options, key))
        task.seq = self.core.take_number()
        if died:
            worker = Worker("died meanwhile", "a", 1)
        elif handle.run.handles[0] is handle:
            self.model.dispatch(handle.run, worker.address)
        else:
            unwanted = Run(key, (), None, GONE, data=True)
            self.first[unwanted] = task
            self.model.dispatch(unwanted, worker.address)
        self.tell(events.TaskSent(worker, task))
        return handle

    @rule(target=HANDLES, key=KEYS, owner=OWNERS)
    def store(self, key: str, owner: str) -> Any:
        task = Task(key, self.groups[0], None, None, (), Options(owner=owner))
        task.outcome = self.value()
        handle = self.model.store(task, owner, key, task.outcome)
        self.note(handle)
        self.tell(events.ValuesStored([task]))
        return handle

    @rule(target=RELEASED, handles=st.lists(consumes(HANDLES), max_size=5))
    def release(self, handles: list[Handle]) -> Any:
        return self.release_all(handles)

    @rule(target=RELEASED, handles=st.lists(consumes(DETACHED), max_size=3))
    def release_detached(self, handles: list[Handle]) -> Any:
        return self.release_all(handles)

    def release_all(self, handles: list[Handle]) -> Any:
        for handle in handles:
            self.model.release(handle)
        self.tell(events.TasksReleased([handle.task for handle in handles]))
        return multiple(*handles)

    @rule(handles=st.lists(HANDLES | RELEASED | DETACHED, max_size=3), force=st.booleans())
    def cancel(self, handles: list[Handle], force: bool) -> None:
        self.model.cancel(handles, force=force)
        self.tell(events.TasksCancelled([handle.task for handle in handles], "a test", force))

    @rule(handles=st.lists(HANDLES | RELEASED | DETACHED, max_size=5))
    def withdraw(self, handles: list[Handle]) -> None:
        self.model.withdraw(handles)
        self.tell(events.TasksWithdrawn([handle.task for handle in handles], "a test"))

    @rule(handles=st.lists(DETACHED, max_size=5))
    def fail_by_order(self, handles: list[Handle]) -> None:
        self.model.fail_by_order(handles, "error by order")
        self.tell(events.TasksFailed([handle.task for handle in handles], "error by order"))

    @rule(handles=st.lists(HANDLES | RELEASED | DETACHED, max_size=3))
    def keep(self, handles: list[Handle]) -> None:
        handles = [handle for handle in handles if not self.model.taken_over(handle.run)]
        for handle in handles:
            self.model.keep(handle)
        self.tell(events.TasksKept([handle.task for handle in handles]))

    @rule(handles=st.lists(HANDLES, max_size=3))
    def retry(self, handles: list[Handle]) -> None:
        self.model.retry(handles)
        self.tell(events.TasksRetried([handle.task for handle in handles]))

    @rule(certain=st.integers(0, 9))
    def drop_all(self, certain: int) -> None:
        if not certain:  # rarely: it leaves little to look at
            self.model.drop_all()
            self.tell(events.AllDropped("a test"))

    @rule(certain=st.integers(0, 9))
    def stop(self, certain: int) -> None:
        if not certain:  # rarely: nothing begins afterwards
            self.model.stopped = True
            self.model.cancel_unbegun()
            self.tell(events.Stopped("a test"))

    # -- rules: workers

    @initialize(slots=st.lists(st.integers(1, 2), max_size=2), measured=st.sampled_from([None, 1e-5, 1e-3]))
    def begin(self, slots: list[int], measured: float | None) -> None:
        for group in self.groups:
            group.seconds = measured
        for count in slots:
            self.join(count, 0, float("inf"))

    @rule(slots=st.integers(1, 3), name=st.integers(0, 2), quota=QUOTAS)
    def join(self, slots: int, name: int, quota: float) -> None:
        if len(self.workers) < 4:
            self.joined += 1
            name = (name + self.joined) % 3
            resources = {"GPU": 1.0} if slots > 1 else None
            self.hire(Worker(f"worker {self.joined}", NAMES[name], slots, resources, quota))

    def hire(self, worker: Worker) -> None:
        address = worker.address
        self.workers[address], self.resources[address] = worker, worker.free.get("GPU", 0)
        self.model.at[address], self.model.slots[address], self.model.quota[address] = [], worker.slots, worker.quota
        self.tell(events.WorkerJoined(worker))

    def pick(self, number: int, *, busy: bool = True) -> Worker | None:
        found = [w for a, w in self.workers.items() if self.model.at[a] or not busy]
        return found[number % len(found)] if found else None

    @rule(
        number=st.integers(0, 3),
        endings=st.lists(st.sampled_from([*[Ending.SUCCESS] * 4, *Ending]), min_size=1, max_size=6),
        which=st.integers(0, 2),
        seconds=DURATIONS,
        step=STEPS,
    )
    def report(self, number: int, endings: list[Ending], which: int, seconds: float, step: float) -> None:
        self.now += step
        worker = self.pick(number)
        if worker is not None:
            self.tell(events.TasksReported(worker, self.run_some(worker, endings, which, seconds)))

    def run_some(self, worker: Worker, endings: list[Ending], which: int, seconds: float) -> list[Any]:
        at = self.model.at[worker.address]
        lines = []
        for ending in endings:
            if not at:
                break
            run = at[min(which, worker.slots - 1, len(at) - 1)]
            task = self.first[run]
            outcome: Any = None
            if ending is Ending.SUCCESS:
                outcome = self.value()
                self.model.succeed(worker.address, run, outcome)
            elif ending is Ending.ERROR:
                outcome = f"error of {task.key}"
                self.model.raise_(worker.address, run, outcome)
            else:
                self.model.reschedule(worker.address, run)
            lines.append((task.seq, ending, outcome, seconds))
        return lines

    @rule(number=st.integers(0, 3), begun=st.integers(0, 3))
    def answer_recall(self, number: int, begun: int) -> None:
        recalling = sorted(self.recalling)
        if recalling:
            address = recalling[number % len(recalling)]
            self.answer(self.workers[address], begun)

    def answer(self, worker: Worker, begun: int) -> None:
        self.recalling.discard(worker.address)
        back = self.model.at[worker.address][min(begun, worker.slots) :]
        for run in back:
            self.model.give_back(worker.address, run)
        self.tell(events.TasksRecalled(worker, [self.first[run].seq for run in reversed(back)]))

    @rule(number=st.integers(0, 3))
    def skip_cancelled(self, number: int) -> None:
        worker = self.pick(number)
        if worker is not None:
            front = self.model.at[worker.address][: worker.slots]
            gone = [run for run in front if run.status != PENDING]
            for run in gone:
                self.model.give_back(worker.address, run)
                self.tell(events.TasksRecalled(worker, [self.first[run].seq], whole=False))

    @rule(number=st.integers(0, 3), blame=st.booleans(), known=st.booleans(), step=STEPS)
    def leave(self, number: int, blame: bool, known: bool, step: float) -> None:
        self.now += step
        worker = self.pick(number, busy=False)
        if worker is None:
            return
        del self.workers[worker.address]
        self.recalling.discard(worker.address)
        begun = self.model.at[worker.address][: 1 if known else worker.slots]
        seqs = [self.first[run].seq for run in begun] if known else None
        killed = self.model.die(worker.address, begun if blame else ())
        self.tell(events.WorkerLeft(worker, 17, -9, blame, seqs))
        assert all(isinstance(self.first[r].outcome, KilledWorker) for r in killed if r.status == ERRED)

    @rule(number=st.integers(0, 3))
    def late_words(self, number: int) -> None:
        """A worker that was dismissed says something that was on its way: nobody listens."""
        ghost = Worker(f"ghost {number}", "a", 1)
        value = self.value()
        self.model.dropped.append(value)
        self.tell(events.TasksReported(ghost, [(1, Ending.SUCCESS, value, 0.1)]))
        self.tell(events.TasksRecalled(ghost, [1]))

    @rule(early=st.booleans(), step=STEPS)
    def deadline(self, early: bool, step: float) -> None:
        self.now += step
        due = self.core.next_deadline()
        if due is not None and not early:
            self.now = max(self.now, due)
        # Each worker is called back once, perhaps after it was given what was left over: the engine must not spin.
        for _ in range(2 * len(self.workers) + 1):
            self.tell(events.DeadlineReached())
            due = self.core.next_deadline()
            if due is None or due > self.now:
                return
        raise AssertionError("a deadline is due again and again")

    # -- what holds always

    @invariant()
    def states_agree(self) -> None:
        for run, task in self.first.items():
            if run.data:  # a twin that was sent
                continue
            if run.status == PENDING:
                waits = any(dep.status != FINISHED for dep in run.deps)
                expected = State.WAITING if waits else State.READY if run.at is None else State.PROCESSING
            else:
                expected = {FINISHED: State.FINISHED, ERRED: State.ERRED, GONE: State.FORGOTTEN}[run.status]
            assert task.state is expected, (task, run)
            if run.status == FINISHED or (run.status == ERRED and run.outcome != "killed"):
                assert task.outcome == run.outcome
        for address, worker in self.workers.items():
            assert list(worker.outstanding) == [self.first[run].seq for run in self.model.at[address]]
            assert worker.quota == self.model.quota[address]
            unwanted = {self.first[run].seq for run in self.model.at[address] if run.status != PENDING and not run.data}
            assert unwanted <= self.told

    @invariant()
    def no_slot_is_idle_while_a_task_could_run_there(self) -> None:
        at, quota = self.model.at, self.model.quota
        # What is sent to a worker that is to give something back would overtake that.
        able = [(a, w) for a, w in self.workers.items() if quota[a] and a not in self.recalling]
        idle = [w for a, w in able if len(at[a]) < w.slots]
        for run in self.model.ready():
            assert not any(self.may_run(self.first[run], worker) for worker in idle)

    @invariant()
    def nothing_begins_after_a_stop(self) -> None:
        if self.model.stopped:
            assert not self.model.ready()
            slots = self.model.slots
            assert all(a in self.recalling for a, runs in self.model.at.items() if len(runs) > slots[a])

    def teardown(self) -> None:
        """Everything that is wanted ends once there are workers for it; then everything that was made is dropped."""
        for name in NAMES:
            self.hire(Worker(f"last {name}", name, 2, {"GPU": 1}))
        for _ in range(10_000):
            busy = [worker for address, worker in self.workers.items() if self.model.at[address]]
            if not busy:
                break
            for worker in busy:
                if worker.address in self.recalling:
                    self.answer(worker, worker.slots)
                if self.model.at.get(worker.address):
                    self.tell(events.TasksReported(worker, self.run_some(worker, [Ending.SUCCESS], 0, 1e-3)))
        assert not [run for run in self.model.runs if run.status == PENDING]
        assert not self.core.assignment.ready_count()
        handles = {h.task: h for run in self.model.runs for h in run.handles}
        for handle in handles.values():
            if handle.claimed:
                self.model.release(handle)
        self.tell(events.TasksReleased(list(handles)))
        assert not self.core.tasks
        assert self.dropped == Counter(self.made)


TestSchedulerAgainstModel = SchedulerAgainstModel.TestCase
TestSchedulerAgainstModel.settings = settings(max_examples=60, stateful_step_count=40)
