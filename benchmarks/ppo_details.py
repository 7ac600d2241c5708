"""What each implementation detail of PPO brings: all combinations of ten, in one compiled program.

    python benchmarks/ppo_details.py                            # CartPole-v1: 1024 combinations, three seeds
    python benchmarks/ppo_details.py --env Acrobot-v1 --seeds 2 # the results stand side by side
    python benchmarks/ppo_details.py --draw                     # table and figure again, from the results
    python benchmarks/ppo_details.py --quick                    # two details, few iterations: does it run?

Each detail is a number that may be traced, with a value that switches it off, so the combinations are rows of
one array and training is mapped over them. A batch of rows goes through the program at a time: small ones
stay in the cache. All combinations have the same seeds; those that differ from full or from bare PPO in at
most one detail have more of them.

The score of a run is its episode return averaged over its environment steps: how fast it learns and how far
it comes. Beside it stands the return over its last 100 episodes.
"""

import argparse
import itertools
import json
import os
import pathlib
import tempfile
import time
from typing import Any, NamedTuple

import jax
import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results" / "ppo_details.json"
DETAILS = {  # what each is when it is on, and what when it is off
    "orthogonal initialisation": (1.0, 0.0),  # off: LeCun normal, the default of flax
    "advantage normalisation": (1.0, 0.0),
    "observation normalisation": (1.0, 0.0),
    "reward scaling": (1.0, 0.0),
    "policy clipping": (0.2, np.inf),
    "value clipping": (0.2, np.inf),
    "gradient clipping": (0.5, np.inf),
    "entropy bonus": (0.01, 0.0),
    "annealed learning rate": (0.0, 1.0),  # the rate at the end, as a part of that at the start
    "large ε of Adam": (1e-5, 1e-8),
}
LEARNING_RATE = {"CartPole-v1": 2.5e-4, "Acrobot-v1": 1e-3}  # those of the presets
NUM_ENVS, NUM_STEPS, NUM_UPDATES = 4, 128, 16  # of an iteration: environments, steps, gradient steps
SUMS = ("env_steps", "episodes", "episode_return_sum")


class PartlyOrthogonal(NamedTuple):
    """A network that starts between LeCun normal weights (0) and orthogonal ones (1), and acts as it is."""

    network: Any
    orthogonal: Any

    def init(self, key, obs):
        """Parameters for observations of this shape."""
        from flax.linen.initializers import lecun_normal

        params, structure = jax.tree.flatten(self.network.init(key, obs))
        keys = jax.random.split(jax.random.fold_in(key, 1), len(params))
        w = self.orthogonal
        mixed = [
            x if x.ndim < 2 else (1.0 - w) * lecun_normal()(k, x.shape) + w * x
            for k, x in zip(keys, params, strict=True)
        ]
        return structure.unflatten(mixed)

    def apply(self, params, obs):
        """What the network says."""
        return self.network.apply(params, obs)


def algorithm(setting, environment, num_iterations):
    """PPO with the details `setting [10]`, traced or not, in the order of the table."""
    import optax

    import pgjax
    from pgjax import networks
    from pgjax.algorithms import ppo

    s = dict(zip(DETAILS, setting, strict=True))
    env, env_params = pgjax.envs.make(environment)
    actor = networks.CategoricalActor(env.action_space(env_params).n)
    network = networks.ActorCritic(actor, networks.Critic())
    start = LEARNING_RATE[environment]
    end = start * s["annealed learning rate"]
    rate = optax.linear_schedule(start, end, num_iterations * NUM_UPDATES)
    clip = optax.clip_by_global_norm(s["gradient clipping"])
    return ppo.make(
        env,
        env_params,
        PartlyOrthogonal(network, s["orthogonal initialisation"]),
        optax.chain(clip, optax.adam(rate, eps=s["large ε of Adam"])),
        num_envs=NUM_ENVS,
        num_steps=NUM_STEPS,
        normalize_advantage=s["advantage normalisation"],
        normalize_obs=s["observation normalisation"],
        normalize_reward=s["reward scaling"],
        clip_eps=s["policy clipping"],
        value_clip_eps=s["value clipping"],
        entropy_coef=s["entropy bonus"],
    )


def plan(num_details, seeds, more_seeds):
    """The runs: which details are on, bool `[R, num_details]`, and the seed `[R]`."""
    every = list(itertools.product((False, True), repeat=num_details))
    near = [on for on in every if min(sum(on), num_details - sum(on)) <= 1]
    runs = [(on, seed) for on in every for seed in range(seeds)]
    runs += [(on, seed) for on in near for seed in range(seeds, more_seeds)]
    on, seed = zip(*runs, strict=True)
    return np.array(on), np.array(seed, np.int32)


def train_all(environment, num_iterations):
    """To be compiled: `(settings [R, 10], seeds [R]) -> (sums [R, I] by name, where each diverged [R])`."""
    from jax import lax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    from pgjax import training

    mesh = jax.make_mesh((jax.device_count(),), ("run",), axis_types=(AxisType.Auto,))
    over_devices = NamedSharding(mesh, PartitionSpec("run"))

    def start(setting, seed):
        init_key, _ = training.split_run_key(jax.random.key(seed))
        return training.init_progress(init_key, algorithm(setting, environment, num_iterations))

    def learn(setting, seed, progress):
        _, run_key = training.split_run_key(jax.random.key(seed))
        made = algorithm(setting, environment, num_iterations)
        return training.advance(run_key, made, progress, 0, num_iterations, num_iterations)

    def train(settings, seeds):
        # one after the other, on every device: batched decompositions deadlock on few cores
        progress = lax.map(lambda run: start(*run), (settings, seeds))
        runs = lax.with_sharding_constraint((settings, seeds, progress), over_devices)
        progress, metrics = jax.vmap(learn)(*runs)
        sums = {name: metrics[name] for name in SUMS}
        return lax.with_sharding_constraint((sums, progress.diverged_at), over_devices)

    return train


def scores_of(sums, steps):
    """The mean return over training `[R]`, and that of the last 100 episodes `[R]`."""
    from pgjax.experiment import plots, statistics

    env_steps, episodes, returns = (np.asarray(sums[name], float) for name in SUMS)
    num_runs, num_iterations = episodes.shape
    columns = {
        "seed": np.repeat(np.arange(num_runs), num_iterations),
        "env_steps": np.cumsum(env_steps, axis=1).ravel(),
        "episodes": episodes.ravel(),
        "episode_return": (returns / np.maximum(episodes, 1.0)).ravel(),
    }
    _, curves = plots.curves_by_seed(columns)
    return np.nanmean(curves, axis=1), statistics.scores(env_steps, episodes, returns, steps)[0]


def measure(environment, details, steps, seeds, more_seeds, batch):
    """All runs in one environment: what lies in the results."""
    from pgjax.experiment import store

    num_iterations = max(1, steps // (NUM_ENVS * NUM_STEPS) - 1)  # one more fills the normalisers
    steps = (num_iterations + 1) * NUM_ENVS * NUM_STEPS
    on, seed = plan(len(details), seeds, more_seeds)
    values = np.array(list(DETAILS.values()), np.float32)
    varied = [list(DETAILS).index(name) for name in details]
    settings = np.tile(values[:, 0], (len(on), 1))
    settings[:, varied] = np.where(on, *values[varied].T)
    size = batch * jax.device_count()

    compiled, begin_to_compile = [], time.perf_counter()
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(seconds) if "backend_compile" in event else None
    )
    train = jax.jit(train_all(environment, num_iterations)).lower(settings[:size], seed[:size]).compile()
    begin, begin_of_cores = time.perf_counter(), time.process_time()
    shown, diverged = begin, 0
    over_training, at_the_end = np.full((2, 2 ** len(details), more_seeds), np.nan)
    for first in range(0, len(on), size):
        rows = np.arange(first, first + size)
        filled = np.minimum(rows, len(on) - 1)  # the last batch goes on with its last run
        sums, diverged_at = train(settings[filled], seed[filled])
        rows = rows[rows < len(on)]
        where = on[rows] @ (1 << np.arange(len(details))[::-1]), seed[rows]
        over_training[where], at_the_end[where] = (x[: len(rows)] for x in scores_of(sums, steps))
        diverged += int((np.asarray(diverged_at)[: len(rows)] >= 0).sum())
        now, done = time.perf_counter(), first + len(rows)
        if now > shown + 30.0 or done == len(on):
            shown, left = now, (now - begin) * (len(on) / done - 1.0)
            print(f"{environment}: {done}/{len(on)} runs, {now - begin:.0f} s, {left:.0f} s left", flush=True)
    seconds, core_seconds = time.perf_counter() - begin, time.process_time() - begin_of_cores
    assert len(compiled) == 1, f"{len(compiled)} programs were compiled, not one for all combinations"

    found = {
        "steps": steps,
        "details": {name: [str(x) for x in DETAILS[name]] for name in details},
        "runs": len(on),
        "diverged": diverged,
        "programs": len(compiled),
        "compile_seconds": round(begin - begin_to_compile, 1),
        "seconds": round(seconds, 1),
        "core_seconds": round(core_seconds, 1),
        "steps_per_core_second": round(len(on) * steps / core_seconds),
        "cores": jax.device_count(),
    }
    found |= {name: store.surroundings()[name] for name in ("versions", "device")}
    combinations = {}  # which details are on: the return over training and that at the end, by seed
    for number, two in enumerate(zip(over_training, at_the_end, strict=True)):
        rows = [[round(float(x), 2) for x in row if not np.isnan(x)] for row in two]
        combinations[f"{number:0{len(details)}b}"] = rows
    return found | {"combinations": combinations}


def by_combination(found, which):
    """The scores `[2, ..., 2, S]`, one axis a detail, off before on; NaN where a seed was not run."""
    rows = [found["combinations"][bits][which] for bits in sorted(found["combinations"])]
    scores = np.full((len(rows), max(map(len, rows))), np.nan)
    for score, row in zip(scores, rows, strict=True):
        score[: len(row)] = row
    return scores.reshape(*[2] * len(found["details"]), -1)


def effects(scores):
    """What each detail brings: its score on minus off.

    Args:
        scores: `[2, ..., 2, S]`, of k details.

    Returns:
        For each detail `(every, full, bare)`: in every combination of the others `[2^(k-1)]`, averaged over
        the seeds that all of them have; and by seed where all, or none, of the others are on. And `[k, k]`,
        how much larger a detail's mean effect is where another is on than where it is off.
    """
    num_details = scores.ndim - 1
    axes = range(num_details)
    mean = scores[..., ~np.isnan(scores).any(axis=tuple(axes))].mean(axis=-1)
    found, interactions = [], np.zeros((num_details, num_details))
    for i in axes:
        by_seed = np.diff(scores, axis=i).reshape(-1, scores.shape[-1])
        found.append((np.diff(mean, axis=i).ravel(), by_seed[-1], by_seed[0]))
        for j in set(axes) - {i}:
            interactions[i, j] = np.diff(np.diff(mean, axis=i), axis=j).mean()
    return found, interactions


def mean_interval(x, num_resamples=2000):
    """The mean of `x [n]` and its 95 % percentile bootstrap interval."""
    rows = np.random.default_rng(0).integers(len(x), size=(num_resamples, len(x)))
    low, high = np.quantile(x[rows].mean(axis=1), [0.025, 0.975])
    return float(np.mean(x)), float(low), float(high)


def table(environment, found):
    """The results of one environment as Markdown."""
    from pgjax.experiment import statistics

    details = list(found["details"])
    scores, at_the_end = (by_combination(found, which) for which in (0, 1))
    rows, interactions = effects(scores)
    rows_at_the_end, _ = effects(at_the_end)

    def shown(differences):
        mean, low, high = mean_interval(differences)
        return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"

    lines = [
        f"{environment}: {found['runs']:,} runs of {found['steps']:,} steps; {found['diverged']} diverged.\n",
        "| detail | everywhere | helps in | everywhere, last 100 episodes | in full PPO | in bare PPO |",
        "|---|---|---|---|---|---|",
    ]
    for i in sorted(range(len(details)), key=lambda i: -rows[i][0].mean()):
        every, full, bare = rows[i]
        cells = details[i], shown(every), f"{(every > 0).mean():.0%}", shown(rows_at_the_end[i][0])
        lines.append(f"| {' | '.join((*cells, shown(full), shown(bare)))} |")
    lines.append("")
    for name, values in (("over training", scores), ("last 100 episodes", at_the_end)):
        flat = values.reshape(-1, values.shape[-1])
        ends = []
        for which, row in (("full", flat[-1]), ("bare", flat[0])):
            low, high = statistics.interval(row)
            rank = (np.nanmean(flat, axis=1) < row.mean()).mean()
            ends.append(f"{which} {statistics.iqm(row):.1f} [{low:.1f}, {high:.1f}], above {rank:.0%} of all")
        lines.append(f"{name}: {'; '.join(ends)}")
    pairs = sorted(itertools.combinations(range(len(details)), 2), key=lambda pair: -abs(interactions[pair]))
    lines += [f"{details[i]}: {interactions[i, j]:+.1f} where {details[j]} is on" for i, j in pairs[:6]]
    return "\n".join(lines)


def draw(results, path):
    """For each environment the effects over all combinations, and beside all or none of the others."""
    from matplotlib.lines import Line2D

    from pgjax.experiment import plots

    details = list(next(iter(results.values()))["details"])
    figure = plots.new_axes(9.5, (1.5 + 0.29 * len(details)) * len(results)).figure
    figure.clear()
    axes = figure.subplots(len(results), 2, sharey="row", squeeze=False)
    order = None
    for pair, (environment, found) in zip(axes, results.items(), strict=True):
        scores = by_combination(found, 0)
        rows, _ = effects(scores)
        if order is None:  # the first environment's is kept, for comparison
            order = sorted(range(len(details)), key=lambda i: rows[i][0].mean())
        for y, i in enumerate(order):
            every, full, bare = rows[i]
            pair[0].plot(np.quantile(every, [0.1, 0.9]), [y, y], **_WIDE)
            _mark(pair[0], y, every, _EVERY)
            _mark(pair[1], y + 0.17, full, _FULL)
            _mark(pair[1], y - 0.17, bare, _BARE)
        pair[0].set_yticks(range(len(details)), [details[i] for i in order])
        flat = scores.reshape(-1, scores.shape[-1])
        seeds = (~np.isnan(flat)).sum(axis=1)
        titles = f"in all {len(flat) // 2} combinations of the others", "in full and in bare PPO"
        best, worst = flat[[-1, 0]].mean(axis=1)
        legends = (
            {"mean, 95 % interval": _EVERY, "middle 80 % of them": _WIDE},
            {f"full (return {best:.0f})": _FULL, f"bare (return {worst:.0f})": _BARE},
        )
        for ax, title, entries, number in zip(pair, titles, legends, (seeds.min(), seeds[0]), strict=True):
            handles = [Line2D([], [], **style) for style in entries.values()]
            place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 0.98), "ncols": 2, "columnspacing": 1.2}
            ax.legend(handles, list(entries), frameon=False, fontsize="small", **place)
            ax.set_title(f"{environment}, {title}", fontsize=10, loc="left", pad=20)
            ax.set_xlabel(f"difference in mean return, on − off ({number} seeds)", fontsize=9)
            ax.axvline(0.0, color="#333333", linewidth=0.8, zorder=1)
            ax.grid(True, axis="x", color="#dddddd", linewidth=0.6)
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
    plots.save(axes[0, 0], path)


_WIDE = {"color": "#c9d9ea", "linewidth": 7, "solid_capstyle": "butt"}
_EVERY = {"color": "#2a6fbb", "marker": "o", "markersize": 5}
_FULL = {"color": "#d1495b", "marker": "s", "markersize": 5}
_BARE = {"color": "#555555", "marker": "D", "markersize": 5}


def _mark(ax, y, differences, style):
    mean, low, high = mean_interval(differences)
    ax.plot([low, high], [y, y], color=style["color"], linewidth=1.6)
    ax.plot(mean, y, **style)


def write(results, path):
    """JSON with one combination a line."""
    combinations = {environment: found["combinations"] for environment, found in results.items()}
    short = {name: found | {"combinations": f"<{name}>"} for name, found in results.items()}
    text = json.dumps(short, indent=1, ensure_ascii=False)
    for name, rows in combinations.items():
        lines = ",\n".join(f"   {json.dumps(c)}: {json.dumps(row)}" for c, row in rows.items())
        text = text.replace(f'"<{name}>"', f"{{\n{lines}\n  }}")
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--env", choices=LEARNING_RATE, default="CartPole-v1")
    parser.add_argument("--steps", type=int, default=100_352, help="of every run")
    parser.add_argument("--seeds", type=int, default=3, help="of every combination")
    parser.add_argument("--more-seeds", type=int, default=10, help="of those near all and near none")
    parser.add_argument("--batch", type=int, default=16, help="runs at a time on every device")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--draw", action="store_true", help="only table and figure, from the results")
    parser.add_argument("--quick", action="store_true", help="two details, few runs of few steps")
    arguments = parser.parse_args()
    details = list(DETAILS)
    if arguments.quick:
        details = details[:2]
        arguments.steps, arguments.seeds, arguments.more_seeds, arguments.batch = 2_048, 1, 2, 4
        if arguments.results == RESULTS:
            arguments.results = pathlib.Path(tempfile.mkdtemp()) / RESULTS.name

    results = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    if not arguments.draw:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        jax.config.update("jax_num_cpu_devices", cores)
        counts = arguments.steps, arguments.seeds, arguments.more_seeds, arguments.batch
        results[arguments.env] = measure(arguments.env, details, *counts)
        write(results, arguments.results)
    for environment, found in results.items():
        print(table(environment, found), end="\n\n")
    draw(results, arguments.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
