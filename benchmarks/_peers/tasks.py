"""What is trained or computed, with settings that both sides read.

The names of options are those of pgjax. `clip` is the clipping of gradients: by value with rejax, which knows
no other way, and by global norm with the others; it is off where the peer has none.
"""

import math
from typing import Any, NamedTuple


class Task(NamedTuple):
    """One comparison.

    Attributes:
        algorithm: a module of `pgjax.algorithms`, or "gae".
        peer: the package on the other side.
        env: of the training; empty for "gae".
        options: settings of both sides.
        steps: environment steps that pgjax takes in one turn.
        peer_steps: those of the peer, fewer where it is much slower.
        quick: the same two in a quick run, whose figures mean nothing.
    """

    algorithm: str
    peer: str
    env: str
    options: dict[str, Any]
    steps: int
    peer_steps: int
    quick: int

    def words(self) -> str:
        """The settings as a person reads them."""
        said = [self.env] if self.env else []
        return ", ".join(said + [f"{name} {_word(value)}" for name, value in self.options.items()])


def _word(value: Any) -> str:
    if value is True or value is False:
        return "yes" if value else "no"
    if value == math.inf:
        return "off"
    if isinstance(value, tuple):
        return "-".join(str(x) for x in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


_HIDDEN = {"hidden": (64, 64)}
_ON_POLICY = {"gamma": 0.99, "lambda_": 0.95}
_PPO = {**_HIDDEN, **_ON_POLICY, "clip_eps": 0.2, "value_coef": 0.5}
_PPO_REJAX = {**_PPO, "value_clip_eps": 0.2, "entropy_coef": 0.01, "adam_eps": 1e-8}
_PPO_SB3 = {**_PPO, "value_clip_eps": math.inf, "entropy_coef": 0.0, "adam_eps": 1e-5}
_REPLAY = {**_HIDDEN, "activation": "relu", "learning_rate": 3e-4, "gamma": 0.99}
_DQN = _REPLAY | {"num_envs": 10, "batch_size": 128, "capacity": 50_000, "target_period": 50}
_BOX = _REPLAY | {"num_envs": 1, "batch_size": 256, "capacity": 100_000, "tau": 0.005}
_TD3 = {"noise_std": 0.1, "policy_delay": 2}  # in units of half the action range


def _ppo_sizes(num_envs: int, num_steps: int, num_epochs: int, num_minibatches: int) -> dict[str, int]:
    return {
        "num_envs": num_envs,
        "num_steps": num_steps,
        "num_epochs": num_epochs,
        "num_minibatches": num_minibatches,
    }


def _rejax_ppo(sizes: tuple[int, int, int, int], steps: int, **options: Any) -> Task:
    common = {"activation": "tanh", "learning_rate": 2.5e-4, "clip": 0.5}
    options = _ppo_sizes(*sizes) | common | options | _PPO_REJAX
    return Task("ppo", "rejax", "CartPole-v1", options, steps, steps, sizes[0] * sizes[1])


def _both(short: str, peer: str, clips: bool, on_box: int) -> dict[str, Task]:
    """What Stable-Baselines3 and SBX both have; only the first clips the gradient of DQN."""
    ppo = _ppo_sizes(8, 128, 4, 4) | {"activation": "tanh", "learning_rate": 3e-4, "clip": 0.5} | _PPO_SB3
    dqn = _DQN | {"clip": 10.0 if clips else math.inf, "double": False, "huber": True, "warmup_steps": 1000}
    box = _BOX | {"clip": math.inf, "warmup_steps": 500}
    return {
        f"ppo-{short}": Task("ppo", peer, "CartPole-v1", ppo, 204_800, 16_384, 1024),
        f"dqn-{short}": Task("dqn", peer, "CartPole-v1", dqn, 100_000, 8_000, 1000),
        f"sac-{short}": Task("sac", peer, "Pendulum-v1", box, 5_000, on_box, 100),
        f"td3-{short}": Task("td3", peer, "Pendulum-v1", box | _TD3, 10_000, on_box, 100),
    }


def _gae(num_steps: int, num_envs: int) -> Task:
    options = {"num_steps": num_steps, "num_envs": num_envs, "gamma": 0.99, "lambda_": 0.95}
    size = num_steps * num_envs
    calls = min(max(100_000_000 // size, 50), 10_000)
    return Task("gae", "rlax", "", options, calls * size, calls * size, size)


_CLIPPED = {"clip": 10.0, "warmup_steps": 2000}
_A2C = {
    "num_envs": 8,
    "num_steps": 5,
    "activation": "tanh",
    "learning_rate": 7e-4,
    "clip": 0.5,
    **_HIDDEN,
    "gamma": 0.99,
    "lambda_": 1.0,
    "value_coef": 0.5,
    "entropy_coef": 0.0,
}
_TRPO = {
    "num_envs": 8,
    "num_steps": 128,
    "activation": "tanh",
    "learning_rate": 1e-3,
    **_HIDDEN,
    **_ON_POLICY,
    "max_kl": 0.01,
    "cg_iters": 15,
    "damping": 0.1,
    "num_backtracks": 10,
    "backtrack": 0.8,
    "critic_epochs": 10,
    "critic_minibatches": 8,
}

TASKS: dict[str, Task] = {
    # the defaults of rejax.PPO.create
    "ppo-default": _rejax_ppo(
        (64, 64, 8, 16), 131_072, activation="swish", learning_rate=3e-4, clip=math.inf
    ),
    # rejax's configuration file for CartPole-v1
    "ppo-cartpole": _rejax_ppo((5, 100, 5, 5), 100_000, learning_rate=7.5e-4),
    "ppo-4x128": _rejax_ppo((4, 128, 4, 4), 204_800),
    "ppo-64x128": _rejax_ppo((64, 128, 4, 4), 819_200),
    "ppo-2048x128": _rejax_ppo((2048, 128, 4, 4), 1_572_864)._replace(quick=1_572_864 // 6),
    "dqn": Task("dqn", "rejax", "CartPole-v1", _DQN | _CLIPPED | {"double": True}, 100_000, 100_000, 1000),
    "sac": Task("sac", "rejax", "Pendulum-v1", _BOX | _CLIPPED, 10_000, 10_000, 100),
    "td3": Task("td3", "rejax", "Pendulum-v1", _BOX | _CLIPPED | _TD3, 10_000, 10_000, 100),
    **{f"gae-{t}x{n}": _gae(t, n) for t, n in ((128, 2048), (1000, 64), (100_000, 1), (128, 64))},
    "a2c-sb3": Task("a2c", "stable-baselines3", "CartPole-v1", _A2C, 400_000, 20_000, 400),
    "trpo-sb3": Task("trpo", "sb3-contrib", "CartPole-v1", _TRPO, 102_400, 16_384, 1024),
    **_both("sb3", "stable-baselines3", clips=True, on_box=400),
    **_both("sbx", "sbx-rl", clips=False, on_box=1000),
}
QUICK = ("ppo-cartpole", "gae-128x64", "a2c-sb3")

# How many times as fast this library is to be at least, where a goal was set.
GOALS = {
    "ppo-default": 1.5,
    "ppo-cartpole": 1.5,
    "dqn": 2.5,
    "sac": 1.3,
    "td3": 1.3,
    "a2c-sb3": 20,
    "trpo-sb3": 8,
}
GOALS |= {name: 1.0 for name, task in TASKS.items() if task.algorithm == "gae"}

# What has to be importable, and whose versions are told.
MODULES = {
    "rejax": "rejax",
    "rlax": "rlax",
    "stable-baselines3": "stable_baselines3",
    "sb3-contrib": "sb3_contrib",
    "sbx-rl": "sbx",
}
TOLD = {
    "rejax": ("rejax", "distrax", "gymnax"),
    "rlax": ("rlax",),
    "stable-baselines3": ("stable-baselines3", "torch", "gymnasium"),
    "sb3-contrib": ("sb3-contrib", "stable-baselines3", "torch", "gymnasium"),
    "sbx-rl": ("sbx-rl", "stable-baselines3", "gymnasium"),
}
