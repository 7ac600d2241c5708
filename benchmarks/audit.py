"""Seconds for `audit` of eight estimators at five batch sizes on a problem of 20 states, compiling included.

python benchmarks/audit.py             # three fresh processes, the median of them
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

RESULTS = pathlib.Path(__file__).parent / "results" / "audit.json"
BATCH_SIZES = (1, 4, 16, 64, 256)
NUM_STATES, NUM_ACTIONS, HORIZON, GAMMA = 20, 4, 20, 0.95


def problem():
    """What `audit` is given: estimators, sample and exact gradient."""
    import jax
    import jax.numpy as jnp

    import pgjax
    from pgjax import tabular

    mdp = tabular.random_mdp(
        jax.random.key(0), NUM_STATES, NUM_ACTIONS, GAMMA, horizon=HORIZON, num_terminal=2
    )

    def apply(params, obs):
        return pgjax.Categorical(obs @ params)

    size = mdp.observations.shape[-1], NUM_ACTIONS
    params = jax.random.normal(jax.random.key(1), size)
    value = tabular.state_value(mdp, tabular.policy_matrix(mdp, apply, params))

    def sample(key, n):
        def policy(key, obs):
            return apply(params, obs).sample_and_log_prob(key)

        return pgjax.rollout_episodes(key, policy, mdp, None, n, HORIZON)

    def critic(traj, scale):
        """V(obs) and V(next_obs), times a number: with 1 it is the true one."""
        now, after = (obs[..., :NUM_STATES].argmax(-1) for obs in (traj.obs, traj.next_obs))
        time = jnp.arange(HORIZON)[:, None]
        return scale * value[time, now], scale * value[time + 1, after]

    def estimator(weight, keep_discount=True):
        def gradient(traj, valid):
            discount = pgjax.time_discount(traj.terminated, traj.truncated, gamma=GAMMA)
            psi = weight(traj, valid) * (discount if keep_discount else 1.0)
            return pgjax.policy_gradient(apply, params, traj, psi, valid)

        return gradient

    def to_go(traj, valid):
        return pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=GAMMA)

    def total(traj, valid):
        discount = GAMMA ** jnp.arange(HORIZON)[:, None]
        return pgjax.total_return(discount * traj.reward, valid) / discount  # it has its own discount

    def minus(baseline):
        return lambda traj, valid: to_go(traj, valid) - baseline(to_go(traj, valid), valid)

    def advantage(scale, lambda_):
        def weight(traj, valid):
            flags = traj.terminated, traj.truncated
            return pgjax.gae(traj.reward, *critic(traj, scale), *flags, gamma=GAMMA, lambda_=lambda_)

        return weight

    estimators = {
        "total return": estimator(total),
        "reward-to-go": estimator(to_go),
        "reward-to-go, no γ^t": estimator(to_go, keep_discount=False),
        "constant baseline": estimator(minus(pgjax.constant_baseline)),
        "time baseline": estimator(minus(pgjax.time_baseline)),
        "leave-one-out baseline": estimator(minus(pgjax.leave_one_out_baseline)),
        "GAE(0.9), true V": estimator(advantage(1.0, 0.9)),
        "GAE(0.9), half of V": estimator(advantage(0.5, 0.9)),
    }
    return estimators, sample, tabular.policy_gradient(mdp, apply, params)


def measure(num_batches):
    """One process's worth: the seconds of the whole call, and what came out of it."""
    import jax

    import pgjax

    estimators, sample, exact = jax.block_until_ready(problem())
    begin, begin_of_cores = time.perf_counter(), time.process_time()
    audits = pgjax.audit(
        jax.random.key(2),
        estimators,
        sample,
        exact=exact,
        batch_sizes=BATCH_SIZES,
        num_batches=num_batches,
        confidence=0.999,  # many intervals stand in one table
    )
    jax.block_until_ready(audits)
    return {
        "seconds": time.perf_counter() - begin,
        "core_seconds": time.process_time() - begin_of_cores,
        "jax": jax.__version__,
        "device": f"{jax.devices()[0].platform}: {jax.devices()[0].device_kind}",
        "table": pgjax.audit_table(audits),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-batches", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.num_batches)))
        return

    call = [sys.executable, __file__, "--measure", "--num-batches", str(arguments.num_batches)]
    turns = []
    for _ in range(arguments.turns):
        output = subprocess.run(call, capture_output=True, text=True, check=True).stdout
        turns.append(json.loads(output.splitlines()[-1]))
    table = turns[0].pop("table")
    found = {
        "seconds": statistics.median(turn["seconds"] for turn in turns),
        "seconds_of_each": [turn["seconds"] for turn in turns],
        "core_seconds": statistics.median(turn["core_seconds"] for turn in turns),
        "estimators": 8,
        "batch_sizes": BATCH_SIZES,
        "num_batches": arguments.num_batches,
        "trajectories": arguments.num_batches * sum(BATCH_SIZES),
        "steps": HORIZON,
        "cores": os.cpu_count(),
        "jax": turns[0]["jax"],
        "device": turns[0]["device"],
        "table": table.splitlines(),
    }
    arguments.results.parent.mkdir(exist_ok=True)
    arguments.results.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(table)
    print(f"{found['seconds']:.1f} s, {found['core_seconds']:.1f} s of a core")


if __name__ == "__main__":
    main()
