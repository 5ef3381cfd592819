"""`python -m localdist bench`: localdist and every installed peer, on the same work, in one run.

The route of a benchmark::

    _rows      what is measured, in which unit, and what is to be reached (data)
    _peers     one adapter for each executor: localdist's client and its `Executor`, the standard library's, loky, ...
    _work      the functions that run in the workers
    _measure   how each row is measured, given a peer
    _child     the process in which one peer is measured
    _run       starts one such process for each peer, round after round, and collects what they say
    _table     medians, ratios and goals, as a table for people and as JSON for programs

How it is kept fair on a noisy machine: each peer has a process of its own and is warmed up in it; the peers take
turns in rounds, in an order that is reversed every other round, so that a slow minute hits all of them; the figure is
the median of the samples of all rounds (JSON has every sample); each result is compared with what it must be, outside
the time taken.

Rows whose name begins with `executor-` are those in which localdist takes part with its `Executor`, in a process of its
own; the rest of the name is the row of the same work for its `Client`. Peers do that work once for both.
"""
