"""The core that decides: events go in, actions come out; it neither waits, nor reads a clock, nor does I/O.

`Scheduler.handle(event, now)` takes one thing that happened (`events`) and returns what is to be done about it
(`actions`); `Scheduler.next_deadline()` says when it wants to be called again although nothing happened. Whoever
performs the actions (`localdist._dispatch`, a simulation, a property test) feeds back what came of them.

Both events and actions carry batches of tasks, so that their form costs nothing per task.
"""
