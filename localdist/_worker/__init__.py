"""WORKER: all that runs in the child. It imports neither the scheduler nor the dispatcher."""
