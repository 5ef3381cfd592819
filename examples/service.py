"""An asyncio program that factors numbers in other processes, and always has time for its clients meanwhile.

Shows how an event loop uses the executor: `loop.run_in_executor` hands over what takes long, `asyncio.wait_for` limits
how long a client waits for it, and a heartbeat shows that the loop never stands still. One request would take years,
one kills its worker process, one client hangs up: each gets an answer of its own, and the others do not notice.

    python examples/service.py
"""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, NamedTuple

from localdist import Executor

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent import futures

BEAT = 0.02  # seconds from one beat of the heart to the next
PATIENCE = 30.0  # seconds that a client waits: far more than any request takes, but for the one that takes years


def factorize(number: int) -> list[int]:
    """Return the prime factors of `number`, smallest first, found by dividing: this keeps a processor busy."""
    factors, divisor = [], 2
    while divisor * divisor <= number:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return [*factors, number] if number > 1 else factors


def fragile_factorize(number: int) -> list[int]:
    """Do the same, but end the process without a word on some input, as a library written in C may do."""
    if number == 2**31 - 1:
        os._exit(1)
    return factorize(number)


class Request(NamedTuple):
    """What a client asks for: the factors of 2**exponent - 1."""

    exponent: int
    patience: float = PATIENCE  # seconds; then the client gets another answer
    function: Callable[[int], list[int]] = factorize


REQUESTS = [
    Request(89, patience=1.0),  # a prime: dividing would take years
    Request(49),
    Request(31, function=fragile_factorize),
    Request(53),
    Request(57),
    Request(59),
    Request(69),
]
HANGS_UP = Request(47)
AFTERWARDS = Request(41)


async def answer(executor: futures.Executor, request: Request) -> str:
    """Have the request computed in another process, and return the text for the client."""
    loop = asyncio.get_running_loop()
    computed = loop.run_in_executor(executor, request.function, 2**request.exponent - 1)
    try:
        factors = await asyncio.wait_for(computed, timeout=request.patience)
    except asyncio.TimeoutError:
        return f"no answer within {request.patience:g} s"
    except BrokenProcessPool:  # this call's own worker process: the other calls have theirs
        return "sorry, the process that worked on it died"
    return " x ".join(map(str, factors))


async def serve(executor: futures.Executor, request: Request) -> None:
    """Print the answer to one client, or that the client is gone."""
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"{time.perf_counter() - began:6.2f} s  2**{request.exponent} - 1: {text}", flush=True)

    try:
        say(await answer(executor, request))
    except asyncio.CancelledError:  # the call, too, was cancelled: it never runs if it waited for a worker
        say("the client hung up")
        raise


async def beat(delays: list[float]) -> None:
    """Append by how many seconds each beat is late, until cancelled: as long as any coroutine has to wait."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + BEAT
        await asyncio.sleep(BEAT)
        delays.append(loop.time() - due)


async def serve_all(executor: futures.Executor) -> None:
    """Serve all clients at the same time, and one more afterwards; tell how the heart beat meanwhile."""
    delays: list[float] = []
    heart = asyncio.create_task(beat(delays))
    clients = [asyncio.create_task(serve(executor, request)) for request in REQUESTS]
    leaving = asyncio.create_task(serve(executor, HANGS_UP))
    await asyncio.sleep(BEAT)  # by now all calls are submitted, and most wait for a worker
    leaving.cancel()
    await asyncio.gather(*clients)
    print("the executor goes on:")
    await serve(executor, AFTERWARDS)
    heart.cancel()
    await asyncio.wait([heart, leaving])
    print(f"{len(delays)} heartbeats, the latest {max(delays) * 1e3:.0f} ms late")


def main() -> None:
    """Serve, and close in order: first the clients have their answers, then the event loop ends, then the workers."""
    executor = Executor(max_workers=2)
    try:
        asyncio.run(serve_all(executor))
    finally:
        # Not `shutdown()`, which waits for calls that run: one of them would take years, and nobody waits for it.
        executor.terminate_workers()
    print("closed")


if __name__ == "__main__":
    main()
