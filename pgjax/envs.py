"""Environments by name. The one module of the core that knows gymnax, and imports it where it is used."""

import inspect
from typing import Any

import jax.numpy as jnp

from pgjax._advice import advice
from pgjax.types import Array, PRNGKey

_REFUSED = {
    "MNISTBandit-bsuite": "it downloads its data when it is made; register a copy of your own with the "
    "images at hand instead"
}


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


def names() -> list[str]:
    """The environments that `make` knows.

    Returns:
        Names, in gymnax's order.
    """
    from gymnax.registration import registered_envs

    return [name for name in registered_envs if name not in _REFUSED]


def make(name: str, **params: Any) -> tuple[Any, Any]:
    """An environment and its parameters.

    Args:
        name: a gymnax name, such as "CartPole-v1".
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
