"""Global variables of functions that travel by value: what one of them sets in a worker, the others see there.

Each such function arrives with a dictionary of its own, which holds what its globals were where it was sent. Programs
for the standard library's pool expect of functions of ``__main__`` what is true of those of any other module: a global
that the initializer sets is there in the calls, and one that a call sets (a model, a connection) is there in the next.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from opcode import opmap
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from .._key import ATOMS
from .._serialize import pack_whole

_STORE_GLOBAL = opmap["STORE_GLOBAL"]
_CODE = (FunctionType, BuiltinFunctionType, type, ModuleType)
#: Other ways to set one.
_INDIRECT = frozenset({"globals", "exec", "eval"})
#: Values that set nothing.
_PLAIN = ATOMS | {tuple, list, dict, set, frozenset}


class SharedGlobals:
    """What functions that travel by value have set in this process, by the name of their module."""

    def __init__(self) -> None:
        self._modules: dict[str, dict[str, Any]] = {}
        #: what the client had sent under these names when they were set
        self._sent: dict[str, dict[str, Any]] = {}

    def initialize(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Call an initializer: also what it has changed without setting it, such as a dict that it fills, is kept."""
        scope = scope_of(function)
        if scope is None:
            function(*args)
            return
        own = dict(scope)
        data = {n: v for n, v in own.items() if type(v) not in ATOMS and not isinstance(v, _CODE) and n[:2] != "__"}
        before = {name: _fingerprint(value) for name, value in data.items()}
        self.call(function, scope, own, *args)
        module = _module(scope)
        known, sent = self._modules[module], self._sent.setdefault(module, {})
        for name, value in data.items():
            if name not in known and _fingerprint(value) != before[name]:
                known[name], sent[name] = value, before[name]

    def reconcile(self, scope: dict[str, Any]) -> dict[str, Any]:
        """Look at the globals that a function has brought, and return them; what the client has changed counts."""
        own = dict(scope)
        module = _module(scope)
        known, sent = self._modules.get(module, {}), self._sent.setdefault(module, {})
        for name in known.keys() & own.keys():
            now = _fingerprint(own[name])
            if sent.setdefault(name, now) != now:
                del known[name]
                sent[name] = now
        return own

    def call(
        self, function: Callable[..., Any], scope: dict[str, Any], own: dict[str, Any], /, *args: Any, **kwargs: Any
    ) -> Any:
        """Call a function, whose globals are `scope`, with what others have set, and keep what it sets itself.

        Args:
            function: what to call.
            scope: its globals.
            own: those that it has brought.
            args, kwargs: its arguments.
        """
        module = _module(scope)
        known = self._modules.setdefault(module, {})
        scope.update(own)
        scope.update(known)
        before = dict(scope)
        try:
            return function(*args, **kwargs)
        finally:
            for name, value in list(scope.items()):
                if name not in before or before[name] is not value:
                    known[name] = value
                    if name in own:
                        self._sent.setdefault(module, {})[name] = _fingerprint(own[name])

    def concerns(self, scope: dict[str, Any]) -> bool:
        """Say whether anything was set that functions with these globals should see."""
        return bool(self._modules.get(_module(scope)))


def _module(scope: dict[str, Any]) -> str:
    name: str = scope.get("__name__", "__main__")
    return name


def _fingerprint(value: Any) -> Any:
    """Return something that differs when the client has sent another value."""
    if type(value) in ATOMS:
        return type(value), repr(value)
    if isinstance(value, _CODE):
        return type(value), getattr(value, "__qualname__", value.__name__), getattr(value, "__code__", None)
    try:
        return type(value), pack_whole(value)
    except Exception:  # noqa: BLE001  (it is the value's own code; calls may have made it what cannot be pickled)
        return type(value), None


def _innermost(function: Any) -> Any:
    while isinstance(function, (partial, MethodType)):
        function = function.func if isinstance(function, partial) else function.__func__
    return function


def scope_of(function: Any) -> dict[str, Any] | None:
    """Return the globals of a callable that came by value; None where they are those of a module, or none at all."""
    function = _innermost(function)
    if not isinstance(function, FunctionType):
        function = type(function).__dict__.get("__call__")
        if not isinstance(function, FunctionType):
            return None
    module = sys.modules.get(function.__module__)
    return None if module is not None and function.__globals__ is module.__dict__ else function.__globals__


def may_set_globals(function: Any, scope: dict[str, Any]) -> bool:
    """Say whether a callable, or a function that shares its globals, which are `scope`, may set one of them."""
    function = _innermost(function)
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
