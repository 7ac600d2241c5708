"""Environments by name. The one module of the core that knows gymnax, and imports it where it is used."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgjax import tabular
from pgjax._advice import advice
from pgjax.types import Array, PRNGKey

_REFUSED = {
    "MNISTBandit-bsuite": "it downloads its data when it is made; register a copy of your own with the "
    "images at hand instead"
}


def _cliff() -> "TimeLimit":
    return TimeLimit(tabular.cliff_mdp(0.99), 1000)


# Problems of `pgjax.tabular` that have a name here; their parameters are fixed.
_TABULAR = {"Cliff-tabular": _cliff}


class ClipAction:
    """An environment whose actions are clipped to its box; what is stored stays unclipped.

    Attributes:
        env: the environment behind; all else is passed on to it.
        low: `[D]`.
        high: `[D]`.
    """

    def __init__(self, env: Any, low: Any, high: Any):
        self.env = env
        self.low = low
        self.high = high

    def reset(self, key: PRNGKey, params: Any) -> tuple[Any, Any]:
        """As the environment's."""
        return self.env.reset(key, params)

    def step(
        self, key: PRNGKey, state: Any, action: Array, params: Any
    ) -> tuple[Any, Any, Array, Array, Array, dict[Any, Any]]:
        """As the environment's, after clipping `action` to [low, high]."""
        return self.env.step(key, state, jnp.clip(action, self.low, self.high), params)

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # not there yet while an instance is being copied
            raise AttributeError(name)
        return getattr(self.env, name)


class TimeLimitState(NamedTuple):
    """The state of a `TimeLimit`.

    Attributes:
        env_state: of the environment behind.
        time: int32 scalar, steps taken in this episode.
    """

    env_state: Any
    time: Array


class TimeLimit:
    """An environment whose episodes are cut after a number of steps: they end truncated.

    The limit is no part of the task: the future still has value, and what is observed does not tell the
    time. A step that terminates at the limit terminates.

    Attributes:
        env: the environment behind; all else is passed on to it.
        max_steps: the limit, at least 1.

    Example:
        >>> from pgjax.tabular import kakade_mdp
        >>> env = TimeLimit(kakade_mdp(), 1)
        >>> _, state = env.reset(jax.random.key(0), None)
        >>> terminated, truncated = env.step(jax.random.key(1), state, 0, None)[3:5]
        >>> bool(terminated), bool(truncated)
        (False, True)
    """

    def __init__(self, env: Any, max_steps: int):
        if max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, got {max_steps}.")
        self.env = env
        self.max_steps = max_steps

    def reset(self, key: PRNGKey, params: Any) -> tuple[Any, TimeLimitState]:
        """As the environment's, at time 0."""
        obs, env_state = self.env.reset(key, params)
        return obs, TimeLimitState(env_state, jnp.zeros((), jnp.int32))

    def step(
        self, key: PRNGKey, state: TimeLimitState, action: Any, params: Any
    ) -> tuple[Any, TimeLimitState, Array, Array, Array, dict[Any, Any]]:
        """As the environment's, truncated and reset at the limit."""
        step_key, reset_key = jax.random.split(key)
        obs, env_state, reward, terminated, truncated, info = self.env.step(
            step_key, state.env_state, action, params
        )
        time = state.time + 1
        ended = terminated | truncated  # the environment has reset itself
        cut = (time >= self.max_steps) & ~ended
        fresh = self.env.reset(reset_key, params)
        obs, env_state = jax.tree.map(lambda new, old: jnp.where(cut, new, old), fresh, (obs, env_state))
        time = jnp.where(ended | cut, 0, time)
        return obs, TimeLimitState(env_state, time), reward, terminated, truncated | cut, info

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # not there yet while an instance is being copied
            raise AttributeError(name)
        return getattr(self.env, name)


def names() -> list[str]:
    """The environments that `make` knows.

    Returns:
        Names, in gymnax's order, and then those of `pgjax.tabular`.
    """
    from gymnax.registration import registered_envs

    return [*(name for name in registered_envs if name not in _REFUSED), *_TABULAR]


def make(name: str, **params: Any) -> tuple[Any, Any]:
    """An environment and its parameters.

    Args:
        name: a gymnax name, such as "CartPole-v1", or that of a tabular problem, "Cliff-tabular".
        **params: any field of the environment's parameters (`max_steps_in_episode=1000`) or any argument
            of its constructor (`size=4`), by name.

    Returns:
        The environment, its actions clipped to the box where they are continuous, and its parameters.

    Raises:
        ValueError: if the name or a parameter is unknown (near matches are listed), or if the environment
            cannot be made without a download.

    Example:
        >>> env, env_params = make("CartPole-v1", max_steps_in_episode=100)
        >>> env_params.max_steps_in_episode
        100
    """
    from gymnax import registration

    if name in _REFUSED:
        raise ValueError(f"{name} is not available: {_REFUSED[name]}.")
    if name in _TABULAR:
        if params:
            raise ValueError(f"{name} has no parameters: make one with pgjax.tabular to change it.")
        return _TABULAR[name](), None
    if name not in registration.registered_envs:
        raise ValueError(f"Unknown environment {name!r}. {advice(name, names())}")
    env, env_params = registration.make(name)
    arguments = set(inspect.signature(type(env)).parameters)
    if arguments & set(params):
        env, env_params = registration.make(name, **{k: v for k, v in params.items() if k in arguments})
    fields = getattr(env_params, "__dataclass_fields__", {})
    changes = {k: v for k, v in params.items() if k not in arguments}
    for key in changes:
        if key not in fields:
            raise ValueError(f"{name} has no parameter {key!r}. {advice(key, [*fields, *arguments])}")
    if changes:
        env_params = env_params.replace(**changes)
    space = env.action_space(env_params)
    if is_discrete(space):
        return env, env_params
    low = jnp.broadcast_to(jnp.asarray(space.low, jnp.result_type(float)), space.shape)
    high = jnp.broadcast_to(jnp.asarray(space.high, jnp.result_type(float)), space.shape)
    return ClipAction(env, low, high), env_params


def is_discrete(space: Any) -> bool:
    """Whether a space is a finite set.

    Args:
        space: a gymnax space.

    Returns:
        True for `Discrete`.
    """
    return hasattr(space, "n")


def max_steps(env_params: Any, default: int = 1000) -> int:
    """The environment's own time limit.

    Args:
        env_params: the environment's parameters.
        default: what to say of one without a limit.

    Returns:
        Steps.
    """
    return int(getattr(env_params, "max_steps_in_episode", default))
