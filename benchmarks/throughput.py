"""How close whole trainings come to the least that they must do.

Every deep algorithm trains at the settings below, compiled as one program. Beside it, by turns in the same
process, run the parts that it cannot do without, each compiled alone: its rollouts (environment and policy,
with their random numbers), the critic's passes over what was collected, and its gradient steps on a fixed
batch. The sum of their times is the floor; what a training needs beyond it goes into estimators, shuffling,
replay, metrics and the bookkeeping of seeds and iterations. The ratio is floor over training, 1 at best.
Trainings and parts have one thread of XLA, as small runs of `pgjax train` do: `pgjax.experiment.threads`
says why. PPO with 2048 environments has all of them, as there.

PPO at three sizes, and 64 seeds of the small one on all cores, stand beside PureJaxRL by the figures that it
had on another day, scaled by the floors of both days (it is no package that could be installed).

    python -m benchmarks throughput --only ppo-4x128 sac --turns 9
"""

import functools
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import pgjax
from benchmarks import harness
from pgjax import networks
from pgjax.algorithms import a2c, a3c, acktr, actor_critic, ddpg, dqn, npg, ppo, reinforce, sac, td3, trpo
from pgjax.descent import default_num_chunks, mean_gradient
from pgjax.experience import follow
from pgjax.experiment import presets, programs, store, threads
from pgjax.natural.kfac import factors, kfac_optimizer, refresh

# PureJaxRL's steps per second on CartPole-v1 and the floor of the same day, critic passes not counted
PUREJAXRL = {"ppo-4x128": (209e3, 290e3), "ppo-64x128": (216e3, 474e3), "ppo-2048x128": (198e3, 639e3)}
GOALS = {"ppo-4x128": 0.90, "ppo-64x128": 0.85, "ppo-2048x128": 0.80}  # of the floor; 0.80 for all else


class Task(NamedTuple):
    """A training and the parts of it.

    Attributes:
        algorithm: to be trained.
        steps: environment steps of an iteration.
        parts: by name `(params, key) -> anything`, what one iteration cannot do without.
        init: `key -> params`, what the parts start from.
        settings: in words.
    """

    algorithm: Any
    steps: int
    parts: dict[str, Callable[[Any, Any], Any]]
    init: Callable[[Any], Any]
    settings: str


def adam(rate: float, clip: float | None = 0.5) -> optax.GradientTransformation:
    step = optax.adam(rate, eps=1e-5)
    return step if clip is None else optax.chain(optax.clip_by_global_norm(clip), step)


def descend(
    loss: Callable[..., Any], optimizer: Any, params: Any, count: int, batch: Any, num_chunks: int = 1
) -> Any:
    """Gradient steps on a fixed batch, leaves `[B, ...]`, and nothing else."""
    chunks = jax.tree.map(lambda x: x.reshape(num_chunks, -1, *x.shape[1:]), batch)

    def step(loop: Any, _: None) -> Any:
        params, opt_state = loop
        gradient, _ = mean_gradient(lambda p, b: (loss(p, b), ()), params, chunks)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return lax.scan(step, (params, optimizer.init(params)), length=count)[0]


def acting(env: Any, num_envs: int, num_steps: int, act: Callable[..., Any], updates: int = 1) -> Any:
    """Rollouts alone, by `act(params, key, obs) -> (action, log_prob)`."""
    carry = jax.jit(lambda key: pgjax.reset_envs(key, *env, num_envs))(jax.random.key(3))

    def part(params: Any, key: Any) -> Any:
        def policy(key: Any, obs: Any) -> Any:
            return act(params, key, obs)

        def roll(carry: Any, key: Any) -> Any:
            carry, traj, stats = pgjax.rollout(key, carry, policy, *env, num_steps)
            return carry, (jax.tree.map(jnp.sum, traj), stats)  # everything is needed, nothing is kept

        return lax.scan(roll, carry, jax.random.split(key, updates))

    return part


def passes(apply: Callable[..., Any], obs: Any, updates: int = 1, count: int = 2) -> Any:
    """Forward passes over what was collected, `count` for each update.

    Those over observations and successors; of A2C and A3C over successors alone, for the values of what was
    observed come with the forward pass of the gradient.
    """

    def part(params: Any, key: Any) -> Any:
        del key

        def look(total: Any, _: None) -> Any:
            values = [apply(params, obs + total).sum() for _ in range(count - 1)] if count > 1 else []
            # not two equal passes that the compiler would make once
            values.append(apply(params, obs - total).sum())
            return 1e-30 * sum(values), None

        return lax.scan(look, jnp.zeros(()), length=updates)[0]

    return part


def ppo_task(num_envs: int, num_steps: int = 128) -> Task:
    env = pgjax.envs.make("CartPole-v1")
    network = networks.Raveled(networks.ActorCritic(networks.CategoricalActor(2), networks.Critic()))
    optimizer = adam(2.5e-4)
    algorithm = ppo.make(*env, network, optimizer, num_envs=num_envs, num_steps=num_steps)
    size = num_envs * num_steps // 4
    shards = 8 if num_envs % 8 == 0 else 4
    key = jax.random.key(0)
    batch = {
        "obs": jax.random.normal(key, (size, 4)),
        "action": jnp.zeros(size, jnp.int32),
        "log_prob": jnp.full(size, -0.7),
        "advantage": jax.random.normal(key, (size,)),
        "value": jnp.zeros(size),
        "target": jnp.ones(size),
    }

    def loss(params: Any, b: Any) -> Any:
        policy, value = network.apply(params, b["obs"])
        log_prob = policy.log_prob(b["action"])
        policy_loss = pgjax.clipped_surrogate_loss(log_prob, b["log_prob"], b["advantage"], clip_eps=0.2)
        value_loss = pgjax.clipped_value_loss(value, b["value"], b["target"], clip_eps=0.2)
        return (policy_loss + 0.5 * value_loss - 0.01 * policy.entropy()).mean()

    chunks = default_num_chunks(shards, size // shards)
    seen = jnp.zeros((num_steps, num_envs, 4))
    return Task(
        algorithm,
        num_envs * num_steps,
        {
            "rollouts": acting(env, num_envs, num_steps, actor_of(network)),
            "passes": passes(lambda p, obs: network.apply(p, obs)[1], seen),
            "gradients": lambda p, key: descend(loss, optimizer, p, 16, batch, chunks),
        },
        lambda key: network.init(key, jnp.zeros(4)),
        f"CartPole-v1, {num_envs} environments × {num_steps} steps, 4 epochs × 4 minibatches, 64-64 tanh",
    )


def actor_of(network: Any) -> Any:
    return lambda params, key, obs: network.apply(params, obs)[0].sample_and_log_prob(key)


def window_loss(network: Any) -> Any:
    """The loss of A2C and A3C."""

    def loss(params: Any, b: Any) -> Any:
        policy, value = network.apply(params, b["obs"])
        policy_loss = pgjax.score_function_loss(policy.log_prob(b["action"]), b["weight"])
        value_loss = pgjax.squared_error_loss(value, b["target"])
        return (policy_loss + 0.5 * value_loss - 0.01 * policy.entropy()).mean()

    return loss


def made_up(size: int, width: int = 4) -> dict[str, Any]:
    """A batch of an on-policy algorithm with two actions."""
    key = jax.random.key(0)
    return {
        "obs": jax.random.normal(key, (size, width)),
        "action": jnp.zeros(size, jnp.int32),
        "weight": jax.random.normal(key, (size,)),
        "target": jnp.ones(size),
    }


def a2c_task(num_updates: int = 1) -> Task:
    env, num_envs, num_steps = pgjax.envs.make("CartPole-v1"), 8, 5
    network = networks.Raveled(networks.ActorCritic(networks.CategoricalActor(2), networks.Critic()))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.rmsprop(7e-4, decay=0.99, eps=1e-5))
    size = num_envs * num_steps
    options = {"num_envs": num_envs, "num_steps": num_steps}
    return Task(
        a2c.make(*env, network, optimizer, **options),
        size * num_updates,
        {
            "rollouts": acting(env, num_envs, num_steps, actor_of(network), num_updates),
            "passes": passes(lambda p, o: network.apply(p, o)[1], jnp.zeros((size, 4)), num_updates, count=1),
            "gradients": lambda p, key: descend(
                window_loss(network), optimizer, p, num_updates, made_up(size)
            ),
        },
        lambda key: network.init(key, jnp.zeros(4)),
        f"CartPole-v1, {num_envs} environments × {num_steps} steps, 64-64 tanh",
    )


def a3c_task() -> Task:
    env, num_steps, updates = pgjax.envs.make("CartPole-v1"), 5, 64
    network = networks.Raveled(networks.ActorCritic(networks.CategoricalActor(2), networks.Critic()))
    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.rmsprop(7e-4, decay=0.99, eps=1e-5))
    return Task(
        a3c.make(*env, network, optimizer, num_workers=16, num_steps=num_steps, num_updates=updates),
        num_steps * updates,
        {
            "rollouts": acting(env, 1, num_steps, actor_of(network), updates),
            "passes": passes(
                lambda p, o: network.apply(p, o)[1], jnp.zeros((num_steps, 4)), updates, count=1
            ),
            "gradients": lambda p, key: descend(
                window_loss(network), optimizer, p, updates, made_up(num_steps)
            ),
        },
        lambda key: network.init(key, jnp.zeros(4)),
        "CartPole-v1, 16 workers of one environment, 5 steps, 64-64 tanh",
    )


def separate(form: Callable[[Any], Any] = networks.Raveled) -> tuple[Any, Any, Any]:
    """An actor, a critic, and parameters of both."""
    actor, critic = form(networks.CategoricalActor(2)), form(networks.Critic())

    def init(key: Any) -> Any:
        return {"actor": actor.init(key, jnp.zeros(4)), "critic": critic.init(key, jnp.zeros(4))}

    return actor, critic, init


def act_by(actor: Any) -> Any:
    return lambda params, key, obs: actor.apply(params["actor"], obs).sample_and_log_prob(key)


def score_loss(actor: Any) -> Any:
    return lambda p, b: pgjax.score_function_loss(
        actor.apply(p, b["obs"]).log_prob(b["action"]), b["weight"]
    ).mean()


def value_loss(critic: Any) -> Any:
    return lambda p, b: pgjax.squared_error_loss(critic.apply(p, b["obs"]), b["target"]).mean()


def actor_critic_task() -> Task:
    env, num_envs, updates = pgjax.envs.make("CartPole-v1"), 16, 32
    actor, critic, init = separate()
    optimizers = adam(3e-4), adam(1e-3)
    return Task(
        actor_critic.make(*env, actor, critic, *optimizers, num_envs=num_envs, num_updates=updates),
        num_envs * updates,
        {
            "rollouts": acting(env, num_envs, 1, act_by(actor), updates),
            "passes": passes(lambda p, o: critic.apply(p["critic"], o), jnp.zeros((num_envs, 4)), updates),
            "gradients": lambda p, key: (
                descend(score_loss(actor), optimizers[0], p["actor"], updates, made_up(num_envs)),
                descend(value_loss(critic), optimizers[1], p["critic"], updates, made_up(num_envs)),
            ),
        },
        init,
        f"CartPole-v1, {num_envs} environments, an update a step, 64-64 tanh",
    )


def reinforce_task() -> Task:
    """On Pendulum, where every episode is as long as the limit: no step is padding."""
    env, num_episodes, max_steps, critic_steps = pgjax.envs.make("Pendulum-v1"), 8, 200, 20
    actor = networks.Raveled(networks.GaussianActor(1))
    critic = networks.Raveled(networks.Critic())
    optimizers = adam(3e-3, None), adam(3e-3, None)
    options = {"num_episodes": num_episodes, "max_steps": max_steps, "num_critic_steps": critic_steps}
    size = num_episodes * max_steps
    chunks = default_num_chunks(num_episodes, max_steps)
    batch = made_up(size, 3) | {"action": jnp.zeros((size, 1))}

    def episodes(params: Any, key: Any) -> Any:
        def policy(key: Any, obs: Any) -> Any:
            return actor.apply(params["actor"], obs).sample_and_log_prob(key)

        traj, valid = pgjax.rollout_episodes(key, policy, *env, num_episodes, max_steps)
        return jax.tree.map(jnp.sum, (traj, valid))

    return Task(
        reinforce.make(*env, actor, optimizers[0], critic, optimizers[1], **options),
        size,
        {
            "rollouts": episodes,
            "passes": passes(lambda p, o: critic.apply(p["critic"], o), jnp.zeros((size, 3)), count=1),
            "gradients": lambda p, key: (
                descend(score_loss(actor), optimizers[0], p["actor"], 1, batch, chunks),
                descend(value_loss(critic), optimizers[1], p["critic"], critic_steps, batch, chunks),
            ),
        },
        lambda key: {"actor": actor.init(key, jnp.zeros(3)), "critic": critic.init(key, jnp.zeros(3))},
        "Pendulum-v1, 8 whole episodes of 200 steps, 20 critic steps, 64-64 tanh",
    )


def trust_region_task(module: Any) -> Task:
    env, num_envs, num_steps, critic_steps = pgjax.envs.make("CartPole-v1"), 8, 128, 80
    actor, critic, init = separate()
    optimizer = adam(1e-3, None)
    size = num_envs * num_steps
    algorithm = module.make(
        *env, actor, critic, optimizer, num_envs=num_envs, num_steps=num_steps, critic_epochs=10,
        critic_minibatches=8,
    )  # fmt: skip
    seen, fixed = jnp.zeros((num_steps, num_envs, 4)), made_up(size)

    def natural(params: Any, key: Any) -> Any:
        del key
        gradient = jax.grad(score_loss(actor))(params["actor"], fixed)
        direction, _ = pgjax.natural_gradient(actor.apply, params["actor"], fixed["obs"], gradient)
        if module is npg:
            return direction
        moved = jax.tree.map(lambda p, d: p + 1e-3 * d, params["actor"], direction)
        policy = actor.apply(moved, fixed["obs"])  # the least of a line search: one look
        return policy.log_prob(fixed["action"]).sum(), policy.kl(policy).sum()

    return Task(
        algorithm,
        size,
        {
            "rollouts": acting(env, num_envs, num_steps, act_by(actor)),
            "passes": passes(lambda p, o: critic.apply(p["critic"], o), seen),
            "natural gradient": natural,
            "gradients": lambda p, key: descend(
                value_loss(critic), optimizer, p["critic"], critic_steps, made_up(size // 8)
            ),
        },
        init,
        "CartPole-v1, 8 environments × 128 steps, 10 iterations of CG, 80 critic steps, 64-64 tanh",
    )


def acktr_task() -> Task:
    env, num_envs, num_steps, updates = pgjax.envs.make("CartPole-v1"), 32, 20, 10
    actor, critic, init = separate(lambda network: network)
    optimizers = kfac_optimizer(0.25, max_kl=1e-3), kfac_optimizer(0.25, max_kl=0.1)
    options = {"num_envs": num_envs, "num_steps": num_steps, "num_updates": updates}
    fixed = made_up(num_envs * num_steps)

    def gradients(params: Any, key: Any) -> Any:
        def improve(network: Any, loss: Any, optimizer: Any, params: Any) -> Any:
            def step(loop: Any, key: Any) -> Any:
                params, state = loop
                gradient = jax.grad(loss)(params, fixed)
                found = factors(network.apply, params, fixed["obs"], key)
                updates, state = optimizer.update(gradient, state, factors=found, refresh_now=False)
                return (optax.apply_updates(params, updates), state), None

            # eigenvectors of what was really seen: those of an empty average would come for nothing
            first = factors(network.apply, params, fixed["obs"], key)
            _, state = optimizer.update(params, optimizer.init(params), factors=first, refresh_now=False)
            state = state._replace(kfac=refresh(state.kfac))
            return lax.scan(step, (params, state), jax.random.split(key, updates))[0]

        return (
            improve(actor, score_loss(actor), optimizers[0], params["actor"]),
            improve(critic, value_loss(critic), optimizers[1], params["critic"]),
        )

    return Task(
        acktr.make(*env, actor, critic, *optimizers, **options),
        num_envs * num_steps * updates,
        {
            "rollouts": acting(env, num_envs, num_steps, act_by(actor), updates),
            "passes": passes(
                lambda p, o: critic.apply(p["critic"], o), jnp.zeros((num_envs * num_steps, 4)), updates
            ),
            "gradients": gradients,
        },
        init,
        "CartPole-v1, 32 environments × 20 steps, 64-64 tanh, eigenvectors anew every 10 updates",
    )


REPLAY = {"num_envs": 8, "num_steps": 1, "num_updates": 128, "batch_size": 128, "capacity": 50_000}
REPLAY |= {"warmup_steps": 1000}


def torso() -> networks.MLP:
    return networks.MLP((64, 64), jax.nn.relu)


def from_replay(obs: Any, action: Any) -> dict[str, Any]:
    size = len(obs)
    flags = jnp.zeros(size, bool)
    # other observations, or the compiler would make two equal passes once
    return {"obs": obs, "action": action, "reward": flags + 1.0, "next_obs": obs + 1.0, "terminated": flags}


def dqn_task() -> Task:
    env, q_network, optimizer = (
        pgjax.envs.make("CartPole-v1"),
        networks.Raveled(networks.QNetwork(2, torso())),
        adam(2.5e-4),
    )
    gradient_steps, size, updates = 1, REPLAY["batch_size"], REPLAY["num_updates"]
    options = REPLAY | {"num_gradient_steps": gradient_steps}
    fixed = from_replay(jax.random.normal(jax.random.key(0), (size, 4)), jnp.zeros(size, jnp.int32))

    def act(params: Any, key: Any, obs: Any) -> Any:
        policy = pgjax.epsilon_greedy(q_network.apply(params, obs), epsilon=0.1)
        return policy.sample(key), jnp.zeros(len(obs))

    def loss(target_params: Any, params: Any, b: Any) -> Any:
        # as if the target moved too, or the compiler would value the one batch once for all steps
        target_params, _ = lax.optimization_barrier((target_params, lax.stop_gradient(params)))
        value, next_value = q_network.apply(params, b["obs"]), q_network.apply(target_params, b["next_obs"])
        common = value, b["action"], b["reward"], next_value
        return pgjax.q_learning_loss(*common, b["terminated"], gamma=0.99).mean()

    return Task(
        dqn.make(*env, q_network, optimizer, **options),
        REPLAY["num_envs"] * updates,
        {
            "rollouts": acting(env, REPLAY["num_envs"], 1, act, updates),
            "gradients": lambda p, key: descend(
                functools.partial(loss, p), optimizer, p, updates * gradient_steps, fixed
            ),
        },
        lambda key: q_network.init(key, jnp.zeros(4)),
        "CartPole-v1, 8 environments, one batch of 128 for every 8 steps, 64-64 relu",
    )


def continuous(module: Any) -> Task:
    """DDPG, TD3 and SAC."""
    env, gradient_steps = pgjax.envs.make("Pendulum-v1"), 4
    low, high = (-2.0,), (2.0,)
    head = networks.TanhGaussianActor if module is sac else networks.DeterministicActor
    actor = networks.Raveled(head(low, high, torso()))
    critic = networks.Raveled(networks.ActionCritic(low, high, torso()))
    critics = networks.Ensemble(critic, 1 if module is ddpg else 2)
    optimizers = [adam(3e-4, None) for _ in range(3 if module is sac else 2)]
    options = REPLAY | {"num_gradient_steps": gradient_steps}
    size, updates = REPLAY["batch_size"], REPLAY["num_updates"]
    num_steps = updates * gradient_steps
    fixed = from_replay(jax.random.normal(jax.random.key(0), (size, 3)), jnp.zeros((size, 1)))

    def init(key: Any) -> Any:
        pair = jnp.zeros(3), jnp.zeros(1)
        return {"actor": actor.init(key, jnp.zeros(3)), "critic": critics.init(key, pair)}

    def act(params: Any, key: Any, obs: Any) -> Any:
        found = actor.apply(params["actor"], obs)
        if module is sac:
            return found.sample_and_log_prob(key)
        noise = 0.1 * jax.random.normal(key, found.shape)
        return jnp.clip(found + noise, -2.0, 2.0), jnp.zeros(len(obs))

    def gradients(params: Any, key: Any) -> Any:
        states = tuple(o.init(params[name]) for o, name in zip(optimizers, ("actor", "critic"), strict=False))

        def chosen(params: Any, obs: Any, key: Any) -> Any:
            found = actor.apply(params, obs)
            return found.sample_and_log_prob(key) if module is sac else (found, 0.0)

        def critic_loss(p: Any, target: Any, actor_params: Any, key: Any) -> Any:
            action, log_prob = chosen(actor_params, fixed["next_obs"], key)
            next_value = critics.apply(target, (fixed["next_obs"], action)).min(0) - 0.1 * log_prob
            value = critics.apply(p, (fixed["obs"], fixed["action"]))
            goal = fixed["reward"] + 0.99 * next_value
            return pgjax.squared_error_loss(value, goal[None]).mean(-1).sum()

        def actor_loss(p: Any, critic_params: Any, key: Any) -> Any:
            action, log_prob = chosen(p, fixed["obs"], key)
            if module is not sac:  # the first critic alone
                first = jax.tree.map(lambda x: x[0], critic_params)
                return -critic.apply(first, (fixed["obs"], action)).mean()
            return (0.1 * log_prob - critics.apply(critic_params, (fixed["obs"], action)).min(0)).mean()

        def improve_actor(loop: Any, key: Any) -> Any:
            p, target, (actor_state, critic_state) = loop
            gradient = jax.grad(actor_loss)(p["actor"], p["critic"], key)
            moves, actor_state = optimizers[0].update(gradient, actor_state, p["actor"])
            p = p | {"actor": optax.apply_updates(p["actor"], moves)}
            return p, follow(target, p["critic"], 0.005), (actor_state, critic_state)

        def improve_critic(loop: Any, key: Any) -> Any:
            p, target, (actor_state, critic_state) = loop
            gradient = jax.grad(critic_loss)(p["critic"], target, p["actor"], key)
            moves, critic_state = optimizers[1].update(gradient, critic_state, p["critic"])
            return (
                p | {"critic": optax.apply_updates(p["critic"], moves)},
                target,
                (actor_state, critic_state),
            )

        delay = 2 if module is td3 else 1

        def step(loop: Any, keys: Any) -> Any:
            for i in range(delay):
                loop = improve_critic(loop, keys[i])
            return improve_actor(loop, keys[-1]), None

        keys = jax.random.split(key, (num_steps // delay, delay + 1))
        return lax.scan(step, (params, params["critic"], states), keys)[0]

    return Task(
        module.make(*env, actor, critic, *optimizers, **options),
        REPLAY["num_envs"] * updates,
        {"rollouts": acting(env, REPLAY["num_envs"], 1, act, updates), "gradients": gradients},
        init,
        "Pendulum-v1, 8 environments, 4 batches of 128 for every 8 steps, 64-64 relu",
    )


TASKS: dict[str, tuple[Callable[[], Task], int]] = {  # and environment steps of one run
    "ppo-4x128": (functools.partial(ppo_task, 4), 204_800),
    "ppo-64x128": (functools.partial(ppo_task, 64), 819_200),
    "ppo-2048x128": (functools.partial(ppo_task, 2048), 1_572_864),
    "a2c": (a2c_task, 102_400),
    "a3c": (a3c_task, 32_000),
    "actor_critic": (actor_critic_task, 102_400),
    "reinforce": (reinforce_task, 120_000),
    "npg": (functools.partial(trust_region_task, npg), 61_440),
    "trpo": (functools.partial(trust_region_task, trpo), 61_440),
    "acktr": (acktr_task, 64_000),
    "dqn": (dqn_task, 51_200),
    "ddpg": (functools.partial(continuous, ddpg), 10_240),
    "td3": (functools.partial(continuous, td3), 10_240),
    "sac": (functools.partial(continuous, sac), 10_240),
}
SEEDS = "64 seeds of ppo-4x128"
ALL_CORES = ("ppo-2048x128", SEEDS)  # each in a process of its own


def compiled(task: Task, iterations: int) -> dict[str, Callable[[], Any]]:
    """The training and its parts, each `iterations` times."""
    key, fixed = jax.random.key(0), jax.jit(task.init)(jax.random.key(1))
    state = jax.jit(task.algorithm.init)(jax.random.key(2))
    train = jax.jit(
        lambda key, state: pgjax.train(key, task.algorithm, iterations, state=state, start=0)
    ).lower(key, state).compile()  # fmt: skip
    calls = {"training": lambda: train(key, state)}
    for name, part in task.parts.items():

        def repeated(params: Any, key: Any, part: Any = part) -> Any:
            def again(total: Any, key: Any) -> Any:
                # the next one waits for this one, and nothing can be left out
                shifted = jax.tree.map(lambda x: x + total.astype(x.dtype), params)
                found = jax.tree.leaves(part(shifted, key))
                return 1e-30 * sum(jnp.sum(x).astype(float) for x in found if x.dtype != key.dtype), None

            return lax.scan(again, jnp.zeros(()), jax.random.split(key, iterations))[0]

        program = jax.jit(repeated).lower(fixed, key).compile()
        calls[name] = functools.partial(program, fixed, key)
    return calls


def measure_task(name: str, turns: int, steps: int | None = None) -> dict[str, Any]:
    make, wanted = TASKS[name]
    task = make()
    iterations = max(1, (steps or wanted) // task.steps)
    times = harness.by_turns(compiled(task, iterations), turns)
    floor = [sum(parts) for parts in zip(*(times[part] for part in task.parts), strict=True)]
    total = iterations * task.steps
    row = {
        "task": name,
        "settings": task.settings,
        "steps_per_second": total / statistics.median(times["training"]),
        "floor_steps_per_second": total / statistics.median(floor),
        "ratio": harness.ratio(floor, times["training"]),
        "parts": {part: statistics.median(times[part]) / statistics.median(floor) for part in task.parts},
        "goal": GOALS.get(name, 0.80),
    }
    if name in PUREJAXRL:
        speed, its_floor = PUREJAXRL[name]
        # its floor counted no passes of the critic
        without = [f - p for f, p in zip(floor, times["passes"], strict=True)]
        scaled = [total / f * speed / its_floor for f in without]
        own = [total / t for t in times["training"]]
        row["over_purejaxrl"] = harness.ratio(own, scaled)
    return row


def measure_seeds(turns: int, num_seeds: int, iterations: int) -> dict[str, Any]:
    """All seeds on all cores, as `pgjax train` runs them, beside PureJaxRL's one, scaled by the floors."""
    task = ppo_task(4)
    settings = store.Settings(presets.preset("ppo", "CartPole-v1"), seeds=num_seeds)
    run = programs.compile_programs(settings)
    progress, done = run.progress, 0

    def train() -> Any:
        nonlocal progress, done
        progress, metrics = run.chunk(run.hyper, run.run_keys, progress, np.int32(done), np.int32(iterations))
        done += iterations
        return metrics

    parts = compiled(task, 200)
    times = harness.by_turns({"seeds": train} | parts, turns)
    per_iteration = presets.iteration_size(settings.preset)[0]
    total, one = num_seeds * iterations * per_iteration, 200 * task.steps
    speed, its_floor = PUREJAXRL["ppo-4x128"]
    without = [r + g for r, g in zip(times["rollouts"], times["gradients"], strict=True)]
    own = [total / t for t in times["seeds"]]
    return {
        "task": SEEDS,
        "settings": f"{num_seeds} seeds over {jax.device_count()} devices of one core",
        "steps_per_second": total / statistics.median(times["seeds"]),
        "over_purejaxrl": harness.ratio(own, [one / f * speed / its_floor for f in without]),
        "over_one_seed": harness.ratio(own, [one / t for t in times["training"]]),
    }


def measure(arguments: Any) -> harness.Rows:
    rows = []
    for name in arguments.only:
        if name == SEEDS:
            size = (4, 3) if arguments.quick else (64, 40)
            rows.append(measure_seeds(arguments.turns, *size))
        else:
            rows.append(
                measure_task(name, 1 if arguments.quick else arguments.turns, 1 if arguments.quick else None)
            )
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    return rows


def table(rows: harness.Rows) -> str:
    def cell(row: Any, name: str) -> str:
        return harness.show(row[name]) if name in row else ""

    def parts(row: Any) -> str:
        return ", ".join(f"{k} {100 * v:.0f} %" for k, v in row.get("parts", {}).items())

    lines = [
        [
            row["task"],
            f"{row['steps_per_second'] / 1e3:,.0f}k",
            cell(row, "ratio"),
            f"{row['goal']:.2f}" if "goal" in row else "",
            cell(row, "over_purejaxrl"),
            parts(row),
            row["settings"],
        ]
        for row in rows
    ]
    heads = ["training", "steps/s", "of its floor", "goal", "over PureJaxRL", "the floor's parts", "settings"]
    return harness.markdown(heads, lines)


def main(argv: list[str] | None = None) -> int:
    """The benchmark; the exit status."""
    names = [*TASKS, SEEDS]
    parser = harness.parser(__doc__)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    arguments = parser.parse_args(argv)
    apart = [name for name in arguments.only if name in ALL_CORES]
    if len(arguments.only) > 1:
        arguments.only = [name for name in arguments.only if name not in apart]
    else:
        apart = []
    if arguments.only == [SEEDS]:  # a device for each core
        threads.choose_threads(1)
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))
    elif arguments.only != ["ppo-2048x128"]:
        threads.choose_threads(1)
    status = harness.run("throughput", measure, table, arguments) if arguments.only else 0
    for name in apart:
        call = [sys.executable, "-m", "benchmarks.throughput", "--only", name]
        call += ["--turns", str(arguments.turns), "--results", str(arguments.results)]
        call += ["--quick"] if arguments.quick else []
        status |= subprocess.run(call, cwd=pathlib.Path(__file__).parents[1]).returncode
    return status


if __name__ == "__main__":
    sys.exit(main())
