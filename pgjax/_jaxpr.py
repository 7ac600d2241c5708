"""Traced programs, read and evaluated equation by equation."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
from jax.extend import core

Values: TypeAlias = dict[Any, Any]
"""What variables of a program are known to be."""

Draw: TypeAlias = Callable[..., Any]
"""Evaluates an equation that draws random numbers: `(eqn, *inputs) -> output`."""


def trace(f: Callable[..., Any], *inputs: Any, draw: Draw | None = None) -> core.ClosedJaxpr:
    """The program of a function of flat inputs, without nested `jit`s.

    Args:
        f: of arrays; gives a list of arrays.
        *inputs: arrays, or their shapes and dtypes.
        draw: see `run`.

    Returns:
        The program.
    """
    nested = jax.make_jaxpr(f)(*inputs)
    return jax.make_jaxpr(lambda *inputs: _evaluate(nested, inputs, draw))(*inputs)


def run(eqns: Iterable[core.JaxprEqn], known: Values, draw: Draw | None = None) -> None:
    """Evaluate equations, and dissolve nested `jit`s.

    Args:
        eqns: in an order in which they can be evaluated.
        known: all that they need; what they give is written into it.
        draw: evaluates equations that are `is_draw`; None: as any other.
    """
    for eqn in eqns:
        inputs = [read(known, v) for v in eqn.invars]
        if eqn.primitive.name == "jit":
            outs = _evaluate(eqn.params["jaxpr"], inputs, draw)
        elif draw is not None and is_draw(eqn):
            outs = [draw(eqn, *inputs)]
        else:
            out = bind(eqn, *inputs)
            outs = out if eqn.primitive.multiple_results else [out]
        known.update(zip(eqn.outvars, outs, strict=True))


def bind(eqn: core.JaxprEqn, *inputs: Any) -> Any:
    """An equation's primitive, applied to inputs.

    Returns:
        What the primitive gives: a value, or a list where it has several.
    """
    return eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))


def is_draw(eqn: core.JaxprEqn) -> bool:
    """Whether an equation makes random bits, or keys, of a key; a bool."""
    return eqn.primitive.name in ("random_bits", "random_split", "random_fold_in")


def read(known: Mapping[Any, Any], v: Any) -> Any:
    """The value of a variable or a literal, of whatever shape it is."""
    return v.val if isinstance(v, core.Literal) else known[v]


def variables(values: Iterable[Any]) -> list[Any]:
    """What of an equation's inputs is no literal, in their order."""
    return [v for v in values if not isinstance(v, core.Literal)]


def given(program: core.ClosedJaxpr, inputs: Iterable[Any]) -> Values:
    """What is known before the first equation: the constants of a program, and its inputs."""
    jaxpr = program.jaxpr
    known = dict(zip(jaxpr.constvars, program.consts, strict=True))
    return known | dict(zip(jaxpr.invars, inputs, strict=True))


def _evaluate(program: core.ClosedJaxpr, inputs: Iterable[Any], draw: Draw | None) -> list[Any]:
    known = given(program, inputs)
    run(program.jaxpr.eqns, known, draw)
    return [read(known, v) for v in program.jaxpr.outvars]
