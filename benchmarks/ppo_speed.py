"""Steps per second of PPO's whole compiled training on CartPole-v1, beside rejax in the same run.

    python benchmarks/ppo_speed.py                                  # pgjax alone
    python benchmarks/ppo_speed.py --peer-python PATH/TO/python     # and rejax 0.1.3, by turns

rejax needs gymnax 0.0.9, so it lives in an environment of its own:
`pip install rejax==0.1.3 gymnax==0.0.9 "numpy<2.4" jax==0.10.2`. Both train two 64×64 tanh networks with
4 epochs of 4 minibatches.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

SIZES = {(4, 128): 204_800, (64, 128): 819_200, (2048, 128): 1_572_864}
RESULTS = pathlib.Path(__file__).parent / "results" / "ppo_speed.json"


def pgjax_training(num_envs, num_steps, total):
    import jax
    import optax

    import pgjax
    from pgjax import networks
    from pgjax.algorithms import ppo

    num_iterations = total // (num_envs * num_steps)
    schedule = optax.linear_schedule(2.5e-4, 0.0, num_iterations * 16)
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
    network = networks.ActorCritic(networks.CategoricalActor(2), networks.Critic())
    env, env_params = pgjax.envs.make("CartPole-v1")
    algorithm = ppo.make(env, env_params, network, optimizer, num_envs=num_envs, num_steps=num_steps)
    return jax.jit(lambda key: pgjax.train(key, algorithm, num_iterations))


def rejax_training(num_envs, num_steps, total):
    import jax
    import rejax

    algorithm = rejax.PPO.create(
        env="CartPole-v1",
        num_envs=num_envs,
        num_steps=num_steps,
        num_epochs=4,
        num_minibatches=4,
        total_timesteps=total,
        eval_freq=total,
        skip_initial_evaluation=True,
        agent_kwargs={"hidden_layer_sizes": (64, 64), "activation": "tanh"},
    )
    return jax.jit(algorithm.train)


def work(library, num_envs, num_steps):
    """A worker: compile, say how long that took, then one run and its steps per second for every line."""
    import jax

    total = SIZES[num_envs, num_steps]
    train = {"pgjax": pgjax_training, "rejax": rejax_training}[library](num_envs, num_steps, total)
    begin = time.perf_counter()
    program = train.lower(jax.random.key(0)).compile()
    print(json.dumps([time.perf_counter() - begin, jax.__version__]), flush=True)
    for seed, _ in enumerate(sys.stdin):
        begin = time.perf_counter()
        jax.block_until_ready(program(jax.random.key(seed)))
        print(total / (time.perf_counter() - begin), flush=True)


def measure(pythons, num_envs, num_steps, turns):
    """Medians over runs that the libraries make by turns, so that all see the same machine."""
    workers, row = {}, {}
    for library, python in pythons.items():
        call = [python, __file__, "--work", library, str(num_envs), str(num_steps)]
        workers[library] = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        compile_seconds, version = json.loads(workers[library].stdout.readline())
        row[library] = {"compile_seconds": compile_seconds, "jax": version}
    speeds = {library: [] for library in workers}
    for turn in range(turns + 1):
        for library, worker in workers.items():
            print(file=worker.stdin, flush=True)
            speed = float(worker.stdout.readline())
            if turn > 0:  # the first warms up
                speeds[library].append(speed)
    for library, worker in workers.items():
        worker.stdin.close()
        worker.wait()
        row[library]["steps_per_second"] = statistics.median(speeds[library])
    if "rejax" in row:
        ratios = [a / b for a, b in zip(speeds["pgjax"], speeds["rejax"], strict=True)]
        row["ratio"] = statistics.median(ratios)
        row["ratio_quartiles"] = statistics.quantiles(ratios, n=4)[::2]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="interpreter of an environment that has rejax")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--envs", type=int, nargs="*", help="only these numbers of environments")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--work", nargs=3, metavar=("LIBRARY", "ENVS", "STEPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        library, num_envs, num_steps = arguments.work
        work(library, int(num_envs), int(num_steps))
        return

    pythons = {"pgjax": sys.executable} | ({"rejax": arguments.peer_python} if arguments.peer_python else {})
    found = {}
    for num_envs, num_steps in SIZES:
        if arguments.envs and num_envs not in arguments.envs:
            continue
        row = measure(pythons, num_envs, num_steps, arguments.turns)
        found[f"{num_envs}x{num_steps}"] = row
        print(num_envs, num_steps, json.dumps(row), flush=True)
    arguments.results.parent.mkdir(exist_ok=True)
    arguments.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
