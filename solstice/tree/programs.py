"""Programs: what a function computes and what it needs; traced, never run."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters import partial_eval

from solstice.tree.pytree import PyTree

# The modules of jax's functions, such as relu.
_JAX = f"{Path(jax.__file__).parent}{os.sep}"

# Equations that only call another program.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")
# Equations that call a program more than once or not at all.
_LOOPS = ("scan", "while", "cond")
_T = TypeVar("_T")


class Program(NamedTuple):
    """What a function computes.

    Attributes:
        used: Which leaves of its arguments it needs.
        steps: What it computes from them. Two functions that compute the same, and differ only in
            what they do not need, have equal steps.
        has_own_derivatives: Whether it calls a function with a custom derivative outside jax. What
            only that derivative takes is not needed.
    """

    used: list[bool]
    steps: list[tuple[str, list[str], list[str]]]
    has_own_derivatives: bool


def program(function: Callable[..., PyTree], *arguments: PyTree) -> Program:
    """Return what a function computes.

    >>> program(lambda x, y: x + 1, 1.0, 2.0)
    Program(used=[True, False], steps=[('add', ['1.0'], ['~float32[]'])], has_own_derivatives=False)
    """
    # A new function: jax hashes what it traces, and a half-built module cannot be hashed.
    jaxpr = jax.make_jaxpr(lambda *given: function(*given))(*arguments)  # noqa: PLW0108
    own = any(map(_has_own_derivative, equations(jaxpr.jaxpr)))
    if own:
        traced = jaxpr
        jaxpr = jax.make_jaxpr(
            lambda *leaves: evaluate(traced.jaxpr, traced.consts, leaves, _without_own_derivative)
        )(*jax.tree.leaves(arguments))
    needed, used = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.out_avals))
    steps = [
        (
            eqn.primitive.name,
            [str(one.val) for one in eqn.invars if isinstance(one, Literal)],
            [str(one.aval) for one in eqn.outvars],
        )
        for eqn in equations(needed)
    ]
    return Program(used, steps, own)


def _has_own_derivative(eqn: JaxprEqn) -> bool:
    if not eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call")):
        return False
    return _JAX not in str(eqn.params["call_jaxpr"].jaxpr.debug_info.func_src_info)


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Yield a program's equations, and those of the programs that it calls.

    >>> nested = jax.make_jaxpr(jax.jit(lambda x: x + 1))(1.0).jaxpr
    >>> [eqn.primitive.name for eqn in equations(nested)]
    ['jit', 'add']
    """
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_programs(eqn):
            yield from equations(inner)


def inner_programs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """Yield the programs that an equation calls.

    >>> [len(one.eqns) for one in inner_programs(jax.make_jaxpr(jax.jit(jax.lax.sin))(1.0).eqns[0])]
    [1]
    """
    for value in eqn.params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            inner = getattr(part, "jaxpr", part)
            if hasattr(inner, "eqns"):
                yield inner


def scan_parts(eqn: JaxprEqn) -> tuple[int, int]:
    """Return how many operands of a scan are constants, and how many are carried.

    The operands that follow are scanned over.

    >>> count = lambda carry, x: (carry + x, carry)
    >>> (scan,) = jax.make_jaxpr(lambda xs: jax.lax.scan(count, 0.0, xs))(jax.numpy.ones(3)).eqns
    >>> scan_parts(scan)
    (0, 1)
    """
    if "num_consts" in eqn.params:  # before jax 0.11
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()
    return len(consts), len(carry)


def evaluate(
    jaxpr: Jaxpr,
    consts: Iterable[_T],
    given: Iterable[_T],
    equation: Callable[[JaxprEqn, list[_T]], Sequence[_T]],
    literal: Callable[[Any], _T] = lambda value: value,
) -> list[_T]:
    """Evaluate a program, one equation after the other, with any kind of values.

    What is not used again is let go of, as when the program runs by itself.

    Args:
        jaxpr: The program.
        consts: The values of its constants.
        given: The values of its arguments.
        equation: Returns the values that an equation gives for its operands' values, as `bind`
            does for arrays.
        literal: Returns the value of a number in the program.

    >>> closed = jax.make_jaxpr(lambda x: x * 2 + 1)(1.0)
    >>> evaluate(closed.jaxpr, closed.consts, [3.0], bind)
    [Array(7., dtype=float32, weak_type=True)]
    """
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *given], strict=True))

    def read(atom: Var | Literal) -> _T:
        return literal(atom.val) if isinstance(atom, Literal) else values[atom]

    last: dict[Any, Any] = {one: eqn for eqn in jaxpr.eqns for one in _variables(eqn.invars)}
    last |= dict.fromkeys(_variables(jaxpr.outvars))
    for eqn in jaxpr.eqns:
        values.update(zip(eqn.outvars, equation(eqn, list(map(read, eqn.invars))), strict=True))
        for one in _variables(eqn.invars):
            if last[one] is eqn:
                values.pop(one, None)
    return list(map(read, jaxpr.outvars))


def _variables(atoms: Iterable[Any]) -> list[Var]:
    return [one for one in atoms if isinstance(one, Var)]


def called(eqn: JaxprEqn) -> tuple[Jaxpr, list[Any]] | None:
    """Return the program that an equation only calls, as one of `jit` does, and its constants.

    >>> eqn = jax.make_jaxpr(jax.jit(jax.lax.sin))(1.0).eqns[0]
    >>> program, constants = called(eqn)
    >>> len(program.eqns), constants
    (1, [])
    """
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    inner = next((eqn.params[key] for key in keys if key in eqn.params), None)
    return None if inner is None or eqn.primitive.name in _LOOPS else opened(inner)


def opened(jaxpr: Any) -> tuple[Jaxpr, list[Any]]:
    """Return a program, closed or open, and its constants."""
    return (jaxpr.jaxpr, jaxpr.consts) if hasattr(jaxpr, "consts") else (jaxpr, [])


def _without_own_derivative(eqn: JaxprEqn, given: list[Any]) -> list[Any]:
    """Evaluate an equation; a function with a custom derivative outside jax like any other."""
    if _has_own_derivative(eqn):
        inner = eqn.params["call_jaxpr"]
    elif eqn.primitive.name in _CALLS:
        inner = eqn.params["jaxpr"]
    else:
        return bind(eqn, given)
    return evaluate(*opened(inner), given, _without_own_derivative)


def bind(eqn: JaxprEqn, given: Iterable[Any]) -> list[Any]:
    """Return what an equation of a program gives for these operands.

    >>> bind(jax.make_jaxpr(jax.lax.add)(1.0, 1.0).eqns[0], [2.0, 3.0])
    [Array(5., dtype=float32, weak_type=True)]
    """
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # before 0.10
    with eqn.ctx.manager:
        outs = eqn.primitive.bind(*functions, *given, **params)
    return outs if eqn.primitive.multiple_results else [outs]
