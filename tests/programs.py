"""Reading programs."""

import jax


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
