"""The Fisher-vector product, and ten iterations of conjugate gradients on it.

Everything is compared with something in the same process, by turns: one product with one value-and-gradient
of the surrogate on the same batch; ten iterations of `pgjax.natural_gradient` with the same ten iterations
on products that differentiate the gradient of the KL divergence once more, as most implementations of TRPO
do.

    python -m benchmarks fisher             # both networks, both batches
"""

import argparse
import statistics
import sys
from typing import Any

from benchmarks import harness
from benchmarks.work import work

SIZES = {"8-64-64-4": (8, (64, 64), 4), "376-256-256-17": (376, (256, 256), 17)}
BATCH_SIZES = (4096, 50_000)
DAMPING = 0.1
TEN = ("linearized_once", "gradient_of_gradient")


def make_actor(name: str) -> Any:
    """Four actions to choose from, or seventeen real numbers."""
    from pgjax import networks

    _, hidden, size = SIZES[name]
    kind = networks.CategoricalActor if size == 4 else networks.GaussianActor
    return kind(size, networks.MLP(hidden))


def programs(actor, params, obs):
    """What is timed, by name: compiled functions of the parameters and a vector."""
    import jax
    from jax.flatten_util import ravel_pytree

    import pgjax
    from pgjax.natural.fisher import _conjugate_gradient

    _, unravel = ravel_pytree(params)
    action, log_prob = actor.apply(params, obs).sample_and_log_prob(jax.random.key(2))
    advantage = jax.random.normal(jax.random.key(3), log_prob.shape)

    def surrogate(params, vector):
        del vector

        def loss(params):
            new = actor.apply(params, obs).log_prob(action)
            return pgjax.surrogate_loss(new, log_prob, advantage).mean()

        return jax.value_and_grad(loss)(params)

    def product(params, vector):
        return pgjax.fisher_vector_product(actor.apply, params, obs, vector, damping=DAMPING)

    def linearized_once(params, vector):
        return pgjax.natural_gradient(actor.apply, params, obs, vector, damping=DAMPING, cg_iters=10)[0]

    def gradient_of_gradient(params, vector):
        """The same loop; only the product is another."""
        fixed = jax.tree.map(jax.lax.stop_gradient, actor.apply(params, obs))
        flat, _ = ravel_pytree(params)

        def slope(flat):
            return jax.grad(lambda flat: fixed.kl(actor.apply(unravel(flat), obs)).mean())(flat)

        def fisher_product(v):
            return jax.grad(lambda flat: slope(flat) @ v)(flat)

        direction, _ = _conjugate_gradient(fisher_product, ravel_pytree(vector)[0], DAMPING, 10, 0.0)
        return unravel(direction)

    found = (surrogate, product, linearized_once, gradient_of_gradient)
    return {function.__name__: jax.jit(function) for function in found}


def measure_one(name: str, batch_size: int, turns: int) -> dict[str, Any]:
    """One network and one batch."""
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    size, actor = SIZES[name][0], make_actor(name)
    obs = jax.random.normal(jax.random.key(0), (batch_size, size))
    params = jax.jit(actor.init)(jax.random.key(1), obs[0])
    compiled = programs(actor, params, obs)
    vector = compiled["surrogate"](params, None)[1]
    solved = {k: ravel_pytree(compiled[k](params, vector))[0] for k in TEN}
    apart = jnp.linalg.norm(solved["linearized_once"] - solved["gradient_of_gradient"])
    times = harness.by_turns({k: lambda f=f: f(params, vector) for k, f in compiled.items()}, turns)
    operations, moved = work(compiled["product"].trace(params, vector).jaxpr)
    return {
        "network": name,
        "batch_size": batch_size,
        "seconds": {k: statistics.median(x) for k, x in times.items()},
        "product_against_value_and_gradient": harness.ratio(times["product"], times["surrogate"]),
        "gradient_of_gradient_against_linearized_once": harness.ratio(*(times[k] for k in reversed(TEN))),
        "relative_difference_of_the_directions": float(apart / jnp.linalg.norm(solved["linearized_once"])),
        "operations": operations,
        "bytes": moved,
    }


def measure(arguments: argparse.Namespace) -> harness.Rows:
    """Every network with every batch."""
    sizes = [64] if arguments.quick else arguments.batch_sizes
    turns = 2 if arguments.quick else arguments.turns
    return [measure_one(name, size, turns) for name in arguments.networks for size in sizes]


def table(rows: harness.Rows) -> str:
    """Ratios, and how far apart the two directions are."""
    heads = [
        "network",
        "batch",
        "product, ms",
        "product / value-and-gradient (at most 1.6)",
        "ten iterations, ms",
    ]
    heads += ["gradient of gradient / linearised once (at least 1.05)", "directions apart"]
    lines = [
        [
            row["network"],
            f"{row['batch_size']:,}",
            f"{1e3 * row['seconds']['product']:.2f}",
            harness.show(row["product_against_value_and_gradient"]),
            f"{1e3 * row['seconds']['linearized_once']:.2f}",
            harness.show(row["gradient_of_gradient_against_linearized_once"]),
            f"{row['relative_difference_of_the_directions']:.0e}",
        ]
        for row in rows
    ]
    return harness.markdown(heads, lines)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = harness.parser(__doc__, turns=7)
    parser.add_argument("--networks", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    return harness.run("fisher", measure, table, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
