"""A scan that computes before its loop whatever does not need the carry."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
from jax import lax
from jax.extend import core

Carry = TypeVar("Carry")

_FREE_BYTES = 16 * 1024  # what may wait for every step, however little the scan gives out


def scan_ahead(body: Callable[[Carry, Any], tuple[Carry, Any]], carry: Carry, xs: Any) -> tuple[Carry, Any]:
    """`lax.scan(body, carry, xs)`, with the part of `body` that `xs` alone decides moved out of the loop.

    Inside a loop every operation costs its dispatch, however small its batch. In a rollout the keys alone
    decide the noise of the actions and the starts of new episodes, about half of all that happens; here
    they are computed for all steps at once. The split is read off the traced program, so it holds for any
    policy and any environment. What no step changes, such as parameters that are cut out of one vector, is
    computed once.

    What is computed ahead waits in memory for its step. Where that would take more than 16 KiB a step, and
    more than the scan's own outputs do, it stays in the loop; where the body has side effects, this is a
    plain scan. What a `scan_ahead` inside the body computes before its loop may leave the outer loop as well.

    Args:
        body: `(carry, x) -> (carry, y)`.
        carry: its start.
        xs: leaves `[T, ...]`.

    Returns:
        The last carry and the outputs, leaves `[T, ...]`.
    """
    leaves, carry_tree = jax.tree.flatten(carry)
    columns, xs_tree = jax.tree.flatten(xs)

    y_trees = []

    def flat_body(leaves: list[Any], row: list[Any]) -> list[Any]:
        carry, y = body(jax.tree.unflatten(carry_tree, leaves), jax.tree.unflatten(xs_tree, row))
        y_trees.append(jax.tree.structure(y))
        return [*jax.tree.leaves(carry), *jax.tree.leaves(y)]

    row = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in columns]
    nested = jax.make_jaxpr(flat_body)(leaves, row)
    program = jax.make_jaxpr(lambda *inputs: _evaluate(nested, inputs))(*leaves, *row)
    if program.effects:
        return lax.scan(body, carry, xs)

    # every equation needs the carry, or the row, or what is the same in every step, or nothing
    jaxpr, num_carry = program.jaxpr, len(leaves)
    row_vars, carry_vars = set(jaxpr.invars[num_carry:]), set(jaxpr.invars[:num_carry])
    constants = dict(zip(jaxpr.constvars, program.consts, strict=True))
    outside, early, late, every = dict(constants), [], [], []
    for eqn in jaxpr.eqns:
        every.append(eqn)
        inputs = set(_variables(eqn.invars))
        if inputs & carry_vars:
            carry_vars.update(eqn.outvars)
            late.append(eqn)
        elif inputs & row_vars:
            row_vars.update(eqn.outvars)
            early.append(eqn)
        elif inputs & constants.keys():  # such as parameters cut out of one vector: once, before the loop
            _run([every.pop()], outside)
            constants |= {v: outside[v] for v in eqn.outvars}
        else:  # literals are cheap: all sides make their own
            _run([eqn], outside)
            early.append(eqn)
            late.append(eqn)
    needed = [*jaxpr.outvars, *(v for eqn in late for v in eqn.invars)]
    kept = list(dict.fromkeys(v for v in _variables(needed) if v in row_vars))
    given = set(jaxpr.invars)
    computed = [v for v in kept if v not in given]
    if _num_bytes(computed) > max(_FREE_BYTES, _num_bytes(jaxpr.outvars[num_carry:])):
        early, late, kept = [], every, jaxpr.invars[num_carry:]

    def compute_early(row: list[Any]) -> list[Any]:
        known = constants | dict(zip(jaxpr.invars[num_carry:], row, strict=True))
        _run(early, known)
        return [known[v] for v in kept]

    def compute_late(leaves: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
        known = constants | dict(zip(jaxpr.invars[:num_carry], leaves, strict=True))
        known |= dict(zip(kept, row, strict=True))
        _run(late, known)
        outs = [_read(known, v) for v in jaxpr.outvars]
        return outs[:num_carry], outs[num_carry:]

    num_steps, columns = columns[0].shape[0], jax.vmap(compute_early)(columns)
    leaves, columns = lax.scan(compute_late, leaves, columns, length=num_steps)
    return jax.tree.unflatten(carry_tree, leaves), jax.tree.unflatten(y_trees[-1], columns)


def _evaluate(program: core.ClosedJaxpr, inputs: Iterable[Any]) -> list[Any]:
    """The program's outputs; nested `jit`s are dissolved."""
    jaxpr = program.jaxpr
    known = dict(zip(jaxpr.constvars, program.consts, strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))
    _run(jaxpr.eqns, known)
    return [_read(known, v) for v in jaxpr.outvars]


def _run(eqns: Iterable[core.JaxprEqn], known: dict[Any, Any]) -> None:
    """Evaluate equations, writing what they give into `known`."""
    for eqn in eqns:
        inputs = [_read(known, v) for v in eqn.invars]
        if eqn.primitive.name == "jit":
            outs = _evaluate(eqn.params["jaxpr"], inputs)
        elif eqn.primitive.name in ("random_bits", "random_split"):
            outs = [_draw(eqn, *inputs)]
        else:
            out = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
            outs = out if eqn.primitive.multiple_results else [out]
        known.update(zip(eqn.outvars, outs, strict=True))


def _draw(eqn: core.JaxprEqn, keys: Any) -> Any:
    """A random primitive; mapped over, it draws for all keys in one row, which compiles in half the time."""

    @jax.custom_batching.custom_vmap
    def draw(keys: Any) -> Any:
        return eqn.primitive.bind(keys, **eqn.primitive.get_bind_params(eqn.params))

    @draw.def_vmap
    def _(size: int, batched: list[bool], keys: Any) -> tuple[Any, bool]:
        del size, batched
        drawn = draw(keys.reshape(-1))
        return drawn.reshape(*keys.shape, *drawn.shape[1:]), True

    return draw(keys)


def _read(known: dict[Any, Any], v: Any) -> Any:
    return v.val if isinstance(v, core.Literal) else known[v]


def _variables(values: Iterable[Any]) -> list[Any]:
    return [v for v in values if not isinstance(v, core.Literal)]


def _num_bytes(values: Iterable[Any]) -> int:
    return sum(v.aval.size * v.aval.dtype.itemsize for v in values)
