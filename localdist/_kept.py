"""Functions of ``__main__`` for an `Executor`: a worker keeps one, with what calls left in it, while it is the same.

In the standard library's pool the globals that a function reads (a random generator, a cache, a large table) are in the
worker already, and what calls do to them stays. Here function and globals are pickled together with each `submit`, so
that any change in the script is seen, and everything that belongs together stays together; but only a worker that has
not got these very bytes loads them. Large ones travel through the store, once.
"""

from __future__ import annotations

from contextlib import suppress
from pickle import PickleBuffer, dumps, loads
from types import FunctionType
from typing import TYPE_CHECKING, Any

from xxhash import xxh3_128

from ._key import code_use
from ._modules import generations, modules_of
from ._serialize import (
    Function,
    FunctionTable,
    blame,
    by_value_modules,
    can_be_packed,
    load_function,
    name_to_send,
    pack,
    reference_in,
    unpack,
)
from ._wire import INLINE_MAX
from .errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from weakref import ReferenceType

#: Bytes beyond which a function travels through the store: half of what a message may have.
_LARGE = INLINE_MAX // 2


class LargeFunction:
    """A function that is too large for a message; comes as the first argument of its calls.

    Attributes:
        id: that of its description.
        head: what `load_function` takes, but for the pickle stream.
        parts: the pickle stream, and the buffers that it leaves out.
    """

    __slots__ = ("head", "id", "parts")

    def __init__(self, id_: int, head: bytes, parts: Sequence[Any]) -> None:
        self.id, self.head, self.parts = id_, head, parts

    def __reduce__(self) -> tuple[type[LargeFunction], tuple[Any, ...]]:
        return LargeFunction, (self.id, self.head, [PickleBuffer(part) for part in self.parts])

    def load(self) -> Any:
        """Rebuild the function.

        Raises:
            Exception: whatever rebuilding raises.
        """
        views = [memoryview(part) for part in self.parts]
        return load_function(self.head, lambda _: unpack(views[0], views[1:]))


def stands_for_a_large_function() -> None:
    """Never called: the worker calls what came as the first argument instead."""
    raise NotImplementedError


class KeptFunctions(FunctionTable):
    """Describes callables for an `Executor`."""

    def __init__(self) -> None:
        super().__init__()
        #: what was described last of a callable, and the bytes, or their digest, that it was described by: while they
        #: stay the same, workers keep what they have
        self._latest: dict[int, tuple[ReferenceType[Any], bytes, Function]] = {}

    def _describe_watched(self, func: Any, cacheable: bool, watches: dict[int, Any]) -> Function:
        if cacheable or name_to_send(func) is not None or by_value_modules():
            function = super()._describe_watched(func, cacheable, watches)
            if function.cacheable and not function.by_reference and len(function.pickled) > _LARGE:
                where, references, reloaded, stream = loads(function.pickled)
                _make_large(function, (where, references, reloaded), [stream])
            return function
        try:
            stream, buffers = pack(func)
        except Exception as e:
            raise SerializationError(_culprit(func), blame(func), None, str(e)) from e
        head: tuple[Any, ...] = (None, [], generations(modules_of(func)))
        if not buffers and len(stream) <= _LARGE:
            pickled = dumps((*head, stream), 5)
            return self._latest_of(func, pickled) or self._remember(
                func, pickled, Function(func, None, pickled, cacheable=True, by_reference=False)
            )
        parts: list[Any] = [stream, *[buffer.raw() for buffer in buffers]]
        digest = xxh3_128(dumps(head, 5))
        for part in parts:
            digest.update(part)
        known = self._latest_of(func, digest.digest())
        if known is not None:
            return known
        function = Function(func, None, b"", cacheable=True, by_reference=False)
        _make_large(function, head, parts)
        return self._remember(func, digest.digest(), function)

    def _latest_of(self, func: Any, described_by: bytes) -> Function | None:
        known = self._latest.get(id(func))
        return known[2] if known is not None and known[0]() is func and known[1] == described_by else None

    def _remember(self, func: Any, described_by: bytes, function: Function) -> Function:
        with suppress(TypeError):  # what allows no weak reference cannot be recognised
            self._latest[id(func)] = (reference_in(self._latest, func), described_by, function)
        return function


def _culprit(func: Any) -> str:
    """Name what it is of a function that cannot be pickled: one of its global variables, as far as one can see."""
    if isinstance(func, FunctionType):
        for name in code_use(func.__code__).reads:
            if name in func.__globals__ and not can_be_packed(func.__globals__[name]):
                return f"global variable {name!r} of the function"
    return "function"


def _make_large(function: Function, head: tuple[Any, ...], parts: list[Any]) -> None:
    """Let something small stand for a function, which itself travels as an argument."""
    function.large = LargeFunction(function.id, dumps((*head, b""), 5), parts)
    where = (stands_for_a_large_function.__module__, stands_for_a_large_function.__qualname__)
    function.pickled = dumps((where, [], [], None), 5)
