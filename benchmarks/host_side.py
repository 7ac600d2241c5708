"""How fast gymnasium's environments can be stepped from a compiled program, beside a loop in Python.

    python benchmarks/host_side.py

Steps per second of rollouts of CartPole-v1 in a SyncVectorEnv, with the policy of the presets:

- environments: the vector environment alone, with random actions; nothing can be faster.
- outer loop: Python steps them and calls a compiled policy.
- pure_callback: a compiled rollout calls them out of its loop by `jax.pure_callback`, a token in the carry.
- ordered io_callback: the same by `jax.experimental.io_callback(..., ordered=True)`.
- pgjax: `pgjax.rollout` with `envs.make("gymnasium:CartPole-v1")`, an ordered `io_callback` of one argument.
"""

import argparse
import json
import pathlib
import platform
import time

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from jax.experimental import io_callback

import pgjax
from pgjax import networks

RESULTS = pathlib.Path(__file__).parent / "results" / "host_side.json"
NUM_STEPS = 128
ACTOR = networks.CategoricalActor(2)
PARAMS = ACTOR.init(jax.random.key(0), jnp.zeros(4))


def act(key, obs):
    return ACTOR.apply(PARAMS, obs).sample_and_log_prob(key)


def final_observation(obs, info):
    if "final_obs" not in info:
        return obs
    final, ended = obs.copy(), info["_final_obs"]
    final[ended] = np.stack(info["final_obs"][ended])
    return final


def make_vector(num_envs):
    make_one = [lambda: gymnasium.make("CartPole-v1")] * num_envs
    return SyncVectorEnv(make_one, autoreset_mode=AutoresetMode.SAME_STEP)


def environments(num_envs):
    envs = make_vector(num_envs)
    envs.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 2, (NUM_STEPS, num_envs))

    def run(key):
        for action in actions:
            obs, *_, info = envs.step(action)
            final_observation(obs, info)

    return run


def outer_loop(num_envs):
    envs = make_vector(num_envs)
    start = envs.reset(seed=0)[0]

    @jax.jit
    def act_at(key, i, obs):
        return act(jax.random.fold_in(key, i), obs)

    def run(key):
        obs, rows = start, []
        for i in range(NUM_STEPS):
            action, log_prob = act_at(key, i, obs)
            following, reward, terminated, truncated, info = envs.step(np.asarray(action))
            final = final_observation(following, info)
            rows.append((obs, action, log_prob, reward, terminated, truncated, final))
            obs = following
        columns = zip(*rows, strict=True)
        jax.block_until_ready([jnp.asarray(np.stack([np.asarray(x) for x in c])) for c in columns])

    return run


def called_back(num_envs, call):
    envs = make_vector(num_envs)
    start = envs.reset(seed=0)[0]
    obs, flag = jax.ShapeDtypeStruct((num_envs, 4), jnp.float32), jax.ShapeDtypeStruct((num_envs,), bool)
    like = jax.ShapeDtypeStruct((), jnp.int32), obs, obs, jax.ShapeDtypeStruct((num_envs,), jnp.float32)

    def host(token, action):
        obs, reward, terminated, truncated, info = envs.step(np.asarray(action))
        token, reward = np.asarray(token) + np.int32(1), reward.astype(np.float32)
        return token, obs, final_observation(obs, info), reward, terminated, truncated

    def step(carry, key):
        token, obs = carry
        action, log_prob = act(key, obs)
        token, following, *rest = call(host, (*like, flag, flag), token, action)
        return (token, following), (obs, action, log_prob, *rest)

    @jax.jit
    def rollout(key):
        return jax.lax.scan(step, (jnp.int32(0), start), jax.random.split(key, NUM_STEPS))

    return lambda key: jax.block_until_ready(rollout(key))


def library(num_envs):
    env, env_params = pgjax.envs.make("gymnasium:CartPole-v1")
    carry = [pgjax.reset_envs(jax.random.key(0), env, env_params, num_envs)]
    rollout = jax.jit(lambda key, carry: pgjax.rollout(key, carry, act, env, env_params, NUM_STEPS))

    def run(key):
        carry[0], traj, _ = rollout(key, carry[0])
        jax.block_until_ready(traj)

    return run


WAYS = {
    "environments": environments,
    "outer loop": outer_loop,
    "pure_callback": lambda num_envs: called_back(num_envs, jax.pure_callback),
    "ordered io_callback": lambda num_envs: called_back(
        num_envs, lambda *arguments: io_callback(*arguments, ordered=True)
    ),
    "pgjax": library,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-envs", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    arguments = parser.parse_args()
    found = {}
    for num_envs in arguments.num_envs:
        ways = {name: make(num_envs) for name, make in WAYS.items()}
        seconds = {name: [] for name in ways}
        for repeat in range(arguments.repeats + 1):
            for name, run in ways.items():
                begin = time.perf_counter()
                run(jax.random.key(repeat))
                seconds[name].append(time.perf_counter() - begin)
        speed = {name: num_envs * NUM_STEPS / float(np.median(s[1:])) for name, s in seconds.items()}
        found[num_envs] = {
            name: {"steps_per_second": round(x), "over_outer_loop": round(x / speed["outer loop"], 2)}
            for name, x in speed.items()
        }
        print(
            f"{num_envs} environments:",
            *(f"{name} {row}" for name, row in found[num_envs].items()),
            sep="\n  ",
        )
    versions = {"jax": jax.__version__, "gymnasium": gymnasium.__version__, "numpy": np.__version__}
    data = {"num_envs": found, "versions": versions, "machine": platform.machine()}
    arguments.results.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
