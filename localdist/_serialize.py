"""A value becomes a pickle stream and out-of-band buffers, and comes back; so do functions and exceptions.

The plain pickler goes first: it is ten times as fast as cloudpickle. What it cannot do, and what it would send as a
name in ``__main__``, which means another module in the next process, is left to cloudpickle. That, and tblib, are
imported when first needed, because ``import localdist`` must stay cheap.
"""

from __future__ import annotations

import builtins
import copyreg
import sys
from functools import partial
from io import BytesIO
from itertools import count
from pickle import PickleBuffer, dumps, loads
from threading import Lock
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType

from localdist._key import (
    ATOMS,
    cell_content,
    code_use,
    describe,
    function_name,
    reference,
    type_name,
)
from localdist._modules import Seen, follow, generations, look_up, modules_of, reload_if_older, unchanged
from localdist.errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from types import TracebackType

OUT_OF_BAND_MIN = 32 * 1024  # bytes: below it, a copy into the stream is cheaper than one more part of a segment
TEXT_LIMIT = 10_000  # characters of an exception's text
FRAME_LIMIT = 100  # frames kept of a traceback, half from each end: endless recursion has a thousand equal ones
CHAIN_LIMIT = 50  # links of causes and contexts that are followed
_STACK_GLOBAL = b"\x93"  # the opcode that looks up a name: streams without it mean the same everywhere
_BLAME_DEPTH = 6  # levels of containers that are searched for the culprit


def pack(obj: object) -> tuple[bytes, list[PickleBuffer]]:
    """Pickle any value, protocol 5. Any thread may call it.

    Args:
        obj: the value; what belongs to ``__main__``, lambdas and closures travel by value.

    Returns:
        The stream, and the contiguous buffers of at least `OUT_OF_BAND_MIN` bytes that it leaves out, in order. They
        are views of the value's own memory: use them before anyone writes there.

    Raises:
        Exception: whatever cloudpickle raised; neither pickler could do it.
    """
    if type(obj) in ATOMS:
        return dumps(obj, 5), []
    buffers: list[PickleBuffer] = []

    def in_band(buffer: PickleBuffer) -> bool:
        try:
            if buffer.raw().nbytes < OUT_OF_BAND_MIN:
                return True
        except BufferError:  # not contiguous
            return True
        buffers.append(buffer)
        return False

    try:
        stream = dumps(obj, 5, buffer_callback=in_band)
    except Exception:  # noqa: BLE001  # cloudpickle tells what is wrong, if anything is
        stream = None
    if stream is not None and (_STACK_GLOBAL not in stream or (b"__main__" not in stream and not by_value_modules())):
        return stream, buffers
    buffers.clear()
    return _cloudpickled(obj, in_band), buffers


def pack_whole(obj: object) -> bytes:
    """Pickle any value into one stream, buffers included; otherwise as `pack`."""
    try:
        stream = dumps(obj, 5)
    except Exception:  # noqa: BLE001  # cloudpickle tells what is wrong, if anything is
        stream = None
    if stream is not None and b"__main__" not in stream and not by_value_modules():
        return stream
    return _cloudpickled(obj, None)


def unpack(stream: bytes | memoryview, buffers: Sequence[memoryview] = ()) -> Any:
    """Rebuild a value from `pack`'s parts.

    Args:
        stream: the pickle stream.
        buffers: the contents of the buffers, in order. Arrays are built on them without a copy, and are writeable
            where the buffers, and the arrays that were packed, are.

    Raises:
        Exception: whatever the value's own code raises when it is rebuilt.
    """
    return loads(stream, buffers=buffers)


def _cloudpickled(obj: object, in_band: Callable[[PickleBuffer], bool] | None) -> bytes:
    from localdist._pickler import ValuePickler

    with BytesIO() as file:
        ValuePickler(file, protocol=5, buffer_callback=in_band).dump(obj)
        return file.getvalue()


def by_value_modules() -> Iterable[str]:
    """Return the modules that the user told cloudpickle to send by value; none while cloudpickle is not loaded."""
    # While another thread imports it, it is there and has no content.
    registry = getattr(sys.modules.get("cloudpickle"), "list_registry_pickle_by_value", None)
    return registry() if registry is not None else ()


def qualified_type(obj: object) -> str:
    """Return the qualified name of a class, or of an object's class: ``int``, ``pandas.core.frame.DataFrame``."""
    return type_name(obj if isinstance(obj, type) else type(obj))


def blame(obj: object) -> str:
    """Return the qualified type of the innermost part of `obj` that cannot be pickled, as far as one can see."""
    return qualified_type(_culprit(obj, _BLAME_DEPTH))


def _culprit(obj: object, depth: int) -> object:
    for part in _parts(obj) if depth else ():
        if part is not obj and not can_be_packed(part):
            return _culprit(part, depth - 1)
    return obj


def can_be_packed(obj: object) -> bool:
    """Say whether `pack` takes a value, by trying."""
    try:
        pack(obj)
    except Exception:  # noqa: BLE001  # that is what is asked
        return False
    return True


def _parts(obj: Any) -> Iterator[object]:
    """Yield what an object is seen to consist of."""
    if isinstance(obj, dict):
        yield from (*obj, *obj.values())
    elif isinstance(obj, (list, tuple, set, frozenset)):
        yield from obj
    elif isinstance(obj, FunctionType):
        yield from (*_outside(obj, code_use(obj.__code__).reads), *(obj.__defaults__ or ()))
    elif isinstance(obj, partial):
        yield from (obj.func, obj.args, obj.keywords)
    elif isinstance(obj, MethodType):
        yield obj.__self__
    elif not isinstance(obj, (type, ModuleType)):
        yield from getattr(obj, "__dict__", {}).values()
        slots = [slot for cls in type(obj).__mro__ for slot in getattr(cls, "__slots__", ())]
        yield from (getattr(obj, slot, None) for slot in slots)


class Function:
    """A callable, ready to be sent.

    Attributes:
        id: number of this description, unique in this process: another id, perhaps another behaviour.
        name: what its keys begin with.
        digest: 16 bytes; None when it has no stable description, so that its calls cannot be recognised.
        pickled: what `load_function` takes.
        cacheable: whether one loaded copy may serve many calls; otherwise tasks would share what it captures.
        by_reference: whether it travels as module and name.
        large: what has to come as the first argument of its calls (`localdist._kept.LargeFunction`), or None.
    """

    __slots__ = ("by_reference", "cacheable", "digest", "id", "name", "pickled", "large")

    def __init__(
        self,
        func: object,
        digest: bytes | None,
        pickled: bytes,
        cacheable: bool,
        by_reference: bool,
    ) -> None:
        self.id = next(_function_ids)
        self.name = function_name(func)
        self.digest = digest
        self.pickled = pickled
        self.cacheable = cacheable
        self.by_reference = by_reference
        self.large: Any = None

    def __repr__(self) -> str:
        how = "by reference" if self.by_reference else "by value"
        return f"<Function {self.id}: {self.name}, {how}, {len(self.pickled)} bytes>"


_function_ids = count(1)


class _Watch:
    """What a function was when it was described. Holds neither it nor another function alive."""

    __slots__ = ("code", "defaults", "expected", "kwdefaults", "module", "path", "reads", "ref")

    def __init__(self, func: Any, where: tuple[str, str] | None) -> None:
        self.ref = ReferenceType(func)
        self.module = where[0] if where is not None else None
        self.path = where[1].split(".") if where is not None else []
        self.code = self.defaults = self.kwdefaults = None
        self.reads: tuple[str, ...] = ()
        self.expected: list[object] = []
        if isinstance(func, FunctionType):
            self.code, self.defaults, self.kwdefaults = func.__code__, func.__defaults__, func.__kwdefaults__
            if where is None:
                self.reads = code_use(func.__code__).reads
                values = _outside(func, self.reads)
                self.expected = [value if _is_fixed(value) else ReferenceType(value) for value in values]

    def holds(self, func: Any) -> bool:
        """Tell whether `func`, the one watched, is what it was, and is still found where it was."""
        if self.code is not None and (
            func.__code__ is not self.code
            or func.__defaults__ is not self.defaults
            or func.__kwdefaults__ is not self.kwdefaults
        ):
            return False
        if self.module is not None:
            found: Any = sys.modules.get(self.module)
            for part in self.path:
                found = getattr(found, part, None)
            return found is func
        if self.expected:
            for now, then in zip(_outside(func, self.reads), self.expected, strict=True):
                if now is not then and not (type(then) is ReferenceType and then() is now):
                    return False
        return True


def _outside(func: FunctionType, reads: tuple[str, ...]) -> list[object]:
    """Return, in a fixed order, what a function finds outside of itself: in its cells, globals, keyword defaults."""
    scope = func.__globals__
    values = [scope.get(name, _ABSENT) for name in reads]
    if func.__closure__ is not None:
        values += map(cell_content, func.__closure__)
    if func.__kwdefaults__:
        values += (part for item in func.__kwdefaults__.items() for part in item)
    return values


_ABSENT = None.__class__  # of a name that is no global: nobody can change what None's class is


def _is_fixed(value: object) -> bool:
    """Tell whether a value can only be replaced, never changed, and holds no function alive."""
    if type(value) in (tuple, frozenset):
        return all(map(_is_fixed, value))  # type: ignore[call-overload]  # both can be iterated
    return type(value) in ATOMS or isinstance(value, ModuleType) or value is _ABSENT


def _watch_all(func: Any, watches: dict[int, _Watch]) -> bool:
    """Watch `func` and all functions it captures; False where something can change unseen or is shared by calls."""
    where = name_to_send(func)
    if where is None:
        if type(func) is not FunctionType or func.__dict__ or code_use(func.__code__).rebinds:
            return False
        if not _is_fixed(func.__defaults__):
            return False
    try:
        watch = watches[id(func)] = _Watch(func, where)
    except TypeError:  # something that allows no weak reference
        return False
    captured = [then() for then in watch.expected if type(then) is ReferenceType]
    return all(id(value) in watches or _watch_all(value, watches) for value in captured)


def name_to_send(obj: Any) -> tuple[str, str] | None:
    """Return module and name if that is how pickle sends `obj`, else None."""
    if not isinstance(obj, (FunctionType, BuiltinFunctionType, type)):
        try:  # functools.lru_cache, numpy.ufunc: objects that reduce to their name
            if not isinstance(copyreg.dispatch_table.get(type(obj), _reduce)(obj), str):
                return None
        except Exception:  # noqa: BLE001  # it is the object's own code, and may raise anything
            return None
    where = reference(obj)
    if where is not None and any(where[0] == m or where[0].startswith(f"{m}.") for m in by_value_modules()):
        return None
    return where


def _reduce(obj: object) -> object:
    return obj.__reduce_ex__(5)


class FunctionTable:
    """Describes callables for sending, each once, for as long as nothing that it consists of changes. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[ReferenceType[Any], tuple[_Watch, ...], _Watch, tuple[Seen, ...], Function]] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._known)

    def describe(self, func: Callable[..., Any]) -> Function:
        """Return the description of `func` as it is now.

        The same object is returned as long as nothing reachable from `func` has been rebound, reloaded or edited. What
        captures something that can change unseen is described anew each time.

        Raises:
            SerializationError: it cannot be pickled; the pickler's error is the cause.
        """
        known = self._known.get(id(func))
        if known is not None:
            ref, others, watch, modules, function = known
            if ref() is func and watch.holds(func) and not by_value_modules() and unchanged(modules):
                for other in others:
                    captured = other.ref()
                    if captured is None or not other.holds(captured):
                        break
                else:
                    return function
        return self._describe_anew(func)

    def _describe_anew(self, func: Any) -> Function:
        watches: dict[int, _Watch] = {}  # made first: what changes while we describe is noticed next time
        return self._describe_watched(func, _watch_all(func, watches), watches)

    def _describe_watched(self, func: Any, cacheable: bool, watches: dict[int, _Watch]) -> Function:
        """Describe `func`; it is `cacheable` if nothing that it captures can change without `watches` noticing."""
        modules = modules_of(func)
        where = name_to_send(func)
        digest, references = describe(func)
        if by_value_modules():  # their functions travel in the stream, and the registry may change at any time
            cacheable, references = cacheable and where is not None, ()
        try:
            stream = None if where is not None else pack_whole(func)
        except Exception as error:
            raise SerializationError("function", blame(func), None, str(error)) from error
        pickled = dumps((where, [tuple(entry) for entry in references], generations(modules), stream), 5)
        function = Function(func, digest, pickled, cacheable, where is not None)
        if not cacheable or by_value_modules():
            return function
        identity, known = id(func), self._known
        watch = watches.pop(identity)
        with self._lock:
            entry = known.get(identity)
            if entry is not None and entry[0]() is func and entry[4].pickled == pickled and entry[4].digest == digest:
                function = entry[4]  # another thread was first, or the change has been undone
            known[identity] = (reference_in(known, func), tuple(watches.values()), watch, modules, function)
        return function


def reference_in(table: dict[int, Any], func: Any) -> ReferenceType[Any]:
    """Return a weak reference to `func`, which takes the entry that it begins, by `id`, out of a table when it dies.

    Raises:
        TypeError: `func` allows no weak reference.
    """
    identity = id(func)

    def forget(ref: ReferenceType[Any]) -> None:  # takes no lock: it may run inside any allocation
        entry = table.get(identity)
        if entry is not None and entry[0] is ref:
            table.pop(identity, None)

    return ReferenceType(func, forget)


def load_function(pickled: bytes, load: Callable[[bytes], Any] = loads) -> Any:
    """Return the callable that `Function.pickled` describes.

    If a module that it comes from has been edited and reloaded where the function was sent from, the module is reloaded
    here too.

    Args:
        pickled: the description.
        load: unpickles what travels by value.

    Raises:
        Exception: whatever importing or rebuilding raises.
    """
    where, references, reloaded, stream = loads(pickled)
    follow(reloaded)
    for module, name, wanted in references:
        reload_if_older(module, name, wanted)
    return load(stream) if where is None else look_up(*where)


def dump_error(exc: BaseException, key: object, skip_frames_in: tuple[str, ...] = ()) -> bytes:
    """Pickle an exception with all that a user sees of it: attributes, notes, traceback, causes, members of a group.

    An exception that does not survive pickling becomes ``Exception(repr(original))`` with a note; one whose text
    is longer than `TEXT_LIMIT` becomes one of the same class with a shorter text.

    Never raises, whatever the exception's own code does.

    Args:
        exc: the exception, as it was caught.
        key: key of the task, for the note.
        skip_frames_in: names of modules and packages whose frames are left out, besides localdist's own.
    """
    try:
        return _dump_chain(exc, key, ("localdist", *skip_frames_in))
    except BaseException as error:  # noqa: BLE001  # its notes, or its members, may be anything
        why = f"it cannot be described: {qualified_type(error)}"
        stand_in = _stand_in(f"<{qualified_type(exc)}>", [f"task {key!r} raised it, and {why}"])
        return dumps([(dumps(stand_in, 5), str(stand_in), [], (None, None, False), [])], 5)


def _dump_chain(exc: BaseException, key: object, skip: tuple[str, ...]) -> bytes:
    found, numbers = [exc], {id(exc): 0}

    def number(other: BaseException | None) -> int | None:
        if other is None or (id(other) not in numbers and len(found) >= CHAIN_LIMIT):
            return None
        if id(other) not in numbers:
            numbers[id(other)] = len(found)
            found.append(other)
        return numbers[id(other)]

    records = []
    for one in found:  # grows while it is walked
        members = [number(member) for member in one.exceptions] if isinstance(one, _GROUP) else []
        links = number(one.__cause__), number(one.__context__), one.__suppress_context__
        records.append((_error_stream(one, key), _safe_text(repr, one), _frames(one, skip), links, members))
    return dumps(records, 5)


def load_error(payload: bytes) -> BaseException:
    """Return the exception that `dump_error` pickled, with real tracebacks: one that debuggers and `raise` accept.

    If its class cannot be loaded here it is an ``Exception`` with the original's `repr` and a note.
    """
    records = loads(payload)
    errors: dict[int, BaseException] = {}
    for position, (stream, text, _, _, members) in enumerate(records):
        if position not in errors:
            errors[position] = _load_one(stream, text)
        if members and isinstance(errors[position], _GROUP):  # not a stand-in
            group: Any = errors[position]
            inner = zip(members, group.exceptions, strict=True)
            errors.update((member, error) for member, error in inner if member is not None)
    for position, (_, _, frames, (cause, context, suppress), _) in enumerate(records):
        error = errors[position]
        error.__traceback__ = _traceback(frames)
        error.__cause__ = errors.get(cause)
        error.__context__ = errors.get(context)
        error.__suppress_context__ = suppress
    return errors[0]


_GROUP: Any = getattr(builtins, "BaseExceptionGroup", ())  # since 3.11


def _error_stream(exc: BaseException, key: object) -> bytes:
    """Pickle one exception by itself, or its stand-in, after seeing that it can be loaded."""
    try:
        sendable = _shortened(exc)
        stream = pack_whole(sendable)
        loaded = loads(stream)
        if type(loaded) is type(sendable):
            return stream
        why = f"it comes back as {qualified_type(loaded)}"
    except BaseException as error:  # noqa: BLE001  # it is the exception's own code, and may raise anything
        why = _safe_text(repr, error)
    note = f"task {key!r} raised {qualified_type(exc)}, which cannot be pickled and rebuilt: {why}"
    return dumps(_stand_in(_safe_text(repr, exc), [*getattr(exc, "__notes__", ()), note]), 5)


def _load_one(stream: bytes, text: str) -> BaseException:
    try:
        loaded = loads(stream)
        if isinstance(loaded, BaseException):
            return loaded
        why = f"it comes back as {qualified_type(loaded)}"
    except Exception as error:  # noqa: BLE001  # it is the exception's own code, and may raise anything
        why = _safe_text(repr, error)
    return _stand_in(text, [f"the original exception cannot be rebuilt in this process: {why}"])


def _stand_in(text: str, notes: list[object]) -> Exception:
    stand_in = Exception(text)
    stand_in.__dict__["__notes__"] = list(map(str, notes))  # shown in tracebacks since 3.11, readable before
    return stand_in


def _safe_text(convert: Callable[[Any], str], exc: BaseException) -> str:
    try:
        return _cut(convert(exc))
    except BaseException:  # noqa: BLE001  # it is the exception's own code, and may raise anything
        return f"<{qualified_type(exc)}, which cannot show itself>"


def _cut(text: str) -> str:
    kept = TEXT_LIMIT * 9 // 10
    return text if len(text) <= TEXT_LIMIT else f"{text[:kept]}... [{len(text) - kept} more characters]"


def _shortened(exc: BaseException) -> BaseException:
    """Return `exc`, or one of the same class whose text is not too long."""
    if len(str(exc)) <= TEXT_LIMIT:
        return exc
    for args in (tuple(_cut(arg) if isinstance(arg, str) else arg for arg in exc.args), (_cut(str(exc)),)):
        try:
            short = type(exc)(*args)
            if type(short) is type(exc) and len(str(short)) <= TEXT_LIMIT:
                break
        except Exception:  # noqa: BLE001  # its class takes other arguments: the next ones may do
            continue
    else:
        short = Exception(_cut(str(exc)))
    short.__dict__.update(exc.__dict__)
    return short


def _frames(exc: BaseException, skip: tuple[str, ...]) -> list[tuple[str, str, int, str]]:
    """Return file, function, line number and module of the user's frames, outermost first."""
    frames: list[tuple[str, str, int, str]] = []
    traceback = exc.__traceback__
    while traceback is not None:
        module = str(traceback.tb_frame.f_globals.get("__name__", ""))
        if not any(module == name or module.startswith(f"{name}.") for name in skip):
            code = traceback.tb_frame.f_code
            frames.append((code.co_filename, code.co_name, traceback.tb_lineno or code.co_firstlineno, module))
        traceback = traceback.tb_next
    half = FRAME_LIMIT // 2
    return frames if len(frames) <= FRAME_LIMIT else frames[:half] + frames[-half:]


def _traceback(frames: list[tuple[str, str, int, str]]) -> TracebackType | None:
    """Make a real traceback of frames that ran in another process."""
    described = None
    for file, function, line, module in reversed(frames):
        frame = {
            "f_globals": {"__name__": module, "__file__": file},
            "f_code": {"co_filename": file, "co_name": function},
            "f_lineno": line,
        }
        described = {"tb_frame": frame, "tb_lineno": line, "tb_next": described}
    if described is None:
        return None
    global _maker
    with _maker_lock:
        if _maker is None:
            _maker = _make_tracebacks()
            next(_maker)
        try:
            return _maker.send(described)
        except BaseException:
            _maker = None  # it has ended
            raise


def _make_tracebacks() -> Generator[TracebackType | None, dict[str, Any], None]:
    """Make a traceback of each description that is sent in.

    A frame refers to its caller, and so on up to the user's function, whose variables may refer to the exception: a
    cycle that would keep futures alive. The caller of frames made here is this generator, which has none at rest.
    """
    from tblib import Traceback

    described = yield None
    while True:
        described = yield Traceback.from_dict(described).as_traceback()


_maker: Generator[TracebackType | None, dict[str, Any], None] | None = None
_maker_lock = Lock()
