"""Seconds for the Fisher-vector product and for ten iterations of conjugate gradients on it.

Everything is compared with something in the same process, by turns: one product with one value-and-gradient
of the surrogate on the same batch; ten iterations of `pgjax.natural_gradient` with the same ten iterations
on products that differentiate the gradient of the KL divergence once more, as most implementations of TRPO
do.

python benchmarks/fisher.py             # both networks, both batches
"""

import argparse
import json
import os
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

import pgjax
from pgjax import networks
from pgjax.natural.fisher import _conjugate_gradient

RESULTS = pathlib.Path(__file__).parent / "results" / "fisher.json"
NETWORKS = {
    "8-64-64-4": (8, networks.CategoricalActor(4, networks.MLP((64, 64)))),
    "376-256-256-17": (376, networks.GaussianActor(17, networks.MLP((256, 256)))),
}
BATCH_SIZES = (4096, 50_000)
DAMPING = 0.1


def programs(actor, params, obs):
    """What is timed, by name: compiled functions of the parameters and a vector."""
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


def seconds(function, *arguments):
    begin = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - begin


def ratio(numerator, denominator):
    """Of the medians, with the least and the greatest of single turns."""
    single = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return {
        "ratio": statistics.median(numerator) / statistics.median(denominator),
        "least": min(single),
        "greatest": max(single),
    }


def measure(name, batch_size, turns):
    """One network and one batch."""
    size, actor = NETWORKS[name]
    obs = jax.random.normal(jax.random.key(0), (batch_size, size))
    params = jax.jit(actor.init)(jax.random.key(1), obs[0])
    compiled = programs(actor, params, obs)
    vector = compiled["surrogate"](params, None)[1]
    solved = jax.block_until_ready({k: ravel_pytree(f(params, vector))[0] for k, f in compiled.items()})
    apart = jnp.linalg.norm(solved["linearized_once"] - solved["gradient_of_gradient"])
    times = {k: [] for k in compiled}
    for _ in range(turns):
        for k, function in compiled.items():
            times[k].append(seconds(function, params, vector))
    return {
        "network": name,
        "batch_size": batch_size,
        "seconds": {k: statistics.median(x) for k, x in times.items()},
        "product_against_value_and_gradient": ratio(times["product"], times["surrogate"]),
        "gradient_of_gradient_against_linearized_once": ratio(
            times["gradient_of_gradient"], times["linearized_once"]
        ),
        "relative_difference_of_the_directions": float(apart / jnp.linalg.norm(solved["linearized_once"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    print("network, batch: product / value-and-gradient, ten iterations: gradient of gradient / linearised")
    rows = []
    for name in arguments.networks:
        for batch_size in arguments.batch_sizes:
            row = measure(name, batch_size, arguments.turns)
            rows.append(row)
            one, ten = (
                row["product_against_value_and_gradient"],
                row["gradient_of_gradient_against_linearized_once"],
            )
            print(
                f"{name:15s} {batch_size:6d}: {one['ratio']:.2f} [{one['least']:.2f}, {one['greatest']:.2f}]"
                f"   {ten['ratio']:.2f} [{ten['least']:.2f}, {ten['greatest']:.2f}]"
                f"   directions apart {row['relative_difference_of_the_directions']:.0e}",
                flush=True,
            )
    found = {
        "rows": rows,
        "turns": arguments.turns,
        "cores": os.cpu_count(),
        "jax": jax.__version__,
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
    }
    arguments.results.parent.mkdir(exist_ok=True)
    arguments.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
