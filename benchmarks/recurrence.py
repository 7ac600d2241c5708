"""Scan, blocks, associative scan, and what the library takes: time by size, and error at T = 100,000.

python -m benchmarks.recurrence
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import harness
from pgjax.estimators.recurrence import _blocked_scan, _scan, reverse_recurrence

SIZES = [
    (16, 16),
    (128, 4),
    (128, 64),
    (128, 2048),
    (1000, 64),
    (2048, 1),
    (4096, 16),
    (10_000, 64),
    (100_000, 1),
    (100_000, 16),
]


def associative(x, decay, init):
    y, passed = lax.associative_scan(
        lambda later, now: (now[0] + now[1] * later[0], now[1] * later[1]), (x, decay), reverse=True
    )
    return y + passed * init


FORMS = {"scan": _scan, "blocks": _blocked_scan, "associative": associative, "taken": reverse_recurrence}


def microseconds(turns, *arguments):
    """Of every form, by turns."""
    programs = {name: functools.partial(jax.jit(form), *arguments) for name, form in FORMS.items()}
    return [1e6 * statistics.median(times) for times in harness.by_turns(programs, turns).values()]


def error(form, reward, gamma):
    exact, later = np.zeros(len(reward)), 0.0
    for t in reversed(range(len(reward))):
        later = exact[t] = float(reward[t]) + float(np.float32(gamma)) * later
    decay = jnp.full((len(reward), 1), gamma, jnp.float32)
    found = jax.jit(form)(jnp.asarray(reward)[:, None], decay, jnp.zeros(1))[:, 0]
    return np.abs(np.asarray(found) - exact).max() / np.abs(exact).max()


def main() -> None:
    arguments = harness.parser(__doc__, turns=15).parse_args()
    sizes = SIZES[:2] if arguments.quick else SIZES
    where = harness.about()
    told = f"{where['device']}, {where['date']}, jax {jax.__version__}, float32; commit {harness.commit()}"
    lines = [f"# The reverse recurrence\n\n`python -m benchmarks.recurrence`, {told}.\n"]
    lines += ["| T | N | " + " | ".join(f"{f}, µs" for f in FORMS) + " |", "|---" * (2 + len(FORMS)) + "|"]
    for length, batch in sizes:
        x = jax.random.normal(jax.random.key(0), (length, batch))
        inputs = x, jnp.full_like(x, 0.99), jnp.zeros(batch)
        times = " | ".join(f"{found:.0f}" for found in microseconds(arguments.turns, *inputs))
        lines.append(f"| {length} | {batch} | {times} |")
    lines += ["\nLargest error over the largest value at T = 100,000:\n"]
    lines += ["| reward | γ | " + " | ".join(FORMS) + " |", "|---" * (2 + len(FORMS)) + "|"]
    rng, length = np.random.default_rng(0), 100_000
    rewards = {
        "constant 0.1": np.full(length, 0.1, np.float32),
        "uniform on [0, 1]": rng.uniform(size=length).astype(np.float32),
        "standard normal": rng.normal(size=length).astype(np.float32),
    }
    for name, reward in rewards.items():
        for gamma in (0.9, 0.999, 1.0):
            errors = [f"{error(form, reward, gamma):.1e}" for form in FORMS.values()]
            lines.append(f"| {name} | {gamma} | " + " | ".join(errors) + " |")
    print("\n".join(lines))
    if not arguments.quick:
        arguments.results.mkdir(parents=True, exist_ok=True)
        (arguments.results / "recurrence.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
