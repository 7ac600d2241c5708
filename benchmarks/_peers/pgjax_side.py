"""The tasks in pgjax, with the habits of the peer: how gradients are clipped, what its loss is."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import pgjax
from benchmarks._peers.tasks import Task
from benchmarks._peers.timing import Function, Timed, Training, gae_inputs
from pgjax import networks
from pgjax.algorithms import a2c, dqn, ppo, sac, td3, trpo

UPDATES = {"dqn": 100, "sac": 500, "td3": 250}  # in one iteration, at most


def timed(task: Task, steps: int) -> Timed:
    """Something to compile and time."""
    if task.algorithm == "gae":
        return _gae(task, steps)

    def make() -> tuple[Any, Any]:
        algorithm, per_iteration = _algorithm(task, steps)
        if steps % per_iteration:
            raise ValueError(f"{steps} steps are not whole iterations of {per_iteration}.")
        num_iterations = steps // per_iteration
        return (
            lambda key: pgjax.train(key, algorithm, num_iterations),
            lambda key, state: pgjax.train(key, algorithm, num_iterations, state=state),
        )

    return Training(steps, make)


def _clip(task: Task) -> optax.GradientTransformation:
    kind = optax.clip if task.peer == "rejax" else optax.clip_by_global_norm
    clip = task.options.get("clip", jnp.inf)
    return optax.identity() if clip == jnp.inf else kind(clip)


ravel = networks.Raveled  # as `pgjax.experiment.make` and the command do


def _algorithm(task: Task, steps: int) -> tuple[Any, int]:
    """The algorithm, and the steps of its iteration."""
    options, env = dict(task.options), pgjax.envs.make(task.env)
    activation = {"relu": nn.relu, "tanh": nn.tanh, "swish": nn.swish}[options.pop("activation")]
    torso = networks.MLP(options.pop("hidden"), activation)
    rate, clip = options.pop("learning_rate"), _clip(task)
    options.pop("clip", None)
    actor, critic = networks.CategoricalActor(2, torso), networks.Critic(torso.clone())
    both = ravel(networks.ActorCritic(actor, critic))
    window = options["num_envs"] * options.get("num_steps", 1)
    if task.algorithm == "ppo":
        optimizer = optax.chain(clip, optax.adam(rate, eps=options.pop("adam_eps")))
        return ppo.make(*env, both, optimizer, **options), window
    if task.algorithm == "a2c":
        optimizer = optax.chain(clip, optax.rmsprop(rate, decay=0.99, eps=1e-5))
        return a2c.make(*env, both, optimizer, **options), window
    if task.algorithm == "trpo":
        return trpo.make(*env, ravel(actor), ravel(critic), optax.adam(rate, eps=1e-5), **options), window

    adam = optax.chain(clip, optax.adam(rate))
    delay = options.get("policy_delay", 1)
    options["num_updates"] = min(UPDATES[task.algorithm], steps // (window * delay))
    window *= delay * options["num_updates"]
    if task.algorithm == "dqn":
        options |= {"exploration_steps": 0.1 * steps, "tau": 1.0}
        return dqn.make(*env, ravel(networks.QNetwork(2, torso)), adam, **options), window
    bounds = (-2.0,), (2.0,)
    value = ravel(networks.ActionCritic(*bounds, torso.clone()))
    if task.algorithm == "sac":
        squashed = ravel(networks.TanhGaussianActor(*bounds, torso))
        return sac.make(*env, squashed, value, adam, adam, adam, **options), window
    actor = ravel(networks.DeterministicActor(*bounds, torso))
    options |= {"num_steps": delay, "num_gradient_steps": delay}
    return td3.make(*env, actor, value, adam, adam, **options), window


def _gae(task: Task, steps: int) -> Function:
    num_steps, num_envs, gamma, lambda_ = task.options.values()
    given = gae_inputs(num_steps, num_envs)
    values, terminated = given["values"], given["terminated"]
    arrays = given["reward"], values[:-1], values[1:], terminated, jnp.zeros_like(terminated)

    def function(*arrays: jax.Array) -> jax.Array:
        return pgjax.gae(*arrays, gamma=gamma, lambda_=lambda_)

    size = num_steps * num_envs
    return Function(steps // size, size, function, tuple(map(jnp.asarray, arrays)))
