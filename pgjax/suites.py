"""Environments of other suites, made to look like ours: brax's, and those with gymnax's older step.

Both tell less than `Environment` promises: that an episode ended, but not always why, and after an automatic
reset not what the last action led to. What is missing is found out here by stepping without that reset.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from types import NoneType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pgjax._advice import advice
from pgjax._checks import at_least_one
from pgjax.tabular.mdp import Box
from pgjax.types import Array, PRNGKey

LIMITS = ("max_steps_in_episode", "max_timesteps")  # fields of gymnax's parameters and of craftax's

_CRAFTAX = [f"Craftax-{kind}-v1" for kind in ("Symbolic", "Pixels", "Classic-Symbolic", "Classic-Pixels")]
_NEVER = 2**30  # steps; the sum of two such limits is still an int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EpisodeLimit:
    """The parameters of an environment that has no others.

    Attributes:
        max_steps_in_episode: where an episode is cut, truncated.
    """

    max_steps_in_episode: int = 1000


class BraxState(NamedTuple):
    """The state of a `BraxEnv`.

    Attributes:
        env_state: brax's own.
        time: int32 scalar, steps taken in this episode.
    """

    env_state: Any
    time: Array


class BraxEnv:
    """A brax environment, its episodes cut after a number of steps and started anew from a fresh reset.

    `done` terminates, unless the environment's own `info["truncation"]` says that it was a time limit.

    Attributes:
        env: brax's environment, without its automatic reset.

    Raises:
        ValueError: if the environment resets itself or is a batch of environments.
    """

    def __init__(self, env: Any):
        state = jax.eval_shape(env.reset, jax.random.key(0))
        if any("first_" in name for name in state.info):
            raise ValueError(
                "This environment resets itself, so that what an episode's last action led to is lost: give "
                "it without its AutoResetWrapper, as brax.envs.create(..., auto_reset=False) does."
            )
        if state.done.ndim:
            raise ValueError(
                "This is a batch of environments: give one, without its VmapWrapper; rollouts map over it."
            )
        self.env = env
        self._obs = state.obs

    def action_space(self, params: Any) -> Box:
        """What all of brax's environments take: [−1, 1] in every direction."""
        return Box((self.env.action_size,), jnp.float32, -1.0, 1.0)

    def observation_space(self, params: Any) -> Any:
        """Unbounded arrays, in the tree that is observed."""
        return jax.tree.map(lambda x: Box(x.shape, x.dtype), self._obs)

    def reset(self, key: PRNGKey, params: EpisodeLimit) -> tuple[Any, BraxState]:
        """A start of brax's, at time 0."""
        env_state = self.env.reset(key)
        return env_state.obs, BraxState(env_state, jnp.zeros((), jnp.int32))

    def step(
        self, key: PRNGKey, state: BraxState, action: Array, params: EpisodeLimit
    ) -> tuple[Any, BraxState, Array, Array, Array, dict[Any, Any]]:
        """Brax's step; reset where the episode ended."""
        # a copy: brax's wrappers write into the dicts that they are given
        before = jax.tree.map(lambda x: x, state.env_state)
        after, time = self.env.step(before, action), state.time + 1
        cut = jnp.asarray(after.info.get("truncation", False)).astype(bool)
        terminated = after.done.astype(bool) & ~cut
        truncated = ~terminated & (cut | (time >= params.max_steps_in_episode))
        obs, following = _reset_where(
            terminated | truncated, self.reset(key, params), (after.obs, BraxState(after, time))
        )
        info = {"final_observation": after.obs}
        return obs, following, after.reward, terminated, truncated, info


class FiveValueEnv:
    """An environment whose step gives `(obs, state, reward, done, info)`, as gymnax's did before version 1.

    Its own `step` hides what the last action of an episode led to, so `step_env`, which does not reset, is
    called in its place. An end that comes without the time limit as well terminates, all others truncate:
    either `is_terminated` tells, or a second call of `step_env` with the limit lifted, which costs little
    where the compiler finds what both calls have in common.

    Attributes:
        env: the environment behind; all else is passed on to it.
        limit: the field of its parameters that holds its time limit; None: it has none.
        is_terminated: `(state, params) -> bool` of the state after a step, or None.

    Raises:
        ValueError: if it cannot be stepped without a reset.
    """

    def __init__(self, env: Any, limit: str | None, is_terminated: Callable[[Any, Any], Array] | None = None):
        for name in ("step_env", "reset_env"):
            # what a wrapper merely passes on knows nothing of the wrapper's own state and observations
            if not hasattr(type(env), name):
                raise ValueError(
                    f"{type(env).__name__} has no {name} of its own: it can be stepped only with an "
                    "automatic reset, after which nobody knows what an episode's last action led to. Adapt "
                    "the environment inside and wrap the result, or give it a step_env and a reset_env."
                )
        self.env = env
        self.limit = limit
        self.is_terminated = is_terminated

    def reset(self, key: PRNGKey, params: Any) -> tuple[Any, Any]:
        """As the environment's."""
        return self.env.reset_env(key, params)

    def step(
        self, key: PRNGKey, state: Any, action: Any, params: Any
    ) -> tuple[Any, Any, Array, Array, Array, dict[Any, Any]]:
        """One step; reset where the episode ended."""
        step_key, reset_key = jax.random.split(key)
        outcome = self.env.step_env(step_key, state, action, params)
        if len(outcome) != 5:
            raise ValueError(
                f"{type(self.env).__name__}.step_env gives {len(outcome)} values, not "
                "(obs, state, reward, done, info): an environment of today's gymnax is taken as it is."
            )
        final, after, reward, done, info = outcome
        done = terminated = jnp.asarray(done).astype(bool)
        if self.is_terminated is not None:
            terminated &= self.is_terminated(after, params)
        elif self.limit is not None:
            # not is_terminal(after): some environments keep in their state that they were done
            endless = without_limit(params, self.limit)
            terminated &= jnp.asarray(self.env.step_env(step_key, state, action, endless)[3]).astype(bool)
        obs, following = _reset_where(done, self.reset(reset_key, params), (final, after))
        info = {**info, "final_observation": final}
        return obs, following, reward, terminated, done & ~terminated, info

    def __getattr__(self, name: str) -> Any:
        if name == "env":  # not there yet while an instance is being copied
            raise AttributeError(name)
        return getattr(self.env, name)


def without_limit(params: Any, limit: str) -> Any:
    """An environment's parameters with a time limit that no episode meets.

    Args:
        params: a dataclass or a NamedTuple.
        limit: the field that holds the limit.

    Returns:
        Parameters of the same kind.

    Raises:
        ValueError: if there is no such field.
    """
    fields = getattr(params, "_fields", None) or tuple(getattr(params, "__dataclass_fields__", ()))
    if limit not in fields:
        raise ValueError(
            f"The parameters have no field {limit!r}, and without a time limit to lift, an end that it made "
            f"cannot be told from any other: name the field with limit=, or give limit=None if no episode is "
            f"cut. {advice(limit, fields) if fields else 'There are no fields at all.'}"
        )
    replace = (
        params._replace if hasattr(params, "_replace") else functools.partial(dataclasses.replace, params)
    )
    return replace(**{limit: _NEVER})


def _reset_where(done: Array, fresh: Any, after: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(done, new, old), fresh, after)


def make_brax(name: str, params: dict[str, Any]) -> tuple[BraxEnv, EpisodeLimit]:
    """One of brax's environments.

    Args:
        name: brax's.
        params: `max_steps_in_episode`, `backend`, and what else its constructor takes.

    Returns:
        The environment and its time limit.

    Raises:
        ValueError: if brax is not installed, or if the name or a parameter is unknown.
    """
    envs = _imported("brax.envs")
    known = getattr(envs, "_envs", {})
    if name not in known:
        raise ValueError(f"Unknown environment 'brax:{name}'. {advice(name, sorted(known))}")
    arguments = set(inspect.signature(known[name]).parameters) - {"kwargs"} | {"backend", "n_frames", "debug"}
    own = {k: v for k, v in params.items() if k in arguments}
    changes = {k: v for k, v in params.items() if k not in arguments}
    limit = change_params(f"brax:{name}", EpisodeLimit(), changes, arguments)
    return BraxEnv(envs.get_environment(name, **own)), limit


def make_craftax(name: str, params: dict[str, Any]) -> tuple[FiveValueEnv, Any]:
    """One of craftax's environments.

    Args:
        name: craftax's.
        params: fields of its parameters.

    Returns:
        The environment and its parameters.

    Raises:
        ValueError: if craftax is not installed, or if the name or a parameter is unknown.
    """
    if name not in _CRAFTAX:
        raise ValueError(f"Unknown environment 'craftax:{name}'. {advice(name, _CRAFTAX)}")
    env = _imported("craftax.craftax_env").make_craftax_env_from_name(name, auto_reset=False)
    env_params = change_params(f"craftax:{name}", env.default_params, params)

    def is_terminated(state: Any, params: Any) -> Array:
        # a second step_env takes this environment half as long again, and compiles for a minute
        return env.is_terminal(state, without_limit(params, "max_timesteps"))

    return FiveValueEnv(env, "max_timesteps", is_terminated), env_params


def change_params(
    name: str, env_params: Any, changes: Mapping[str, Any], arguments: Collection[str] = ()
) -> Any:
    """An environment's parameters with changes.

    Args:
        name: the environment's, for messages.
        env_params: a dataclass.
        changes: fields by name.
        arguments: what else could have been meant.

    Returns:
        The parameters.

    Raises:
        ValueError: if a name is no field; near matches are listed. If a number is to be something else.
    """
    fields = getattr(env_params, "__dataclass_fields__", {})
    for key, value in changes.items():
        if key not in fields:
            raise ValueError(f"{name} has no parameter {key!r}. {advice(key, [*fields, *arguments])}")
        if isinstance(getattr(env_params, key), int | float) and isinstance(value, str | NoneType):
            raise ValueError(f"{key} must be a number, got {value!r}.")
        if key in LIMITS and isinstance(value, int | float):
            at_least_one(**{key: value})
    return dataclasses.replace(env_params, **changes) if changes else env_params


def _imported(module: str) -> Any:
    """A module of an optional package; without it, which extra to install."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ValueError(f'{package} is not installed: pip install "pgjax[{package}]".') from error
