"""Global variables of functions that travel by value: what one of them sets in a worker, the others see there.

Each such function arrives with a dictionary of its own, which holds what its globals were where it was sent. Programs
for the standard library's pool expect of functions of ``__main__`` what is true of those of any other module: a global
that the initializer sets is there in the calls, and one that a call sets (a model, a connection) is there in the next.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import partial
from opcode import opmap
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .._apart import Variable, load_apart

_STORE_GLOBAL = opmap["STORE_GLOBAL"]
#: Other ways to set one.
_INDIRECT = frozenset({"globals", "exec", "eval"})
#: Values that set nothing.
_PLAIN = frozenset({int, float, complex, bool, str, bytes, type(None), tuple, list, dict, set, frozenset})


class SharedGlobals:
    """What functions that travel by value have set in this process, by the name of their module."""

    def __init__(self) -> None:
        self._modules: dict[str, dict[str, Any]] = {}
        #: digests of the variables that the client has sent
        self._digests: dict[str, dict[str, bytes]] = {}

    def receive(self, variables: Iterable[Variable]) -> None:
        """Take the variables that a function was sent without; what is here already stays as calls have left it.

        Raises:
            Exception: what rebuilding a value raises.
        """
        for variable in variables:
            name = variable.name
            digests = self._digests.setdefault(variable.module, {})
            if digests.get(name) != variable.digest:
                known = self._modules.setdefault(variable.module, {})
                # What the initializer has set counts more than what the client had then.
                if name in digests or name not in known:
                    known[name] = variable.load()
                digests[name] = variable.digest

    def load(self, stream: bytes) -> Any:
        """Rebuild a function that was sent without its variables, after these were received."""
        return load_apart(stream, lambda name: self._modules[name[0]][name[1]])

    def own(self, scope: dict[str, Any]) -> dict[str, Any]:
        """Return those of a new function's globals that came with it."""
        module = scope.get("__name__", "__main__")
        known, digests = self._modules.get(module, {}), self._digests.get(module, {})
        return {k: v for k, v in scope.items() if not (k in digests and k in known and known[k] is v)}

    def call(
        self, function: Callable[..., Any], scope: dict[str, Any], own: dict[str, Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        """Call a function, whose globals are `scope`, with what others have set, and keep what it sets itself.

        Those that came with it, `own`, take the place of variables that the client had sent before under these names.
        """
        module = scope.get("__name__", "__main__")
        known = self._modules.setdefault(module, {})
        digests = self._digests.get(module)
        if digests:
            for name in digests.keys() & own.keys():
                del digests[name]
                known.pop(name, None)
        scope.update(own)
        scope.update(known)
        before = dict(scope)
        try:
            return function(*args, **kwargs)
        finally:
            for name, value in list(scope.items()):
                if name not in before or before[name] is not value:
                    known[name] = value

    def concerns(self, scope: dict[str, Any]) -> bool:
        """Say whether anything was set that functions with these globals should see."""
        return bool(self._modules.get(scope.get("__name__", "__main__")))


def scope_of(function: Any) -> dict[str, Any] | None:
    """Return the globals of a callable that came by value; None where they are those of a module, or none at all."""
    while True:
        if isinstance(function, partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        elif isinstance(function, FunctionType):
            module = sys.modules.get(function.__module__)
            return None if module is not None and function.__globals__ is module.__dict__ else function.__globals__
        else:
            function = type(function).__dict__.get("__call__")
            if not isinstance(function, FunctionType):
                return None


def may_set_globals(function: Any, scope: dict[str, Any]) -> bool:
    """Say whether a callable, or a function that shares its globals, which are `scope`, may set one of them."""
    while isinstance(function, (partial, MethodType)):
        function = function.func if isinstance(function, partial) else function.__func__
    if not isinstance(function, FunctionType):
        return True  # some method of an object
    return any(_may_set(value, scope) for value in (function, *scope.values()))


def _may_set(value: Any, scope: dict[str, Any]) -> bool:
    if isinstance(value, FunctionType):
        return value.__globals__ is scope and (value.__closure__ is not None or _stores(value.__code__))
    # Objects and classes may have methods that do.
    return not isinstance(value, (ModuleType, BuiltinFunctionType)) and type(value) not in _PLAIN


def _stores(code: CodeType) -> bool:
    # What stands between the instructions may look like one: then the answer is a needless yes.
    indirect = not _INDIRECT.isdisjoint(code.co_names)
    return (
        indirect
        or _STORE_GLOBAL in code.co_code[::2]
        or any(isinstance(constant, CodeType) and _stores(constant) for constant in code.co_consts)
    )
