"""The tasks in rejax, in the very environment that pgjax trains in.

rejax 0.1.3 was written for gymnax 0.0.9, whose `step` gives five values; `FiveValues` shows it an environment
of gymnax 1.0 in that way. Its evaluation is left out: training alone is timed.
"""

from typing import Any

import gymnax
import jax
import rejax

from benchmarks._peers.tasks import Task
from benchmarks._peers.timing import Timed, Training


class FiveValues:
    """An environment of gymnax 1.0 with the interface of gymnax 0.0.9: one flag for any end of an episode."""

    def __init__(self, env: Any):
        self.env = env

    def reset(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """As the environment's."""
        return self.env.reset(key, params)

    def step(self, key: jax.Array, state: Any, action: Any, params: Any) -> tuple[Any, ...]:
        """As the environment's, with `terminated | truncated` in place of the two."""
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        return obs, state, reward, terminated | truncated, info

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # not there yet while an instance is being copied
            raise AttributeError(name)
        return getattr(self.env, name)


def timed(task: Task, steps: int) -> Timed:
    """Something to compile and time."""

    def make() -> tuple[Any, Any]:
        algorithm = _algorithm(task, steps)
        return (
            lambda key: algorithm.train(key),
            # the state holds the key that rejax goes on with
            lambda key, state: algorithm.train(train_state=state.replace(rng=key)),
        )

    return Training(steps, make)


def _algorithm(task: Task, steps: int) -> Any:
    options = task.options
    env, env_params = gymnax.make(task.env)
    agent = {"activation": options["activation"]}
    common = {
        "env": FiveValues(env),
        "env_params": env_params,
        "total_timesteps": steps,
        "eval_freq": steps,
        "skip_initial_evaluation": True,
        "learning_rate": options["learning_rate"],
        "gamma": options["gamma"],
        "max_grad_norm": options["clip"],
        "num_envs": options["num_envs"],
    }
    if task.algorithm == "ppo":
        if options["value_clip_eps"] != options["clip_eps"]:
            raise ValueError("rejax clips ratio and value by the same.")
        algorithm = rejax.PPO.create(
            num_steps=options["num_steps"],
            num_epochs=options["num_epochs"],
            num_minibatches=options["num_minibatches"],
            gae_lambda=options["lambda_"],
            clip_eps=options["clip_eps"],
            vf_coef=options["value_coef"],
            ent_coef=options["entropy_coef"],
            agent_kwargs=agent | {"hidden_layer_sizes": options["hidden"]},
            **common,
        )
        return _without_evaluation(algorithm)

    if options["hidden"] != (64, 64):
        raise ValueError("the networks of rejax's DQN, SAC and TD3 are 64-64.")
    common |= {
        "buffer_size": options["capacity"],
        "fill_buffer": options["warmup_steps"],
        "batch_size": options["batch_size"],
    }
    if task.algorithm == "dqn":
        algorithm = rejax.DQN.create(
            target_update_freq=options["target_period"] * options["num_envs"],
            polyak=0.0,  # copies
            ddqn=options["double"],
            exploration_fraction=0.1,
            agent_kwargs=agent,
            **common,
        )
    elif task.algorithm == "sac":
        algorithm = rejax.SAC.create(polyak=1.0 - options["tau"], agent_kwargs=agent, **common)
    else:
        half = 2.0  # of the action range, which rejax's noise is not relative to
        algorithm = rejax.TD3.create(
            polyak=1.0 - options["tau"],
            policy_delay=options["policy_delay"],
            exploration_noise=half * options["noise_std"],
            target_noise=half * 0.2,
            target_noise_clip=half * 0.5,
            actor_kwargs=dict(agent),
            critic_kwargs=dict(agent),
            **common,
        )
    return _without_evaluation(algorithm)


def _without_evaluation(algorithm: Any) -> Any:
    return algorithm.replace(eval_callback=lambda algorithm, state, key: ())
