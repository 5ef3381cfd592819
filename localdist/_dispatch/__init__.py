"""DISPATCH: the one thread that owns the scheduler's core, and the pool of loky processes that it feeds."""
