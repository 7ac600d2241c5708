"""Peak memory of compiled programs against batch, and whether a replay buffer is in memory once.

Nothing runs: the figures are the compiler's own, of one device, with the state given over (donated) as the
training loop does it. The peak is arguments + outputs + temporaries − what is written over arguments. PPO's
step by the number of environments; the natural gradient of 50,000 observations by chunks; and the step of
every algorithm with a replay buffer: if its temporaries are smaller than the buffer and what is written in
place is at least as large, then the buffer is there once and never copied.

    python -m benchmarks memory
"""

import argparse
import sys
from typing import Any

from benchmarks import harness

NUM_ENVS = (64, 256, 1024, 4096)
CHUNKS = (1, 4, 16, 80)  # they divide the batch
BATCH, SIZE, HIDDEN = 50_000, 8, (256, 256)
CAPACITY = 1_000_000
REPLAY = (
    ("dqn", "CartPole-v1"),
    ("ddpg", "Pendulum-v1"),
    ("td3", "Pendulum-v1"),
    ("sac", "Pendulum-v1"),
    ("dqn", "Breakout-MinAtar"),
)


def sizes(compiled: Any) -> dict[str, int]:
    """Bytes that a compiled program takes."""
    found = compiled.memory_analysis()
    parts = {
        name: getattr(found, f"{name}_size_in_bytes") for name in ("argument", "output", "temp", "alias")
    }
    return parts | {"peak": parts["argument"] + parts["output"] + parts["temp"] - parts["alias"]}


def compile_step(algorithm: Any) -> tuple[Any, Any]:
    """An algorithm's step, compiled for one seed, and the shapes of its state."""
    import jax

    key = jax.random.key(0)
    state = jax.eval_shape(algorithm.init, key)
    return jax.jit(algorithm.step, donate_argnums=1).lower(key, state).compile(), state


def num_bytes(tree: Any) -> int:
    """Of all arrays in it."""
    import jax

    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def measure_ppo(num_envs: int) -> dict[str, Any]:
    """PPO's step."""
    from pgjax import experiment

    algorithm = experiment.make(
        "ppo", "CartPole-v1", num_envs=num_envs, num_steps=128, num_epochs=4, num_minibatches=4
    )
    compiled, _ = compile_step(algorithm)
    return {"part": "ppo", "num_envs": num_envs, "num_steps": 128, **sizes(compiled)}


def measure_natural_gradient(batch: int, num_chunks: int) -> dict[str, Any]:
    """The natural gradient of a Gaussian policy."""
    import jax

    import pgjax
    from pgjax import networks

    actor = networks.GaussianActor(4, networks.MLP(HIDDEN))
    obs = jax.ShapeDtypeStruct((batch, SIZE), "float32")
    params = jax.eval_shape(actor.init, jax.random.key(0), obs)

    def natural(params: Any, obs: Any, gradient: Any) -> Any:
        return pgjax.natural_gradient(actor.apply, params, obs, gradient, num_chunks=num_chunks)[0]

    compiled = jax.jit(natural).lower(params, obs, params).compile()
    return {"part": "natural_gradient", "batch": batch, "num_chunks": num_chunks, **sizes(compiled)}


def measure_replay(name: str, environment: str, capacity: int) -> dict[str, Any]:
    """A step that learns from a buffer."""
    from pgjax import experiment

    algorithm = experiment.make(name, environment, capacity=capacity)
    compiled, state = compile_step(algorithm)
    found, buffer = sizes(compiled), num_bytes(state.replay)
    return {
        "part": "replay",
        "algorithm": name,
        "environment": environment,
        "capacity": capacity,
        "buffer": buffer,
        **found,
        "once": found["temp"] < buffer <= found["alias"],
    }


def measure(arguments: argparse.Namespace) -> harness.Rows:
    """All three parts."""
    quick = arguments.quick
    rows = [measure_ppo(n) for n in (NUM_ENVS[:1] if quick else NUM_ENVS)]
    batch = 640 if quick else BATCH
    rows += [measure_natural_gradient(batch, n) for n in (CHUNKS[:2] if quick else CHUNKS)]
    capacity = 100_000 if quick else CAPACITY
    rows += [measure_replay(*pair, capacity) for pair in (REPLAY[1:2] if quick else REPLAY)]
    return rows


def mebibytes(count: int) -> str:
    """A cell."""
    return f"{count / 2**20:,.1f}"


def table(rows: harness.Rows) -> str:
    """A table for each part."""
    heads = ["peak, MiB", "temporaries", "arguments", "outputs", "in place"]

    def cells(row: dict[str, Any]) -> list[str]:
        return [mebibytes(row[k]) for k in ("peak", "temp", "argument", "output", "alias")]

    def part(name: str) -> list[dict[str, Any]]:
        return [row for row in rows if row["part"] == name]

    ppo = [[f"{row['num_envs']:,} × {row['num_steps']}", *cells(row)] for row in part("ppo")]
    natural = [[f"{row['batch']:,}", row["num_chunks"], *cells(row)] for row in part("natural_gradient")]
    replay = [
        [
            row["algorithm"],
            row["environment"],
            f"{row['capacity']:,}",
            mebibytes(row["buffer"]),
            *cells(row),
            "yes" if row["once"] else "no",
        ]
        for row in part("replay")
    ]
    tables = [
        (["PPO: environments × steps", *heads], ppo),
        (["natural gradient: observations", "chunks", *heads], natural),
        (["replay", "environment", "capacity", "buffer, MiB", *heads, "buffer once"], replay),
    ]
    return "\n\n".join(harness.markdown(heads, lines) for heads, lines in tables if lines)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    return harness.run("memory", measure, table, harness.parser(__doc__).parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
