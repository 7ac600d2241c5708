"""What the presets learn, over several seeds: interquartile means with bootstrap intervals.

    python benchmarks/learning.py                      # all tasks, ten seeds
    python benchmarks/learning.py --only ppo:CartPole-v1 --seeds 3

There are two scores: of the last 100 episodes of training, exploration included, and of 100 episodes that the
final policies play without it. What is to be reached is meant for the first where the algorithm explores by
its own policy and learns from it at once, and for the second in A3C and all that learn action values.

Tasks of a suite that is not installed (brax: `pip install "pgjax[brax]"`) are left out, and said to be.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import tempfile
from importlib.metadata import version

import jax

RESULTS = pathlib.Path(__file__).parent / "results" / "learning.json"
TASKS = {  # (algorithm, environment): the interquartile mean of training and the worst seed to reach
    ("ppo", "CartPole-v1"): (475.0, 400.0),
    ("a2c", "CartPole-v1"): (450.0, None),
    ("reinforce", "CartPole-v1"): (400.0, None),
    ("ppo", "Pendulum-v1"): (-250.0, None),
    ("ppo", "Acrobot-v1"): (-95.0, None),
    ("ppo", "MountainCarContinuous-v0"): (None, None),
    ("ppo", "Catch-bsuite"): (None, None),
    ("a2c", "Catch-bsuite"): (None, None),
    ("a2c", "Acrobot-v1"): (None, None),
    ("actor_critic", "CartPole-v1"): (None, None),
    ("npg", "CartPole-v1"): (450.0, None),
    ("trpo", "CartPole-v1"): (475.0, None),
    ("trpo", "Pendulum-v1"): (-250.0, None),
    ("trpo", "Acrobot-v1"): (-95.0, None),
    ("acktr", "CartPole-v1"): (475.0, None),
    ("acktr", "Acrobot-v1"): (-95.0, None),
    ("acktr", "Pendulum-v1"): (None, None),
    ("ppo", "brax:inverted_pendulum"): (950.0, None),
}
EVALUATED = {  # (algorithm, environment): the interquartile mean of evaluation to reach
    ("a3c", "CartPole-v1"): 450.0,
    ("dqn", "CartPole-v1"): 475.0,
    ("dqn", "Acrobot-v1"): -95.0,
    ("sac", "CartPole-v1"): 450.0,
    ("sac", "Acrobot-v1"): None,
    ("ddpg", "Pendulum-v1"): -190.0,
    ("td3", "Pendulum-v1"): -170.0,
    ("sac", "Pendulum-v1"): -170.0,
    ("ddpg", "MountainCarContinuous-v0"): None,
    ("td3", "MountainCarContinuous-v0"): None,
    ("sac", "MountainCarContinuous-v0"): 90.0,
    ("q_learning", "Cliff-tabular"): None,
    ("sarsa", "Cliff-tabular"): None,
    ("q_learning", "FrozenLake-misc"): None,
    ("sarsa", "FrozenLake-misc"): None,
    ("sac", "brax:inverted_pendulum"): 950.0,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="*", metavar="ALGORITHM:ENVIRONMENT")
    parser.add_argument("--keep", type=pathlib.Path, metavar="FOLDER", help="keep the run folders here")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())

    from pgjax import experiment
    from pgjax.experiment import statistics

    found = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for task in (*TASKS, *EVALUATED):
        name = ":".join(task)
        if arguments.only and name not in arguments.only:
            continue
        suite, colon, _ = task[1].partition(":")
        if colon and importlib.util.find_spec(suite) is None:
            print(f"{name}: left out, {suite} is not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = (arguments.keep or pathlib.Path(folder)) / "-".join(task)
            summary = experiment.run(*task, seeds=arguments.seeds, out=out).summary
            evaluation = list(experiment.evaluate(out, episodes=100).values())
        wanted, wanted_of_worst = TASKS.get(task, (None, None))
        kept = ("steps", "final_return", "iqm", "iqm_interval")
        found[name] = {k: summary[k] for k in kept} | {
            "wanted": wanted,
            "wanted_of_worst": wanted_of_worst,
            "evaluation": evaluation,
            "evaluation_iqm": float(statistics.iqm(evaluation)),
            "evaluation_interval": [float(x) for x in statistics.interval(evaluation)],
            "wanted_of_evaluation": EVALUATED.get(task),
            "versions": summary["versions"] | ({suite: version(suite)} if colon else {}),
            "device": summary["device"],
        }
        arguments.results.parent.mkdir(exist_ok=True)
        arguments.results.write_text(json.dumps(found, indent=1, default=lambda x: x.tolist()) + "\n")
        row = found[name]
        goals = (row["iqm"], wanted), (min(row["final_return"]), wanted_of_worst)
        goals += ((row["evaluation_iqm"], EVALUATED.get(task)),)
        reached = [score >= goal for score, goal in goals if goal is not None]
        print(
            f"{name}: training {row['iqm']:.1f} {row['iqm_interval']}, worst {min(row['final_return']):.1f}; "
            f"evaluation {row['evaluation_iqm']:.1f} {row['evaluation_interval']}, "
            f"worst {min(evaluation):.1f} {f'reached: {all(reached)}' if reached else ''}",
            flush=True,
        )


if __name__ == "__main__":
    main()
