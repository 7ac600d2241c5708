"""Estimators: microseconds by length and batch, beside a plain pass over the same arrays, and beside rlax.

The pass reads every array that the estimator reads once and writes as many as it writes; no estimator can be
faster than that where the arrays are large. Arrays are time-major; rlax, whose functions take one trajectory,
is mapped over the batch, and is given what it takes: one discount in place of two flags, and for GAE the
values in one array of T + 1 (it has no place for truncation). All are timed by turns in the same process.
Without rlax (`pip install rlax`) its column is empty.

    python -m benchmarks estimators
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks import harness

SIZES = ((128, 64), (128, 2048), (1000, 64), (100_000, 1))
GAMMA, LAMBDA, N = 0.99, 0.95, 5
SECONDS = 0.02  # a program is called so often that it takes about this long


def data(num_steps: int, num_envs: int) -> dict[str, Any]:
    """What a rollout leaves behind: episodes end now and then."""
    import jax

    shape, keys = (num_steps, num_envs), jax.random.split(jax.random.key(0), 6)
    return {
        "reward": jax.random.normal(keys[0], shape),
        "value": jax.random.normal(keys[1], shape),
        "next_value": jax.random.normal(keys[2], shape),
        "ratio": jax.random.uniform(keys[3], shape, minval=0.5, maxval=1.5),
        "terminated": jax.random.bernoulli(keys[4], 0.02, shape),
        "truncated": jax.random.bernoulli(keys[5], 0.01, shape),
    }


def ours() -> dict[str, tuple[tuple[str, ...], int, Callable[..., Any]]]:
    """By name: the arrays that are read, how many are written, the function."""
    import pgjax

    flags = ("terminated", "truncated")

    def recurrence(x: Any, decay: Any) -> Any:
        return pgjax.reverse_recurrence(x, decay, 0.0)

    def gae(*arrays: Any) -> Any:
        return pgjax.gae(*arrays, gamma=GAMMA, lambda_=LAMBDA)

    def lambda_return(*arrays: Any) -> Any:
        return pgjax.lambda_return(*arrays, gamma=GAMMA, lambda_=LAMBDA)

    def n_step_return(*arrays: Any) -> Any:
        return pgjax.n_step_return(*arrays, gamma=GAMMA, n=N)

    def vtrace(*arrays: Any) -> Any:
        return pgjax.vtrace(*arrays, gamma=GAMMA, lambda_=LAMBDA)

    return {
        "reverse recurrence": (("reward", "ratio"), 1, recurrence),
        "GAE": (("reward", "value", "next_value", *flags), 1, gae),
        "λ-return": (("reward", "next_value", *flags), 1, lambda_return),
        f"{N}-step return": (("reward", "next_value", *flags), 1, n_step_return),
        "V-trace": (("ratio", "reward", "value", "next_value", *flags), 2, vtrace),
    }


def theirs(arrays: Mapping[str, Any]) -> dict[str, Callable[[], Any]]:
    """The functions of rlax by our names, with their arguments; empty where it is not installed."""
    try:
        import rlax
    except ImportError:
        return {}
    import jax
    import jax.numpy as jnp

    reward, value, next_value = (arrays[name] for name in ("reward", "value", "next_value"))
    discount = GAMMA * (1.0 - arrays["terminated"])
    values = jnp.concatenate([value, next_value[-1:]])

    def mapped(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
        program = jax.jit(jax.vmap(function, in_axes=1, out_axes=1))
        return lambda: program(*arguments)

    return {
        "GAE": mapped(
            lambda r, d, v: rlax.truncated_generalized_advantage_estimation(r, d, LAMBDA, v),
            reward,
            discount,
            values,
        ),
        "λ-return": mapped(
            lambda r, d, v: rlax.lambda_returns(r, d, v, LAMBDA), reward, discount, next_value
        ),
        f"{N}-step return": mapped(
            lambda r, d, v: rlax.n_step_bootstrapped_returns(r, d, v, N), reward, discount, next_value
        ),
        "V-trace": mapped(
            lambda *x: rlax.vtrace_td_error_and_advantage(*x, LAMBDA)[:2],
            value,
            next_value,
            reward,
            discount,
            arrays["ratio"],
        ),
    }


def repeated(program: Callable[[], Any], seconds: float) -> tuple[Callable[[], Any], int]:
    """The program so often in a row that it takes about so many seconds, and how often that is.

    Each call is waited for.
    """
    import jax

    program()
    once = min(harness.seconds(program) for _ in range(5))
    calls = max(1, round(seconds / once))

    def run() -> None:
        for _ in range(calls):
            jax.block_until_ready(program())

    return run, calls


def measure_size(num_steps: int, num_envs: int, turns: int) -> harness.Rows:
    """Every estimator at one size."""
    import jax
    import jax.numpy as jnp

    arrays = jax.block_until_ready(data(num_steps, num_envs))
    peers = theirs(arrays)
    rows = []
    for name, (names, num_written, function) in ours().items():
        given = [arrays[k] for k in names]

        def one_pass(*given: Any, num_written: int = num_written) -> Any:
            total = sum(x.astype(jnp.float32) for x in given)
            return tuple(total * (i + 1) for i in range(num_written))

        compiled = {"pgjax": jax.jit(function), "pass": jax.jit(one_pass)}
        single = {k: lambda f=f, given=given: f(*given) for k, f in compiled.items()}
        single |= {"rlax": peers[name]} if name in peers else {}
        programs, calls = {}, {}
        for k, program in single.items():
            programs[k], calls[k] = repeated(program, SECONDS)
        times = {
            k: [spent / calls[k] for spent in found] for k, found in harness.by_turns(programs, turns).items()
        }
        median = {k: statistics.median(found) for k, found in times.items()}
        rows.append(
            {
                "estimator": name,
                "steps": num_steps,
                "envs": num_envs,
                "microseconds": {k: 1e6 * x for k, x in median.items()},
                "elements_per_second": num_steps * num_envs / median["pgjax"],
                "against_pass": harness.ratio(times["pgjax"], times["pass"]),
                "rlax_against_pgjax": harness.ratio(times["rlax"], times["pgjax"])
                if "rlax" in times
                else None,
                "peers": harness.packages("rlax"),
            }
        )
    return rows


def measure(arguments: argparse.Namespace) -> harness.Rows:
    """Every size."""
    sizes = [(16, 8)] if arguments.quick else SIZES
    turns = 2 if arguments.quick else arguments.turns
    return [row for size in sizes for row in measure_size(*size, turns)]


def table(rows: harness.Rows) -> str:
    """Times and ratios."""
    heads = ["estimator", "T × N", "µs", "elements / s", "time / one pass", "rlax's time / pgjax's"]
    lines = [
        [
            row["estimator"],
            f"{row['steps']:,} × {row['envs']:,}",
            f"{row['microseconds']['pgjax']:,.0f}",
            f"{row['elements_per_second']:.1e}",
            harness.show(row["against_pass"]),
            harness.show(row["rlax_against_pgjax"]) if row["rlax_against_pgjax"] else "",
        ]
        for row in rows
    ]
    return harness.markdown(heads, lines)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    arguments = harness.parser(__doc__, turns=15).parse_args(argv)
    return harness.run("estimators", measure, table, arguments)


if __name__ == "__main__":
    sys.exit(main())
