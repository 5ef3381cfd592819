"""Who gets how much: tasks are handed out in batches measured in time, and stalled ones are called back.

A worker has about `TARGET` seconds of estimated work, so tiny tasks are amortised over a message; a task that takes
longer than that travels alone. Where the time of a function is unknown its first task travels alone too. A worker
that has not reported for `STALL` seconds while it holds tasks that it has not begun is stuck in one that takes
longer than estimated; as soon as another worker has room, the ones behind it are called back.

The caller may be slow: in a process whose main thread computes, the scheduler's thread comes to its turn only every 5
to 20 ms (Python's switch interval, once for each system call), and workers would be idle between. So the target grows
while they come back empty although they had several tasks, and shrinks again.
"""

from __future__ import annotations

from collections import OrderedDict

from .queue import ReadyQueue
from .records import Lane, State, Task, Worker

#: Work that a worker may have in advance, in seconds per slot: some twenty times the cost of a message (about
#: 50 us on both sides), and short enough that nobody notices a wrong estimate.
TARGET = 2e-3
#: What the target may grow to, in seconds.
TARGET_MAX = 50e-3
#: Tasks that a worker may have in advance, per slot: as many of the smallest ones as `TARGET` allows. Beyond that a
#: message brings nothing more, and its objects are so many that the garbage collector looks at all others (measured:
#: twice the time per task).
AHEAD = round(TARGET / 4e-6)
#: A worker asks for more when less than this share of the target is left, so that a refill is on its way in time.
LOW = 0.5
#: What a task costs a worker at least, in seconds: reading, unpickling and reporting it (measured: 3 to 5 us).
OVERHEAD = 4e-6
#: A worker that has reported nothing for this long, in seconds, is stuck in a long task.
STALL = 2 * TARGET
#: Resources are added and subtracted as floats; ten times 0.1 of one GPU have to fit.
ROUNDING = 1e-9


class LaneQueue:
    """The ready tasks of one lane, and the workers that may take them."""

    __slots__ = ("lane", "queue", "workers")

    def __init__(self, lane: Lane | None) -> None:
        self.lane = lane
        self.queue = ReadyQueue()
        #: in the order of joining
        self.workers: dict[Worker, None] = {}


class Assignment:
    """Queues of ready tasks, and the workers that have room for more."""

    def __init__(self) -> None:
        #: what a worker may have in advance now, in seconds per slot: at least `TARGET`
        self.target = TARGET
        #: the lane of tasks that may run anywhere
        self.common = LaneQueue(None)
        #: lanes that have ready tasks, besides the common one
        self.lanes: dict[Lane, LaneQueue] = {}
        #: every worker, with the lanes above that it may take from
        self.workers: dict[Worker, list[LaneQueue]] = {}
        #: workers with room. The last one gets work first: those with an idle slot stand behind the others, and among
        #: them the one that became idle last (its caches are warm)
        self.hungry: OrderedDict[Worker, None] = OrderedDict()
        #: workers that hold tasks they have not begun and that are not being recalled; longest silent first
        self.loaded: dict[Worker, None] = {}

    # -- queueing ------------------------------------------------------------------------------------------------

    def extend(self, tasks: list[Task]) -> None:
        """Queue READY tasks with the same options, in ascending order of `seq`."""
        self._lane_queue(tasks[0].options.lane).queue.extend(tasks)

    def push(self, task: Task) -> None:
        """Queue one READY task."""
        self._lane_queue(task.options.lane).queue.push(task)

    def forget(self, task: Task) -> None:
        """Take note that a queued task is not READY any more."""
        lane = self._lane_queue(task.options.lane)
        lane.queue.forget_one()
        self._prune(lane)

    def ready_count(self) -> int:
        """Count the tasks that could run if there were room."""
        return len(self.common.queue) + sum(len(lane.queue) for lane in self.lanes.values())

    def _lane_queue(self, lane: Lane | None) -> LaneQueue:
        if lane is None:
            return self.common
        found = self.lanes.get(lane)
        if found is None:
            found = self.lanes[lane] = LaneQueue(lane)
            preferred = [w for w in self.workers if self._named(lane, w)]
            fitting = preferred if preferred or lane.strict else list(self.workers)
            for worker in fitting:
                found.workers[worker] = None
                self.workers[worker].append(found)
        return found

    @staticmethod
    def _named(lane: Lane, worker: Worker) -> bool:
        return lane.workers is None or worker.name in lane.workers or worker.address in lane.workers

    def _prune(self, lane: LaneQueue) -> None:
        """Remove a lane without tasks, so that lanes of the past cost nothing."""
        if lane is not self.common and not len(lane.queue):
            assert lane.lane is not None
            del self.lanes[lane.lane]
            for worker in lane.workers:
                self.workers[worker].remove(lane)

    # -- workers -------------------------------------------------------------------------------------------------

    def joined(self, worker: Worker) -> None:
        """Give work to this worker from now on."""
        self.workers[worker] = []
        self.hungry[worker] = None
        self._rebuild_lanes()

    def left(self, worker: Worker) -> None:
        """Give no more work to this worker."""
        del self.workers[worker]
        self.hungry.pop(worker, None)
        self.loaded.pop(worker, None)
        self._rebuild_lanes()

    def _rebuild_lanes(self) -> None:
        """Find out anew which workers fit which lane: a preferred one may have come or gone."""
        for lanes in self.workers.values():
            lanes.clear()
        old, self.lanes = self.lanes, {}
        for key, lane in old.items():
            self._lane_queue(key).queue = lane.queue

    def give_back(self, worker: Worker, task: Task) -> None:
        """Take the resources of a task that is no longer at the worker."""
        lane = task.options.lane
        for name, amount in lane.resources if lane is not None else ():
            worker.free[name] += amount

    def reported(self, worker: Worker, now: float, count: int) -> None:
        """Note that a worker has reported `count` tasks, which were taken out of its outstanding ones."""
        if not worker.outstanding and count > worker.slots and len(self.common.queue):
            self.target = min(2 * self.target, TARGET_MAX)
        else:
            self.target = max(TARGET, 0.98 * self.target)
        worker.last_report = now
        worker.stuck = False
        self.loaded.pop(worker, None)
        self._update(worker)

    def recalled(self, worker: Worker, *, whole: bool) -> None:
        """Note the answer to a recall; the tasks were taken out of the outstanding ones."""
        if whole:
            worker.recalling = False
            worker.stuck = True
        self._update(worker)

    def _update(self, worker: Worker) -> None:
        """Put a worker where its outstanding tasks say it belongs."""
        if worker not in self.workers:
            return
        count = len(worker.outstanding)
        if not count:
            worker.load = 0.0
        if count <= worker.slots or worker.recalling:
            self.loaded.pop(worker, None)
        else:
            # Being sent work is no sign of life: a worker that is here already keeps its place.
            self.loaded.setdefault(worker)
        low = worker.load < LOW * self.target * worker.slots and count < LOW * AHEAD * worker.slots
        # What is sent while others are on their way back would overtake them.
        open_ = worker.quota > 0 and not worker.recalling
        if open_ and (count < worker.slots or (low and not worker.stuck)):
            self._put_in_line(worker)
        else:
            self.hungry.pop(worker, None)

    def _put_in_line(self, worker: Worker) -> None:
        self.hungry[worker] = None
        # What is sent to a busy one may wait there, behind a task that takes longer than estimated.
        self.hungry.move_to_end(worker, last=len(worker.outstanding) < worker.slots)

    # -- decisions -----------------------------------------------------------------------------------------------

    def stalled(self, now: float, *, certain: bool) -> list[Worker]:
        """Choose the worker whose waiting tasks are to be called back.

        That is one that has been silent for long, so that they can be cancelled or overtaken, or run by a worker that
        is to be started; earlier, if there is room for them elsewhere.

        Args:
            now: the time.
            certain: whether all that workers have said until now is known.
        """
        if not self.loaded:
            return []
        worker = next(iter(self.loaded))
        silent = now >= worker.last_report + STALL
        if self._room_beside(worker):
            if not silent and (self.waiting or worker.load < 2 * TARGET * worker.slots):
                return []
        elif not silent or not certain:
            return []
        return self._recall(worker)

    def recall_all(self) -> list[Worker]:
        """Let all workers be called to give back what they have not begun and may be stopped; return them."""
        loaded = [w for w in self.loaded if not all(task.pinned for task in w.outstanding.values())]
        return [worker for one in loaded for worker in self._recall(one)]

    def _recall(self, worker: Worker) -> list[Worker]:
        worker.recalling = True
        del self.loaded[worker]
        self.hungry.pop(worker, None)
        return [worker]

    def next_deadline(self) -> float | None:
        """Say when `stalled` may have something to tell."""
        return next(iter(self.loaded)).last_report + STALL if self.loaded else None

    def _room_beside(self, worker: Worker) -> bool:
        return len(self.hungry) > (worker in self.hungry)

    @property
    def waiting(self) -> bool:
        """True while tasks wait for a worker with room."""
        return bool(self.lanes) or len(self.common.queue) > 0

    def idle_worker(self) -> Worker | None:
        """Return a worker that has nothing to do at all, if nothing waits in the common lane."""
        worker = next(reversed(self.hungry), None)
        return worker if worker is not None and not worker.outstanding and not len(self.common.queue) else None

    def sent(self, worker: Worker, task: Task, now: float) -> None:
        """Note that a task was sent to this worker without having been queued."""
        if not worker.outstanding:
            worker.last_report = now
        estimate = task.group.seconds
        worker.quota -= 1
        self._hand_over(worker, task, self.target if estimate is None else max(estimate, OVERHEAD))
        self._update(worker)

    @staticmethod
    def _hand_over(worker: Worker, task: Task, cost: float) -> None:
        """Enter a task, whose estimated cost is in seconds, into a worker's books."""
        task.cost = cost
        task.worker = worker
        worker.load += cost
        worker.outstanding[task.seq] = task

    def assign(self, now: float) -> list[tuple[Worker, list[Task]]]:
        """Hand out ready tasks to workers with room; they leave here PROCESSING."""
        batches: list[tuple[Worker, list[Task]]] = []
        for lane in list(self.lanes.values()):
            fewer, more = sorted((lane.workers, self.hungry), key=len)
            fitting = [worker for worker in fewer if worker in more]
            if fitting:
                share = -(-len(lane.queue) // len(fitting))
                for worker in fitting:
                    if len(lane.queue):
                        self._serve(worker, share, now, batches)
                self._fill_slots(fitting, lane, now, batches)
        aside: list[Worker] = []
        ready = len(self.common.queue)
        if ready and self.hungry:
            # An even share each, so that ten tasks for two idle workers run on both.
            share = -(-ready // len(self.hungry))
            while self.hungry and len(self.common.queue):
                worker = next(reversed(self.hungry))
                self._serve(worker, share, now, batches)
                if self.hungry.pop(worker, 0) is None:
                    aside.append(worker)
        for worker in reversed(aside):
            self._put_in_line(worker)
        if len(self.common.queue):
            self._fill_slots(aside, self.common, now, batches)
        return batches

    def _fill_slots(
        self, workers: list[Worker], lane: LaneQueue, now: float, batches: list[tuple[Worker, list[Task]]]
    ) -> None:
        """Leave no slot idle, however the tasks were shared out, while there are tasks for it."""
        for worker in workers:
            while len(lane.queue) and len(worker.outstanding) < worker.slots:
                if not self._serve(worker, len(lane.queue), now, batches):
                    break

    def _serve(self, worker: Worker, share: int, now: float, batches: list[tuple[Worker, list[Task]]]) -> bool:
        """Give a worker its share, or what it has room for; say whether that was anything."""
        was_idle = not worker.outstanding
        if len(worker.outstanding) >= worker.slots and now >= worker.last_report + STALL:
            return False  # it is busy with something that takes longer than was thought
        batch = self._fill(worker, share)
        if lanes := self.workers[worker]:
            # Not before: a task that was taken back belongs into the lane that it came from.
            for lane in [lane for lane in lanes if not len(lane.queue)]:
                self._prune(lane)
        if not batch:
            return False
        if was_idle:
            worker.last_report = now
        self._update(worker)
        batches.append((worker, batch))
        return True

    def _fill(self, worker: Worker, share: int) -> list[Task]:
        """Take up to `share` tasks for the worker, as many as its slots and the target of time allow."""
        outstanding, slots = worker.outstanding, worker.slots
        lanes = self.workers[worker]
        budget = self.target * slots - worker.load
        most = AHEAD * slots
        share = min(share, worker.quota)  # type: ignore[assignment]  # a number of tasks, or infinite
        batch: list[Task] = []
        processing, hand_over = State.PROCESSING, self._hand_over
        pop = self.common.queue.pop if not lanes else lambda: self._pop_any(worker, lanes)
        while len(batch) < share:
            if len(outstanding) >= slots and (budget <= 0 or len(outstanding) >= most):
                break
            task = pop()
            if task is None:
                break
            estimate = task.group.seconds
            # What was never measured fills the worker, so that nothing is sent to wait behind it.
            cost = self.target if estimate is None else max(estimate, OVERHEAD)
            if len(outstanding) >= slots and cost > budget:
                self._take_back(worker, task)
                break
            budget -= cost
            # The hot path: `dispatch`, whose start state the queue has checked.
            task.state = processing
            hand_over(worker, task, cost)
            batch.append(task)
        worker.quota -= len(batch)
        return batch

    def _pop_any(self, worker: Worker, lanes: list[LaneQueue]) -> Task | None:
        """Take the most urgent task of all the lanes that the worker can serve now."""
        best: LaneQueue | None = None
        best_urgency: tuple[float, int] | None = None
        for lane in (self.common, *lanes):
            urgency = lane.queue.urgency()
            if urgency is None or not self._affords(worker, lane.lane):
                continue
            if best_urgency is None or urgency < best_urgency:
                best, best_urgency = lane, urgency
        if best is None:
            return None
        task = best.queue.pop()
        if task is not None and best.lane is not None:
            for name, amount in best.lane.resources:
                worker.free[name] = worker.free.get(name, 0) - amount
        return task

    def _take_back(self, worker: Worker, task: Task) -> None:
        self.give_back(worker, task)
        self.push(task)

    @staticmethod
    def _affords(worker: Worker, lane: Lane | None) -> bool:
        return lane is None or all(worker.free.get(name, 0) >= amount - ROUNDING for name, amount in lane.resources)
