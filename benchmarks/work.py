"""What a program must do at least, counted in its trace.

The operations of its matrix products and convolutions, and the bytes that go into and out of them and of its
loops. Elementwise work is not in it, nor what the compiler moves beside.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any


def work(closed: Any) -> tuple[float, float]:
    """Operations and bytes of a traced program; a loop whose length is not known counts once."""
    jaxpr = getattr(closed, "jaxpr", closed)
    operations = moved = 0.0
    for eqn in jaxpr.eqns:
        name, times = eqn.primitive.name, 1
        if name in ("dot_general", "conv_general_dilated"):
            operations += _products(eqn)
            moved += _num_bytes([*eqn.invars, *eqn.outvars])
        elif name == "scan":
            times = eqn.params["length"]
            body = eqn.params["jaxpr"].jaxpr
            pairs = [*zip(eqn.invars, body.invars, strict=True), *zip(eqn.outvars, body.outvars, strict=True)]
            moved += _num_bytes(whole for whole, row in pairs if whole.aval.ndim > row.aval.ndim)
        inner = [work(sub) for sub in _programs(eqn.params.values())]
        if name == "cond" and inner:  # one of its branches runs
            inner = [max(inner)]
        operations += times * sum(x for x, _ in inner)
        moved += times * sum(x for _, x in inner)
    return operations, moved


def _programs(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
            yield value
        elif isinstance(value, tuple | list):
            yield from _programs(value)


def _products(eqn: Any) -> float:
    """Two operations for each product of two numbers."""
    left, right, out = (v.aval for v in (*eqn.invars[:2], eqn.outvars[0]))
    if eqn.primitive.name == "dot_general":
        (contracted, _), _ = eqn.params["dimension_numbers"]
        return 2.0 * math.prod(out.shape) * math.prod(left.shape[axis] for axis in contracted)
    out_features = right.shape[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(out.shape) * math.prod(right.shape) / out_features


def _num_bytes(variables: Iterable[Any]) -> float:
    return float(sum(v.aval.size * v.aval.dtype.itemsize for v in variables if hasattr(v.aval, "dtype")))
