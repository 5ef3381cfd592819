"""What an `Executor` raises where the standard library's pool would call itself broken.

Each is the exception that a `Client` raises, and a `BrokenProcessPool` too, so that programs written for the standard
library catch what they caught there. In its own module because that class is costly to import.
"""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

from ..errors import DeserializationError, KilledWorker, WorkerStartError, describe_exit

__all__ = ["AbortedError", "BrokenCallError", "BrokenPoolError", "BrokenTransferError", "as_broken"]


class BrokenCallError(KilledWorker, BrokenProcessPool):
    """The worker process died while it ran this call; no other call is affected, and the executor goes on.

    Attributes are those of `KilledWorker`; the most useful ones are ``pid`` and ``exitcode``.
    """

    def __str__(self) -> str:
        again = f" (it was run {self.allowed_failures} times before)" if self.allowed_failures else ""
        return (
            f"the worker process (pid {self.pid}) that ran {self.task!r} {describe_exit(self.exitcode)}{again}. "
            "A segmentation fault in a C extension, os._exit, or the kernel when memory runs out, end a process so. "
            "Other calls are not affected; Executor(retries=n) runs such a call again"
        )


class BrokenTransferError(DeserializationError, BrokenProcessPool):
    """An argument or a result of this call cannot be unpickled; no other call is affected."""


class BrokenPoolError(WorkerStartError, BrokenProcessPool):
    """No worker can be started, because the initializer failed or processes die at once; the executor is of no use.

    The exception of the initializer, if that is what failed, is the ``__cause__``.
    """

    def __str__(self) -> str:
        return f"this executor can make no calls: {super().__str__()}"


class AbortedError(BrokenProcessPool):
    """The workers were ended by `Executor.kill_workers` or `Executor.terminate_workers` before this call had ended."""


def as_broken(error: BaseException) -> BaseException:
    """Return the exception that an executor raises in place of `error`, which may be that itself."""
    broken: BaseException
    if type(error) is KilledWorker:
        broken = BrokenCallError(*error.args)
    elif type(error) is DeserializationError:
        broken = BrokenTransferError(*error.args)
    elif type(error) is WorkerStartError:
        broken = BrokenPoolError(*error.args)
    else:
        return error
    broken.__cause__ = error.__cause__
    return broken.with_traceback(error.__traceback__)
