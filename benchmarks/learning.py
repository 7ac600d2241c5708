"""What the presets learn: interquartile mean of the last 100 episodes, over several seeds.

python benchmarks/learning.py                      # all tasks, ten seeds
python benchmarks/learning.py --only ppo:CartPole-v1 --seeds 3
"""

import argparse
import json
import os
import pathlib
import tempfile

import jax

RESULTS = pathlib.Path(__file__).parent / "results" / "learning.json"
TASKS = {  # (algorithm, environment): the interquartile mean and the worst seed to reach
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

    found = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for (algorithm, environment), (wanted, wanted_of_worst) in TASKS.items():
        name = f"{algorithm}:{environment}"
        if arguments.only and name not in arguments.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = (arguments.keep or pathlib.Path(folder)) / f"{algorithm}-{environment}"
            summary = experiment.run(algorithm, environment, seeds=arguments.seeds, out=out).summary
        kept = ("steps", "final_return", "iqm", "iqm_interval")
        found[name] = {k: summary[k] for k in kept} | {
            "wanted": wanted,
            "wanted_of_worst": wanted_of_worst,
            "versions": summary["versions"],
            "device": summary["device"],
        }
        arguments.results.parent.mkdir(exist_ok=True)
        arguments.results.write_text(json.dumps(found, indent=1, default=lambda x: x.tolist()) + "\n")
        worst = min(summary["final_return"])
        reached = [
            score >= goal
            for score, goal in ((summary["iqm"], wanted), (worst, wanted_of_worst))
            if goal is not None
        ]
        verdict = f"reached: {all(reached)}" if reached else ""
        print(
            f"{name}: {summary['iqm']:.1f} {summary['iqm_interval']}, worst {worst:.1f} {verdict}", flush=True
        )


if __name__ == "__main__":
    main()
