"""How a worker turns what it was sent into a call, and what came of the call into a reply."""

from __future__ import annotations

import marshal
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from .._chunk import run_chunk
from .._graph import bind, fill
from .._kept import LargeFunction
from .._serialize import blame, dump_error, load_function, pack, qualified_type, unpack
from .._store._segment import SegmentReader, SegmentWriter, Stored
from .._wire import INLINE_MAX, Item, Local, ReplyKind
from ..errors import DeserializationError, LocaldistError, SerializationError
from ._globals import SharedGlobals, may_set_globals, scope_of

#: Large functions that a worker keeps.
LARGE_KEPT = 8
#: First byte of arguments that are plain atoms: a tuple in marshal's format. A pickle begins with 0x80.
_MARSHALLED = ord("(")


class Codec(Protocol):
    """Both directions, for one kind of worker."""

    def decode(self, item: Any) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """Return function, arguments and keyword arguments; raise what the task is to fail with."""

    def give_back(self, item: Any) -> None:
        """Take note that an item will not be decoded: it is given back."""

    def encode(self, key: Any, result: Any) -> tuple[ReplyKind, Any]:
        """Return how the result travels; raise what the task is to fail with."""

    def encode_error(self, key: Any, error: BaseException) -> Any:
        """Return how an exception travels. Never raises."""


#: Held while something is unpickled. Slots that import parts of one package at the same time can be handed modules that
#: are only half there (Python breaks the deadlock of their import locks so); NumPy's first array did that.
unpickling = threading.RLock()


class LoadedFunction:
    """A function that the scheduler sent, unpickled when it is first called.

    Args:
        source: what `load_function` takes, or a large function.
        keep: whether one copy may serve many calls.
        shared: what such functions have set in this process, if they are to share it.
    """

    __slots__ = ("_keep", "_loaded", "_own", "_scope", "_sets", "_shared", "_source")

    def __init__(self, source: bytes | LargeFunction, keep: bool, shared: SharedGlobals | None = None) -> None:
        self._source = source
        self._keep = keep
        self._shared = shared
        #: its globals, if it came by value, those of them that came with it, and whether it may set any
        self._scope: dict[str, Any] | None = None
        self._own: dict[str, Any] = {}
        self._sets = False
        self._loaded: Callable[..., Any] | None = None

    def get(self, key: Any) -> Callable[..., Any]:
        """Return the function: a fresh copy if it carries state, so that tasks share none."""
        function = self._loaded
        if function is None:
            function = self._load(key)
        scope = self._scope
        if scope is not None and self._shared is not None and (self._sets or self._shared.concerns(scope)):
            return partial(self._shared.call, function, scope, self._own)
        return function

    def _load(self, key: Any) -> Callable[..., Any]:
        function: Callable[..., Any]
        with unpickling:
            if self._loaded is not None:  # another slot was faster
                return self._loaded
            source = self._source
            try:
                function = source.load() if isinstance(source, LargeFunction) else load_function(source)
            except Exception as e:
                raise DeserializationError("function", key, f"{type(e).__name__}: {e}") from e
            if self._shared is not None:
                self._scope = scope_of(function)
                if self._scope is not None:
                    self._own = self._shared.reconcile(self._scope)
                    self._sets = may_set_globals(function, self._scope)
            if self._keep:
                self._loaded, self._source = function, b""
            return function


class ProcessCodec:
    """Pickles and segments, for a worker in a process of its own.

    `on_unmapped` is called with a segment's name for every mapping that was granted to this worker and is gone.
    """

    def __init__(
        self,
        writer: SegmentWriter,
        reader: SegmentReader,
        on_unmapped: Callable[[str], None],
        shared: SharedGlobals | None = None,
    ) -> None:
        self._shared = shared
        #: large functions by id, the one used last comes last
        self._large: OrderedDict[int, LoadedFunction] = OrderedDict()
        self._writer = writer
        self._reader = reader
        self._on_unmapped = on_unmapped

    def decode(self, item: Item) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        payload = item.payload
        function: LoadedFunction = item.function
        if not item.inputs and payload is not None:
            if payload[0] == _MARSHALLED:
                return function.get(item.key), marshal.loads(payload), {}
            opened: list[list[memoryview]] = []
            values: list[Any] = []
        else:
            opened = self._open(item)
            with unpickling:
                values = [
                    self._load(value, views, item.key)
                    for value, views in zip(item.inputs[item.parts :], opened[item.parts :], strict=True)
                ]
        buffers = [views[0] for views in opened[: item.parts]]
        stream: bytes | memoryview = buffers.pop(0) if payload is None else payload
        bind(values)
        try:
            with unpickling:
                args, kwargs = unpack(stream, buffers)
                if args and type(args[0]) is LargeFunction:
                    function = self._keep_large(args[0])
                    args = args[1:]
        except BaseException as e:
            raise DeserializationError("argument", item.key, f"{type(e).__name__}: {e}") from e
        finally:
            bind(())
        called = function.get(item.key)
        return (called, args, kwargs) if kwargs is not None else (run_chunk, (called, *args), {})

    def _keep_large(self, large: LargeFunction) -> LoadedFunction:
        known = self._large.get(large.id)
        if known is None:
            known = self._large[large.id] = LoadedFunction(large, True, self._shared)
            if len(self._large) > LARGE_KEPT:
                self._large.popitem(last=False)
        else:
            self._large.move_to_end(large.id)
        return known

    def _open(self, item: Item) -> list[list[memoryview]]:
        """Map every stored input; what was granted and is not mapped, because of an error, counts as unmapped."""
        opened: list[list[memoryview]] = []
        stored = [value for value in item.inputs if isinstance(value, Stored)]
        try:
            for value in item.inputs:
                if isinstance(value, Stored):
                    stored.remove(value)  # from here on the reader tells of its end, even if this fails
                    opened.append(self._reader.open(value))
                else:
                    opened.append([])
        except OSError:
            for value in stored:
                self._on_unmapped(value.name)
            raise
        return opened

    @staticmethod
    def _load(value: Any, views: list[memoryview], key: Any) -> Any:
        try:
            return unpack(views[0], views[1:]) if isinstance(value, Stored) else unpack(value)
        except Exception as e:
            raise DeserializationError("argument", key, f"{type(e).__name__}: {e}") from e

    def give_back(self, item: Item) -> None:
        # Here it is known what was granted for it; the scheduler may have forgotten the task meanwhile.
        for value in item.inputs:
            if isinstance(value, Stored):
                self._on_unmapped(value.name)

    def encode(self, key: Any, result: Any) -> tuple[ReplyKind, bytes]:
        try:
            stream, buffers = pack(result)
        except Exception as e:
            raise SerializationError("result", blame(result), key, f"{type(e).__name__}: {e}") from e
        if not buffers and len(stream) <= INLINE_MAX:
            return ReplyKind.INLINE, stream
        stored = self._writer.write([stream, *buffers], type_name=qualified_type(result))
        return ReplyKind.STORED, pack(stored)[0]

    def encode_error(self, key: Any, error: BaseException) -> bytes:
        return dump_error(error, key)


class ThreadCodec:
    """Nothing is copied, for workers that are threads of the client's process."""

    def decode(self, item: Item) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        function, args, kwargs = item.payload  # type: ignore[misc]  # the call itself: nothing is pickled
        if item.inputs:
            values = [value.value for value in item.inputs]
            args, kwargs = fill(args, values), fill(kwargs, values)
        return function, args, kwargs  # type: ignore[return-value]

    def give_back(self, item: Item) -> None:
        """Nothing was granted."""

    def encode(self, key: Any, result: Any) -> tuple[ReplyKind, Any]:  # noqa: ARG002  (nothing can fail)
        return ReplyKind.INLINE, Local(result)

    def encode_error(self, key: Any, error: BaseException) -> BaseException:  # noqa: ARG002
        return trim_traceback(error)


def trim_traceback(error: BaseException) -> BaseException:
    """Cut localdist's own frames off the beginning of a traceback: they tell the user nothing."""
    traceback = error.__traceback__
    own = __package__.split(".", 1)[0]
    while traceback is not None and str(traceback.tb_frame.f_globals.get("__name__", "")).split(".")[0] == own:
        traceback = traceback.tb_next
    return error.with_traceback(traceback) if not isinstance(error, LocaldistError) else error
