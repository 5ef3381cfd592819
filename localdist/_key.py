"""A call gets its name: a digest of function and arguments that is the same in every process and on every machine.

Every value is described by a 16-byte digest. Exact atoms and plain containers of them are hashed through `marshal`
version 2, which writes values and knows no identities; other containers as a tree of digests; every other object
as what its own ``__reduce_ex__`` says of it, the contents of its buffers raw. Nothing that differs between two runs
may enter: no address, no order of a set, no file name, no line number.
"""

from __future__ import annotations

import copyreg
import os
import pickle
import sys
from collections import OrderedDict
from functools import cached_property, partial
from itertools import chain, islice
from marshal import dumps
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from xxhash import xxh3_128_digest, xxh3_128_hexdigest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

ATOMS: frozenset[type] = frozenset({int, float, bool, type(None), str, bytes, complex})
NAME_LIMIT = 50  # characters of a function's name that enter its keys
_SORTABLE = frozenset({str, bytes, int})  # keys of one of these types have one total order
_LARGE = 1 << 16  # bytes or characters: above it, hashing in place is cheaper than marshal's copy
_NESTING = 8  # levels of plain containers that are looked through for the fast way
_PLAIN_LIMIT = 1 << 20  # elements looked at below the first level: [[[0] * 1000] * 1000] * 1000 is small, yet has 10^9
_MAIN = frozenset({"__main__", "__mp_main__"})  # modules that mean something else in the next process

# One byte opens the input of each kind of digest. Those of marshal are ASCII, so they cannot meet these.
_TAGS = iter(bytes([n]) for n in range(0x80, 0xA0))
_BYTES, _TEXT, _BUFFER, _VIEW, _PLAIN, _LIST, _TUPLE, _SET, _DICT, _ORDERED = (next(_TAGS) for _ in range(10))
_SORTED_SET, _SORTED_DICT, _CYCLE, _SEEN, _CUSTOM, _REDUCED, _GLOBAL, _MODULE = (next(_TAGS) for _ in range(8))
_CODE, _FUNCTION, _CLASS, _MEMBER, _OUTLINE, _OPAQUE, _CALL = (next(_TAGS) for _ in range(7))

# What Python itself puts into a class, and what changes with a line number, an annotation's spelling or a cache.
_CLASS_NOISE = frozenset(
    "__dict__ __weakref__ __module__ __doc__ __qualname__ __firstlineno__ __static_attributes__ __annotations__ "
    "__annotate__ __annotate_func__ __annotations_cache__ __abstractmethods__ _abc_impl".split()
)


class Unstable(Exception):
    """An object has no description that would be the same in another process; its call gets a random key."""


class Digests(dict[tuple[int, int], bytes]):
    """Content digests of raw buffers met while hashing, so that the store need not hash them again.

    Maps ``(id(owner), nbytes)`` to the 16-byte digest of the content. Valid for one call: until someone writes into
    the buffers. It keeps the owners alive, because a temporary owner's address would soon belong to another array.
    """

    __slots__ = ("_owners",)

    def __init__(self) -> None:
        super().__init__()
        self._owners: list[object] = []

    def record(self, owner: object, nbytes: int, digest: bytes) -> None:
        """Remember the digest of `owner`'s buffer of `nbytes` bytes."""
        self._owners.append(owner)
        self[id(owner), nbytes] = digest

    def find(self, buffer: pickle.PickleBuffer) -> bytes | None:
        """Return the content digest of a buffer met before, or None."""
        view = memoryview(buffer)
        return self.get((id(view.obj), view.nbytes))


class Reference(NamedTuple):
    """A function that travels by its name, and what its code was: the receiver may hold an older one."""

    module: str
    name: str
    outline: bytes


class CodeUse(NamedTuple):
    """What a code object does with names outside of itself: the globals it reads, the names of any kind it rebinds."""

    reads: tuple[str, ...]
    rebinds: frozenset[str]


def function_name(func: object) -> str:
    """Return the name that keys of `func`'s calls begin with, at most 50 characters.

    Its ``__name__``, ``lambda`` for lambdas; of a partial that of the wrapped function, of a methodcaller the method,
    of a `numpy.vectorize` ``vectorize_`` and the name; else ``str(func)``, or the class where that is but an address.
    """
    kind = type(func)
    if kind.__name__ == "vectorize" and hasattr(func, "pyfunc"):
        return f"vectorize_{function_name(func.pyfunc)}"[:NAME_LIMIT]
    if kind.__name__ == "methodcaller":
        reduced: tuple[Any, ...] = tuple(func.__reduce__())  # with keywords it is made by partial(methodcaller, name)
        return str(getattr(reduced[0], "args", reduced[1])[0])[:NAME_LIMIT]
    name = getattr(func, "__name__", None)
    if not isinstance(name, str):
        if isinstance(func, partial):
            return function_name(func.func)
        bare = kind.__repr__ is object.__repr__ and kind.__str__ is object.__str__
        name = kind.__name__ if bare else str(func)
    return "lambda" if name == "<lambda>" else name[:NAME_LIMIT]


def type_name(kind: type) -> str:
    """Return module and qualified name of a class; builtins bare."""
    module = kind.__module__
    return kind.__qualname__ if module == "builtins" else f"{module}.{kind.__qualname__}"


def reference(obj: Any) -> tuple[str, str] | None:
    """Return module and qualified name under which another process finds this very object, or None."""
    name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    module = getattr(obj, "__module__", None) or type(obj).__module__
    return (module, name) if isinstance(name, str) and _found(obj, module, name) else None


def _found(obj: object, module: object, name: str) -> bool:
    if not isinstance(module, str) or module in _MAIN:
        return False
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is obj


def function_digest(func: object) -> bytes:
    """Return the 16-byte digest of a callable: its name and code if it travels by name, else all it consists of.

    Raises:
        Unstable: it contains or refers to something without a stable description.
    """
    return token(func)


def describe(func: object) -> tuple[bytes | None, tuple[Reference, ...]]:
    """Return `func`'s digest (None when unstable) and the functions that would travel by name with it."""
    hasher = _Hasher(None)
    try:
        digest = hasher.visit(func)
    except (Unstable, RecursionError):
        return None, tuple(hasher.references)
    return digest, tuple(hasher.references)


def token(obj: object, digests: Digests | None = None) -> bytes:
    """Return the canonical 16-byte digest of any object: equal values, equal digests, wherever they are computed.

    Args:
        obj: anything. A class may define ``__localdist_token__(self)``, whose result is hashed in place of the object.
        digests: if given, the content digests of raw buffers met are recorded there.

    Raises:
        Unstable: it cannot be described: ``object()``, generators, locks, open files.
    """
    try:
        return _Hasher(digests).visit(obj)
    except RecursionError as error:
        raise Unstable("nested too deeply") from error


def call_key(
    name: str,
    fdigest: bytes,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    digests: Digests | None = None,
    known: Mapping[str, bytes] | None = None,
) -> str:
    """Return the key ``name-<32 hex>`` of a pure call. Any thread may call it.

    Args:
        name: of the function, from `function_name`.
        fdigest: 16 bytes from `function_digest`.
        args: positional arguments.
        kwargs: keyword arguments; their order does not matter.
        digests: if given, the content digests of raw buffers met are recorded there.
        known: tokens of keyword arguments that were computed before, because many calls share them.

    Raises:
        Unstable: an argument has no stable description.
    """
    if not kwargs:
        for value in args:  # a plain loop: two thirds of the time of set(map(type, args))
            if type(value) not in ATOMS:
                break
        else:
            text = _marshalled(args)
            if text is not None:
                return f"{name}-{xxh3_128_hexdigest(fdigest + text)}"
    hasher = _Hasher(digests)
    try:
        parts = [hasher.argument(value) for value in args]
        for word in sorted(kwargs):
            ready = known.get(word) if known else None
            parts += (hasher.visit(word), hasher.argument(kwargs[word]) if ready is None else ready)
    except RecursionError as error:
        raise Unstable("nested too deeply") from error
    return f"{name}-{xxh3_128_hexdigest(fdigest + _CALL + len(args).to_bytes(4, 'big') + b''.join(parts))}"


def random_key(name: str) -> str:
    """Return ``name-<uuid4>``, a key that no other call will ever have."""
    h = os.urandom(16).hex()  # half the time of uuid.uuid4, and not to be seeded by the user
    return f"{name}-{h[:8]}-{h[8:12]}-4{h[13:16]}-{'89ab'[int(h[16], 16) & 3]}{h[17:20]}-{h[20:]}"


def check_key(key: object) -> None:
    """Raise TypeError, naming the type, unless `key` is a str, int, float or a (nested) tuple of those."""
    if isinstance(key, (str, int, float)):
        return
    if not isinstance(key, tuple):
        raise TypeError(f"a key is a str, int, float or a (nested) tuple of those, not {type_name(type(key))}: {key!r}")
    for part in key:
        check_key(part)


def code_use(code: CodeType) -> CodeUse:
    """Return what `code`, and the code within it, reads and rebinds outside of itself."""
    use = _code_uses.get(code)
    if use is None:
        import dis  # late: only functions that travel by value need it

        reads: set[str] = set()
        rebinds: set[str] = set()
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                reads.add(step.argval)
            elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                rebinds.add(f"global {step.argval}")
            elif step.opname in ("STORE_DEREF", "DELETE_DEREF") and step.argval in code.co_freevars:
                rebinds.add(step.argval)
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                inner = code_use(constant)
                reads.update(inner.reads)
                rebinds.update(n for n in inner.rebinds if n.startswith("global ") or n in code.co_freevars)
        use = _code_uses[code] = CodeUse(tuple(sorted(reads)), frozenset(rebinds))
    return use


def outline(func: Any) -> bytes:
    """Return the digest of what a function that travels by name was defined as: code, plain defaults, decorators.

    Values that are not plain enter by their type only: the receiver has values of its own.
    """
    return _outline(func if isinstance(func, FunctionType) else getattr(func, "__wrapped__", None), ())


def _outline(value: Any, above: tuple[int, ...]) -> bytes:
    if isinstance(value, FunctionType) and id(value) not in above:
        within = (*above, id(value))
        named = sorted((value.__kwdefaults__ or {}).items())
        cells = [_outline(cell_content(cell), within) for cell in value.__closure__ or ()]
        defaults = [_outline(default, within) for default in value.__defaults__ or ()]
        defaults += [_outline(part, within) for item in named for part in item]
        return _node(_OUTLINE, _code_digest(value.__code__), _node(_LIST, *cells), _node(_LIST, *defaults))
    if type(value) in ATOMS:
        return _atom(value)
    if type(value) is tuple:
        return _node(_TUPLE, *[_outline(part, above) for part in value])
    return _node(_OPAQUE, _atom(type_name(value if isinstance(value, type) else type(value))))


def _node(tag: bytes, *parts: bytes) -> bytes:
    return xxh3_128_digest(tag + b"".join(parts))


def _atom(value: Any) -> bytes:
    kind = type(value)
    if kind is bytes and len(value) > _LARGE:
        return _node(_BYTES, xxh3_128_digest(value))
    if kind is str and len(value) > _LARGE:
        return _node(_TEXT, xxh3_128_digest(value.encode("utf-8", "surrogatepass")))
    return xxh3_128_digest(dumps(value, 2))


def cell_content(cell: Any) -> Any:
    """Return what a closure cell holds; of an empty one its own type stands for nothing."""
    try:
        return cell.cell_contents
    except ValueError:
        return type(cell)


def _code_digest(code: CodeType) -> bytes:
    digest = _code_digests.get(code)
    if digest is None:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        body = dumps((counts, names, code.co_code, getattr(code, "co_exceptiontable", b"")), 2)
        constants = map(_Hasher(None).visit, code.co_consts)
        digest = _code_digests[code] = _node(_CODE, xxh3_128_digest(body), *constants)
    return digest


_code_uses: WeakKeyDictionary[CodeType, CodeUse] = WeakKeyDictionary()
_code_digests: WeakKeyDictionary[CodeType, bytes] = WeakKeyDictionary()


_NESTABLE = ATOMS | {tuple, list}


def _is_plain(values: Iterable[Any]) -> bool:
    """Tell whether these, and all within, are exact atoms, tuples and lists: what marshal writes by value alone."""
    level = values
    for _ in range(_NESTING):
        kinds = set(map(type, level))
        if kinds <= ATOMS:
            return True
        if not kinds <= _NESTABLE:
            return False
        inner = chain.from_iterable(part for part in level if type(part) not in ATOMS)
        level = list(islice(inner, _PLAIN_LIMIT + 1))
        if len(level) > _PLAIN_LIMIT:
            return False
    return False


def _marshalled(values: Any) -> bytes | None:
    """Return marshal's text of a plain value, None where marshal has none: a string of 2 GiB."""
    try:
        return dumps(values, 2)
    except ValueError:
        return None


class _Hasher:
    """One walk over the objects reachable from the arguments of one call."""

    __slots__ = ("active", "digests", "lowest", "memo", "opened", "references")

    def __init__(self, digests: Digests | None = None) -> None:
        self.digests = digests
        self.active: dict[int, int] = {}  # id of each object being described -> its depth
        self.memo: dict[int, tuple[object, bytes]] = {}  # id -> digest, and the object, so that the id stays its own
        self.lowest = 0  # least depth that the object being described refers back to
        self.opened = 0  # objects met so far that refer back to one above them
        self.references: list[Reference] = []  # functions met that travel by name

    def argument(self, obj: Any) -> bytes:
        """Return the digest that `obj` has by itself, whatever was visited before it."""
        if self.opened:  # the memo holds numbers, which count from the first argument
            self.memo.clear()
            self.opened = 0
        return self.visit(obj)

    def visit(self, obj: Any) -> bytes:
        """Return the digest of `obj`; a cycle is described by how far up it leads."""
        kind = type(obj)
        if kind in ATOMS:
            return _atom(obj)
        identity = id(obj)
        known = self.memo.get(identity)
        if known is not None:
            return known[1]
        depth = len(self.active)
        above = self.active.get(identity)
        if above is not None:
            self.lowest = min(self.lowest, above)
            return _node(_CYCLE, _atom(depth - above))
        outer, self.lowest = self.lowest, depth
        self.active[identity] = depth
        try:
            digest = self.encode(obj, kind)
        finally:
            del self.active[identity]
            lowest, self.lowest = self.lowest, min(outer, self.lowest)
        if lowest < depth:  # "three up" means another object elsewhere: a second mention is told by number
            self.opened += 1
            self.memo[identity] = (obj, _node(_SEEN, _atom(self.opened)))
        else:
            self.memo[identity] = (obj, digest)
        return digest

    def encode(self, obj: Any, kind: type) -> bytes:
        """Describe an object in the way its type asks for."""
        encode = _ENCODERS.get(kind)
        if encode is not None:
            return encode(self, obj)
        custom = getattr(kind, "__localdist_token__", None)
        if custom is not None:
            return _node(_CUSTOM, _atom(type_name(kind)), self.visit(custom(obj)))
        if isinstance(obj, type):
            return self.class_(obj)
        if isinstance(obj, ModuleType):
            return _node(_MODULE, _atom(obj.__name__))
        return self.reduced(obj, kind)

    def sequence(self, tag: bytes, obj: Any) -> bytes:
        """Describe an exact list or tuple."""
        text = _marshalled(obj) if _is_plain(obj) else None
        return _node(tag, *map(self.visit, obj)) if text is None else _node(_PLAIN, text)

    def mapping(self, obj: Mapping[Any, Any]) -> bytes:
        """Describe a dict, whatever its order."""
        kinds = set(map(type, obj))
        if len(kinds) == 1 and kinds <= _SORTABLE and _is_plain(obj.values()):
            text = _marshalled(sorted(obj.items()))
            if text is not None:
                return _node(_SORTED_DICT, text)
        return self.pairs(_DICT, obj.items())

    def pairs(self, tag: bytes, items: Iterable[tuple[Any, Any]]) -> bytes:
        """Describe items of a dict; only the order of an ordered one counts."""
        keyed = [(self.visit(key), value) for key, value in items]
        if tag != _ORDERED:
            keyed.sort(key=_first)  # values are visited in this order too, so that cycles are told alike
        return _node(tag, *[part for key, value in keyed for part in (key, self.visit(value))])

    def elements(self, obj: Iterable[Any]) -> bytes:
        """Describe a set, whatever its order."""
        kinds = set(map(type, obj))
        if len(kinds) == 1 and kinds <= _SORTABLE:
            text = _marshalled(sorted(obj))
            if text is not None:
                return _node(_SORTED_SET, text)
        return _node(_SET, *sorted(map(self.visit, obj)))

    def buffer(self, buffer: pickle.PickleBuffer) -> bytes:
        """Describe raw memory by its content."""
        view = memoryview(buffer)
        if not view.contiguous:
            return _node(_BUFFER, _atom(view.nbytes), xxh3_128_digest(view.tobytes()))
        content = xxh3_128_digest(buffer.raw())
        if self.digests is not None:
            self.digests.record(view.obj, view.nbytes, content)
        return _node(_BUFFER, _atom(view.nbytes), content)

    def function(self, func: FunctionType) -> bytes:
        """Describe a function by its name and outline if it travels by name, else by all that travels."""
        where = reference(func)
        if where is not None:
            return self.by_name(*where, outline(func))
        use = code_use(func.__code__)
        scope = func.__globals__
        cells = [self.visit(cell_content(cell)) for cell in func.__closure__ or ()]
        names = [part for n in use.reads if n in scope for part in (_atom(n), self.visit(scope[n]))]
        fixed = (func.__defaults__, func.__kwdefaults__, func.__dict__)
        return _node(_FUNCTION, _code_digest(func.__code__), *map(self.visit, fixed), _node(_LIST, *cells), *names)

    def by_name(self, module: str, name: str, shape: bytes) -> bytes:
        """Describe what travels by name and has code, and remember it."""
        self.references.append(Reference(module, name, shape))
        return _node(_GLOBAL, _atom(module), _atom(name), shape)

    def class_(self, cls: type) -> bytes:
        """Describe a class by name, or one that only this process knows by what its body defines."""
        if cls.__module__ == "builtins" or reference(cls) is not None:
            return _node(_GLOBAL, _atom(cls.__module__), _atom(cls.__qualname__))
        parts = [_atom(cls.__name__), self.visit(type(cls)), *map(self.visit, cls.__bases__)]
        for name, value in sorted(vars(cls).items()):
            if name not in _CLASS_NOISE:
                try:
                    digest = self.visit(value)
                except Unstable:  # a lock or a sentinel is the same part of the class in every process
                    digest = _atom(type_name(type(value)))
                parts += (_atom(name), digest)
        return _node(_CLASS, *parts)

    def named(self, obj: Any, kind: type, name: str) -> bytes:
        """Describe an object whose reduction is the name under which it is found."""
        wrapped = getattr(obj, "__wrapped__", None)  # functools.lru_cache and the like
        homes: tuple[Any, ...] = (getattr(obj, "__module__", None), kind.__module__)
        anywhere: str = pickle.whichmodule(obj, name)  # type: ignore[attr-defined]  # the stubs lack it
        for module in (*homes, anywhere):
            if _found(obj, module, name):
                if isinstance(wrapped, FunctionType):
                    return self.by_name(module, name, outline(wrapped))
                return _node(_GLOBAL, _atom(module), _atom(name))
        if wrapped is None:
            raise Unstable(f"{type_name(kind)} {name!r} is not found under its name")
        return _node(_MEMBER, _atom(type_name(kind)), self.visit(wrapped))

    def reduced(self, obj: Any, kind: type) -> bytes:
        """Describe any other object by its reduction for pickle."""
        reduce = copyreg.dispatch_table.get(kind)
        try:
            how = obj.__reduce_ex__(5) if reduce is None else reduce(obj)
        except RecursionError:
            raise
        except Exception as error:  # it is the object's own code, and may raise anything
            raise Unstable(f"{type_name(kind)}: {error}") from error
        if isinstance(how, str):
            return self.named(obj, kind, how)
        make, args, state, items, pairs, setter = (*how, None, None, None, None)[:6]
        where = reference(make)
        parts = [
            self.visit(make) if where is None else _node(_GLOBAL, _atom(where[0]), _atom(where[1])),
            # Not through visit: nobody else holds these, and one memo entry per object is enough.
            self.elements(obj) if isinstance(obj, (set, frozenset)) else self.sequence(_TUPLE, args),
            self.mapping(state) if type(state) is dict else self.visit(state),
            self.sequence(_LIST, [] if items is None else list(items)),
            self.pairs(_ORDERED if isinstance(obj, OrderedDict) else _DICT, pairs or ()),
            self.visit(setter),
        ]
        return _node(_REDUCED, *parts)

    def members(self, obj: Any, *values: object) -> bytes:
        """Describe an object of a builtin type without a reduction by its parts."""
        return _node(_MEMBER, _atom(type_name(type(obj))), *map(self.visit, values))


def _first(pair: tuple[bytes, Any]) -> bytes:
    return pair[0]


def _refuse(_hasher: _Hasher, _obj: object) -> bytes:
    raise Unstable("object() is only equal to itself")


_ENCODERS: dict[type, Callable[[_Hasher, Any], bytes]] = {
    list: lambda h, o: h.sequence(_LIST, o),
    tuple: lambda h, o: h.sequence(_TUPLE, o),
    dict: _Hasher.mapping,
    MappingProxyType: lambda h, o: h.members(o, dict(o)),
    set: lambda h, o: _node(_MEMBER, h.elements(o)),
    frozenset: lambda h, o: h.elements(o),
    object: _refuse,
    FunctionType: _Hasher.function,
    CodeType: lambda _, o: _code_digest(o),
    MethodType: lambda h, o: h.members(o, o.__self__, o.__func__),
    staticmethod: lambda h, o: h.members(o, o.__func__),
    classmethod: lambda h, o: h.members(o, o.__func__),
    property: lambda h, o: h.members(o, o.fget, o.fset, o.fdel),
    cached_property: lambda h, o: h.members(o, o.func),  # it holds a lock on 3.10 and 3.11
    bytearray: lambda h, o: _node(_MEMBER, h.buffer(pickle.PickleBuffer(o))),
    memoryview: lambda h, o: _node(_VIEW, h.visit((o.format, o.shape)), h.buffer(pickle.PickleBuffer(o))),
    pickle.PickleBuffer: _Hasher.buffer,
}
