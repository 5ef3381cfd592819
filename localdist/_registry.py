"""Which clients there are in this process, and which one is current."""

from __future__ import annotations

import os
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._client import Client
    from ._state import Entry

#: the client of ``with client:`` or `Client.as_current`, per thread and asyncio task
current: ContextVar[Client | None] = ContextVar("localdist-client", default=None)
#: set by the module that defines it, which comes with whatever is taken from the package's root
client_type: type[Client] | None = None
#: living clients that may become the default, the newest last
defaults: list[weakref.ref[Client]] = []
#: every client that was not closed
clients: weakref.WeakSet[Client] = weakref.WeakSet()


def default_client(c: Client | None = None) -> Client:
    """Return `c`; or else the current client of this context; or else the newest living default client.

    Raises:
        ValueError: there is none.
    """
    if c is not None:
        return c
    client = current.get()
    if client is not None:
        return client
    for ref in reversed(defaults):
        client = ref()
        if client is not None and not client._closed:
            return client
    raise ValueError("no client found: create one with Client()")


def known_entry(key: Any) -> Entry | None:
    """Return the entry for a key that was unpickled, with a handle more, or None: for `Future`'s unpickling.

    It is looked for in the current client, in default ones, the newest first, and in the others.
    """
    candidates = [current.get(), *[ref() for ref in reversed(defaults)], *list(clients)]
    for client in candidates:
        if client is None or client._closed:
            continue
        with client._board.lock:
            entry = client._entries.get(key)
            if entry is not None:
                entry.handles += 1
                return entry
    return None


if hasattr(os, "register_at_fork"):

    def _forked() -> None:
        defaults.clear()
        for client in list(clients):
            client._forked()

    os.register_at_fork(after_in_child=_forked)
