"""OpenQASM 3 read by its reference parser; its constant expressions; its faults, each with line and column."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import openqasm3
from openqasm3 import ast
from openqasm3.parser import QASM3ParsingError

from qraf.errors import InvalidState

__all__ = ["SOURCE_MAX", "Number", "Scope", "evaluate", "fault", "parse", "whole_number"]

SOURCE_MAX = 2**18
"""Characters of a program; the parser takes five to nine seconds for as many."""

Number: TypeAlias = "bool | int | float"
Scope: TypeAlias = Mapping[str, Number]

_CONSTANTS: dict[str, Number] = {"pi": math.pi, "π": math.pi, "tau": math.tau, "τ": math.tau}
_CONSTANTS |= {"euler": math.e, "ℇ": math.e}
_FUNCTIONS: dict[str, Callable[..., Number]] = {
    "arccos": math.acos,
    "arcsin": math.asin,
    "arctan": math.atan,
    "ceiling": math.ceil,
    "cos": math.cos,
    "exp": math.exp,
    "floor": math.floor,
    "log": math.log,
    "mod": math.fmod,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tan": math.tan,
}
_BINARY: dict[str, Callable[[Any, Any], Number]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "%": operator.mod,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "&": operator.and_,
    "|": operator.or_,
    "^": operator.xor,
    "&&": lambda a, b: bool(a) and bool(b),
    "||": lambda a, b: bool(a) or bool(b),
}
_LARGEST = 2**63
_NESTING_MAX = 100


def parse(source: str) -> ast.Program:
    """Read a program.

    Raises:
        InvalidState: too long, no OpenQASM 3; the name is `circuit:line:column`, columns from 1.
    """
    if len(source) > SOURCE_MAX:
        raise InvalidState("circuit", f"have at most {SOURCE_MAX} characters", f"has {len(source)}")
    if not source.strip():
        raise InvalidState("circuit", "be OpenQASM 3", "is empty")
    _check_nesting(source)
    try:
        program = openqasm3.parse(source)
    except RecursionError:
        raise InvalidState("circuit", "nest less deeply", "nests too deep for the parser") from None
    except QASM3ParsingError as error:
        raise _syntax(error) from None
    except Exception as error:  # the parser's visitor trips over some programs that its grammar lets pass
        raise InvalidState("circuit", "be OpenQASM 3", f"does not parse: {error}") from None
    if program.version is not None and program.version.split(".")[0] != "3":
        raise InvalidState("circuit:1:1", "be OpenQASM 3", f"is OpenQASM {program.version}")
    return program


def fault(node: ast.QASMNode, need: str, got: str = "") -> InvalidState:
    """The error for a part of a program, with its line and column."""
    span = node.span
    where = f":{span.start_line}:{span.start_column + 1}" if span else ""
    return InvalidState(f"circuit{where}", need, got)


def evaluate(node: ast.Expression, scope: Scope, at: ast.QASMNode) -> Number:
    """The value of a constant expression. Faults are placed at `at`, the statement that holds it.

    Whole numbers divide only without remainder: 1/2 is 0 to one reader of the language and 0.5 to another.

    Raises:
        InvalidState: a name that is not known, an operation that is not, a value out of range.
    """
    try:
        value = _value(node, scope, at)
    except (ArithmeticError, ValueError, TypeError) as error:
        raise fault(at, "hold expressions that have a value", f"one has none: {error}") from None
    if isinstance(value, complex) or not math.isfinite(value) or abs(value) >= _LARGEST:
        raise fault(at, "hold real numbers below 2^63", f"holds {value!r:.40}")
    return value


def whole_number(node: ast.Expression, scope: Scope, at: ast.QASMNode) -> int:
    """As `evaluate`, and it must be a whole number."""
    value = evaluate(node, scope, at)
    if isinstance(value, float):
        raise fault(at, "have a whole number there", f"has {value:g}")
    return int(value)


def _value(node: ast.Expression, scope: Scope, at: ast.QASMNode) -> Number:
    match node:
        case ast.IntegerLiteral() | ast.FloatLiteral() | ast.BooleanLiteral() | ast.BitstringLiteral():
            return node.value
        case ast.Identifier():
            found = scope.get(node.name, _CONSTANTS.get(node.name))
            if found is None:
                raise fault(at, "name constants, loop variables or parameters", f"names '{node.name}'")
            return found
        case ast.IndexExpression(collection=ast.Identifier(name=name), index=[index]) if isinstance(
            index, ast.Expression
        ):
            size = scope.get(f"{name}[]")
            place = whole_number(index, scope, at)
            if size is None or not -size <= place < size:
                raise fault(at, "name bits that are declared", f"names '{name}[{place}]'")
            return scope[f"{name}[{place % int(size)}]"]
        case ast.UnaryExpression():
            return _unary(node, scope, at)
        case ast.BinaryExpression():
            return _binary(node, scope, at)
        case ast.FunctionCall() if node.name.name in _FUNCTIONS:
            return _FUNCTIONS[node.name.name](*(evaluate(one, scope, at) for one in node.arguments))
    raise fault(at, "use numbers, constants, operators and functions", f"uses {_kind(node)}")


def _unary(node: ast.UnaryExpression, scope: Scope, at: ast.QASMNode) -> Number:
    value = evaluate(node.expression, scope, at)
    if node.op.name == "-":
        return -value
    if node.op.name == "!" or isinstance(value, bool):
        return not value
    raise fault(at, "use the signs - and !", f"uses '{node.op.name}'")


def _binary(node: ast.BinaryExpression, scope: Scope, at: ast.QASMNode) -> Number:
    a, b, sign = evaluate(node.lhs, scope, at), evaluate(node.rhs, scope, at), node.op.name
    if sign == "/":
        if isinstance(a, float) or isinstance(b, float):
            return a / b
        if a % b:
            raise fault(at, "divide whole numbers without remainder", f"has {a}/{b}; write {a}.0/{b}")
        return a // b
    if sign == "**":
        power: Number = float(a) ** b if abs(a) > 1 and abs(b) > 63 else a**b
        return power
    if sign in _BINARY:
        return _BINARY[sign](a, b)
    raise fault(at, "use a known operator", f"uses '{sign}'")


def _check_nesting(source: str) -> None:
    """The parser takes seconds for thousands of open brackets; comments count, which harms nobody."""
    depth = 0
    for found in re.finditer(r"[()\[\]{}]", source):
        depth += 1 if found[0] in "([{" else -1
        if depth > _NESTING_MAX:
            line, column = (
                source.count("\n", 0, found.start()) + 1,
                found.start() - source.rfind("\n", 0, found.start()),
            )
            raise InvalidState(f"circuit:{line}:{column}", f"nest at most {_NESTING_MAX} brackets", "nests more")


def _syntax(error: QASM3ParsingError) -> InvalidState:
    found = re.match(r"L(\d+):C(\d+): (.*)", str(error), re.DOTALL)
    if found:
        line, column, text = int(found[1]), int(found[2]), found[3]
        return InvalidState(f"circuit:{line}:{column + 1}", "be OpenQASM 3", f"is not: {text}")
    cause: Any = error.__cause__
    token = getattr(cause.args[0] if cause is not None and cause.args else None, "offendingToken", None)
    if token is None:
        return InvalidState("circuit", "be OpenQASM 3", f"does not parse: {error}")
    text = "the end of the text" if token.type == -1 else f"'{token.text}'"
    return InvalidState(f"circuit:{token.line}:{token.column + 1}", "be OpenQASM 3", f"has {text} where none can be")


def _kind(node: ast.QASMNode) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", " ", type(node).__name__).lower()
