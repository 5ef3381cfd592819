"""Which of the user's modules a callable leads to, and how often each was reloaded, so that workers reload them too.

A module keeps its identity when it is reloaded, but gets a new ``__spec__``; that is how a reload is noticed.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from functools import partial
from threading import RLock
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from localdist._key import cell_content, outline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: A module, and the ``__spec__`` that it had.
Seen = tuple[ModuleType, Any]

_STANDARD = os.path.dirname(os.__file__) + os.sep
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_LOCALDIST = os.path.dirname(__file__) + os.sep

_STARTED = time.time()  # a file changed later than this may differ from the module that this process loaded
_lock = RLock()  # a module that is reloaded may submit something
#: Here: what was seen last of each module, and how often it was reloaded since it was first seen.
_generations: dict[str, tuple[Any, int]] = {}
#: Here: the modules that a module leads to, itself included, as long as its spec is this one.
_closures: dict[str, tuple[Any, tuple[ModuleType, ...]]] = {}
#: In a worker: up to which generation each module was followed.
_followed: dict[str, int] = {}


def modules_of(func: Any) -> tuple[Seen, ...]:
    """List the user's modules that a callable leads to; those that others lead to come first.

    Modules of the standard library and installed packages are left out: nobody edits those while a program runs. A
    module is found through the globals of functions and modules, and through imports within the callable itself.
    """
    found: dict[ModuleType, None] = {}
    for module in _named_by(func, set()):
        found.update(dict.fromkeys(_closure(module)))
    return tuple((module, module.__spec__) for module in found)


def unchanged(modules: Iterable[Seen]) -> bool:
    """Say whether none of these modules was reloaded since."""
    for module, spec in modules:  # noqa: SIM110  (a generator costs more than the loop)
        if module.__spec__ is not spec:
            return False
    return True


def generations(modules: Iterable[Seen]) -> list[tuple[str, int]]:
    """Look for reloads of these modules, and return all modules known to have been reloaded, and how often."""
    with _lock:
        for module, spec in modules:
            before = _generations.get(module.__name__)
            if before is None:
                _generations[module.__name__] = (spec, 0)
            elif before[0] is not spec:
                # It goes to the end: who reloads several begins, like an import, with what the others need.
                del _generations[module.__name__]
                _generations[module.__name__] = (spec, before[1] + 1)
        return [(name, count) for name, (_, count) in _generations.items() if count]


def follow(reloaded: Iterable[tuple[str, int]]) -> None:
    """Reload what this process has loaded before it was reloaded where the callable comes from.

    Raises:
        Exception: what the module's code raises.
    """
    for name, generation in reloaded:
        if _followed.get(name, 0) < generation:
            with _lock:
                # This process may be the one where it was reloaded.
                here = _generations[name][1] if name in _generations else _followed.get(name, 0)
                if here < generation and name in sys.modules:
                    importlib.reload(sys.modules[name])
                _followed[name] = generation


_verified: dict[tuple[str, str], bytes] = {}  # outline last asked for -> looked at already


def look_up(module: str, name: str) -> Any:
    """Return what a module has under a dotted name; import it if need be."""
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def reload_if_older(module: str, name: str, wanted: bytes) -> None:
    """Reload `module` if its function `name` is not the one wanted and its file has changed since this process began.

    The file is asked because outlines may differ for good: a default may be the time, a decorator may count.
    """
    if _verified.get((module, name)) == wanted:
        return
    with _lock:
        if outline(look_up(module, name)) != wanted and _has_changed(module):
            importlib.reload(sys.modules[module])
            for known in [known for known in _verified if known[0] == module]:
                del _verified[known]
        _verified[module, name] = wanted


def _has_changed(module: str) -> bool:
    try:
        state = os.stat(getattr(sys.modules[module], "__file__", None) or "")
    except OSError:  # not from a file
        return False
    return max(state.st_mtime, state.st_ctime) >= _STARTED - 2  # some file systems count in steps of two seconds


def _is_own(module: object) -> bool:
    """Say whether somebody may edit the module while the program runs."""
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    return (
        isinstance(module, ModuleType)
        and isinstance(origin, str)
        and origin.endswith(".py")
        and not origin.startswith((_LOCALDIST, _STANDARD))
        and not any(part in origin for part in _INSTALLED)
    )


def _named_by(value: Any, seen: set[int]) -> Iterator[ModuleType]:
    """Yield the user's modules that a callable names directly."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, ModuleType):
        if _is_own(value):
            yield value
    elif isinstance(value, partial):
        for part in (value.func, *value.args, *value.keywords.values()):
            yield from _named_by(part, seen)
    elif isinstance(value, MethodType):
        yield from _named_by(value.__func__, seen)
        yield from _named_by(type(value.__self__), seen)
    elif isinstance(value, (FunctionType, type)):
        module = sys.modules.get(value.__module__)
        if _is_own(module):
            yield module  # type: ignore[misc]  # it is one
        if isinstance(value, FunctionType):
            yield from _used_by(value, seen)
    elif callable(value):
        yield from _named_by(type(value), seen)


def _used_by(function: FunctionType, seen: set[int]) -> Iterator[ModuleType]:
    scope = function.__globals__
    for name in _names(function.__code__):
        if name in scope:
            yield from _named_by(scope[name], seen)
        elif name in sys.modules:  # imported within
            yield from _named_by(sys.modules[name], seen)
    for cell in function.__closure__ or ():
        content = cell_content(cell)
        if isinstance(content, (FunctionType, type, ModuleType, partial, MethodType)):
            yield from _named_by(content, seen)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _closure(module: ModuleType) -> tuple[ModuleType, ...]:
    """List a module and the user's modules that its globals lead to; those that others lead to come first."""
    known = _closures.get(module.__name__)
    if known is not None and known[0] is module.__spec__:
        return known[1]
    order: dict[ModuleType, None] = {}
    visiting: set[ModuleType] = set()

    def visit(one: ModuleType) -> None:
        visiting.add(one)
        for value in list(vars(one).values()):
            found: Any = value
            if isinstance(value, (FunctionType, type)):
                found = sys.modules.get(value.__module__)
            if isinstance(found, ModuleType) and found not in visiting and _is_own(found):
                visit(found)
        order[one] = None

    visit(module)
    _closures[module.__name__] = (module.__spec__, tuple(order))
    return tuple(order)
