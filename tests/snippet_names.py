"""The names in code that is not run: imports, attributes and keyword arguments exist.

What another package that is not installed here brings, and all that is made with it, is unknown
and passes.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from pydantic import BaseModel

_OURS: Final = ("emberd", "langchain_emberd")


class _Unknown:
    """A value of which nothing is known."""


@dataclass(frozen=True)
class _Instance:
    """An object of a class."""

    kind: type


_UNKNOWN: Final = _Unknown()


def faults(code: str, place: str) -> list[str]:
    """Return what is wrong with the names in a program.

    Args:
        code: The program.
        place: Where it is, for the messages.

    Raises:
        SyntaxError: It does not compile.
    """
    compile(code, place, "exec", dont_inherit=True, flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    checker = _Checker(place)
    checker.visit(ast.parse(code))
    return checker.found


@dataclass
class _Checker(ast.NodeVisitor):
    place: str
    names: dict[str, Any] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)

    def visit_Import(self, node: ast.Import) -> None:
        """Bind what an ``import`` brings."""
        for alias in node.names:
            module = self._module(alias.name, node)
            if alias.asname:
                self.names[alias.asname] = module
            else:
                top = alias.name.partition(".")[0]
                self.names[top] = _UNKNOWN if module is _UNKNOWN else importlib.import_module(top)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """Bind what a ``from … import`` brings."""
        module = self._module(node.module or "", node)
        for alias in node.names:
            value = module if module is _UNKNOWN else self._attribute(module, alias.name, node)
            self.names[alias.asname or alias.name] = value

    def visit_Assign(self, node: ast.Assign) -> None:
        """Bind what is assigned."""
        value = self._value(node.value)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self.names[target.id] = value
            else:
                self.visit(target)

    def visit_Call(self, node: ast.Call) -> None:
        """Check a call and all that is in it."""
        self._value(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Check an attribute."""
        self._value(node)

    def _module(self, name: str, node: ast.stmt) -> Any:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = error.name or ""
            if missing.startswith(_OURS) or missing.endswith(".emberd"):
                self._fault(node, f"there is no module {name}")
            return _UNKNOWN

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self.names.get(node.id, _UNKNOWN)
        if isinstance(node, ast.Attribute):
            return self._attribute(self._value(node.value), node.attr, node)
        if isinstance(node, ast.Call):
            function = self._value(node.func)
            for part in (*node.args, *(keyword.value for keyword in node.keywords)):
                self._value(part)
            self._check_keywords(function, node)
            return _Instance(function) if isinstance(function, type) else _UNKNOWN
        self.generic_visit(node)
        return _UNKNOWN

    def _attribute(self, owner: Any, name: str, node: ast.AST) -> Any:
        if isinstance(owner, _Unknown):
            return _UNKNOWN
        if isinstance(owner, _Instance):
            kind = owner.kind
            if name in _fields(kind):
                return _UNKNOWN
            if not hasattr(kind, name):
                # Objects of other packages can have attributes that only __init__ makes.
                if kind.__module__.startswith(_OURS) or kind.__module__.endswith("emberd.base"):
                    self._fault(node, f"{kind.__name__} has no attribute {name}")
                return _UNKNOWN
            value = getattr(kind, name)
            return value if isinstance(value, FunctionType | MethodType) else _UNKNOWN
        if isinstance(owner, ModuleType | type):
            try:
                return getattr(owner, name)
            except AttributeError:
                return self._submodule(owner, name, node)
        return _UNKNOWN

    def _submodule(self, owner: Any, name: str, node: ast.AST) -> Any:
        if isinstance(owner, ModuleType):
            try:
                return importlib.import_module(f"{owner.__name__}.{name}")
            except ImportError:
                pass
        self._fault(node, f"{owner.__name__} has no attribute {name}")
        return _UNKNOWN

    def _check_keywords(self, function: Any, node: ast.Call) -> None:
        if isinstance(function, _Unknown | _Instance) or not callable(function):
            return
        known = _keywords(function)
        if known is None:
            return
        for keyword in node.keywords:
            if keyword.arg and keyword.arg not in known:
                name = getattr(function, "__name__", function)
                self._fault(node, f"{name} has no argument {keyword.arg}")

    def _fault(self, node: Any, text: str) -> None:
        self.found.append(f"{self.place}:{node.lineno}: {text}")


def _fields(kind: type) -> set[str]:
    names = {name for one in kind.__mro__ for name in inspect.get_annotations(one)}
    return names | set(getattr(kind, "__slots__", ()))


def _keywords(function: Callable[..., Any]) -> set[str] | None:
    """Return the keyword arguments of a callable, None if it takes any."""
    if isinstance(function, type) and issubclass(function, BaseModel):
        if function.model_config.get("extra") == "allow":
            return None
        names = set(_of_model(function))
        if function.__init__ is BaseModel.__init__:
            return names
        own = _keywords(function.__init__)
        return names if own is None else names | own
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def _of_model(model: type[BaseModel]) -> Iterator[str]:
    for name, info in model.model_fields.items():
        yield name
        for alias in (info.alias, info.validation_alias):
            if isinstance(alias, str):
                yield alias
