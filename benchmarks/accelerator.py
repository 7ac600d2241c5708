"""An accelerator in ten minutes: throughput, recurrences, Fisher products, seeds, bfloat16 and memory.

Throughput against the number of environments from 2^6 to 2^17; associative scan against scan by length and
batch; Fisher-vector products; seeds × environments; float32 beside bfloat16; and of each the peak memory and
the share that it reaches of what the device itself was measured to do: bytes a second of a copy, and
operations a second of a matrix product. What a program must do at least is counted in its trace: the
operations of its matrix products and convolutions, and the bytes that go into and out of them and of its
loops. Elementwise work is not in it, nor what the compiler moves beside; where arrays fit into caches, a
share of the bandwidth can be above 100 %.

Every part has a share of the time, and gives what it does not need to the next ones; what no time is left
for is said. Where memory is not enough, the row says so and the next one follows. Results are written after
every row. On a CPU sizes are small.

    benchmarks/gpu.sh                               # all of it, with what it needs from carried wheels
    python -m benchmarks accelerator --minutes 9
"""

import argparse
import concurrent.futures
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benchmarks import harness
from benchmarks.work import work

PARTS = {"device": 0.04, "throughput": 0.44, "scan": 0.12, "fisher": 0.12, "seeds": 0.12, "bf16": 0.16}
ALGORITHMS = {
    "ppo": ("CartPole-v1", {"num_steps": 128, "num_epochs": 4, "num_minibatches": 4}),
    "a2c": ("CartPole-v1", {"num_steps": 16}),
    "trpo": ("CartPole-v1", {"num_steps": 128, "critic_minibatches": 4, "critic_epochs": 4}),
    "sac": ("Pendulum-v1", {}),
    "dqn": ("CartPole-v1", {}),
}
REPLAY = {"num_steps": 1, "num_updates": 16, "num_gradient_steps": 1, "batch_size": 4096}
EXPONENTS = (6, 17, 12, 9, 15, 14, 16, 10, 13, 11, 8, 7)  # coarse to fine: what is cut off is detail
LENGTHS = (16, 128, 1024, 16_384, 131_072)
BATCHES = (1, 64, 2048)
SEEDS = (1, 8, 64, 512)
WIDTHS = (256, 1024)
FISHER = [(name, batch) for batch in (4096, 50_000, 500_000) for name in ("8-64-64-4", "376-256-256-17")]


MEMORY = ("peak_bytes_in_use", "bytes_limit")
TYPES = ("float32", "bfloat16")
Cases = list[tuple[dict[str, Any], Callable[[], Any]]]
"""What a row is about, and what makes the program or measures it."""


class Clock:
    """How much time a part may take."""

    def __init__(self, seconds: float, parts: Iterable[str]):
        self.end = time.monotonic() + seconds
        self.shares = {part: PARTS[part] for part in parts}
        self.part_end = self.end

    def begin(self, part: str) -> None:
        """What is left is divided among the parts that are left, by their shares."""
        left = self.end - time.monotonic()
        share = self.shares[part] / sum(self.shares.values())
        self.part_end = time.monotonic() + share * left
        del self.shares[part]

    def left(self) -> float:
        """Seconds of this part."""
        return self.part_end - time.monotonic()


def say(text: str) -> None:
    """At once, for whoever watches."""
    print(text, file=sys.stderr, flush=True)


def attempt(row: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The row with what was measured, or with why not."""
    try:
        found = row | measure()
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        small = any(sign in text for sign in ("RESOURCE_EXHAUSTED", "Out of memory", "MemoryError"))
        found = row | {"error": "out of memory" if small else text[:300]}
    say(" ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in found.items()))
    return found


# The share of the device


def shares(operations: float, moved: float, seconds: float, device: dict[str, float]) -> dict[str, float]:
    """Of what the device was measured to do."""
    found = {"operations": operations, "bytes": moved}
    if device:
        found["matrix_share"] = operations / seconds / device["operations_per_second"]
        found["bandwidth_share"] = moved / seconds / device["bytes_per_second"]
    return found


# The parts


def measure_device(on_cpu: bool, turns: int) -> dict[str, Any]:
    """Bytes a second of a copy, operations a second of a matrix product in either type."""
    import jax
    import jax.numpy as jnp

    count, size = (2**23, 1024) if on_cpu else (2**28, 8192)
    x = jnp.zeros(count)
    copy = jax.jit(lambda x: x + 1.0)
    program = {"copy": lambda: copy(x)}
    for dtype in TYPES:
        matrix = jax.random.normal(jax.random.key(0), (size, size)).astype(dtype)
        product = jax.jit(jnp.matmul)
        program[dtype] = lambda product=product, matrix=matrix: product(matrix, matrix)
    best = {k: min(found) for k, found in harness.by_turns(program, turns).items()}
    return {
        "bytes_per_second": 8.0 * count / best["copy"],
        "operations_per_second": 2.0 * size**3 / best["float32"],
        "bf16_operations_per_second": 2.0 * size**3 / best["bfloat16"],
        "matrix_size": size,
        "copy_bytes": 4 * count,
    }


def make(name: str, num_envs: int, **changes: Any) -> Any:
    """An algorithm at a number of environments, its buffer large enough for them."""
    from pgjax.experiment import presets

    environment, options = ALGORITHMS[name]
    options = options | changes | {"num_envs": num_envs}
    if name in ("sac", "dqn"):
        steps = max(1024, num_envs)
        options = REPLAY | options | {"warmup_steps": steps}
        options["capacity"] = max(2**17, 4 * steps)
        options["network"] = {"hidden": (256, 256)} | options.get("network", {})
    return presets.build(presets.preset(name, environment, **options))


class Program:
    """An algorithm's step, compiled for one seed or several; its state lives where it runs."""

    def __init__(self, algorithm: Any, seeds: int = 1):
        import jax

        step, init = (jax.vmap(f) if seeds > 1 else f for f in (algorithm.step, algorithm.init))
        self.keys = jax.random.split(jax.random.key(0), seeds) if seeds > 1 else jax.random.key(0)
        begin = time.perf_counter()
        self.compiled_init = jax.jit(init).lower(self.keys).compile()
        state = jax.eval_shape(init, self.keys)
        traced = jax.jit(step, donate_argnums=1).trace(self.keys, state)
        self.work = work(traced.jaxpr)
        self.compiled = traced.lower().compile()
        self.compile_seconds = time.perf_counter() - begin

    def measure(self, turns: int, device: dict[str, float]) -> dict[str, Any]:
        """Environment steps a second, and what that is of the device."""
        import jax

        state = self.compiled_init(self.keys)
        times = []
        for turn in range(turns + 1):
            begin = time.perf_counter()
            state, metrics = jax.block_until_ready(self.compiled(self.keys, state))
            if turn > 0:
                times.append(time.perf_counter() - begin)
        steps, seconds = int(metrics["env_steps"].sum()), statistics.median(times)
        memory = self.compiled.memory_analysis()
        return {
            "steps_per_second": steps / seconds,
            "seconds": seconds,
            "slowest": max(times),
            "compile_seconds": self.compile_seconds,
            "peak_bytes": memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes,
        } | shares(*self.work, seconds, device)


def measure_programs(
    cases: Cases, clock: Clock, turns: int, device: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """Every case: compiled side by side, because that is what takes long, then measured one by one."""
    threads = max(1, min(16, (os.cpu_count() or 1) - 1))
    for begin in range(0, len(cases), threads):
        some = cases[begin : begin + threads]
        if clock.left() <= 0:
            yield from ({**row, "error": "no time left"} for row, _ in cases[begin:])
            return
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            futures = [pool.submit(build) for _, build in some]
        for (row, _), future in zip(some, futures, strict=True):
            yield attempt(row, lambda future=future: future.result().measure(turns, device))


def measure_throughput(names: Iterable[str], exponents: Iterable[int]) -> Cases:
    """Every algorithm at every size."""
    return [
        (
            {"algorithm": name, "num_envs": 2**exponent},
            lambda name=name, exponent=exponent: Program(make(name, 2**exponent)),
        )
        for exponent in exponents
        for name in names
    ]


def measure_seeds(name: str, seeds: Iterable[int], sizes: Iterable[int]) -> Cases:
    """Several seeds in one program."""
    return [
        (
            {"algorithm": name, "seeds": count, "num_envs": num_envs},
            lambda count=count, num_envs=num_envs: Program(make(name, num_envs), count),
        )
        for num_envs in sizes
        for count in seeds
    ]


def measure_scan(length: int, batch: int, turns: int, device: dict[str, float]) -> dict[str, Any]:
    """The forms of the recurrence by turns: a scan, scans of blocks, an associative scan."""
    import jax
    import jax.numpy as jnp

    from benchmarks import recurrence

    keys = jax.random.split(jax.random.key(0))
    x, decay = (jax.random.uniform(key, (length, batch)) for key in keys)
    programs = {}
    for name, form in recurrence.FORMS.items():
        compiled = jax.jit(form)
        programs[name] = lambda compiled=compiled: compiled(x, decay, jnp.zeros(batch))
    with jax.numpy_rank_promotion("allow"):
        times = harness.by_turns(programs, turns)
    median = {name: statistics.median(found) for name, found in times.items()}
    fastest = min(median, key=lambda name: median[name])
    return {
        "microseconds": {name: 1e6 * found for name, found in median.items()},
        "scan_against_associative": harness.ratio(times["scan"], times["associative"]),
        "fastest": fastest,
    } | shares(0.0, 12.0 * length * batch, median[fastest], device)


def measure_fisher(network: str, batch_size: int, turns: int, device: dict[str, float]) -> dict[str, Any]:
    """A product with the Fisher matrix, and what that is of the device."""
    from benchmarks import fisher

    row = fisher.measure_one(network, batch_size, turns)
    return row | shares(row["operations"], row["bytes"], row["seconds"]["product"], device)


def measure_bf16(
    algorithm: str, width: int, num_envs: int, turns: int, device: dict[str, float]
) -> dict[str, Any]:
    """A training with a torso in either type, by turns in the same process; of the rates for that type."""
    import jax

    programs, states, works = {}, {}, {}
    for name, dtype in (("float32", None), ("bfloat16", "bfloat16")):
        network = {"hidden": (width, width)} | ({"dtype": dtype} if dtype else {})
        program = Program(make(algorithm, num_envs, network=network))
        states[name], works[name] = program.compiled_init(program.keys), program.work

        def run(name: str = name, program: Program = program) -> Any:
            states[name], metrics = program.compiled(program.keys, states[name])
            return metrics

        programs[name] = run
    times = harness.by_turns(programs, turns)
    steps = int(jax.block_until_ready(programs["float32"]())["env_steps"])
    median = {name: statistics.median(found) for name, found in times.items()}
    fast = device | {"operations_per_second": device["bf16_operations_per_second"]} if device else {}
    rates = {"float32": device, "bfloat16": fast}
    return {
        "steps_per_second": {name: steps / found for name, found in median.items()},
        "float32_against_bfloat16": harness.ratio(times["float32"], times["bfloat16"]),
        "shares": {name: shares(*works[name], median[name], rates[name]) for name in median},
    }


class Sizes:
    """What is measured: all of it, little on a CPU, next to nothing to see whether it runs."""

    def __init__(self, on_cpu: bool, quick: bool):
        small = on_cpu or quick
        self.algorithms = ("a2c",) if quick else tuple(ALGORITHMS)
        self.exponents = (6,) if quick else (6, 8) if on_cpu else EXPONENTS
        self.lengths = (128,) if quick else (128, 16_384) if on_cpu else LENGTHS
        self.batches = (64,) if small else BATCHES
        self.fisher = [("8-64-64-4", 512)] if small else FISHER
        self.one = "a2c" if quick else "ppo"
        self.seeds = (2,) if quick else (1, 4) if on_cpu else SEEDS
        self.seed_envs = (64,) if small else (64, 1024)
        self.widths = (128,) if small else WIDTHS
        self.num_envs = 64 if small else 4096


def cases_of(part: str, sizes: Sizes, turns: int, device: dict[str, float]) -> Cases:
    """The rows of a part."""
    if part == "throughput":
        return measure_throughput(sizes.algorithms, sizes.exponents)
    if part == "seeds":
        return measure_seeds(sizes.one, sizes.seeds, sizes.seed_envs)
    if part == "scan":
        return [
            ({"length": n, "batch": b}, lambda n=n, b=b: measure_scan(n, b, turns, device))
            for n in sizes.lengths
            for b in sizes.batches
        ]
    if part == "fisher":
        return [
            (
                {"network": name, "batch_size": b},
                lambda name=name, b=b: measure_fisher(name, b, turns, device),
            )
            for name, b in sizes.fisher
        ]
    name, num_envs = sizes.one, sizes.num_envs
    return [
        (
            {"algorithm": name, "width": width, "num_envs": num_envs},
            lambda width=width: measure_bf16(name, width, num_envs, turns, device),
        )
        for width in sizes.widths
    ]


def measure(arguments: argparse.Namespace) -> harness.Rows:
    """All parts, each with its share of the time; saved after each row."""
    import jax

    on_cpu, quick = jax.default_backend() == "cpu", arguments.quick
    turns = 2 if quick else arguments.turns
    clock, sizes = Clock(60.0 * arguments.minutes, arguments.parts), Sizes(on_cpu, quick)
    rows: harness.Rows = []
    device: dict[str, Any] = {}

    def note(part: str, found: dict[str, Any]) -> None:
        rows.append({"part": part} | found)
        if not quick:
            harness.save("accelerator", rows, arguments.results, turns=turns)

    for part in arguments.parts:
        clock.begin(part)
        say(f"--- {part}: {clock.left():.0f} s")
        if part == "device":
            found = attempt({}, lambda: measure_device(on_cpu or quick, turns))
            device = {} if "error" in found else found
            note(part, found)
            continue
        cases = cases_of(part, sizes, turns, device)
        if part in ("throughput", "seeds"):
            for found in measure_programs(cases, clock, turns, device):
                note(part, found)
        else:
            for row, program in cases:
                note(part, attempt(row, program) if clock.left() > 0 else row | {"error": "no time left"})
        used = jax.devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in used:
            note("memory", {"after": part} | {k: used[k] for k in MEMORY if k in used})
    return rows


# The tables


def table(rows: harness.Rows) -> str:
    """One for each part."""
    parts = []

    def percent(row: dict[str, Any], name: str) -> str:
        return "" if name not in row else f"{100 * row[name]:.{0 if row[name] > 0.1 else 2}f} %"

    def add(
        part: str, heads: list[str], cells: Callable[[dict[str, Any]], list[Any]], names: tuple[str, ...]
    ):
        lines = []
        for row in rows:
            if row["part"] == part and "error" in row:  # the reason stands in the last column
                known = [f"{row[n]:,}" if isinstance(row[n], int) else row[n] for n in names if n in row]
                lines.append([*known, *[""] * (len(heads) - len(known) - 1), row["error"]])
            elif row["part"] == part:
                lines.append(cells(row))
        if lines:
            parts.append(f"**{part}**\n\n" + harness.markdown(heads, lines))

    add(
        "device",
        ["copy, GB/s", "float32 product, TFLOP/s", "bfloat16 product, TFLOP/s"],
        lambda row: [
            f"{row['bytes_per_second'] / 1e9:,.0f}",
            f"{row['operations_per_second'] / 1e12:,.3g}",
            f"{row['bf16_operations_per_second'] / 1e12:,.3g}",
        ],
        (),
    )
    speed = [
        "steps / s",
        "ms",
        "compile side by side, s",
        "peak, MiB",
        "of the matrix rate",
        "of the bandwidth",
    ]

    def speeds(row: dict[str, Any]) -> list[str]:
        return [
            f"{row['steps_per_second']:,.0f}",
            f"{1e3 * row['seconds']:.2f}",
            f"{row['compile_seconds']:.1f}",
            f"{row['peak_bytes'] / 2**20:,.0f}",
            percent(row, "matrix_share"),
            percent(row, "bandwidth_share"),
        ]

    add(
        "throughput",
        ["algorithm", "environments", *speed],
        lambda row: [row["algorithm"], f"{row['num_envs']:,}", *speeds(row)],
        ("algorithm", "num_envs"),
    )
    add(
        "seeds",
        ["algorithm", "seeds", "environments", *speed],
        lambda row: [row["algorithm"], row["seeds"], f"{row['num_envs']:,}", *speeds(row)],
        ("algorithm", "seeds", "num_envs"),
    )
    add(
        "scan",
        [
            "T",
            "N",
            "scan, µs",
            "blocks, µs",
            "associative, µs",
            "taken, µs",
            "scan / associative",
            "bandwidth of the fastest",
        ],
        lambda row: [
            f"{row['length']:,}",
            f"{row['batch']:,}",
            *(f"{row['microseconds'][k]:,.0f}" for k in ("scan", "blocks", "associative", "taken")),
            harness.show(row["scan_against_associative"]),
            percent(row, "bandwidth_share"),
        ],
        ("length", "batch"),
    )
    add(
        "fisher",
        [
            "network",
            "batch",
            "product, ms",
            "product / value-and-gradient",
            "gradient of gradient / linearised",
            "of the matrix rate",
            "of the bandwidth",
        ],
        lambda row: [
            row["network"],
            f"{row['batch_size']:,}",
            f"{1e3 * row['seconds']['product']:.3f}",
            harness.show(row["product_against_value_and_gradient"]),
            harness.show(row["gradient_of_gradient_against_linearized_once"]),
            percent(row, "matrix_share"),
            percent(row, "bandwidth_share"),
        ],
        ("network", "batch_size"),
    )
    add(
        "bf16",
        [
            "algorithm",
            "width",
            "environments",
            "float32, steps / s",
            "bfloat16, steps / s",
            "float32 / bfloat16",
            "of the float32 rate",
            "of the bfloat16 rate",
            "of the bandwidth",
        ],
        lambda row: [
            row["algorithm"],
            row["width"],
            f"{row['num_envs']:,}",
            *(f"{row['steps_per_second'][k]:,.0f}" for k in TYPES),
            harness.show(row["float32_against_bfloat16"]),
            *(percent(row["shares"][k], "matrix_share") for k in TYPES),
            " and ".join(percent(row["shares"][k], "bandwidth_share") for k in TYPES),
        ],
        ("algorithm", "width", "num_envs"),
    )
    add(
        "memory",
        ["after", "peak, MiB", "there is, MiB"],
        lambda row: [row["after"], *(f"{row.get(k, 0) / 2**20:,.0f}" for k in MEMORY)],
        ("after",),
    )
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    """The command."""
    parser = harness.parser(__doc__, turns=5)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="some of them")
    arguments = parser.parse_args(argv)
    arguments.parts = [part for part in PARTS if part in arguments.parts]  # the device first
    try:
        return harness.run("accelerator", measure, table, arguments)
    except KeyboardInterrupt:
        print(f"interrupted; what was measured before is in {arguments.results}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
