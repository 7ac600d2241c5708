"""Steps per second of whole compiled trainings, beside rejax in the same run and with the same settings.

    python benchmarks/speed.py                                  # pgjax alone
    python benchmarks/speed.py --peer-python PATH/TO/python     # and rejax 0.1.3, by turns

rejax needs gymnax 0.0.9, so it lives in an environment of its own:
`pip install rejax==0.1.3 gymnax==0.0.9 "numpy<2.4" jax==0.10.2`. PPO trains two 64×64 tanh networks with
4 epochs of 4 minibatches on CartPole-v1; DQN, on CartPole-v1 too, takes a batch of 128 out of 50,000 for
every 10 steps of 10 environments; SAC and TD3, on Pendulum-v1, a batch of 256 out of 100,000 for every step.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

TASKS = {  # environment steps of one run
    "ppo-4x128": 204_800,
    "ppo-64x128": 819_200,
    "ppo-2048x128": 1_572_864,
    "dqn": 100_000,
    "sac": 10_000,
    "td3": 10_000,
}
WARMUP = 2_000  # random steps of DQN, SAC and TD3
RESULTS = pathlib.Path(__file__).parent / "results" / "speed.json"


def sizes(task):
    """Environments and steps of a PPO task."""
    return (int(x) for x in task.removeprefix("ppo-").split("x"))


def pgjax_training(task, total):
    import flax.linen as nn
    import jax
    import optax

    import pgjax
    from pgjax import networks
    from pgjax.algorithms import dqn, ppo, sac, td3

    env = pgjax.envs.make("CartPole-v1" if task.startswith(("ppo", "dqn")) else "Pendulum-v1")

    def torso():
        return networks.MLP((64, 64), nn.relu)

    def adam(rate):
        return optax.chain(optax.clip(10.0), optax.adam(rate))  # elementwise, as rejax has it

    if task.startswith("ppo"):
        num_envs, num_steps = sizes(task)
        num_iterations = total // (num_envs * num_steps)
        schedule = optax.linear_schedule(2.5e-4, 0.0, num_iterations * 16)
        optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(schedule, eps=1e-5))
        network = networks.ActorCritic(networks.CategoricalActor(2), networks.Critic())
        algorithm = ppo.make(*env, network, optimizer, num_envs=num_envs, num_steps=num_steps)
    elif task == "dqn":
        options = {"num_envs": 10, "capacity": 50_000, "warmup_steps": WARMUP, "num_updates": 100}
        options["double"] = True  # as rejax has it
        algorithm = dqn.make(*env, networks.QNetwork(2, torso()), adam(3e-4), **options)
        num_iterations = (total - WARMUP) // 1000
    else:
        low, high = (-2.0,), (2.0,)
        head = networks.TanhGaussianActor if task == "sac" else networks.DeterministicActor
        parts = head(low, high, torso()), networks.ActionCritic(low, high, torso())
        module, num_optimizers = (sac, 3) if task == "sac" else (td3, 2)
        num_updates = 500 if task == "sac" else 250
        options = {"capacity": 100_000, "warmup_steps": WARMUP, "num_updates": num_updates}
        algorithm = module.make(*env, *parts, *[adam(3e-4) for _ in range(num_optimizers)], **options)
        num_iterations = (total - WARMUP) // 500
    return jax.jit(lambda key: pgjax.train(key, algorithm, num_iterations))


def rejax_training(task, total):
    import jax
    import rejax

    common = {"total_timesteps": total, "eval_freq": total, "skip_initial_evaluation": True}
    replay = {"fill_buffer": WARMUP, "learning_rate": 3e-4, "max_grad_norm": 10.0}
    if task.startswith("ppo"):
        num_envs, num_steps = sizes(task)
        algorithm = rejax.PPO.create(
            env="CartPole-v1",
            num_envs=num_envs,
            num_steps=num_steps,
            num_epochs=4,
            num_minibatches=4,
            agent_kwargs={"hidden_layer_sizes": (64, 64), "activation": "tanh"},
            **common,
        )
    elif task == "dqn":
        algorithm = rejax.DQN.create(
            env="CartPole-v1",
            num_envs=10,
            buffer_size=50_000,
            batch_size=128,
            target_update_freq=500,
            agent_kwargs={"activation": "relu"},
            **common,
            **replay,
        )
    else:
        kind = {"sac": rejax.SAC, "td3": rejax.TD3}[task]
        relu = {"activation": "relu"}
        parts = {"agent_kwargs": relu} if task == "sac" else {"actor_kwargs": relu, "critic_kwargs": {**relu}}
        algorithm = kind.create(
            env="Pendulum-v1",
            num_envs=1,
            buffer_size=100_000,
            batch_size=256,
            polyak=0.995,
            **parts,
            **common,
            **replay,
        )
    return jax.jit(algorithm.train)


def work(library, task):
    """A worker: compile, say how long that took, then one run and its steps per second for every line."""
    import jax

    total = TASKS[task]
    train = {"pgjax": pgjax_training, "rejax": rejax_training}[library](task, total)
    begin = time.perf_counter()
    program = train.lower(jax.random.key(0)).compile()
    print(json.dumps([time.perf_counter() - begin, jax.__version__]), flush=True)
    for seed, _ in enumerate(sys.stdin):
        begin = time.perf_counter()
        jax.block_until_ready(program(jax.random.key(seed)))
        print(total / (time.perf_counter() - begin), flush=True)


def measure(pythons, task, turns):
    """Medians over runs that the libraries make by turns, so that all see the same machine."""
    workers, row = {}, {}
    for library, python in pythons.items():
        call = [python, __file__, "--work", library, task]
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
    parser.add_argument("--only", nargs="*", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--work", nargs=2, metavar=("LIBRARY", "TASK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(*arguments.work)
        return

    pythons = {"pgjax": sys.executable} | ({"rejax": arguments.peer_python} if arguments.peer_python else {})
    found = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    for task in arguments.only:
        found[task] = measure(pythons, task, arguments.turns)
        print(task, json.dumps(found[task]), flush=True)
    arguments.results.parent.mkdir(exist_ok=True)
    arguments.results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
