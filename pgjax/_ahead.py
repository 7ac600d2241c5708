"""A scan that computes before its loop whatever does not need the carry."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
from jax import lax

from pgjax import _draws, _jaxpr

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

    y_trees, num_carry = [], len(leaves)

    def flat_body(*inputs: Any) -> list[Any]:
        carry = jax.tree.unflatten(carry_tree, inputs[:num_carry])
        carry, y = body(carry, jax.tree.unflatten(xs_tree, inputs[num_carry:]))
        y_trees.append(jax.tree.structure(y))
        return [*jax.tree.leaves(carry), *jax.tree.leaves(y)]

    row = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in columns]
    program = _jaxpr.trace(flat_body, *leaves, *row, draw=_draws.draw_row)
    if program.effects:
        return lax.scan(body, carry, xs)

    # every equation needs the carry, or the row, or what is the same in every step, or nothing
    jaxpr = program.jaxpr
    row_vars, carry_vars = set(jaxpr.invars[num_carry:]), set(jaxpr.invars[:num_carry])
    constants = dict(zip(jaxpr.constvars, program.consts, strict=True))
    outside, early, late, every = dict(constants), [], [], []
    for eqn in jaxpr.eqns:
        every.append(eqn)
        inputs = set(_jaxpr.variables(eqn.invars))
        if inputs & carry_vars:
            carry_vars.update(eqn.outvars)
            late.append(eqn)
        elif inputs & row_vars:
            row_vars.update(eqn.outvars)
            early.append(eqn)
        elif inputs & constants.keys():  # such as parameters cut out of one vector: once, before the loop
            _jaxpr.run([every.pop()], outside)
            constants |= {v: outside[v] for v in eqn.outvars}
        else:  # literals are cheap: all sides make their own
            _jaxpr.run([eqn], outside)
            early.append(eqn)
            late.append(eqn)
    needed = [*jaxpr.outvars, *(v for eqn in late for v in eqn.invars)]
    kept = list(dict.fromkeys(v for v in _jaxpr.variables(needed) if v in row_vars))
    given = set(jaxpr.invars)
    computed = [v for v in kept if v not in given]
    if _num_bytes(computed) > max(_FREE_BYTES, _num_bytes(jaxpr.outvars[num_carry:])):
        early, late, kept = [], every, jaxpr.invars[num_carry:]

    def compute_early(row: list[Any]) -> list[Any]:
        known = constants | dict(zip(jaxpr.invars[num_carry:], row, strict=True))
        _jaxpr.run(early, known)
        return [known[v] for v in kept]

    def compute_late(leaves: list[Any], row: list[Any]) -> tuple[list[Any], list[Any]]:
        known = constants | dict(zip(jaxpr.invars[:num_carry], leaves, strict=True))
        known |= dict(zip(kept, row, strict=True))
        _jaxpr.run(late, known)
        outs = [_jaxpr.read(known, v) for v in jaxpr.outvars]
        return outs[:num_carry], outs[num_carry:]

    num_steps, columns = columns[0].shape[0], jax.vmap(compute_early)(columns)
    leaves, columns = lax.scan(compute_late, leaves, columns, length=num_steps)
    return jax.tree.unflatten(carry_tree, leaves), jax.tree.unflatten(y_trees[-1], columns)


def _num_bytes(values: Iterable[Any]) -> int:
    return sum(v.aval.size * v.aval.dtype.itemsize for v in values)
