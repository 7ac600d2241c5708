"""Environments by name. The one module of the core that knows gymnax, and imports it where it is used.

Of other suites: brax and craftax by adapters that are JAX all through (`pgjax.suites`), and gymnasium, which
is not, by a slow path (`pgjax.host`).
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pgjax import host, suites, tabular
from pgjax._advice import advice
from pgjax._checks import at_least_one
from pgjax._imports import postponed
from pgjax.suites import EpisodeLimit
from pgjax.types import Array, PRNGKey

_REFUSED = {
    "MNISTBandit-bsuite": "it downloads its data when it is made; register a copy of your own with the "
    "images at hand instead"
}


def _cliff() -> "TimeLimit":
    return TimeLimit(tabular.cliff_mdp(0.99), 1000)


# Problems of `pgjax.tabular` that have a name here; their parameters are fixed.
_TABULAR = {"Cliff-tabular": _cliff}

# What makes the environments of another suite, whose names have the suite's and a colon in front.
_SUITES = {"brax": suites.make_brax, "craftax": suites.make_craftax, "gymnasium": host.make_gymnasium}


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


class RescaleObs:
    """An environment whose observations are brought from the bounds of their space to [−1, 1].

    A network of tanh units tells little from a number that stays below 0.07, as the speed of MountainCar
    does, and saturates at one of 28, as in Acrobot. Running moments (`normalize_obs` of PPO) do the same for
    any observation; this one needs bounds, has no state, and works with every algorithm. It is not always a
    gain: actor-critic learned Pendulum, whose angle lies in [−1, 1] already, worse with it.

    Attributes:
        env: the environment behind; all else is passed on to it.

    Raises:
        ValueError: on construction, if the observation is not an array of real numbers between finite bounds.

    Example:
        >>> env, env_params = make("MountainCar-v0", rescale_obs=True)
        >>> space = env.observation_space(env_params)
        >>> float(space.low), float(space.high)
        (-1.0, 1.0)
    """

    def __init__(self, env: Any, env_params: Any):
        with jax.ensure_compile_time_eval():  # an algorithm may be made under jit
            space = env.observation_space(env_params)
            low, high = (np.asarray(getattr(space, name, math.inf), float) for name in ("low", "high"))
        largest = float(np.finfo(np.float32).max)  # what gymnax and gymnasium write for no bound
        if not (np.abs(low) < largest).all() or not (np.abs(high) < largest).all() or (low >= high).any():
            raise ValueError(
                "rescale_obs needs observations that are arrays with finite bounds, but they are "
                f"{type(space).__name__} from {low} to {high}: leave it off, or normalise by running moments "
                "(normalize_obs of ppo)."
            )
        self.env = env
        self._middle, self._half = 0.5 * (low + high), 0.5 * (high - low)

    def reset(self, key: PRNGKey, params: Any) -> tuple[Any, Any]:
        """As the environment's, rescaled."""
        obs, state = self.env.reset(key, params)
        return self._rescaled(obs), state

    def step(
        self, key: PRNGKey, state: Any, action: Any, params: Any
    ) -> tuple[Any, Any, Array, Array, Array, dict[Any, Any]]:
        """As the environment's, with both observations rescaled: the next, and what the action led to."""
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        info = {**info, "final_observation": self._rescaled(info["final_observation"])}
        return self._rescaled(obs), state, reward, terminated, truncated, info

    def observation_space(self, params: Any) -> Any:
        """The box from −1 to 1."""
        with postponed("seaborn"):
            from gymnax.environments.spaces import Box

        return Box(-1.0, 1.0, self.env.observation_space(params).shape)

    def _rescaled(self, obs: Array) -> Array:
        dtype = jnp.result_type(obs, float)
        middle, half = (
            jnp.broadcast_to(jnp.asarray(x, dtype), obs.shape) for x in (self._middle, self._half)
        )
        return (obs - middle) / half

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
        at_least_one(max_steps=max_steps)
        if getattr(env, "host_side", False):
            raise ValueError(
                "An environment that lives on the host cannot be reset at any step: make it with "
                "max_steps_in_episode instead."
            )
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
    """The environments that `make` knows by a name of their own.

    Returns:
        Names, in gymnax's order, and then those of `pgjax.tabular`.
    """
    return [*(name for name in _registration().registered_envs if name not in _REFUSED), *_TABULAR]


def _registration() -> Any:
    """Of gymnax."""
    with postponed("seaborn"):
        from gymnax import registration

    return registration


def make(name: str, *, rescale_obs: bool = False, **params: Any) -> tuple[Any, Any]:
    """An environment and its parameters.

    Args:
        name: a gymnax name, such as "CartPole-v1", that of a tabular problem, "Cliff-tabular", or one of
            another suite behind its name and a colon: "brax:reacher", "craftax:Craftax-Symbolic-v1",
            "gymnasium:CartPole-v1" (the slow path of `pgjax.host`).
        rescale_obs: bring observations from their bounds to [−1, 1]; see `RescaleObs`.
        **params: any field of the environment's parameters (`max_steps_in_episode=1000`) or any argument
            of its constructor (`size=4`), by name.

    Returns:
        The environment, its actions clipped to the box where they are continuous, and its parameters.

    Raises:
        ValueError: if the name or a parameter is unknown (near matches are listed), if the environment
            cannot be made without a download, if its suite is not installed, or if observations without
            bounds are to be rescaled.

    Example:
        >>> env, env_params = make("CartPole-v1", max_steps_in_episode=100)
        >>> env_params.max_steps_in_episode
        100
    """
    if rescale_obs:
        env, env_params = make(name, **params)
        return RescaleObs(env, env_params), env_params
    registration = _registration()
    if name in _REFUSED:
        raise ValueError(f"{name} is not available: {_REFUSED[name]}.")
    if name in _TABULAR:
        if params:
            raise ValueError(f"{name} has no parameters: make one with pgjax.tabular to change it.")
        return _TABULAR[name](), None
    suite, colon, rest = name.partition(":")
    if colon:
        if suite not in _SUITES:
            raise ValueError(f"Unknown suite {suite!r} of {name!r}. {advice(suite, list(_SUITES))}")
        return _clipped(*_SUITES[suite](rest, params))
    if name not in registration.registered_envs:
        raise ValueError(f"Unknown environment {name!r}. {advice(name, names())}")
    # some, such as FourRooms-misc, compute with arrays when they are made, and look at them: not under jit
    with jax.ensure_compile_time_eval():
        env, env_params = registration.make(name)
    arguments = inspect.signature(type(env)).parameters
    own = {k: v for k, v in params.items() if k in arguments}
    if own:
        with jax.ensure_compile_time_eval():
            env, env_params = registration.make(name, **own)
    changes = {k: v for k, v in params.items() if k not in arguments}
    return _clipped(env, suites.change_params(name, env_params, changes, arguments))


def from_brax(env: Any, *, max_steps_in_episode: int = 1000) -> tuple[Any, EpisodeLimit]:
    """An environment of brax's kind: one's own, or one of a suite with the same `reset` and `step`.

    Args:
        env: the environment, without its automatic reset.
        max_steps_in_episode: where an episode is cut, truncated.

    Returns:
        The environment and its parameters, as from `make`.

    Raises:
        ValueError: if the environment resets itself or is a batch of environments.
    """
    return _clipped(suites.BraxEnv(env), EpisodeLimit(max_steps_in_episode))


def from_five_values(
    env: Any,
    env_params: Any,
    *,
    limit: str | None = "max_steps_in_episode",
    is_terminated: Callable[[Any, Any], Array] | None = None,
) -> tuple[Any, Any]:
    """An environment whose step gives `(obs, state, reward, done, info)`, as gymnax's did before version 1.

    It is stepped without its automatic reset, so that what the last action of an episode led to is known,
    and its ends are told apart: those that do not come when its time limit is lifted truncate.

    Args:
        env: the environment, with gymnax's `step_env` and `reset_env`.
        env_params: its parameters, a dataclass or a NamedTuple.
        limit: the field of the parameters that holds the time limit; None: no episode is cut.
        is_terminated: `(state, params) -> bool`, whether the task ended in the step to this state, whatever
            the limit. None: `step_env` is called once more, with the limit lifted.

    Returns:
        The environment and its parameters, as from `make`.

    Raises:
        ValueError: if the environment cannot be stepped without a reset, or if its parameters have no such
            field.
    """
    if limit is not None and is_terminated is None:
        suites.without_limit(env_params, limit)  # knows why not
    return _clipped(suites.FiveValueEnv(env, limit, is_terminated), env_params)


def from_gymnasium(
    make_vector: Callable[[int], Any], *, max_steps_in_episode: int | None = None
) -> tuple[Any, EpisodeLimit | None]:
    """Gymnasium's environments, stepped by the host; `pgjax.host` says what that means.

    Args:
        make_vector: `N -> gymnasium.vector.VectorEnv` that resets in the same step.
        max_steps_in_episode: where these environments cut an episode, if they do; it is for the algorithms to
            know and changes nothing.

    Returns:
        The environment and its parameters, as from `make`.

    Raises:
        ValueError: if the environments do not reset in the same step, or if their spaces are neither arrays
            nor finite sets.

    Example:
        >>> from gymnasium.vector import AutoresetMode, SyncVectorEnv
        >>> from gymnasium.envs.classic_control import CartPoleEnv
        >>> env, _ = from_gymnasium(
        ...     lambda n: SyncVectorEnv([CartPoleEnv] * n, autoreset_mode=AutoresetMode.SAME_STEP)
        ... )
        >>> env.host_side
        True
    """
    limit = None if max_steps_in_episode is None else EpisodeLimit(max_steps_in_episode)
    return _clipped(host.GymnasiumEnv(make_vector), limit)


def _clipped(env: Any, env_params: Any) -> tuple[Any, Any]:
    """With its actions clipped to the box where they are continuous."""
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
    return int(
        next((getattr(env_params, name) for name in suites.LIMITS if hasattr(env_params, name)), default)
    )
