"""Reading programs."""

import re
from typing import NamedTuple

import jax

# what XLA writes down as operations and does not run
FREE = {"parameter", "get-tuple-element", "tuple", "constant", "bitcast"}


class Loop(NamedTuple):
    """A loop of a compiled program: how often it runs (0: unknown), how many operations, and its text."""

    trips: int
    operations: int
    text: str


def equations(jaxpr):
    """Names of all operations of a program, those inside its loops too."""
    return (eqn.primitive.name for eqn in walk(jaxpr))


def walk(jaxpr):
    """All equations of a program, those inside its loops too."""
    for eqn in jaxpr.eqns:
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda p: hasattr(p, "jaxpr") or hasattr(p, "eqns")):
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from walk(getattr(inner, "jaxpr", inner))
        yield eqn


def compiled_loops(text):
    """All loops of what `compile().as_text()` gives."""
    bodies, inside = {}, None
    for line in text.splitlines():
        begin = re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\) -> .* \{", line)
        inside = begin[1] if begin else None if line.startswith("}") else inside
        if inside and not begin:
            bodies.setdefault(inside, []).append(line)
    for line in text.splitlines():
        if loop := re.search(r" while\(.*body=%?([\w.-]+)", line):
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            body = "\n".join(bodies[loop[1]])
            names = re.findall(r"^\s*(?:ROOT )?%?[\w.-]+ = \(?.*?\)? ([a-z-]+)\(", body, re.MULTILINE)
            yield Loop(int(trips[1]) if trips else 0, sum(name not in FREE for name in names), body)
