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
TASKS = {  # (algorithm, environment): the return to reach at 500,000 steps
    ("ppo", "CartPole-v1"): 475.0,
    ("a2c", "CartPole-v1"): 450.0,
    ("reinforce", "CartPole-v1"): 400.0,
    ("ppo", "Pendulum-v1"): -250.0,
    ("ppo", "Acrobot-v1"): -95.0,
    ("ppo", "MountainCarContinuous-v0"): None,
    ("ppo", "Catch-bsuite"): None,
    ("a2c", "Catch-bsuite"): None,
    ("a2c", "Acrobot-v1"): None,
    ("actor_critic", "CartPole-v1"): None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", nargs="*", metavar="ALGORITHM:ENVIRONMENT")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", os.cpu_count())

    from pgjax import experiment

    found = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for (algorithm, environment), wanted in TASKS.items():
        name = f"{algorithm}:{environment}"
        if arguments.only and name not in arguments.only:
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "run"
            summary = experiment.run(algorithm, environment, seeds=arguments.seeds, out=out).summary
        kept = ("steps", "final_return", "iqm", "iqm_interval", "compile_seconds", "steps_per_second")
        found[name] = {k: summary[k] for k in kept} | {
            "wanted": wanted,
            "versions": summary["versions"],
            "device": summary["device"],
        }
        arguments.results.parent.mkdir(exist_ok=True)
        arguments.results.write_text(json.dumps(found, indent=1, default=lambda x: x.tolist()) + "\n")
        worst = min(summary["final_return"])
        verdict = (
            "" if wanted is None else f", wanted {wanted:g}: {'yes' if summary['iqm'] >= wanted else 'NO'}"
        )
        print(
            f"{name}: {summary['iqm']:.1f} {summary['iqm_interval']}, worst {worst:.1f}{verdict}", flush=True
        )


if __name__ == "__main__":
    main()
