"""Global variables that functions of ``__main__`` read travel apart from them: a worker keeps what has not changed.

For programs written for the standard library's pool: there a global (a random generator, a cache, a large table) is in
the worker already, and what calls do to it stays. Here it is pickled with each `submit`, so that a change is seen, but
only a worker that has not got these very bytes loads it.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from io import BytesIO
from pickle import PickleBuffer, Unpickler, dumps
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType

from xxhash import xxh3_128

from ._key import ATOMS, cell_content, code_use, reference
from ._modules import generations, modules_of
from ._serialize import Function, FunctionTable, blame, by_value_modules, name_to_send, pack, unpack
from .errors import SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

#: Module and name.
Name = tuple[str, str]
_CODE = (FunctionType, type, ModuleType, BuiltinFunctionType, MethodType, partial)


class Variable:
    """The value of one global variable, pickled.

    Attributes:
        module, name: which one.
        digest: of the bytes.
        parts: the pickle stream, and the buffers that it leaves out.
    """

    __slots__ = ("digest", "module", "name", "parts")

    def __init__(self, module: str, name: str, digest: bytes, parts: Sequence[Any]) -> None:
        self.module, self.name, self.digest, self.parts = module, name, digest, parts

    def __reduce__(self) -> tuple[type[Variable], tuple[Any, ...]]:
        return Variable, (self.module, self.name, self.digest, [PickleBuffer(part) for part in self.parts])

    def load(self) -> Any:
        """Rebuild the value."""
        views = [memoryview(part) for part in self.parts]
        return unpack(views[0], views[1:])

    @property
    def nbytes(self) -> int:
        """Its size."""
        return sum(memoryview(part).nbytes for part in self.parts)


class Variables(tuple[Variable, ...]):
    """All that a function needs; comes as the first argument of its calls, and is taken off by the worker."""

    __slots__ = ()


def _pickle_variable(name: Name, value: Any) -> Variable:
    try:
        stream, buffers = pack(value)
    except Exception as e:
        what = f"global variable {name[1]!r}"
        raise SerializationError(what, blame(value), None, f"{type(e).__name__}: {e}") from e
    digest = xxh3_128(stream)
    for buffer in buffers:
        digest.update(buffer.raw())
    return Variable(*name, digest.digest(), [stream, *[buffer.raw() for buffer in buffers]])


def variables_of(func: Any) -> tuple[dict[Name, Any], set[int]]:
    """Find the global variables that a callable which travels by value reads, itself or through others like it.

    Returns:
        The variables, and the `id` of everything that these functions hold otherwise, in cells and default values.
    """
    found: dict[Name, Any] = {}
    held: set[int] = set()
    seen: set[int] = set()
    stack = [func]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, partial):
            stack += [value.func, *value.args, *value.keywords.values()]
        elif isinstance(value, MethodType):
            stack += [value.__func__, type(value.__self__)]
        elif isinstance(value, FunctionType):
            if reference(value) is None:
                stack += _read_by(value, found, held)
        elif isinstance(value, type) and reference(value) is None:
            stack += [part for member in vars(value).values() for part in _code_in(member)]
            stack += value.__bases__
    return found, held


def _read_by(function: FunctionType, found: dict[Name, Any], held: set[int]) -> list[Any]:
    """Add the variables that a function reads to `found`, what it holds to `held`; return the code that it uses."""
    scope = function.__globals__
    module = scope.get("__name__", "__main__")
    used: list[Any] = [cell_content(cell) for cell in function.__closure__ or ()]
    used += (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    held.update(map(id, used))
    for name in code_use(function.__code__).reads:
        if name in scope:
            value = scope[name]
            if type(value) in ATOMS or isinstance(value, _CODE) or name_to_send(value) is not None:
                used.append(value)
            else:
                found[module, name] = value
                used += (type(value), getattr(value, "__wrapped__", None))
    return used


def _code_in(member: Any) -> Iterable[Any]:
    """Return the functions behind an attribute of a class."""
    if isinstance(member, (staticmethod, classmethod)):
        return (member.__func__,)
    if isinstance(member, property):
        return (member.fget, member.fset, member.fdel)
    return (member,)


def _pickle_function(func: Any, names: dict[int, Name]) -> bytes:
    from ._pickler import ValuePickler

    class ApartPickler(ValuePickler):
        def persistent_id(self, obj: Any) -> Name | None:
            return names.get(id(obj))

    with BytesIO() as file:
        ApartPickler(file, protocol=5).dump(func)
        return file.getvalue()


class _ApartUnpickler(Unpickler):
    def __init__(self, stream: bytes, lookup: Callable[[Name], Any]) -> None:
        super().__init__(BytesIO(stream))
        self._lookup = lookup

    def persistent_load(self, name: Name) -> Any:
        return self._lookup(name)


def load_apart(stream: bytes, lookup: Callable[[Name], Any]) -> Any:
    """Rebuild a function; `lookup` gives the variables that it was pickled without."""
    return _ApartUnpickler(stream, lookup).load()


class ApartTable(FunctionTable):
    """Describes callables for an `Executor`: those that travel by value without the global variables that they read."""

    def __init__(self) -> None:
        super().__init__()
        #: what was described last of a callable: while its pickle stays the same, so does what workers have of it
        self._latest: dict[int, tuple[ReferenceType[Any], Function]] = {}

    def _describe_anew(self, func: Any) -> Function:
        if name_to_send(func) is not None or by_value_modules():
            return super()._describe_anew(func)
        found, held = variables_of(func)
        if not found and self._can_watch(func):
            return super()._describe_anew(func)
        variables = Variables([_pickle_variable(name, value) for name, value in found.items()])
        names = {id(value): name for name, value in found.items()}
        try:
            stream = _pickle_function(func, names)
        except Exception as e:
            raise SerializationError("function", blame(func), None, str(e)) from e
        # What it holds it has for good: when that changes, it is another function.
        held_values = [] if held.isdisjoint(names) else [variable.digest for variable in variables]
        pickled = dumps((None, [], generations(modules_of(func)), stream, held_values), 5)
        return self._remember(func, pickled, variables or None)

    def _remember(self, func: Any, pickled: bytes, variables: Variables | None) -> Function:
        identity, latest = id(func), self._latest
        known = latest.get(identity)
        function = Function(func, None, pickled, True, False, variables)
        if known is not None and known[0]() is func and known[1].pickled == pickled:
            function.id = known[1].id

        def forget(ref: ReferenceType[Any]) -> None:  # takes no lock: it may run inside any allocation
            entry = latest.get(identity)
            if entry is not None and entry[0] is ref:
                latest.pop(identity, None)

        with suppress(TypeError):  # what allows no weak reference cannot be recognised
            latest[identity] = (ReferenceType(func, forget), function)
        return function
