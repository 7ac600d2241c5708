"""Settings as plain data, and the way from them to an algorithm.

A `Preset` is what the command, `config.json`, evaluation and sweeps share. Its `Numeric` values, `hyper`,
may be traced, so that `build` can be called inside jit and mapped over a grid; everything else is static.
"""

# ruff: noqa: C408 - the table reads like calls of `change`, keyword by keyword
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias, get_args, get_type_hints

from pgjax import algorithms, envs, networks
from pgjax.experiment.parts import (
    WEIGHTS,
    KFACSpec,
    NetworkSpec,
    Spec,
    check_kinds,
    check_known,
    check_ranges,
    default_spec,
    make_networks,
    make_optimizer,
)
from pgjax.types import Algorithm, Numeric

Hyper: TypeAlias = dict[str, dict[str, Any]]
"""The `Numeric` values of a preset: `{"options": {...}, "<optimizer>": {...}}`."""


class Preset(NamedTuple):
    """One run's settings as plain data.

    Attributes:
        algorithm: name of a module in `pgjax.algorithms`.
        environment: name of an environment.
        env_params: what differs from the environment's defaults.
        steps: environment steps, the horizon of learning-rate schedules.
        network: sizes.
        optimizers: by the name of `make`'s parameter.
        options: every keyword option of `make`.
    """

    algorithm: str
    environment: str
    env_params: dict[str, Any]
    steps: int
    network: NetworkSpec
    optimizers: dict[str, Spec]
    options: dict[str, Any]


_WIDE = dict(hidden=(256, 256), activation="relu")
_TABLE = dict(
    network=dict(torso="linear"),
    optimizer=dict(name="sgd", learning_rate=0.5, max_grad_norm=None, schedule="linear"),
)

# What each algorithm does anywhere. Options that are not named have `make`'s own default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": dict(optimizer=dict(learning_rate=2.5e-4, schedule="linear"), num_envs=8),
    # Stable-Baselines3's, but for a rate that falls to 0 as in the paper of A3C
    "a2c": dict(
        optimizer=dict(name="rmsprop", learning_rate=7e-4, schedule="linear"),
    ),
    # An update waits for whole episodes, so there are few: ten times Spinning Up's rate for the actor, and a
    # critic that is there sooner, by 20 steps at 3e-3 in place of 80 at 1e-3.
    "reinforce": dict(
        actor_optimizer=dict(learning_rate=3e-3, max_grad_norm=None),
        critic_optimizer=dict(learning_rate=3e-3, max_grad_norm=None),
        weight="critic",
        num_critic_steps=20,
        max_steps=None,
    ),
    "actor_critic": dict(
        actor_optimizer=dict(learning_rate=3e-4, schedule="linear"),
        critic_optimizer=dict(learning_rate=1e-3, schedule="linear"),
        num_envs=16,
    ),
    "npg": dict(critic_optimizer=dict(learning_rate=1e-3, max_grad_norm=None)),
    "trpo": dict(critic_optimizer=dict(learning_rate=1e-3, max_grad_norm=None)),
    # a unit of the critic's KL is a squared error, and values are large: the actor's bound starves it
    "acktr": dict(lambda_=0.95, critic_optimizer=dict(max_kl=0.1)),
    # the paper's but for λ, which is 1 there: windows of five steps are bootstrapped, and less noisy so
    "a3c": dict(lambda_=0.95, optimizer=dict(name="rmsprop", learning_rate=7e-4, schedule="linear")),
    "dqn": dict(
        network=dict(hidden=(128, 128), activation="relu"),
        optimizer=dict(learning_rate=2.5e-4, max_grad_norm=10.0),
    ),
    "ddpg": dict(
        network=_WIDE,
        actor_optimizer=dict(learning_rate=1e-3, max_grad_norm=None),
        critic_optimizer=dict(learning_rate=1e-3, max_grad_norm=None),
    ),
    "td3": dict(
        network=_WIDE,
        actor_optimizer=dict(learning_rate=1e-3, max_grad_norm=None),
        critic_optimizer=dict(learning_rate=1e-3, max_grad_norm=None),
    ),
    "sac": dict(
        network=_WIDE,
        actor_optimizer=dict(max_grad_norm=None),
        critic_optimizer=dict(max_grad_norm=None),
        temperature_optimizer=dict(max_grad_norm=None),
    ),
    "q_learning": _TABLE,
    "sarsa": _TABLE,
}

_PPO_CONTINUOUS = dict(normalize_obs=True, normalize_reward=True, entropy_coef=0.0, num_epochs=10)
# What is different with continuous actions, where the next table says nothing.
CONTINUOUS: dict[str, dict[str, Any]] = {
    "ppo": _PPO_CONTINUOUS | dict(num_steps=256, num_minibatches=32, optimizer=dict(learning_rate=3e-4)),
    "a2c": dict(lambda_=0.95, normalize_advantage=True),
}

_MINATAR = dict(network=dict(torso="cnn", hidden=(128,), activation="relu", shared=True), steps=2_000_000)
# PureJaxRL's network for these games. With a convolution A3C takes five times as long, actor-critic ten,
# natural gradients five to twenty times; K-FAC knows none.
_MINATAR_DENSE = dict(network=dict(hidden=(64, 64), activation="relu"), steps=2_000_000, num_envs=64)
_MINATAR_EPISODES = dict(
    network=_MINATAR_DENSE["network"], steps=2_000_000, num_episodes=32, num_critic_steps=5, entropy_coef=0.01
)
_MINATAR_TRUST = _MINATAR_DENSE | dict(
    fisher_stride=4, critic_minibatches=8, critic_epochs=5, entropy_coef=0.01
)
# Breakout needs a larger bonus for entropy than the other games. A policy that is nearly deterministic plays
# the same way until it loses the ball, and a single other action does not save it, so no action has an
# advantage. With 0.01 TRPO stood at 6.5 after half a million steps, at an entropy of 0.25 nats; with 0.07 and
# a bound of 0.03 seeds of a run of 3.3 million settled at 7 to 21; with 0.2, at 0.7 nats, two were at 20
# after two million and rose.
_TRUST_IN_BREAKOUT = dict(entropy_coef=0.2, max_kl=0.03)

# In a million steps on Pendulum A2C came to -256 at a constant rate, to -468 at one that falls to 0.
_STEADY = dict(max_grad_norm=None, schedule="constant")
_TRUST_PENDULUM = dict(gamma=0.9, num_steps=256, critic_minibatches=16, max_kl=0.02)

# Several environments and small networks: as good here as one environment and wide ones, and much faster.
_REPLAY_SMALL = dict(
    network=dict(hidden=(64, 64)),
    num_envs=8,
    num_steps=1,
    num_updates=128,
    num_gradient_steps=4,
    batch_size=128,
)
_REPLAY_PENDULUM = _REPLAY_SMALL | dict(steps=100_000, capacity=100_000)
# The car swings up only if it is pushed one way for long: the noise has to remember.
_REPLAY_CAR = _REPLAY_SMALL | dict(steps=150_000, capacity=150_000, noise_correlation=0.95)
_SAC_FINITE = _REPLAY_SMALL | dict(capacity=100_000, num_gradient_steps=2)
_SAC_MINATAR = _SAC_FINITE | dict(network=_MINATAR_DENSE["network"], steps=1_000_000, num_gradient_steps=1)
_CLIFF = dict(steps=20_000, gamma=1.0)
# Reward is a long way off: values that are all zero know nothing better than their first action.
_LAKE = dict(epsilon_start=1.0, exploration_steps=100_000)
# An image with one pixel set is a table's row, and a linear Q on it the table.
_SEA_TABLE = dict(steps=100_000, epsilon_start=1.0, exploration_steps=50_000)
# Without replay, many environments are what makes a gradient step's batch. Clipped to a norm, the values of a
# network ran away in trials.
_ONLINE = dict(
    network=dict(torso="mlp", hidden=(64, 64), activation="relu"),
    optimizer=dict(name="adam", learning_rate=1e-3),
    num_envs=64,
    num_updates=100,
    epsilon_start=1.0,
    epsilon_end=0.05,
    exploration_steps=100_000,
)
_ONLINE_SHORT = _ONLINE | dict(steps=200_000, exploration_steps=50_000)
_DQN_SHORT = dict(steps=200_000, exploration_steps=50_000)
_SAC_SHORT = _SAC_FINITE | dict(steps=200_000)
# The car's speed is at most 0.07: a network sees it only in normalised observations.
_CAR = dict(steps=1_000_000, num_envs=16, num_steps=16, normalize_obs=True, normalize_reward=True)
_CAR |= dict(lambda_=0.98, entropy_coef=0.0, optimizer=dict(learning_rate=1e-3))
_SCALED = dict(env_params=dict(rescale_obs=True))
_SCALED_CAR = _SCALED | dict(steps=1_000_000)

_GAMES = ("Breakout-MinAtar", "Asterix-MinAtar", "Freeway-MinAtar", "SpaceInvaders-MinAtar")
_CNN = dict(torso="cnn", hidden=(128,), activation="relu")
_ONLINE_MINATAR = _ONLINE | dict(network=_CNN, steps=1_000_000, exploration_steps=250_000)

# What is different where; an algorithm's first environment is the one it takes when none is named.
TUNED: dict[tuple[str, str], dict[str, Any]] = {
    ("ppo", "CartPole-v1"): dict(num_envs=4),
    ("ppo", "Acrobot-v1"): dict(normalize_obs=True, optimizer=dict(learning_rate=1e-3)),
    ("ppo", "Pendulum-v1"): _PPO_CONTINUOUS
    | dict(num_envs=4, num_steps=512, num_minibatches=32, optimizer=dict(learning_rate=3e-4)),
    ("ppo", "MountainCarContinuous-v0"): _PPO_CONTINUOUS
    | dict(num_envs=16, num_steps=256, num_minibatches=16, gamma=0.999, entropy_coef=0.005),
    ("ppo", "Catch-bsuite"): dict(steps=200_000, num_envs=16, num_steps=32),
    ("ppo", "DeepSea-bsuite"): dict(steps=200_000, num_envs=16, num_steps=32),
    ("ppo", "FourRooms-misc"): dict(steps=200_000, num_envs=16, num_steps=32),
    ("ppo", "MountainCar-v0"): _CAR,
    # at 2.5e-4 every seed settles on one short game of Breakout
    **{
        ("ppo", game): _MINATAR | dict(num_envs=64, num_minibatches=8, optimizer=dict(learning_rate=5e-3))
        for game in _GAMES
    },
    ("a2c", "CartPole-v1"): dict(lambda_=0.95),
    ("a2c", "Acrobot-v1"): dict(num_envs=16),
    ("a2c", "Pendulum-v1"): dict(
        steps=2_000_000,
        num_steps=8,
        gamma=0.9,
        lambda_=0.98,
        normalize_advantage=True,
        optimizer=_STEADY | dict(name="adam", learning_rate=7e-4),
    ),
    ("a2c", "MountainCarContinuous-v0"): dict(num_steps=32, lambda_=0.95, normalize_advantage=True),
    ("a2c", "Catch-bsuite"): dict(
        steps=200_000, num_steps=10, entropy_coef=0.01, optimizer=dict(learning_rate=2e-3)
    ),
    ("a2c", "DeepSea-bsuite"): dict(steps=200_000),
    ("a2c", "FourRooms-misc"): dict(steps=200_000),
    **{("a2c", game): _MINATAR | dict(num_envs=64, entropy_coef=0.01) for game in _GAMES},
    ("a2c", "Breakout-MinAtar"): _MINATAR
    | dict(num_envs=64, entropy_coef=0.05, optimizer=dict(learning_rate=5e-3)),
    ("reinforce", "CartPole-v1"): dict(),
    ("reinforce", "Acrobot-v1"): dict(),
    ("reinforce", "Pendulum-v1"): dict(num_episodes=16, gamma=0.9, actor_optimizer=dict(learning_rate=1e-3)),
    ("reinforce", "MountainCarContinuous-v0"): dict(num_episodes=4),
    # gymnax limits Catch at 1000 steps, but the ball is down after nine
    ("reinforce", "Catch-bsuite"): dict(steps=200_000, num_episodes=32, max_steps=10),
    ("reinforce", "DeepSea-bsuite"): dict(steps=200_000, num_episodes=32, max_steps=8),
    ("reinforce", "FourRooms-misc"): dict(steps=200_000),
    ("reinforce", "MountainCar-v0"): _SCALED_CAR,
    **{("reinforce", game): _MINATAR_EPISODES for game in _GAMES},
    # After 1.5 million steps one seed was at 9.0 and rose; with 0.01, 0.05 or 0.2, or three times the rate,
    # at 5.9 to 6.6.
    ("reinforce", "Breakout-MinAtar"): _MINATAR_EPISODES | dict(entropy_coef=0.1),
    # Whole returns are noisy. After four million steps one seed was at 1.5 with a discount of 0.99, at 2.8
    # with 0.97, at 3.3 with 0.95, and at 2.5 with 0.9, where it had stood from two million on. After ten
    # million five seeds were at 4.6 with 0.95, and at 3.2 with 0.99.
    ("reinforce", "Asterix-MinAtar"): _MINATAR_EPISODES | dict(gamma=0.95),
    ("actor_critic", "CartPole-v1"): dict(),
    ("actor_critic", "Acrobot-v1"): dict(),
    ("actor_critic", "Pendulum-v1"): dict(
        steps=1_000_000,
        gamma=0.9,
        actor_optimizer=_STEADY | dict(learning_rate=5e-4),
        critic_optimizer=_STEADY | dict(learning_rate=1e-3),
    ),
    ("actor_critic", "MountainCarContinuous-v0"): dict(),
    # the critic has to be ahead of the actor, and the actor not to settle before it is
    ("actor_critic", "Catch-bsuite"): dict(
        steps=200_000, entropy_coef=0.05, critic_optimizer=dict(learning_rate=3e-3)
    ),
    ("actor_critic", "DeepSea-bsuite"): dict(steps=200_000),
    ("actor_critic", "FourRooms-misc"): dict(steps=200_000),
    **{("actor_critic", game): _MINATAR_DENSE | dict(entropy_coef=0.01) for game in _GAMES},
    # After two million steps one seed in Breakout was at 9 to 16 with a rate of 3e-3 or a bonus of 0.03, here
    # at 21; in Asterix at 4 with a rate of 1e-3, at 1 with a bonus of 0.06, here at 7.
    ("actor_critic", "Breakout-MinAtar"): _MINATAR_DENSE
    | dict(entropy_coef=0.06, actor_optimizer=dict(learning_rate=1e-3)),
    ("actor_critic", "Asterix-MinAtar"): _MINATAR_DENSE
    | dict(entropy_coef=0.02, actor_optimizer=dict(learning_rate=3e-3)),
    ("npg", "CartPole-v1"): dict(),
    ("npg", "Acrobot-v1"): dict(),
    ("npg", "Pendulum-v1"): _TRUST_PENDULUM,
    ("npg", "MountainCarContinuous-v0"): dict(num_steps=512),
    ("npg", "Catch-bsuite"): dict(steps=200_000),
    ("npg", "DeepSea-bsuite"): dict(steps=200_000),
    ("npg", "FourRooms-misc"): dict(steps=200_000),
    ("npg", "MountainCar-v0"): _SCALED_CAR,
    **{("npg", game): _MINATAR_TRUST for game in _GAMES},
    # In Asterix one seed of TRPO was at 3.0 after 2.5 million steps, with a bound of 0.01 at 2.3.
    ("npg", "Breakout-MinAtar"): _MINATAR_TRUST | _TRUST_IN_BREAKOUT,
    ("npg", "Asterix-MinAtar"): _MINATAR_TRUST | dict(max_kl=0.03),
    ("trpo", "CartPole-v1"): dict(),
    ("trpo", "Acrobot-v1"): dict(),
    ("trpo", "Pendulum-v1"): _TRUST_PENDULUM,
    ("trpo", "MountainCarContinuous-v0"): dict(num_steps=512),
    ("trpo", "Catch-bsuite"): dict(steps=200_000),
    ("trpo", "DeepSea-bsuite"): dict(steps=200_000),
    ("trpo", "FourRooms-misc"): dict(steps=200_000),
    ("trpo", "MountainCar-v0"): _SCALED_CAR | dict(num_steps=256),
    **{("trpo", game): _MINATAR_TRUST for game in _GAMES},
    ("trpo", "Breakout-MinAtar"): _MINATAR_TRUST | _TRUST_IN_BREAKOUT,
    ("trpo", "Asterix-MinAtar"): _MINATAR_TRUST | dict(max_kl=0.03),
    ("acktr", "CartPole-v1"): dict(),
    ("acktr", "Acrobot-v1"): dict(),
    ("acktr", "Pendulum-v1"): dict(gamma=0.9, entropy_coef=0.0),
    ("acktr", "MountainCarContinuous-v0"): dict(entropy_coef=0.0),
    ("acktr", "Catch-bsuite"): dict(steps=200_000),
    ("acktr", "DeepSea-bsuite"): dict(steps=200_000),
    ("acktr", "FourRooms-misc"): dict(steps=200_000),
    **{("acktr", game): _MINATAR_DENSE for game in _GAMES},
    ("acktr", "Breakout-MinAtar"): _MINATAR_DENSE | dict(entropy_coef=0.1),
    ("a3c", "CartPole-v1"): dict(steps=1_000_000, entropy_coef=0.0),
    # as long as all returns are the same the bonus for entropy is all there is to learn
    ("a3c", "Acrobot-v1"): dict(num_steps=20, entropy_coef=0.0),
    ("a3c", "Pendulum-v1"): dict(
        steps=2_000_000,
        num_workers=4,
        num_envs=8,
        num_steps=8,
        gamma=0.9,
        lambda_=0.98,
        entropy_coef=0.0,
        optimizer=_STEADY | dict(name="adam", learning_rate=7e-4),
    ),
    ("a3c", "Catch-bsuite"): dict(steps=200_000),
    ("a3c", "DeepSea-bsuite"): dict(steps=200_000),
    ("a3c", "FourRooms-misc"): dict(steps=200_000),
    **{("a3c", game): _MINATAR_DENSE | dict(num_envs=4) for game in _GAMES},
    # with gradients clipped to a norm single seeds end far below the others
    ("dqn", "CartPole-v1"): dict(optimizer=dict(max_grad_norm=None, schedule="linear")),
    ("dqn", "Acrobot-v1"): dict(),
    ("dqn", "Catch-bsuite"): _DQN_SHORT,
    ("dqn", "DeepSea-bsuite"): _DQN_SHORT,
    ("dqn", "FourRooms-misc"): _DQN_SHORT | _SCALED,
    ("dqn", "MountainCar-v0"): _SCALED,
    **{
        ("dqn", game): dict(network=dict(torso="cnn", hidden=(128,)), steps=1_000_000, capacity=100_000)
        for game in _GAMES
    },
    ("ddpg", "Pendulum-v1"): _REPLAY_PENDULUM,
    ("td3", "Pendulum-v1"): _REPLAY_PENDULUM,
    ("sac", "CartPole-v1"): _SAC_FINITE | dict(steps=300_000),
    ("sac", "Pendulum-v1"): _REPLAY_PENDULUM,
    ("ddpg", "MountainCarContinuous-v0"): _REPLAY_CAR | dict(noise_std=0.5),
    ("td3", "MountainCarContinuous-v0"): _REPLAY_CAR | dict(noise_std=0.5),
    ("sac", "MountainCarContinuous-v0"): _REPLAY_CAR,
    # in trials fewer seeds never met the goal than with half of the greatest entropy
    ("sac", "Acrobot-v1"): _SAC_FINITE | dict(alpha=0.1, tau=0.05, target_entropy=0.2),
    ("sac", "Catch-bsuite"): _SAC_SHORT,
    ("sac", "DeepSea-bsuite"): _SAC_SHORT,
    ("sac", "FourRooms-misc"): _SAC_SHORT,
    ("sac", "MountainCar-v0"): _SAC_FINITE,
    # Small and with one gradient step for its cost: 2,400 steps a second for a seed on one core, and half of
    # that with layers of 128.
    **{("sac", game): _SAC_MINATAR for game in _GAMES},
    # At rates of 3e-4 and a learned temperature three seeds stood at 8.5 from 280,000 steps to the end; with
    # 0.1 one stood there from 190,000 on; at these rates it was at 10.7 after 300,000 and rose. Entropies of
    # 0.2 and 0.4 as targets were at 5.5 and 6.0 after 200,000.
    ("sac", "Breakout-MinAtar"): _SAC_MINATAR
    | dict(
        alpha=0.1,
        learn_alpha=False,
        actor_optimizer=dict(learning_rate=1e-3),
        critic_optimizer=dict(learning_rate=3e-3),
    ),
    ("q_learning", "Cliff-tabular"): _CLIFF,
    ("q_learning", "FrozenLake-misc"): _LAKE,
    ("sarsa", "Cliff-tabular"): _CLIFF,
    ("sarsa", "FrozenLake-misc"): _LAKE,
    ("q_learning", "DeepSea-bsuite"): _SEA_TABLE,
    ("q_learning", "Catch-bsuite"): _ONLINE_SHORT,
    # at a rate of 1e-3 its values ran away to 90, where the goal is worth 1, and it went there no more
    ("q_learning", "FourRooms-misc"): _ONLINE_SHORT
    | _SCALED
    | dict(gamma=0.95, optimizer=dict(name="adam", learning_rate=3e-4)),
    ("q_learning", "CartPole-v1"): _ONLINE,
    ("q_learning", "Acrobot-v1"): _ONLINE,
    ("q_learning", "MountainCar-v0"): _ONLINE,
    **{("q_learning", game): _ONLINE_MINATAR for game in _GAMES},
    ("sarsa", "DeepSea-bsuite"): _SEA_TABLE,
    ("sarsa", "Catch-bsuite"): _ONLINE_SHORT,
    ("sarsa", "FourRooms-misc"): _ONLINE_SHORT,
    ("sarsa", "CartPole-v1"): _ONLINE,
    ("sarsa", "Acrobot-v1"): _ONLINE,
    ("sarsa", "MountainCar-v0"): _ONLINE,
    **{("sarsa", game): _ONLINE_MINATAR for game in _GAMES},
    ("ppo", "brax:inverted_pendulum"): CONTINUOUS["ppo"] | dict(steps=200_000),
    ("sac", "brax:inverted_pendulum"): _REPLAY_SMALL | dict(steps=75_000, capacity=75_000),
}

# The kind of network that is meant by each parameter of `make`.
_POLICY_AND_VALUE = {"network": "both", "actor": "policy", "critic": "value"}
_DETERMINISTIC = {"actor": "deterministic", "critic": "pair_value"}
_HEADS: dict[str, dict[str, str]] = {
    "dqn": {"q_network": "action_values"},
    "q_learning": {"q_network": "action_values"},
    "sarsa": {"q_network": "action_values"},
    "ddpg": _DETERMINISTIC,
    "td3": _DETERMINISTIC,
    "sac": {"actor": "soft_policy", "critic": "soft_value"},
}


def _updates(o: dict[str, Any]) -> tuple[int, int]:
    """Of an iteration that acts and learns by turns."""
    num_steps = o["num_envs"] * o.get("num_steps", 1) * o["num_updates"]
    return num_steps, o["num_updates"] * o.get("num_gradient_steps", 1)


# Environment steps of one iteration, at most, and its gradient steps; None where the steps are not fixed.
_ITERATION: dict[str, Callable[[dict[str, Any]], tuple[int, int | None]]] = {
    "ppo": lambda o: (o["num_envs"] * o["num_steps"], o["num_epochs"] * o["num_minibatches"]),
    "a2c": lambda o: (o["num_envs"] * o["num_steps"], 1),
    "reinforce": lambda o: (o["num_episodes"] * o["max_steps"], None),
    "npg": lambda o: (o["num_envs"] * o["num_steps"], o["critic_epochs"] * o["critic_minibatches"]),
    "trpo": lambda o: (o["num_envs"] * o["num_steps"], o["critic_epochs"] * o["critic_minibatches"]),
    **dict.fromkeys(
        ("actor_critic", "acktr", "a3c", "dqn", "q_learning", "sarsa", "ddpg", "td3", "sac"), _updates
    ),
}


def algorithm_names() -> list[str]:
    """The algorithms there are.

    Returns:
        Names, sorted.
    """
    return sorted(module.name for module in pkgutil.iter_modules(algorithms.__path__))


def make_function(algorithm: str) -> Callable[..., Algorithm[Any]]:
    """An algorithm's `make`.

    Args:
        algorithm: its name.

    Returns:
        The function.

    Raises:
        ValueError: if there is no such algorithm.
    """
    check_known("algorithm", algorithm, algorithm_names())
    return importlib.import_module(f"pgjax.algorithms.{algorithm}").make


def keyword_options(algorithm: str) -> dict[str, inspect.Parameter]:
    """The keyword options of an algorithm's `make`.

    Args:
        algorithm: its name.

    Returns:
        Parameters by name, in order.
    """
    parameters = inspect.signature(make_function(algorithm)).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def is_numeric(option: inspect.Parameter) -> bool:
    """Whether an option may be traced.

    Args:
        option: of `keyword_options`.

    Returns:
        True if it is annotated `Numeric`, or that or None.
    """
    return set(get_args(Numeric)) <= set(get_args(option.annotation))


def preset(algorithm: str, environment: str | None = None, **changes: Any) -> Preset:
    """The settings for an algorithm in an environment, with changes.

    Args:
        algorithm: its name.
        environment: its name; one that the table does not know gets the algorithm's defaults. None: that of
            the algorithm's first row in the table, mostly CartPole-v1.
        **changes: as in `change`.

    Returns:
        The settings, every option of `make` spelled out.

    Raises:
        ValueError: if a name is unknown.
    """
    make_parameters = inspect.signature(make_function(algorithm)).parameters
    if environment is None:
        environment = next(e for a, e in TUNED if a == algorithm)
    if (algorithm, environment) not in TUNED and environment not in envs.names():
        envs.make(environment)  # knows why not
    base = Preset(
        algorithm=algorithm,
        environment=environment,
        env_params={},
        steps=500_000,
        network=NetworkSpec(),
        optimizers={
            name: default_spec(p.annotation)
            for name, p in make_parameters.items()
            if name.endswith("optimizer")
        },
        options={name: p.default for name, p in keyword_options(algorithm).items()},
    )
    base = change(base, **DEFAULTS.get(algorithm, {}))
    if (algorithm, environment) not in TUNED and not envs.is_discrete(_action_space(environment)):
        base = change(base, **CONTINUOUS.get(algorithm, {}))
    return change(change(base, **TUNED.get((algorithm, environment), {})), **changes)


def change(preset: Preset, **changes: Any) -> Preset:
    """The same settings but for some.

    Args:
        preset: the settings.
        **changes: any option of `make`; `steps`; `env_params`, `network` or an optimizer by name, each a
            dict of what to change in it.

    Returns:
        The new settings.

    Raises:
        ValueError: if a name is unknown, or if options of something are none.

    Example:
        >>> change(preset("ppo", "CartPole-v1"), clip_eps=0.1, optimizer=dict(eps=1e-8)).options["clip_eps"]
        0.1
    """
    for name, value in changes.items():
        section = name in ("env_params", "network", *preset.optimizers)
        if section and not isinstance(value, Mapping):
            raise ValueError(
                f"{name} must be options by name, got {value!r}: give a dict. What was made "
                f"elsewhere goes into pgjax.algorithms.{preset.algorithm}.make."
            )
        if name == "steps":
            preset = preset._replace(steps=value)
        elif name == "env_params":
            preset = preset._replace(env_params=preset.env_params | dict(value))
        elif name == "network":
            preset = preset._replace(network=_replace_fields("network", preset.network, value))
        elif name in preset.optimizers:
            spec = _replace_fields(name, preset.optimizers[name], value)
            preset = preset._replace(optimizers=preset.optimizers | {name: spec})
        else:
            known = [*preset.options, *preset.optimizers, "steps", "env_params", "network"]
            check_known(f"option of {preset.algorithm}", name, known)
            preset = preset._replace(options=preset.options | {name: value})
    return preset


def iteration_size(preset: Preset) -> tuple[int, int | None]:
    """How much one iteration does.

    Args:
        preset: the settings.

    Returns:
        Its environment steps and its gradient steps; where the number of steps is not fixed (whole
        episodes), the most there can be, and None.
    """
    return _ITERATION[preset.algorithm](_with_max_steps(preset, environment(preset)[1]))


def observations_per_update(preset: Preset) -> int:
    """How many observations a gradient step looks at, of the actor's where a critic has its own.

    Args:
        preset: the settings.

    Returns:
        Their number; both ends of a transition count. Where an iteration has whole episodes, the most there
        can be.
    """
    options, (env_steps, num_updates) = preset.options, iteration_size(preset)
    if "batch_size" in options:
        return 2 * options["batch_size"]
    if num_updates is None or "critic_epochs" in options:
        return env_steps
    ends = 2 if preset.algorithm in ("q_learning", "sarsa", "actor_critic") else 1
    return ends * max(1, env_steps * options.get("num_epochs", 1) // num_updates)


def to_json(preset: Preset) -> dict[str, Any]:
    """The settings as JSON takes them.

    Args:
        preset: the settings.

    Returns:
        Dicts, lists, numbers, strings; infinities and NaN as strings, which JSON has no numbers for.
    """
    data = preset._asdict() | {
        "network": preset.network._asdict(),
        "optimizers": {name: spec._asdict() for name, spec in preset.optimizers.items()},
    }

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return plain(data)


def from_json(data: Mapping[str, Any]) -> Preset:
    """The reverse of `to_json`.

    Args:
        data: from `to_json`.

    Returns:
        The settings.

    Raises:
        ValueError: if something is missing or unknown.
    """
    missing = [name for name in Preset._fields if name not in data]
    if missing:
        raise ValueError(f"The settings lack {', '.join(missing)}.")

    def numbers(values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: float(v) if v in ("inf", "-inf", "nan") else v for k, v in values.items()}

    sections: dict[str, Any] = {"network": data["network"] | {"hidden": tuple(data["network"]["hidden"])}}
    sections |= {name: numbers(values) for name, values in data["optimizers"].items()}
    known = preset(
        data["algorithm"], data["environment"], steps=data["steps"], **sections, **numbers(data["options"])
    )
    return known._replace(env_params=dict(data["env_params"]))  # and nothing that the table has come to say


def hyper(preset: Preset) -> Hyper:
    """The values that may be traced.

    Args:
        preset: the settings.

    Returns:
        A pytree of floats for `build`; options that are None are not in it.
    """
    values = {
        name: float(preset.options[name])
        for name, option in keyword_options(preset.algorithm).items()
        if is_numeric(option) and preset.options[name] is not None
    }
    return {"options": values} | {
        name: {k: v for k, v in spec._asdict().items() if isinstance(v, float)}
        for name, spec in preset.optimizers.items()
    }


def build(preset: Preset, hyper: Hyper | None = None, made: tuple[Any, Any] | None = None) -> Algorithm[Any]:
    """From data to an algorithm; may be called inside jit.

    Args:
        preset: the settings.
        hyper: values in place of the preset's own, traced or not, such as `hyper(preset)` gives.
        made: what `environment(preset)` gave, where programs that are built apart share an environment whose
            state lives on the host; None: it is made here.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a size or a concrete value is out of its range, or if the algorithm and the
            environment do not fit together.
    """
    hyper = hyper or {}
    options = preset.options | hyper.get("options", {})
    specs = {name: spec._replace(**hyper.get(name, {})) for name, spec in preset.optimizers.items()}
    declared = {"steps": int} | {name: p.annotation for name, p in keyword_options(preset.algorithm).items()}
    declared |= {"max_steps": int | None, "weight": str}  # None for the environment's own; by its name
    check_kinds((name, value, declared[name]) for name, value in {"steps": preset.steps, **options}.items())
    check_ranges({"steps": preset.steps, **options}.items())
    if not isinstance(preset.network.hidden, list | tuple):
        raise ValueError(f"network.hidden must be several sizes, got {preset.network.hidden!r}.")
    check_ranges(("network.hidden", size) for size in preset.network.hidden)
    for name, spec in {"network": preset.network, **specs}.items():
        kinds = get_type_hints(type(spec))
        check_kinds((f"{name}.{k}", v, kinds[k]) for k, v in spec._asdict().items())
        check_ranges((f"{name}.{k}", v) for k, v in spec._asdict().items() if k != "hidden")
    env, env_params = made or environment(preset)
    options = _with_max_steps(preset._replace(options=options), env_params)
    chosen = preset._replace(options=options)
    make = make_function(preset.algorithm)
    wanted = inspect.signature(make).parameters
    if preset.network.shared and "network" not in wanted:
        raise ValueError(f"{preset.algorithm} has no shared torso: leave network.shared off.")
    if envs.max_steps(env_params) < 1:
        raise ValueError(f"max_steps_in_episode must be at least 1, got {envs.max_steps(env_params)}.")
    # a traced switch is decided when the program runs, so the program holds the normaliser
    if options.get("normalize_obs", False) is not False and envs.is_discrete(
        env.observation_space(env_params)
    ):
        raise ValueError(f"The observations of {preset.environment} are integers: leave normalize_obs off.")
    heads = _HEADS.get(preset.algorithm, _POLICY_AND_VALUE)
    if options.get("all_action"):
        heads = heads | {"critic": "action_values"}
    heads = {name: kind for name, kind in heads.items() if name in wanted}
    parts: dict[str, Any] = make_networks(preset.network, preset.environment, env, env_params, heads)
    if preset.network.torso != "linear" and not any(isinstance(s, KFACSpec) for s in specs.values()):
        # every optimizer here but that one treats a parameter as a number among others
        parts = {name: networks.Raveled(network) for name, network in parts.items()}
    parts |= {name: make_optimizer(spec, _horizon(chosen, name, spec)) for name, spec in specs.items()}
    if "weight" in options:
        if options["weight"] != "critic":
            parts["critic"] = parts["critic_optimizer"] = None
        options["weight"] = WEIGHTS[options["weight"]](options["gamma"])
    return make(env, env_params, **parts, **options)


def environment(preset: Preset) -> tuple[Any, Any]:
    """The environment of the settings.

    Args:
        preset: the settings.

    Returns:
        The environment and its parameters.

    Raises:
        ValueError: if its name or a parameter is unknown.
    """
    return envs.make(preset.environment, **preset.env_params)


def is_on_host(made: tuple[Any, Any]) -> bool:
    """Whether environments keep their state on the host, so that they can be neither mapped nor saved.

    Args:
        made: from `environment`.

    Returns:
        True for those of gymnasium.
    """
    return bool(getattr(made[0], "host_side", False))


def _with_max_steps(preset: Preset, env_params: Any) -> dict[str, Any]:
    """The options, `max_steps` of None being the environment's own limit."""
    if preset.options.get("max_steps", 0) is not None:
        return preset.options
    return preset.options | {"max_steps": envs.max_steps(env_params)}


def _action_space(environment: str) -> Any:
    env, env_params = envs.make(environment)
    return env.action_space(env_params)


def _horizon(preset: Preset, name: str, spec: Spec) -> int | None:
    """Gradient steps in the whole run, for a schedule; None where the rate is constant."""
    if spec.schedule == "constant":
        return None
    num_steps, num_updates = iteration_size(preset)
    if num_updates is None:
        raise ValueError(
            f"{preset.algorithm} has no fixed number of gradient steps: set {name}.schedule to constant."
        )
    switches = (preset.options.get(name, False) for name in ("normalize_obs", "normalize_reward"))
    counted = any(switch is not False for switch in switches)
    # steps that fill the replay buffer or the normalisers, without gradient steps
    warmup = preset.options.get("warmup_steps", num_steps if counted else 0)
    if name == "actor_optimizer":
        num_updates //= preset.options.get("policy_delay", 1)
    return max(1, math.ceil((preset.steps - warmup) / num_steps)) * num_updates


def _replace_fields(name: str, spec: Any, values: Mapping[str, Any]) -> Any:
    for field in values:
        check_known(f"option of {name}", field, list(spec._fields))
    return spec._replace(**values)
