"""Read a block's forward as text: which module's output each branch adds to the residual stream, and who is given
another tower's states. Nothing is run; every call is followed by name through the block's own modules.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass, field, replace
from functools import cache
from types import FunctionType
from typing import Any

from torch import nn

from .modules import CONVS, forward_of, is_list, is_norm, is_plain, linear_sizes, of_torch


@dataclass(frozen=True)
class Flow:
    """A tensor in the block: the modules it came through, and whether it is still the residual stream itself.

    `terms` are the parts of a sum that has not been added to the stream yet: last module, and all modules.
    """

    terms: tuple[tuple[str | None, frozenset[str]], ...] = ((None, frozenset()),)
    stream: bool = False
    roots: frozenset[str] = frozenset()

    @property
    def through(self) -> frozenset[str]:
        return frozenset().union(*(through for _, through in self.terms))


@dataclass(frozen=True)
class Addition:
    """One addition to the residual stream: the module whose output is added, and all modules that it came through."""

    last: str | None
    through: frozenset[str]


@dataclass
class Wiring:
    """What the reader found in one block."""

    additions: list[Addition] = field(default_factory=list)
    states: dict[str, tuple[str, ...]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Module:
    path: str
    module: nn.Module


@dataclass(frozen=True)
class _Function:
    function: FunctionType
    owner: _Module | None


def read_wiring(block: nn.Module, path: str, mixers: list[str]) -> Wiring:
    """Follow the block's forward from its first argument; an empty Wiring where its source is not to be had."""
    wiring = Wiring()
    reader = _Reader(wiring, set(mixers))
    owner = _Module(path, block)
    function = forward_of(block)
    try:
        if is_list(block) or not isinstance(function, FunctionType):
            return wiring
        names = [name for name in inspect.signature(function).parameters if name != "self"]
        given = {name: Flow(stream=position == 0, roots=frozenset({name})) for position, name in enumerate(names)}
        reader.run(function, owner, given)
    except (RecursionError, OSError, TypeError, SyntaxError):
        return Wiring()
    return wiring


@cache
def _tree(function: FunctionType) -> ast.FunctionDef:
    return ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]  # type: ignore[return-value]


def _first(value: Any) -> Flow | None:
    if isinstance(value, Flow):
        return value
    if isinstance(value, list):
        return next((flow for item in value if (flow := _first(item)) is not None), None)
    return None


def _union(values: list[Any]) -> Flow | None:
    flows = [flow for value in values if (flow := _first(value)) is not None]
    if len(flows) < 2:
        return flows[0] if flows else None
    leading = max(flows, key=lambda flow: len(flow.through))
    through = frozenset().union(*(flow.through for flow in flows))
    roots = frozenset().union(*(flow.roots for flow in flows))
    return Flow(((leading.terms[-1][0], through),), flows[0].stream, roots)


class _Reader:
    """An abstract interpreter of forwards in which every tensor is a Flow."""

    def __init__(self, wiring: Wiring, mixers: set[str]) -> None:
        self.wiring = wiring
        self.mixers = mixers
        self.depth = 0

    def run(self, function: FunctionType, owner: _Module | None, given: dict[str, Any]) -> Any:
        """Read one function's body with these arguments; the richest thing that it returns."""
        if self.depth > 8:
            return _union(list(given.values()))
        self.depth += 1
        scope: dict[str, Any] = dict(given)
        returned: list[Any] = []
        frame = _Frame(self, owner, function.__globals__, scope, returned)
        try:
            frame.body(_tree(function).body)
        finally:
            self.depth -= 1
        return max(returned, key=lambda value: len(flow.through) if (flow := _first(value)) else -1, default=None)

    def add(self, left: Any, right: Any) -> Flow | None:
        """`left + right`: an addition to the stream when one of them is the stream and the other a branch."""
        left, right = _first(left), _first(right)
        if left is None or right is None:
            return left or right
        if left.stream == right.stream:
            if left.stream:
                return left
            return Flow(left.terms + right.terms, False, left.roots | right.roots)
        stream, branch = (left, right) if left.stream else (right, left)
        if not branch.through:
            return stream
        for last, through in branch.terms:
            self.wiring.additions.append(Addition(last, through - stream.through))
        return Flow(((None, stream.through | branch.through),), True, stream.roots)

    def call_module(self, target: _Module, args: list[Any], kwargs: dict[str, Any]) -> Any:
        path, module = target.path, target.module
        self.wiring.calls.append(path)
        flow = _first(args + list(kwargs.values()))
        if path in self.mixers:
            self._note_states(target, args, kwargs)
            merged = _union(args[:1] + list(kwargs.values()) if args else list(kwargs.values())) or Flow()
            return Flow(((path, merged.through | {path}),), False, merged.roots)
        if flow is None:
            return None
        if is_norm(module):
            last = None if flow.stream else path
            return replace(flow, terms=((last, flow.through | {path}),))
        if linear_sizes(module) is not None or isinstance(module, (*CONVS, nn.MultiheadAttention)):
            return Flow(((path, flow.through | {path}),), False, flow.roots)
        function = forward_of(module)
        if is_list(module):
            for name, child in module.named_children():
                flow = _first(self.call_module(_Module(f"{path}.{name}", child), [flow], {})) or flow
            return Flow(((path, flow.through | {path}),), False, flow.roots)
        if is_plain(module) or not isinstance(function, FunctionType) or of_torch(function):
            return flow
        before = len(self.wiring.additions)
        result = self.call(_Function(function, target), args, kwargs)
        if len(self.wiring.additions) > before:
            return result
        merged = _union([result, *args, *kwargs.values()]) or flow
        return Flow(((path, merged.through | {path}),), False, merged.roots)

    def call(self, target: _Function, args: list[Any], kwargs: dict[str, Any]) -> Any:
        names = list(inspect.signature(target.function).parameters)
        if target.owner is not None:
            names = names[1:]
        given = (
            dict.fromkeys(names)
            | dict(zip(names, args, strict=False))
            | {key: kwargs[key] for key in kwargs if key in names}
        )
        return self.run(target.function, target.owner, given)

    def _note_states(self, target: _Module, args: list[Any], kwargs: dict[str, Any]) -> None:
        from .probe import states_parameters

        names = [name for name in inspect.signature(forward_of(target.module)).parameters if name != "self"]
        given = dict(zip(names, args, strict=False)) | kwargs
        own = _first(args) or _first(list(kwargs.values())) or Flow()
        passed = [
            name
            for name in states_parameters(target.module)
            if (flow := _first(given.get(name))) is not None and flow.roots - own.roots
        ]
        self.wiring.states[target.path] = tuple(passed)


class _Frame:
    """The statements and expressions of one function."""

    def __init__(
        self, reader: _Reader, owner: _Module | None, outer: dict[str, Any], scope: dict[str, Any], returned: list[Any]
    ) -> None:
        self.reader, self.owner, self.outer, self.scope, self.returned = reader, owner, outer, scope, returned

    def body(self, statements: list[ast.stmt]) -> bool:
        """Read statements in order; True when the last one read returns."""
        return any(self.statement(statement) for statement in statements)

    def statement(self, node: ast.stmt) -> bool:
        match node:
            case ast.Return(value=value):
                self.returned.append(self.value(value) if value else None)
                return True
            case ast.Assign(targets=targets, value=value):
                result = self.value(value)
                for target in targets:
                    self.assign(target, result)
            case ast.AnnAssign(target=target, value=value) if value is not None:
                self.assign(target, self.value(value))
            case ast.AugAssign(target=ast.Name() as target, op=ast.Add(), value=value):
                self.assign(target, self.reader.add(self.value(target), self.value(value)))
            case ast.Expr(value=value):
                self.value(value)
            case ast.If(test=test, body=body, orelse=orelse):
                return self.branch(test, body, orelse)
            case ast.For(target=target, iter=source, body=body):
                sequence = self.value(source)
                for item in sequence[:8] if isinstance(sequence, list) else [_first(sequence)]:
                    self.assign(target, item)
                    self.body(body)
            case ast.With(body=body) | ast.Try(body=body):
                return self.body(body)
        return False

    def branch(self, test: ast.expr, body: list[ast.stmt], orelse: list[ast.stmt]) -> bool:
        verdict = self.truth(test)
        if verdict is not None:
            return self.body(body if verdict else orelse)
        before = dict(self.scope)
        left = self.body(body)
        after = dict(self.scope)
        self.scope.clear()
        self.scope.update(before)
        right = self.body(orelse)
        for name, value in after.items():
            mine, other = _first(self.scope.get(name)), _first(value)
            if not left and (right or mine is None or (other is not None and len(other.through) > len(mine.through))):
                self.scope[name] = value
        return left and right

    def truth(self, node: ast.expr) -> bool | None:
        """Whether a condition holds, where that depends on the module or on which arguments were given."""
        match node:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                verdict = self.truth(operand)
                return None if verdict is None else not verdict
            case ast.BoolOp(op=op, values=values):
                verdicts = [self.truth(value) for value in values]
                decisive = isinstance(op, ast.Or)
                if decisive in verdicts:
                    return decisive
                return None if None in verdicts else not decisive
            case ast.Compare(
                left=ast.Name(id=name), ops=[ast.Is() | ast.IsNot() as op], comparators=[ast.Constant(value=None)]
            ):
                if name in self.scope:
                    return (self.scope[name] is None) == isinstance(op, ast.Is)
                return None
            case ast.Name(id=name) if name in self.scope and isinstance(self.scope[name], _Module):
                return True
        names = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
        if self.owner is None or not names <= {"self", "hasattr", "getattr", "isinstance", "len"} | set(self.outer):
            return None
        try:
            return bool(
                eval(compile(ast.Expression(node), "<wiring>", "eval"), self.outer, {"self": self.owner.module})
            )
        except Exception:  # a condition on the module that cannot be read is one that is not known
            return None

    def assign(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name(id=name):
                self.scope[name] = value
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                fits = isinstance(value, list) and len(value) == len(targets)
                items = value if fits else [_first(value)] * len(targets)
                for item, inner in zip(targets, items, strict=True):
                    self.assign(item, inner)
            case ast.Starred(value=inner):
                self.assign(inner, value)

    def value(self, node: ast.expr) -> Any:
        match node:
            case ast.Name(id="self") if self.owner is not None:
                return self.owner
            case ast.Name(id=name):
                if name in self.scope:
                    return self.scope[name]
                found = self.outer.get(name)
                return _Function(found, None) if isinstance(found, FunctionType) else None
            case ast.Attribute(value=inner, attr=attr):
                return self.attribute(self.value(inner), attr)
            case ast.Subscript(value=inner, slice=index):
                return self.subscript(self.value(inner), index)
            case ast.BinOp(left=left, op=op, right=right):
                return self.operation(self.value(left), op, self.value(right))
            case ast.Tuple(elts=items) | ast.List(elts=items):
                return [self.value(item) for item in items]
            case ast.IfExp(test=test, body=body, orelse=orelse):
                verdict = self.truth(test)
                if verdict is not None:
                    return self.value(body if verdict else orelse)
                return _first(self.value(body)) or _first(self.value(orelse))
            case ast.Call():
                return self.call(node)
            case ast.Starred(value=inner) | ast.NamedExpr(value=inner) | ast.UnaryOp(operand=inner):
                return self.value(inner)
        return None

    def attribute(self, value: Any, attr: str) -> Any:
        if not isinstance(value, _Module):
            return value if isinstance(value, (Flow, list)) else None
        child = value.module._modules.get(attr)
        if child is not None:
            return _Module(f"{value.path}.{attr}", child)
        method = inspect.getattr_static(type(value.module), attr, None)
        return _Function(inspect.unwrap(method), value) if isinstance(method, FunctionType) else None

    def subscript(self, value: Any, index: ast.expr) -> Any:
        try:
            key = ast.literal_eval(index)
        except ValueError:
            return _first(value) if not isinstance(value, _Module) else None
        if isinstance(value, _Module) and is_list(value.module) and isinstance(key, int):
            names = list(value.module._modules)
            name = names[key]
            return _Module(f"{value.path}.{name}", value.module.get_submodule(name))
        if isinstance(value, list) and isinstance(key, int) and -len(value) <= key < len(value):
            return value[key]
        return _first(value)

    def operation(self, left: Any, op: ast.operator, right: Any) -> Any:
        if not isinstance(op, ast.Add):
            return _union([left, right])
        if isinstance(left, list) or isinstance(right, list):
            return (left if isinstance(left, list) else [left]) + (right if isinstance(right, list) else [right])
        return self.reader.add(left, right)

    def call(self, node: ast.Call) -> Any:
        target = self.value(node.func)
        args = [self.value(argument) for argument in node.args]
        kwargs = {keyword.arg: self.value(keyword.value) for keyword in node.keywords if keyword.arg}
        handed = next((value for value in args if isinstance(value, (_Function, _Module))), None)
        if isinstance(target, _Module):
            return self.reader.call_module(target, args, kwargs)
        given = any(_first(value) for value in [*args, *kwargs.values()])
        if isinstance(target, _Function) and handed is None and given and not of_torch(target.function):
            return self.reader.call(target, args, kwargs)
        if handed is not None and _first(args) is not None:
            flows = [value for value in args if _first(value) is not None]
            if isinstance(handed, _Module):
                return self.reader.call_module(handed, flows, kwargs)
            return self.reader.call(handed, flows, kwargs)
        inner = [target] if isinstance(target, (Flow, list)) else []
        return _union([*inner, *args, *kwargs.values()])
