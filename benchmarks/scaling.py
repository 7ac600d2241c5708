"""Weak and strong scaling over forced CPU devices, what the devices say to each other, and a projection.

    python benchmarks/scaling.py             # measure, compile, project: results/scaling.json and scaling.md
    python benchmarks/scaling.py --measure   # only the first part again; the rest is kept
    python benchmarks/scaling.py --report    # only the projection and the page again
    python benchmarks/scaling.py --quick     # one turn of small runs: does it work?

- Measured: steps per second of PPO on 1, 2, 4 and 8 devices, its environments or its seeds spread over them.
  All devices share this machine's cores, so more of them cannot be faster: what they lose is what dividing
  the program costs.
- Compiled: every collective of PPO, TRPO and A2C at the size of an accelerator, its bytes, and how often it
  runs in an iteration. That is read in the program that XLA made; nothing of this size is run.
- On paper: how long these collectives take on 8 and on 256 accelerators if `LINKS` is right about them, and
  what is left of the speed.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from typing import Any, NamedTuple

RESULTS = pathlib.Path(__file__).parent / "results" / "scaling.json"

DEVICES = (1, 2, 4, 8)


class Size(NamedTuple):
    """What is measured along one axis.

    Attributes:
        unit: what grows.
        per_device: how many of it a device has; all devices together in strong scaling.
        iterations: of one turn.
        changes: of the preset.
    """

    unit: str
    per_device: int
    iterations: int
    changes: dict[str, Any]


SIZES = {
    "data": Size("environments", 128, 2, {}),
    # two seeds a device: a single one has no seed axis, which would be another program
    "seed": Size("seeds", 2, 8, {"num_envs": 16}),
}

# What is compiled, as it might be for accelerators.
ENVIRONMENT = "CartPole-v1"
NUM_ENVS = 2048
ALGORITHMS = ("ppo", "trpo", "a2c")
NETWORKS = ((64, 64), (256, 256))


class Link(NamedTuple):
    """What is assumed of the wires between accelerators; none of it was measured here.

    Attributes:
        name: of the machines.
        devices: accelerators that every collective joins.
        latency: seconds of a collective of a few bytes: best, usual, worst.
        bandwidth: bytes a second that an accelerator sends, and receives at the same time: the same.
        why: where these numbers come from.
    """

    name: str
    devices: int
    latency: tuple[float, float, float]
    bandwidth: tuple[float, float, float]
    why: str


LINKS = (
    Link(
        "one node of 8",
        8,
        (10e-6, 15e-6, 30e-6),
        (450e9, 200e9, 50e9),
        "450 GB/s in one direction is what NVLink 4 is sold as; sums of less than a megabyte come nowhere "
        "near. A [published table](https://github.com/deepseek-ai/DeepEP/issues/303) of nccl-tests in one "
        "node has mostly 12 to 17 µs for sums of 4 B to 4 kB",
    ),
    Link(
        "32 nodes of 8",
        256,
        (40e-6, 65e-6, 100e-6),
        (50e9, 25e9, 10e9),
        "50 GB/s is a network card of 400 Gb/s for every accelerator, and all bytes are taken to go through "
        "it: a sum within nodes first would send fewer. A [published table]"
        "(https://github.com/NVIDIA/nccl/issues/652) of nccl-tests on 32 nodes of 8 has 62 to 71 µs for sums "
        "of 4 to 128 B",
    ),
)

COMPUTE = (100e-6, 1e-3, 10e-3)
"""Seconds that an accelerator computes for a gradient step, its part of the rollout included: assumed."""

SEEDS = ((8, 8), (10, 8), (16, 8), (100, 8), (256, 256), (300, 256), (1000, 256))
"""Seeds and devices, for what filling devices costs."""


# What a compiled program says


class Collective(NamedTuple):
    """One collective of a compiled program.

    Attributes:
        kind: all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute.
        arrays: how many arrays it brings together.
        bytes: of its result on one device.
        count: how often it runs.
        per: in what: an "iteration" of the loop whose length the program is told, or a "call" of the program.
        op_name: what it is for, as jax says it.
    """

    kind: str
    arrays: int
    bytes: int
    count: int
    per: str
    op_name: str


KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([a-z][a-z\-]*)\(")
_ARRAY = re.compile(r"(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_WHILE = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\s*\{"n":\s*"(\d+)"')
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_CALLED_LIST = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


def collectives(text: str) -> list[Collective]:
    """The collectives of a compiled program and how often each runs.

    XLA notes the length of loops that it can count. The outermost loop without such a note is the one over
    iterations. Every branch of a conditional counts as taken.

    Args:
        text: of the program, `compiled.as_text()`.

    Returns:
        Them, in the order in which they are met.

    Raises:
        ValueError: if one runs in a further loop without a note, or asynchronously.
    """
    computations: dict[str, list[str]] = {}
    entry, inside = "", []
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            inside = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            inside.append(line)
    found: Counter[tuple[Any, ...]] = Counter()

    def walk(name: str, times: float, per: str) -> None:
        for number, line in enumerate(computations[name]):
            if not (instruction := _INSTRUCTION.match(line)):
                continue
            shape, opcode = instruction.groups()
            kind = opcode.removesuffix("-start")
            if kind in KINDS:
                op_name = (_OP_NAME.search(line) or [opcode, opcode])[1]
                if opcode != kind:
                    raise ValueError(f"{opcode} of {op_name}: only programs for CPUs can be read.")
                if times == math.inf:
                    raise ValueError(f"How often {kind} of {op_name} runs is not noted at its loop.")
                sizes = [_bytes(*array) for array in _ARRAY.findall(shape)]
                found[name, number, kind, len(sizes), sum(sizes), per, op_name] += int(times)
            elif opcode == "while":
                condition, body = _WHILE.search(line).groups()
                if trips := _TRIPS.search(line):
                    walk(body, times * int(trips[1]), per)
                    walk(condition, times * (int(trips[1]) + 1), per)
                else:
                    inner = (1, "iteration") if per == "call" else (math.inf, per)
                    walk(body, *inner)
                    walk(condition, *inner)
            else:
                names = _CALLED.findall(line)
                for several in _CALLED_LIST.findall(line):
                    names += [called.strip(" %") for called in several.split(",")]
                for called in names:
                    walk(called, times, per)

    walk(entry, 1, "call")
    return [
        Collective(kind, arrays, size, count, per, op_name)
        for (_, _, kind, arrays, size, per, op_name), count in found.items()
    ]


def _bytes(dtype: str, bits: str, shape: str) -> int:
    count = math.prod(int(n) for n in shape.split(",") if n)
    return count if dtype == "pred" else math.ceil(count * int(bits) / 8)


# On paper


def sent(kind: str, size: int, devices: int) -> float:
    """Bytes that each device sends in a ring.

    Args:
        kind: of the collective.
        size: bytes of its result on one device.
        devices: how many take part.

    Returns:
        2 (D − 1) / D of the result for a sum: its parts go round to be summed, and round again to be known.
    """
    part = (devices - 1) / devices * size
    each = {
        "all-reduce": 2 * part,
        "all-gather": part,
        "all-to-all": part,
        "reduce-scatter": devices * part,
        "collective-permute": float(size),
    }
    return each[kind]


def communication(found: list[Collective], link: Link, which: int = 1) -> float:
    """Seconds of an iteration that a device waits for others.

    Σ count · (latency + bytes sent / bandwidth); nothing overlaps with computing, because every gradient step
    needs the sum before it.

    Args:
        found: the collectives.
        link: what joins the devices.
        which: of the link's numbers: 0 best, 1 usual, 2 worst.

    Returns:
        The seconds.
    """
    latency, bandwidth = link.latency[which], link.bandwidth[which]
    return math.fsum(  # the same in every version of Python
        c.count * (latency + sent(c.kind, c.bytes, link.devices) / bandwidth)
        for c in found
        if c.per == "iteration"
    )


def efficiency(compute: float, waiting: float) -> float:
    """The part of the time in which a device computes.

    Args:
        compute: seconds that it computes.
        waiting: seconds that it waits for others.

    Returns:
        Between 0 and 1; times the devices it is the speed-up.
    """
    return compute / (compute + waiting)


def padding(seeds: int, devices: int) -> float:
    """The part of all devices that works on seeds somebody asked for.

    Args:
        seeds: how many.
        devices: how many.

    Returns:
        Between 0 and 1; 1 where they divide.
    """
    return seeds / (math.ceil(seeds / devices) * devices)


def project(compiled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the assumptions make of the compiled programs.

    Args:
        compiled: rows as `compile_all` returns them.

    Returns:
        For each program the seconds of communication and the efficiencies. "weak": the accelerator computes
        as long for a gradient step however many there are. "strong": one accelerator alone would, and they
        share it.
    """
    rows = []
    links = {link.devices: link for link in LINKS}
    for row in compiled:
        link, steps = links[row["devices"]], row["gradient_steps"]
        found = [Collective(**c) for c in row["collectives"]]
        waiting = [communication(found, link, which) for which in range(3)]
        rows.append(
            {name: row[name] for name in ("algorithm", "hidden", "devices", "gradient_steps")}
            | {
                "communication": waiting,
                "latency": link.latency[1] * row["count"],
                "weak": [[efficiency(t * steps, w) for w in waiting] for t in COMPUTE],
                "strong": [[efficiency(t * steps / link.devices, w) for w in waiting] for t in COMPUTE],
                "compute_for_90_percent": 9 * waiting[1] / steps,
            }
        )
    return rows


# Measuring


class Case(NamedTuple):
    """One program, to be compiled in a process of its own.

    Attributes:
        algorithm: its name.
        changes: of the preset.
        seeds: how many.
        shard: what is spread.
        devices: over how many.
        iterations: of one turn.
    """

    algorithm: str
    changes: dict[str, Any]
    seeds: int
    shard: str
    devices: int
    iterations: int


def work(case: Case) -> None:
    """A worker: compile, say what the program holds, then one run for every line, and its steps a second."""
    import time

    import jax

    jax.config.update("jax_num_cpu_devices", case.devices)

    from pgjax.experiment import presets, programs
    from pgjax.experiment.store import Settings, surroundings

    preset = presets.preset(case.algorithm, ENVIRONMENT, **case.changes)
    steps, gradient_steps = presets.iteration_size(preset)
    preset = presets.change(preset, steps=case.iterations * steps)  # as long as a turn
    settings = Settings(preset, seeds=case.seeds, shard=case.shard, devices=case.devices)
    program = programs.compile_programs(settings)
    progress = program.progress
    about = {
        "gradient_steps": gradient_steps,
        "compile_seconds": program.compile_seconds,
        "collectives": [c._asdict() for c in collectives(program.chunk.as_text())],
        "surroundings": surroundings(),
    }
    print(json.dumps(about), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        progress, metrics = program.chunk(program.hyper, program.run_keys, progress, 0, case.iterations)
        jax.block_until_ready((progress, metrics))
        seconds = time.perf_counter() - begin
        print(case.seeds * case.iterations * steps / seconds, flush=True)


def start(case: Case) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """A worker that has compiled, and what it says of its program."""
    call = [sys.executable, __file__, "--worker", json.dumps(case)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    worker = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    if not (line := worker.stdout.readline()):
        raise SystemExit(f"The worker for {case} ended: see above.")
    return worker, json.loads(line)


def stop(worker: subprocess.Popen[str]) -> None:
    worker.stdin.close()
    worker.wait()


def measure(
    axis: str, size: Size, devices: tuple[int, ...], turns: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Weak and strong scaling along one axis, and where; by turns, so that all see the same machine."""
    whole = size.per_device * max(devices)
    amounts = {"weak": [size.per_device * d for d in devices], "strong": [whole for _ in devices]}
    workers, about = {}, {}
    # the largest of both are the same
    for amount, count in sorted({pair for s in amounts.values() for pair in zip(s, devices, strict=True)}):
        changes = size.changes | ({"num_envs": amount} if axis == "data" else {})
        seeds = amount if axis == "seed" else 1
        case = Case("ppo", changes, seeds, axis, count, size.iterations)
        workers[amount, count], about[amount, count] = start(case)
    speeds: dict[tuple[int, int], list[float]] = {which: [] for which in workers}
    for turn in range(turns + 1):
        for which, worker in workers.items():
            print(file=worker.stdin, flush=True)
            speed = float(worker.stdout.readline())
            if turn > 0:  # the first warms up
                speeds[which].append(speed)
    for worker in workers.values():
        stop(worker)

    rows = []
    for scaling, along in amounts.items():
        base = speeds[along[0], devices[0]]
        for which in zip(along, devices, strict=True):
            ratios = [a / b for a, b in zip(speeds[which], base, strict=True)]
            row = {"axis": axis, "scaling": scaling, "size": f"{which[0]} {size.unit}", "devices": which[1]}
            row |= {"steps_per_second": statistics.median(speeds[which])}
            row |= {"against_one": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}
            row |= totals(about[which]["collectives"])
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows, next(iter(about.values()))["surroundings"]


def totals(found: list[dict[str, Any]]) -> dict[str, int]:
    """How many collectives an iteration runs, and their bytes."""
    inside = [c for c in found if c["per"] == "iteration"]
    return {
        "count": sum(c["count"] for c in inside),
        "bytes": sum(c["count"] * c["bytes"] for c in inside),
    }


def compile_all(algorithms, networks, devices, num_envs: int) -> list[dict[str, Any]]:
    """The collectives of every algorithm and network on so many devices, and the jax that made them."""
    rows = []
    for algorithm, hidden, count in itertools.product(algorithms, networks, devices):
        changes = {"num_envs": num_envs, "network": {"hidden": hidden}}
        if algorithm != "a2c":  # it does not shuffle
            changes["num_shards"] = count
        worker, about = start(Case(algorithm, changes, 1, "data", count, 1))
        stop(worker)
        row = {"algorithm": algorithm, "hidden": hidden, "num_envs": num_envs, "devices": count}
        row |= {name: about[name] for name in ("gradient_steps", "compile_seconds")}
        row["jax"] = about["surroundings"]["versions"]["jax"]
        row |= totals(about["collectives"])
        print(json.dumps(row), flush=True)
        rows.append(row | {"collectives": about["collectives"]})
    return rows


# The page


def report(found: dict[str, Any]) -> str:
    """The results as Markdown.

    Args:
        found: what lies in scaling.json.

    Returns:
        The page.
    """
    where = ", ".join(f"{name} {found['versions'][name]}" for name in ("pgjax", "jax", "python"))
    return "\n".join(
        [
            "# Scaling",
            "",
            f"{where}, {found['device']}. Written by `python benchmarks/scaling.py`; the numbers lie in "
            "`scaling.json`.",
            "",
            *_measured(found["measured"], found["turns"]),
            *_compiled(found["compiled"]),
            *_projected(found),
        ]
    )


def _measured(rows: list[dict[str, Any]], turns: int) -> list[str]:
    cells = [
        (
            row["size"],
            row["scaling"],
            row["devices"],
            f"{row['steps_per_second']:,.0f}",
            f"{row['against_one']:.2f} [{row['least']:.2f}, {row['greatest']:.2f}]",
            row["count"],
            _amount(row["bytes"]),
        )
        for row in rows
    ]
    return [
        "## Measured: forced devices on one CPU",
        "",
        f"PPO on {ENVIRONMENT}: 64-64 networks, 128 steps, 16 gradient steps an iteration; where seeds are "
        "spread, each has 16 environments. Weak: the same for every device. Strong: the same for all of them "
        f"together. Medians of {turns} turns; the last columns are read in the compiled program.",
        "",
        "All devices share the cores named above, and one device alone uses several of them where its "
        "matrices are large. More devices than cores cannot be faster: the shape says only what dividing the "
        "program costs. Perfect would be a ratio that stays where it is once every core has a device.",
        "",
        "In weak scaling the batch grows on the same cores, and a larger one can be slower on one device "
        "already: compare its two rows. What dividing costs stands in the rows of strong scaling, where the "
        "batch is the same.",
        "",
        *_table(
            ("size", "scaling", "devices", "steps/s", "against 1 device [least, greatest]", *_TOTALS),
            *cells,
        ),
    ]


def _compiled(rows: list[dict[str, Any]]) -> list[str]:
    sums, single = [], []
    for row in rows:
        name = row["algorithm"], _hidden(row)
        inside = [c for c in row["collectives"] if c["per"] == "iteration"]
        kinds = ", ".join(sorted({c["kind"] for c in inside}))
        size = row["gradient_steps"], row["count"], _amount(row["bytes"]), kinds
        sums.append((*name, row["devices"], *size, sum(c["count"] for c in inside if c["bytes"] > 1000)))
        if (row["hidden"], row["devices"]) == (rows[0]["hidden"], rows[0]["devices"]):
            for c in sorted(inside, key=lambda c: -c["count"] * c["bytes"]):
                array = c["kind"], c["arrays"], _amount(c["bytes"]), c["count"], _place(c["op_name"])
                single.append((row["algorithm"], *array))
    return [
        "## Compiled: what devices say to each other",
        "",
        f"{rows[0]['num_envs']} environments of {ENVIRONMENT}, spread over so many devices; nothing of this "
        "is run. A2C acts 5 steps in an iteration, PPO and TRPO 128; while they act nothing is said. Bytes "
        "are those of the results. The gradient steps of TRPO are its critic's.",
        "",
        *_table(
            ("algorithm", "network", "devices", "gradient steps", *_TOTALS, "kinds", "above 1 kB"),
            *sums,
        ),
        f"One by one, network {_hidden(rows[0])} on {rows[0]['devices']} devices:",
        "",
        *_table(("algorithm", "kind", "arrays", "bytes", "times an iteration", "where"), *single),
    ]


_TOTALS = ("collectives an iteration", "their bytes")


def _hidden(row: dict[str, Any]) -> str:
    return "-".join(map(str, row["hidden"]))


def _place(op_name: str) -> str:
    """An operation's name without the loops around it, and not too long."""
    around = ("jit(advance)", "while", "body", "closed_call")
    name = "/".join(part for part in op_name.split("/") if part not in around)
    return f"`{name if len(name) <= 60 else name[:59] + '…'}`"


def _projected(found: dict[str, Any]) -> list[str]:
    compute = [_time(t) for t in found["assumed"]["compute"]]
    run, weak, strong = ("algorithm", "network", "accelerators"), [], []
    for row in found["projected"]:
        name = row["algorithm"], _hidden(row), row["devices"]
        low, usual, high = row["communication"]
        waiting = f"{_time(usual)} [{_time(low)}, {_time(high)}]"
        cells = [f"{usual:.0%} [{worst:.0%}, {best:.0%}]" for best, usual, worst in row["weak"]]
        latency = f"{row['latency'] / usual:.0%}"
        weak.append((*name, waiting, latency, *cells, _time(row["compute_for_90_percent"])))
        cells = [
            f"{row['devices'] * usual:.3g} [{row['devices'] * worst:.3g}, {row['devices'] * best:.3g}]"
            for best, usual, worst in row["strong"]
        ]
        strong.append((*name, *cells))
    links = [
        (
            link["name"],
            "{} [{}, {}]".format(*(_time(link["latency"][i]) for i in (1, 0, 2))),
            "{:.0f} [{:.0f}, {:.0f}]".format(*(link["bandwidth"][i] / 1e9 for i in (1, 2, 0))),
            link["why"],
        )
        for link in found["assumed"]["links"]
    ]
    kept = [(s, d, math.ceil(s / d), f"{padding(s, d):.0%}") for s, d in found["assumed"]["seeds"]]
    return [
        "## On paper: 8 and 256 accelerators",
        "",
        "A projection, not a measurement: no accelerator was at hand. What it assumes:",
        "",
        "- In an iteration a device waits Σ count · (latency + bytes sent / bandwidth). For a sum each sends "
        "2 (D − 1) / D of its bytes, as in a ring of all D devices. Nothing overlaps with computing, because "
        "every gradient step needs the sum before it.",
        "- Efficiency is computing / (computing + waiting).",
        "- How long an accelerator computes for a gradient step, with its part of the rollout, is not known. "
        "Three times are given; the last column says which one would make 90 %.",
        "- The program has the collectives that XLA makes for CPUs. For accelerators it may join others.",
        "- Nobody is late. A real sum waits for the slowest device.",
        "- These links, usual [best, worst]:",
        "",
        *_table(("link", "latency", "GB/s", "because"), *links),
        "Weak scaling: every accelerator brings environments of its own, so a gradient step takes as long "
        "however many there are. Waiting, usual [best, worst]; efficiency, usual [worst, best]:",
        "",
        *_table(
            (*run, "waiting in an iteration", "of it latency", *(f"at {t}" for t in compute), "90 % at"),
            *weak,
        ),
        "Strong scaling: the same batch is shared evenly, of which one accelerator alone makes a gradient "
        "step in so long. (A smaller batch uses an accelerator less well; that is left out.) Speed-up, usual "
        "[worst, best]:",
        "",
        *_table((*run, *(f"alone {t}" for t in compute)), *strong),
        "Seeds say nothing to each other, as the first table has it, so their efficiency is 1 where they "
        "divide among the devices. Where they do not, a part of the places is empty:",
        "",
        *_table(("seeds", "accelerators", "seeds on one", "efficiency"), *kept),
    ]


def _table(*rows: tuple[Any, ...]) -> list[str]:
    lines = [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:], ""]


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:.3g} µs" if seconds < 0.9995e-3 else f"{seconds * 1e3:.3g} ms"


def _amount(size: float) -> str:
    if size < 1e3:
        return f"{size:.0f} B"
    return f"{size / 1e3:.1f} kB" if size < 1e6 else f"{size / 1e6:.2f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="the page lies beside it")
    parser.add_argument("--measure", action="store_true", help="keep what was compiled")
    parser.add_argument("--report", action="store_true", help="only projection and page, from the results")
    parser.add_argument("--quick", action="store_true", help="one turn of small runs, a few small programs")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(Case(*json.loads(arguments.worker)))
        return

    devices, compiled = DEVICES, (ALGORITHMS, NETWORKS, [link.devices for link in LINKS], NUM_ENVS)
    sizes = SIZES
    if arguments.quick:
        arguments.turns, devices, compiled = 1, (1, 2), (("a2c",), ((8,),), (8,), 16)
        sizes = {"data": SIZES["data"]._replace(per_device=8), "seed": SIZES["seed"]._replace(iterations=1)}
        if arguments.results == RESULTS:
            arguments.results = pathlib.Path(tempfile.mkdtemp()) / RESULTS.name
    found = {}
    if arguments.report or arguments.measure:
        found = json.loads(arguments.results.read_text(encoding="utf-8"))
    else:
        found["compiled"] = compile_all(*compiled)
    if not arguments.report:
        found["measured"] = []
        for axis, size in sizes.items():
            rows, where = measure(axis, size, devices, arguments.turns)
            found["measured"] += rows
        found |= {"versions": where["versions"], "device": where["device"], "turns": arguments.turns}
    found["assumed"] = {"links": [link._asdict() for link in LINKS], "compute": COMPUTE, "seeds": SEEDS}
    found["projected"] = project(found["compiled"])
    arguments.results.parent.mkdir(exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    arguments.results.write_text(text, encoding="utf-8")
    arguments.results.with_suffix(".md").write_text(report(found), encoding="utf-8")
    print(report(found))


if __name__ == "__main__":
    main()
