"""Programs: what a function computes and what it needs; traced, never run."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var
from jax.interpreters import partial_eval
from numpy.typing import ArrayLike

from solstice.tree.pytree import PyTree

# The modules of jax's functions, such as relu.
_JAX = f"{Path(jax.__file__).parent}{os.sep}"

# Equations that only call another program.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")


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
    own = any(map(_has_own_derivative, _equations(jaxpr.jaxpr)))
    if own:
        traced = jaxpr
        jaxpr = jax.make_jaxpr(lambda *leaves: _evaluate(traced.jaxpr, traced.consts, leaves))(
            *jax.tree.leaves(arguments)
        )
    needed, used = partial_eval.dce_jaxpr(jaxpr.jaxpr, [True] * len(jaxpr.out_avals))
    steps = [
        (
            eqn.primitive.name,
            [str(one.val) for one in eqn.invars if isinstance(one, Literal)],
            [str(one.aval) for one in eqn.outvars],
        )
        for eqn in _equations(needed)
    ]
    return Program(used, steps, own)


def _has_own_derivative(eqn: JaxprEqn) -> bool:
    if not eqn.primitive.name.startswith(("custom_jvp_call", "custom_vjp_call")):
        return False
    return _JAX not in str(eqn.params["call_jaxpr"].jaxpr.debug_info.func_src_info)


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Yield a program's equations, and those of the programs that it calls."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in inner_programs(eqn):
            yield from _equations(inner)


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


def _evaluate(
    jaxpr: Jaxpr, consts: Iterable[ArrayLike], arguments: Iterable[ArrayLike]
) -> list[ArrayLike]:
    """Evaluate a program, treating functions with custom derivatives as any others."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))

    def read(variable: Var | Literal) -> ArrayLike:
        return variable.val if isinstance(variable, Literal) else values[variable]

    for eqn in jaxpr.eqns:
        given = list(map(read, eqn.invars))
        if _has_own_derivative(eqn):
            inner = eqn.params["call_jaxpr"]
            outs = _evaluate(inner.jaxpr, inner.consts, given)
        elif eqn.primitive.name in _CALLS:
            inner = eqn.params["jaxpr"]
            outs = _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), given)
        else:
            outs = bind(eqn, given)
        values.update(zip(eqn.outvars, outs, strict=True))
    return list(map(read, jaxpr.outvars))


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
