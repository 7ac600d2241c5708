"""What every algorithm learns on every environment that it fits, over several seeds.

    python -m benchmarks learning --runs FOLDER              # all that is not there yet, what is cheap first
    python -m benchmarks learning --runs FOLDER --hours 8    # as far as that goes; the same command goes on
    python -m benchmarks learning --only ppo:CartPole-v1 dqn:Catch-bsuite
    python -m benchmarks learning --list                     # what is left, in the order in which it is done
    python -m benchmarks learning --draw                     # table and pictures anew, nothing trained
    python -m benchmarks learning --full --runs FOLDER       # replay and values on MinAtar at full length

Each pair is one compiled program for all its seeds, ten of them; on MinAtar five and 10 million steps where
the policy learns from its own steps, and three and 1 million where values or replay do. After each pair its
row goes into `results/learning.json`, its curve into `results/learning-curves.json`, and
`results/learning.md` and the picture of the environment in `results/learning/` are made anew. A pair is done
when its row was made with the settings that its preset has now, by this version, and has a curve. With
`--runs` a pair that was cut off, by Ctrl-C, `--hours` or the machine, goes on from its latest checkpoint, on
other devices too. With `--full`, which is meant for an accelerator (`benchmarks/gpu.sh learning`), the pairs
that had a million steps have ten million and five seeds; their results are `results/learning-full.json` and
what is made from it.

There are two scores: of the last 100 episodes of training, exploration included, and of 100 episodes that
the final policies play without it. The first counts where the algorithm explores by its own policy and
learns from it at once, the second for A3C and all that learn action values. The verdict holds the
interquartile mean against the best comparable figure that was published for this algorithm, else the best
that was for any other, else the best that the environment allows:

    progress = (score - random) / (figure - random)

`random` being what uniform actions get. From 0.95 on it is "reached", if the goals of the pair hold too;
under 0.25 it has "failed"; between the two it is "below".
"""

import argparse
import contextlib
import hashlib
import importlib.util
import json
import math
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks import harness
from benchmarks.harness import Rows

RESULTS = harness.RESULTS / "learning.json"
FULL = "learning-full.json"
PUBLISHED = pathlib.Path(__file__).parent / "published.json"

OWN_STEPS = ("ppo", "a2c", "reinforce", "actor_critic", "a3c", "npg", "trpo", "acktr")
VALUES = ("dqn", "q_learning", "sarsa")
REPLAY_BOXES = ("ddpg", "td3")
ALGORITHMS = (*OWN_STEPS, *VALUES, *REPLAY_BOXES, "sac")
EVALUATED = ("a3c", *VALUES, *REPLAY_BOXES, "sac")  # the others are scored as they train

FINITE = ("Catch-bsuite", "DeepSea-bsuite", "FourRooms-misc", "CartPole-v1", "Acrobot-v1", "MountainCar-v0")
BOXES = ("MountainCarContinuous-v0", "Pendulum-v1")
MINATAR = ("Breakout-MinAtar", "Asterix-MinAtar", "Freeway-MinAtar", "SpaceInvaders-MinAtar")
MORE = (  # pairs of environments that are not for every algorithm
    ("q_learning", "Cliff-tabular"),
    ("sarsa", "Cliff-tabular"),
    ("q_learning", "FrozenLake-misc"),
    ("sarsa", "FrozenLake-misc"),
    ("ppo", "brax:inverted_pendulum"),
    ("sac", "brax:inverted_pendulum"),
)
# Where nothing is published for these versions: the most that there is to get.
BEST = {
    "Catch-bsuite": 1.0,
    "DeepSea-bsuite": 0.99,
    "FourRooms-misc": 1.0,
    "Cliff-tabular": -13.0,
    "FrozenLake-misc": None,
    "brax:inverted_pendulum": 1000.0,
}
# Goals that were set beforehand: the interquartile mean of the score that counts, and its worst seed.
GOALS: dict[tuple[str, str], tuple[float, float | None]] = {
    ("ppo", "CartPole-v1"): (475.0, 400.0),
    ("a2c", "CartPole-v1"): (450.0, None),
    ("reinforce", "CartPole-v1"): (400.0, None),
    ("npg", "CartPole-v1"): (450.0, None),
    ("trpo", "CartPole-v1"): (475.0, None),
    ("acktr", "CartPole-v1"): (475.0, None),
    ("a3c", "CartPole-v1"): (450.0, None),
    ("dqn", "CartPole-v1"): (475.0, None),
    ("sac", "CartPole-v1"): (450.0, None),
    ("ppo", "Acrobot-v1"): (-95.0, None),
    ("trpo", "Acrobot-v1"): (-95.0, None),
    ("acktr", "Acrobot-v1"): (-95.0, None),
    ("dqn", "Acrobot-v1"): (-95.0, None),
    ("ppo", "Pendulum-v1"): (-250.0, None),
    ("trpo", "Pendulum-v1"): (-250.0, None),
    ("ddpg", "Pendulum-v1"): (-190.0, None),
    ("td3", "Pendulum-v1"): (-170.0, None),
    ("sac", "Pendulum-v1"): (-170.0, None),
    ("sac", "MountainCarContinuous-v0"): (90.0, None),
    ("ppo", "brax:inverted_pendulum"): (950.0, None),
    ("sac", "brax:inverted_pendulum"): (950.0, None),
}
# Why a pair stays below or fails; what is not here is not explained yet.
WHY: dict[tuple[str, str], str] = {}

_NEVER_THERE = (
    "no seed met the goal in its last 100 episodes. Every step costs the same until then, so nothing tells "
    "one action from another, and what explores is chance: of 200,000 episodes of uniform actions none did. "
)
_NOT_BY_SCALING = "Rescaled observations, with which npg and trpo learn it, did not help in trials with {}"
_TRIALS = {
    "a2c": "14 seeds of up to a million steps",
    "actor_critic": "six seeds of a million steps",
    "a3c": "six seeds of a million steps",
    "acktr": "ten seeds: of six with 500,000 steps three met it in evaluation, of four with a million none",
    "q_learning": "six seeds",
    "sarsa": "six seeds",
}
WHY |= {(a, "MountainCar-v0"): _NEVER_THERE + _NOT_BY_SCALING.format(n) for a, n in _TRIALS.items()}
WHY["a2c", "MountainCar-v0"] += ". The published run has normalised rewards as well, with which ppo learns it"
WHY["sac", "MountainCar-v0"] = (
    "three seeds of ten never met the goal in evaluation, the others come to -151 to -103. What finds it is "
    "the randomness of the policy alone: of 200,000 episodes of uniform actions none met it"
)
WHY["reinforce", "MountainCar-v0"] = (
    _NEVER_THERE
    + "In trials of the same settings three seeds of six learned it, and of twelve others one began to"
)
WHY["dqn", "MountainCar-v0"] = (
    "seven seeds of ten did not meet the goal in their last 100 episodes, two learned it. Every step costs "
    "the same until it is met, and of 200,000 episodes of uniform actions none met it. The settings of the "
    "run at -101 (a rate of 4e-3, 8 gradient steps for 16 of the environment, exploration over 24,000 of "
    "120,000 steps) left thirteen seeds of thirteen at -200, observations rescaled or not, first weights as "
    "here or as PyTorch's. With 4 gradient steps for 16 and rates of 3e-4 and 1e-3 none of eight learned it "
    "that explored over 10,000 steps, and one of eight that did over 100,000"
)
_STANDS_STILL = (
    "it learns to stand still, for 0: moving costs, and the goal is worth something only once it was met, "
    "which the noise of a Gaussian policy, new in every step, does too seldom"
)
WHY |= {(a, "MountainCarContinuous-v0"): _STANDS_STILL for a in OWN_STEPS if a not in ("ppo", "reinforce")}
WHY["npg", "MountainCarContinuous-v0"] = (
    f"one seed of ten met the goal and goes to it, for 94; else {_STANDS_STILL}"
)
for _name, _steps in (("a2c", 16), ("trpo", 4)):
    WHY[_name, "MountainCarContinuous-v0"] += (
        ". The published run explores by noise that is a function of the state (gSDE), the same one for "
        f"{_steps} steps, on normalised observations and rewards"
    )
WHY["reinforce", "MountainCarContinuous-v0"] = (
    "half of the seeds reach the goal; the others stand still, or move and miss it. In evaluation five "
    "are at 81 or more, five at 0 or less"
)
WHY["sac", "FourRooms-misc"] = (
    "the bonus for entropy ends with the episode: after 51,000 steps one seed's soft value was 13, where the "
    "goal is worth 1, and all seeds learned to stay away from it"
)
for _name in ("q_learning", "sarsa"):
    WHY[_name, "Acrobot-v1"] = (
        "its episodes all but never meet the goal, as those of uniform actions do not, and it has no replay "
        "to learn from the few that did"
    )
WHY["q_learning", "Acrobot-v1"] += "; in four seeds all values went to -100, what never meeting it is worth"
WHY["q_learning", "CartPole-v1"] = (
    "it learns online, without replay or target network, and slowly: in four seeds the return was still "
    "rising from tenth to tenth of the run, from 24 to 345"
)
WHY["sarsa", "CartPole-v1"] = (
    "it learns online, without replay or target network, and unsteadily: in four seeds the mean return of a "
    "tenth of the run went from 207 to 104 to 244"
)
WHY["reinforce", "Pendulum-v1"] = (
    "it takes 156 steps of the policy in 500,000 of the environment; npg needs 244, but natural ones. With "
    "twice as many and a rate of 0.01 one seed of three was at -231 in evaluation after as long"
)
WHY["reinforce", "Freeway-MinAtar"] = (
    "all seeds stay between 19 and 30 from two million steps on, at 13 to 18 by their most likely actions, "
    "where going up always brings 17.5. More updates do not help: with 4 or 8 episodes in each instead of "
    "32, or a third of the rate, one seed each was at 23 to 28 as well"
)
WHY["reinforce", "Asterix-MinAtar"] = (
    "it learns slowly and still rises: 2.5 after two million steps, 3.6 after five, 4.5 after nine; by its "
    "most likely actions 8.5 at the end. With a discount of 0.99 in place of 0.95 it ended at 3.2, and one "
    "seed with 0.9 stood at 2.5 from two million on"
)
WHY["a2c", "Pendulum-v1"] = (
    "three seeds of ten stay below -700 to the end, the others come to -303 or better. With RMSProp, "
    "gradients clipped to a norm and a rate that falls to 0, as before, all of them ended below -980"
)
WHY["a3c", "Pendulum-v1"] = (
    "nine seeds of ten come to -189 or better in training, one stays below -700; by their most likely "
    "actions, which count here, three are at -383 or worse"
)
_SHORT = "it had a million steps, where the figure is ppo's after ten; its curve "
WHY |= {("q_learning", e): _SHORT + "still rises" for e in MINATAR}
WHY["q_learning", "SpaceInvaders-MinAtar"] = _SHORT + "hardly rises from 300,000 steps on"
WHY |= {("sarsa", e): _SHORT + "still rises" for e in MINATAR}
for _name in VALUES[1:]:
    WHY[_name, "Breakout-MinAtar"] = _SHORT + "stays near 11 from 880,000 steps on"
WHY["dqn", "Freeway-MinAtar"] = _SHORT + "still rises, by 2 in the last 300,000 steps"
WHY["dqn", "SpaceInvaders-MinAtar"] = _SHORT + "stays near 60 from 720,000 steps on"
WHY |= {("sac", e): _SHORT + "still rises" for e in MINATAR}
WHY["sac", "Breakout-MinAtar"] = _SHORT + "hardly rises from 550,000 steps on; its seeds end between 9 and 16"
WHY["sac", "Freeway-MinAtar"] = _SHORT + "rose until 900,000 steps"
WHY["sac", "SpaceInvaders-MinAtar"] = (
    _SHORT + "still rises in two seeds, one stands at 23 from 600,000 steps on"
)
WHY["actor_critic", "Breakout-MinAtar"] = (
    "its curve still rises, from 33 after 8.2 million steps to 36 at the end; seeds end between 23 and 48"
)
WHY["a3c", "Breakout-MinAtar"] = (
    "it learns slowly: 5 after a million steps, 12 after 4, 18 from 8 on; by its most likely actions, which "
    "count here, 24. A rate of 5e-3 was at 2.5 after a million steps"
)
WHY["a3c", "Asterix-MinAtar"] = (
    "it learns slowly, and slower as its rate falls: 4.8 after 4.1 million steps, 6.7 after 8.1, 6.8 after "
    "9.6; by its most likely actions, which count here, 10.9"
)
WHY["acktr", "Breakout-MinAtar"] = (
    "it rises slowly and still does in four seeds: 15 to 20 after four million steps, 18 to 29 after ten. It "
    "had stood at 6.8 with an entropy bonus of 0.01 in place of 0.1"
)
WHY["npg", "Breakout-MinAtar"] = (
    "one seed ends at 80, the others stand at 18 to 24, two of them from two million steps on. All but one "
    "had stood at 6.6 or less with an entropy bonus of 0.01 in place of 0.2 and a bound of 0.01 in place of "
    "0.03"
)
WHY["npg", "Asterix-MinAtar"] = (
    "it learns slowly and still rises in every seed: 2.3 after two million steps, 5.2 to 6.8 after five, 8.5 "
    "to 17.7 at the end, with 0.5 nats of 1.6 left"
)
WHY["trpo", "Breakout-MinAtar"] = (
    "one seed ends at 44, three at 21 to 23, one at 16; the mean hardly rises from two million steps on. It "
    "had stood at 6.5 with an entropy bonus of 0.01 in place of 0.2 and a bound of 0.01 in place of 0.03"
)
WHY["trpo", "Asterix-MinAtar"] = (
    "it learns slowly, 2.9 after 2.8 million steps, 6.4 after 5.5, and still rises; its entropy falls faster "
    "than it learns, to 0.9 nats of 1.6 after 2.5 million steps"
)
WHY["ppo", "CartPole-v1"] = "one seed of ten averaged 380 over its last 100 episodes, and 500 in evaluation"

REACHED, FAILED = 0.95, 0.25
EPISODES = 100  # of the evaluation, and of the uniform policy
QUICK = (("ppo", "Catch-bsuite"), ("q_learning", "Cliff-tabular"))
_COLORS = ("#2a6fbb", "#e08e1b", "#7a5aa6", "#8c5a3c", "#3aa6a6", "#d36ba8", "#3a8f5c", "#d1495b")
COLORS: dict[str, str] = dict(zip(OWN_STEPS, _COLORS, strict=True))
COLORS |= dict(zip((*VALUES, *REPLAY_BOXES, "sac"), _COLORS, strict=False))  # on axes of their own


def pairs() -> list[tuple[str, str]]:
    """All pairs of an algorithm and an environment that it fits, what is cheap first."""
    finite = [a for a in ALGORITHMS if a not in REPLAY_BOXES]
    boxes = [a for a in ALGORITHMS if a not in VALUES]
    return [
        *MORE[:4],
        *((a, e) for e in FINITE for a in finite),
        *((a, e) for e in BOXES for a in boxes),
        *MORE[4:],
        *((a, e) for a in finite for e in MINATAR),
    ]


def length(algorithm: str, environment: str, full: bool = False) -> tuple[int, dict[str, int]]:
    """Seeds, and the steps where they are not the preset's."""
    if environment not in MINATAR:
        return 10, {}
    return (5, {"steps": 10_000_000}) if full or algorithm in OWN_STEPS else (3, {"steps": 1_000_000})


def digest(settings: Mapping[str, Any]) -> str:
    """Of a preset as JSON. What is None is left out: an option that came later and is off changes nothing."""

    def known(value: Any) -> Any:
        return {k: known(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    return hashlib.sha256(json.dumps(known(dict(settings)), sort_keys=True).encode()).hexdigest()[:16]


def published() -> dict[str, list[dict[str, Any]]]:
    """Published returns by "algorithm:environment"."""
    return json.loads(PUBLISHED.read_text())


def figure(algorithm: str, environment: str, known: Mapping[str, list[dict[str, Any]]]) -> float | None:
    """What the score is held against: published for this algorithm, for any, or the most there is."""
    own = [x["return"] for x in known.get(f"{algorithm}:{environment}", []) if x.get("comparable", True)]
    others = [
        x["return"]
        for name, found in known.items()
        if name.partition(":")[2] == environment
        for x in found
        if x.get("comparable", True)
    ]
    return max(own or others, default=BEST.get(environment))


def judge(name: str, row: dict[str, Any], known: Mapping[str, list[dict[str, Any]]]) -> None:
    """Put into a row what its figures are held against, and the verdict."""
    algorithm, _, environment = name.partition(":")
    evaluated = algorithm in EVALUATED
    each = row["evaluation"] if evaluated else row["final_return"]
    score = row["evaluation_iqm"] if evaluated else row["iqm"]
    goal, worst_goal = GOALS.get((algorithm, environment), (None, None))
    against = figure(algorithm, environment, known)
    random = row.get("random")
    row["scored"] = "evaluation" if evaluated else "training"
    row["wanted"], row["wanted_of_worst"] = (None, None) if evaluated else (goal, worst_goal)
    row["wanted_of_evaluation"] = goal if evaluated else None
    row["published"] = known.get(name, [])
    row["figure"] = against
    row["progress"] = row["verdict"] = row["why"] = None
    if score is None or any(x is None or math.isnan(x) for x in each):
        row["verdict"] = "failed"
    elif against is not None and random is not None:
        row["progress"] = (score - random) / (against - random)
        met = (goal is None or score >= goal) and (worst_goal is None or min(each) >= worst_goal)
        enough = row["progress"] >= REACHED
        row["verdict"] = "reached" if enough and met else "failed" if row["progress"] < FAILED else "below"
    if row["verdict"] in ("below", "failed"):
        steps = length(algorithm, environment)[1].get("steps")  # reasons are of runs of this length
        known_why = WHY.get((algorithm, environment)) if steps in (None, row.get("steps")) else None
        row["why"] = known_why or "not explained yet"


def table(rows: Rows) -> str:
    """The table, environment by environment; reasons below it."""
    heads = (
        "algorithm",
        "environment",
        "steps",
        "seeds",
        "training: IQM [95 %]",
        "worst",
        "evaluation: IQM [95 %]",
        "worst",
        "random",
        "published (steps)",
        "verdict",
    )
    lines, reasons = [], []
    for row in rows:
        algorithm, _, environment = row["name"].partition(":")
        line = [algorithm, environment, f"{row['steps']:,}", len(row["final_return"])]
        for score, ends, each, mine in (
            ("iqm", "iqm_interval", "final_return", "training"),
            ("evaluation_iqm", "evaluation_interval", "evaluation", "evaluation"),
        ):
            cell = _score(row.get(score), row.get(ends))
            line += [f"**{cell}**" if row["scored"] == mine else cell, _worst(row.get(each))]
        line += [_number(row.get("random"))]
        line += ["; ".join(_published(x) for x in row["published"]) or "-", row["verdict"] or "-"]
        lines.append(line)
        if row["why"]:
            reasons.append(f"- {row['name']}, {row['verdict']}: {row['why']}")
    counts = {v: sum(row["verdict"] == v for row in rows) for v in ("reached", "below", "failed")}
    total = f"{len(rows)} pairs: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items()) + "."
    note = "The score that counts is bold. " + total
    return "\n\n".join([harness.markdown(heads, lines), note, *(["\n".join(reasons)] if reasons else [])])


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _score(value: float | None, ends: Any) -> str:
    return _number(value) + (f" [{_number(ends[0])}, {_number(ends[1])}]" if ends else "")


def _worst(each: list[float | None] | None) -> str:
    known = [x for x in each or [] if x is not None and not math.isnan(x)]
    return _number(min(known)) if known else "-"


def _published(entry: Mapping[str, Any]) -> str:
    steps = f" ({entry['steps']:,}" if entry["steps"] else " (?"
    return f"{entry['return']:g}{steps}{'' if entry.get('comparable', True) else ', not comparable'})"


class Results:
    """`learning.json`, the curves beside it, and what is made from both."""

    def __init__(self, path: pathlib.Path):
        self.path, self.curves_path = path, path.with_name(path.stem + "-curves.json")
        self.rows: dict[str, Any] = _read(path)
        self.curves: dict[str, Any] = _read(self.curves_path)

    def is_done(self, name: str, settings: str, seeds: int) -> bool:
        """Whether a pair's row was made with these settings, and has a curve."""
        from pgjax import __version__

        row = self.rows.get(name, {})
        return (
            row.get("digest") == settings
            and row["versions"]["pgjax"] == __version__
            and len(row["final_return"]) >= seeds
            and name in self.curves
        )

    def ordered(self) -> Rows:
        """The rows in the order of the table: by environment."""
        order = [":".join(p) for e in _environments() for p in pairs() if p[1] == e]
        return [{"name": name} | self.rows[name] for name in order if name in self.rows]

    def add(self, name: str, row: dict[str, Any], curve: Any) -> None:
        """Put a pair in and write; what another process has written meanwhile stays."""
        self.rows |= _read(self.path)
        self.curves |= _read(self.curves_path)
        self.rows[name], self.curves[name] = row, curve
        self.save(name.partition(":")[2])

    def save(self, drawn: str | None = None) -> None:
        """Write everything; pictures of one environment, or of all."""
        known = published()
        for name, row in self.rows.items():
            judge(name, row, known)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _write(self.path, json.dumps(self.rows, indent=1) + "\n")
        lines = [f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in self.curves.items()]
        _write(self.curves_path, "{\n" + ",\n".join(lines) + "\n}\n")
        title = (__doc__ or "").splitlines()[0]
        about = (
            "Made by `python -m benchmarks learning` from the JSON file beside it, which has every seed. "
            "Intervals are of 95 %, by bootstrap; with three seeds that is from the worst to the best."
        )
        _write(self.path.with_suffix(".md"), f"# {title}\n\n{about}\n\n{table(self.ordered())}\n")
        for environment in _environments():
            if drawn in (None, environment):
                draw(environment, self, self.path.with_suffix(""))


def _environments() -> list[str]:
    return [*FINITE, *BOXES, *MINATAR, *dict.fromkeys(e for _, e in MORE)]


def _read(path: pathlib.Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise SystemExit(
            f"{path} is damaged ({error}): restore it, or name another folder with --results."
        ) from None


def _write(path: pathlib.Path, text: str) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    temporary.replace(path)


def reduce_curve(metrics: Mapping[str, Any]) -> dict[str, list[float]]:
    """A run's learning curve in about 100 points: the interquartile mean over seeds and its interval."""
    from pgjax.experiment import plots, statistics

    x, curves = plots.curves_by_seed(metrics)
    if not len(x):
        return {"steps": [], "iqm": [], "low": [], "high": []}
    # where a seed has no value yet, a mean over the others would jump
    known = ~(curves != curves).any(axis=0)
    x, curves = x[known], curves[:, known]
    low, high = statistics.interval(curves, num_resamples=1000) if len(curves) > 1 else (curves[0], curves[0])
    kept = {"steps": x, "iqm": statistics.iqm(curves), "low": low, "high": high}
    return {name: [float(f"{v:.5g}") for v in values] for name, values in kept.items()}


def draw(environment: str, results: Results, folder: pathlib.Path) -> pathlib.Path | None:
    """All algorithms' curves on an environment: on the left those that learn from their own steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    names = [f"{a}:{environment}" for a in ALGORITHMS]
    names = [n for n in names if results.curves.get(n, {}).get("steps") and n in results.rows]
    if not names:
        return None
    sides = [[n for n in names if (n.partition(":")[0] in OWN_STEPS) == own] for own in (True, False)]
    sides = [side for side in sides if side]
    figure_ = Figure(figsize=(1.2 + 5.4 * len(sides), 5.0), layout="constrained")
    FigureCanvasAgg(figure_)
    axes = figure_.subplots(1, len(sides), sharey=True, squeeze=False)[0]
    for ax, side in zip(axes, sides, strict=True):
        for name in side:
            curve, algorithm = results.curves[name], name.partition(":")[0]
            seeds = len(results.rows[name]["final_return"])
            color = COLORS[algorithm]
            ax.plot(
                curve["steps"], curve["iqm"], color=color, linewidth=1.8, label=f"{algorithm} ({seeds} seeds)"
            )
            ax.fill_between(curve["steps"], curve["low"], curve["high"], color=color, alpha=0.15, linewidth=0)
        random = next(
            (results.rows[n]["random"] for n in side if results.rows[n].get("random") is not None), None
        )
        best = max((f for n in side if (f := results.rows[n].get("figure")) is not None), default=None)
        for value, style, label in ((best, "--", "best figure to reach"), (random, ":", "uniform actions")):
            if value is not None:
                ax.axhline(value, color="#777777", linestyle=style, linewidth=1.2, label=label)
        own = side[0].partition(":")[0] in OWN_STEPS
        ax.set_title("learn from their own steps" if own else "learn action values", fontsize="medium")
        ax.set_xlabel("environment steps (per seed)")
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
        ax.grid(True, color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
    axes[0].set_ylabel("return of training episodes")
    figure_.suptitle(
        f"{environment}: interquartile mean over seeds, 95 % bootstrap interval", fontsize="medium"
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{environment.replace(':', '-')}.png"
    figure_.savefig(path, dpi=110)
    return path


def uniform(preset: Any) -> float:
    """The return of uniform actions, over 1,000 episodes."""
    import jax
    import jax.numpy as jnp

    from pgjax import envs, rollouts
    from pgjax.experiment import presets

    env, env_params = presets.environment(preset)
    space = env.action_space(env_params)

    def act(key: Any, obs: Any) -> Any:
        shape = jax.tree.leaves(obs)[0].shape[:1]
        if envs.is_discrete(space):
            return jax.random.randint(key, shape, 0, space.n)
        low, high = (jnp.broadcast_to(jnp.asarray(b, float), space.shape) for b in (space.low, space.high))
        return jax.random.uniform(key, (*shape, *space.shape), minval=low, maxval=high)

    play = jax.jit(lambda key: rollouts.evaluate(key, act, env, env_params, 1000, envs.max_steps(env_params)))
    return float(play(jax.random.key(0)).mean_return)


def is_outdated(row: Mapping[str, Any]) -> bool:
    """Whether the pair's preset is another now; unknown, so not, where its suite is not installed."""
    from pgjax.experiment import presets

    algorithm, _, environment = row["name"].partition(":")
    if "digest" not in row or not _is_installed(environment):
        return False
    preset = presets.preset(algorithm, environment, **length(algorithm, environment)[1])
    return row["digest"] != digest(presets.to_json(preset))


def complete(results: Results) -> None:
    """What uniform actions get, in rows from before that was kept."""
    from pgjax.experiment import presets

    rows = results.rows.items()
    known = {name.partition(":")[2]: row["random"] for name, row in rows if row.get("random") is not None}
    for name, row in rows:
        algorithm, _, environment = name.partition(":")
        if row.get("random") is None and _is_installed(environment):
            if environment not in known:
                known[environment] = uniform(presets.preset(algorithm, environment))
            row["random"] = known[environment]


def _is_installed(environment: str) -> bool:
    suite, colon, _ = environment.partition(":")
    return not colon or importlib.util.find_spec(suite) is not None


@contextlib.contextmanager
def interrupting(hours: float | None) -> Iterator[float]:
    """Ctrl-C by itself after so many hours: a run then ends with a checkpoint. Yields the time of it."""
    if hours is None:
        yield math.inf
        return
    timer = threading.Timer(3600 * hours, os.kill, (os.getpid(), signal.SIGINT))
    timer.daemon = True
    timer.start()
    try:
        yield time.monotonic() + 3600 * hours
    finally:
        timer.cancel()


def train(
    task: tuple[str, str], preset: Any, seeds: int, folder: pathlib.Path
) -> tuple[dict[str, Any], Any] | None:
    """One pair, begun or gone on with: its row and its curve; None if it was cut off."""
    from pgjax.experiment import checkpoints, presets, runner, statistics, store

    settings = store.Settings(preset, seeds=seeds)
    if folder.exists() and checkpoints.iterations(folder):
        result = runner.resume(folder, allow_inexact=True)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # cut off before its first checkpoint
        result = runner.run(settings, out=folder)
    summary = result.summary
    if result.status == "interrupted":
        return None
    evaluation = list(runner.evaluate(result.folder, episodes=EPISODES).values())
    metrics = store.read_metrics(result.folder)
    row: dict[str, Any] = {k: summary[k] for k in ("steps", "final_return", "iqm", "iqm_interval")}
    row["final_return"] = [float(x) for x in row["final_return"]]
    healthy = [x for x in evaluation if not math.isnan(x)]
    ends = statistics.interval(healthy) if len(healthy) > 1 else None
    suite, colon, _ = task[1].partition(":")
    row |= {
        "evaluation": evaluation,
        "evaluation_iqm": float(statistics.iqm(healthy)) if healthy else None,
        "evaluation_interval": [float(x) for x in ends] if ends else None,
        "diverged": summary["diverged"],
        "random": uniform(preset),
        "digest": digest(presets.to_json(preset)),
        "seconds": round(summary["seconds"], 1),
        "steps_per_second": summary["steps_per_second"],
        "compile_seconds": summary["compile_seconds"],
        "versions": summary["versions"] | (harness.packages(suite) if colon else {}),
        "device": summary["device"],
        "devices": summary["devices"],
    }
    return json.loads(json.dumps(row)), reduce_curve(metrics)


def measure(arguments: argparse.Namespace) -> Rows:
    """Train what is not there yet, and save after every pair."""
    import jax

    with contextlib.suppress(AttributeError, RuntimeError):  # not everywhere, and not once jax has begun
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    from pgjax.experiment import presets

    results = Results(arguments.results / (FULL if arguments.full else RESULTS.name))
    todo = []
    for task in QUICK if arguments.quick else pairs():
        name = ":".join(task)
        if arguments.only and name not in arguments.only:
            continue
        if arguments.full and not arguments.quick and length(*task) == length(*task, full=True):
            continue
        if not _is_installed(task[1]):
            suite = task[1].partition(":")[0]
            print(f'{name}: left out, for {suite} is not installed: pip install "pgjax[{suite}]"')
            continue
        seeds, changes = length(*task, full=arguments.full)
        seeds, changes = (2, {"steps": 4000}) if arguments.quick else (arguments.seeds or seeds, changes)
        preset = presets.preset(*task, **changes)
        if not results.is_done(name, digest(presets.to_json(preset)), seeds):
            # what was learned before and only lacks its curve comes after what was not
            late = results.rows.get(name, {}).get("digest") == digest(presets.to_json(preset))
            todo.append((task[1] in MINATAR, late, task, preset, seeds))
    todo.sort(key=lambda entry: entry[:2])
    if arguments.list:
        for *_, task, preset, seeds in todo:
            print(f"{':'.join(task)}: {seeds} seeds, {preset.steps:,} steps")
        print(f"{len(todo)} pairs are left.")
        return results.ordered()
    with contextlib.ExitStack() as stack:
        runs = arguments.runs or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        until = stack.enter_context(interrupting(arguments.hours))
        try:
            complete(results)
            for *_, task, preset, seeds in todo:
                if time.monotonic() > until:
                    break
                name, mark = ":".join(task), digest(presets.to_json(preset))
                folder = runs / f"{'-'.join(task).replace(':', '-')}-{seeds}-{mark[:8]}"
                found = train(task, preset, seeds, folder)
                if found is None:
                    print(f"{name}: cut off; the same command goes on with it" + _kept(arguments), flush=True)
                    break
                results.add(name, *found)
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # replay in it may be large
                print(_line(name, results.rows[name]), flush=True)
        except KeyboardInterrupt:
            print("Stopped between two pairs.", file=sys.stderr)
    return results.ordered()


def _kept(arguments: argparse.Namespace) -> str:
    return "" if arguments.runs else " from its beginning, because no --runs was given"


def _line(name: str, row: Mapping[str, Any]) -> str:
    return (
        f"{name}: training {_score(row['iqm'], row['iqm_interval'])}, worst {_worst(row['final_return'])}; "
        f"evaluation {_score(row['evaluation_iqm'], row['evaluation_interval'])}, "
        f"worst {_worst(row['evaluation'])}; {row['verdict']}; {row['seconds']:.0f} s"
    )


def main(argv: list[str] | None = None) -> int:
    """Train what is left, print the table; results are saved on the way, in files of their own.

    They are not those of a device and a day, as other benchmarks' are: the table grows over both.
    """
    parser = harness.parser(__doc__)
    names = [":".join(pair) for pair in pairs()]
    parser.add_argument("--seeds", type=int, help="instead of those that the table is to have")
    parser.add_argument("--only", nargs="+", metavar="ALGORITHM:ENVIRONMENT", help="these pairs")
    parser.add_argument(
        "--runs", type=pathlib.Path, metavar="FOLDER", help="where runs are kept, to go on with"
    )
    parser.add_argument("--hours", type=float, help="end after so long; what is under way is kept in --runs")
    parser.add_argument("--list", action="store_true", help="say what is left and end")
    parser.add_argument("--full", action="store_true", help="what had a tenth of the steps, at full length")
    parser.add_argument("--draw", action="store_true", help="make table and pictures anew and end")
    arguments = parser.parse_args(argv)
    for name in arguments.only or []:
        if name not in names:
            near = [n for n in names if set(n.split(":")) & set(name.split(":"))]
            parser.error(f"there is no pair {name!r}; there are: {', '.join(near or names)}")
    if arguments.seeds is not None and arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {arguments.seeds}")
    if arguments.hours is not None and arguments.hours <= 0:
        parser.error(f"--hours must be above 0, got {arguments.hours:g}")
    if arguments.draw:
        results = Results(arguments.results / (FULL if arguments.full else RESULTS.name))
        if not results.rows:
            parser.error(f"--draw: nothing was trained yet that {results.path} would hold")
        results.save()
        print(table(results.ordered()))
        return 0
    with contextlib.ExitStack() as stack:
        if arguments.quick:
            arguments.results = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        rows = measure(arguments)
    if not arguments.list:
        print(table(rows))
    if arguments.quick:
        print("quick: nothing saved", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
