"""Environments that are not JAX: gymnasium's, stepped by the host while the compiled program waits.

The slow path: a step costs its Python and a call out of the compiled program, about 0.1 ms, so that many
environments side by side pay off. A loop in Python around a compiled policy is faster, twice with one
environment and by a fifth with 64 (`benchmarks/host_side.py`), but here every algorithm runs as it is.

Each step happens once and in order, because it is an ordered effect of the program: nothing that JAX
or its compiler does may drop, repeat or move it. What an environment is in the middle of stays on the host.
Therefore such a run cannot be mapped over seeds, and cannot be saved and resumed.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.experimental import io_callback

from pgjax._advice import advice
from pgjax.suites import EpisodeLimit
from pgjax.types import Array, PRNGKey

_STARTS = itertools.count(1)  # no two starts of a process have the same number


class GymnasiumEnv:
    """Gymnasium's environments behind `reset` and `step`.

    Mapped over N states, as rollouts do it, it steps N environments of one vector environment. Its state says
    which they are: a start, an index and a time, int32 `[3]`. For every N there is one vector environment,
    and a reset of N environments starts it anew; a state from before is refused from then on, as is that of
    another object. To evaluate with as many environments as are in training, make a second one.

    Attributes:
        host_side: True; what has to know that the state lives on the host looks here.
        make_vector: `N -> gymnasium.vector.VectorEnv` that resets in the same step.

    Raises:
        ValueError: if the environment does not reset in the same step, or if its spaces are neither arrays
            nor finite sets.
    """

    host_side = True

    def __init__(self, make_vector: Callable[[int], Any]):
        self.make_vector = make_vector
        one = _Running(make_vector, 1)
        self._action_space, self._observation_space = (
            _checked_space(space, what)
            for space, what in (
                (one.vector.single_action_space, "actions"),
                (one.vector.single_observation_space, "observations"),
            )
        )
        self._running = {1: one}
        self._reset = _mapped_once(self._reset_many)
        self._step = _mapped_once(self._step_many)

    def action_space(self, params: Any) -> Any:
        """Gymnasium's own; finite actions count from 0 whatever their start."""
        return self._action_space

    def observation_space(self, params: Any) -> Any:
        """Gymnasium's own; finite observations count from 0 whatever their start."""
        return self._observation_space

    def reset(self, key: PRNGKey, params: EpisodeLimit | None) -> tuple[Array, Array]:
        """A start, seeded by the key; later episodes go on with the environment's own random numbers."""
        return self._reset(jax.random.bits(key, dtype=jnp.uint32))

    def step(
        self, key: PRNGKey, state: Array, action: Array, params: EpisodeLimit | None
    ) -> tuple[Array, Array, Array, Array, Array, dict[Any, Any]]:
        """One step, with gymnasium's own flags; reset where the episode ended."""
        # one argument: each costs the call out of the program as much again
        words = jnp.concatenate([state, self._to_words(action)])
        obs, final, reward, terminated, truncated = self._step(words, key)
        state = state + jnp.array([0, 0, 1], jnp.int32)
        return obs, state, reward, terminated, truncated, {"final_observation": final}

    def _to_words(self, action: Array) -> Array:
        """An action as int32 `[...]`, floats bit by bit."""
        action = jnp.asarray(action).reshape(-1)
        if not np.issubdtype(self._action_space.dtype, np.floating):
            return action.astype(jnp.int32)
        return lax.bitcast_convert_type(action.astype(jnp.float32), jnp.int32)

    def _to_action(self, words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The reverse for many, `[N, ...]`, as gymnasium takes them."""
        space = self._action_space
        if np.issubdtype(space.dtype, np.floating):
            words = words.view(np.float32)
        return words.reshape(-1, *space.shape).astype(space.dtype) + getattr(space, "start", 0)

    def _to_obs(self, obs: Any) -> np.ndarray[Any, Any]:
        return np.asarray(obs) - getattr(self._observation_space, "start", 0)

    def _obs_like(self, num: int) -> jax.ShapeDtypeStruct:
        space = self._observation_space
        return jax.ShapeDtypeStruct((num, *space.shape), jax.dtypes.canonicalize_dtype(space.dtype))

    def _reset_many(self, seeds: Array) -> tuple[Array, Array]:
        num = seeds.shape[0]
        like = self._obs_like(num), jax.ShapeDtypeStruct((num, 3), jnp.int32)
        if num not in self._running:  # while the program is traced: what is wrong with them shows early
            self._running[num] = _Running(self.make_vector, num)

        def start(seeds: Any) -> Any:
            number = next(_STARTS)
            obs = self._running[num].reset(number, np.asarray(seeds).tolist())
            return _cast((self._to_obs(obs), self._running[num].state.copy()), like)

        return io_callback(start, like, seeds, ordered=True)

    def _step_many(self, words: Array, keys: PRNGKey) -> tuple[Array, Array, Array, Array, Array]:
        del keys  # not needed; but where there is a batch of them, there are several seeds
        num = words.shape[0]
        obs, flag = self._obs_like(num), jax.ShapeDtypeStruct((num,), bool)
        like = obs, obs, jax.ShapeDtypeStruct((num,), jnp.result_type(float)), flag, flag

        def step(words: Any) -> Any:
            words = np.asarray(words)
            state, index = words[:, :3], words[:, 1]
            running = next((r for r in self._running.values() if r.state[0, 0] == state[0, 0]), None)
            if running is None or (state != running.state[index]).any():
                raise RuntimeError(
                    "These environments cannot be stepped from a past state, or by another object than reset "
                    "them: they live on the host, and have gone on or begun anew since. Use the latest state "
                    "only, and another environment for what is to run beside."
                )
            obs, final, *rest = running.step(index, self._to_action(words[:, 3:]))
            return _cast((self._to_obs(obs), self._to_obs(final), *rest), like)

        return io_callback(step, like, words, ordered=True)


class _Running:
    """A vector environment, and the state in which the program has to know its environments to be.

    Args:
        make_vector: `N -> VectorEnv`.
        num: N.
    """

    def __init__(self, make_vector: Callable[[int], Any], num: int):
        from gymnasium.vector import AutoresetMode

        self.vector = make_vector(num)
        if self.vector.num_envs != num:
            raise ValueError(f"make_vector({num}) gave {self.vector.num_envs} environments instead of {num}.")
        mode = self.vector.metadata.get("autoreset_mode")
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"The vector environment resets by {mode}, where an observation may be one after a reset: "
                "make it with autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP."
            )
        self.state = np.zeros((num, 3), np.int32)
        self._groups = {tuple(range(num)): self.vector}

    def reset(self, start: int, seeds: list[int]) -> Any:
        """Start anew, under a number; the first observations."""
        self.state[:] = np.stack(np.broadcast_arrays(start, np.arange(len(self.state)), 0), axis=1)
        return self.vector.reset(seed=seeds)[0]

    def step(self, index: np.ndarray[Any, Any], action: Any) -> tuple[Any, ...]:
        """Step some or all; `(obs, final_obs, reward, terminated, truncated)`."""
        obs, reward, terminated, truncated, info = self._group(tuple(index.tolist())).step(action)
        self.state[index, 2] += 1
        final = obs
        if "final_obs" in info:
            final, ended = obs.copy(), info["_final_obs"]
            final[ended] = np.stack(info["final_obs"][ended])
        return obs, final, reward, terminated, truncated & ~terminated

    def _group(self, index: tuple[int, ...]) -> Any:
        """Some of the environments, such as those of one A3C worker, as a vector environment."""
        if index not in self._groups:
            from gymnasium.vector import AutoresetMode, SyncVectorEnv

            envs: Sequence[Any] | None = getattr(self.vector, "envs", None)
            if envs is None:
                raise ValueError(
                    f"{type(self.vector).__name__} steps all of its environments at a time, not {len(index)} "
                    f"of {len(self.state)}: use gymnasium's SyncVectorEnv."
                )
            make = [lambda env=envs[i]: env for i in index]
            self._groups[index] = SyncVectorEnv(make, autoreset_mode=AutoresetMode.SAME_STEP)
        return self._groups[index]


def make_gymnasium(name: str, params: dict[str, Any]) -> tuple[GymnasiumEnv, EpisodeLimit | None]:
    """An environment of gymnasium's registry.

    Args:
        name: its id.
        params: `max_steps_in_episode`, and what its constructor takes.

    Returns:
        The environment, and its time limit if it has one.

    Raises:
        ValueError: if gymnasium cannot make it.
    """
    import gymnasium
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    own = dict(params)
    limit = own.pop("max_steps_in_episode", None)

    def make_one() -> Any:
        return gymnasium.make(name, max_episode_steps=limit, **own)

    try:
        limit = make_one().spec.max_episode_steps
    except gymnasium.error.UnregisteredEnv as error:
        near = advice(name, list(gymnasium.registry))
        raise ValueError(f"Unknown environment 'gymnasium:{name}'. {near}") from error
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"gymnasium:{name} cannot be made. {error}") from error
    env = GymnasiumEnv(lambda num: SyncVectorEnv([make_one] * num, autoreset_mode=AutoresetMode.SAME_STEP))
    return env, None if limit is None else EpisodeLimit(limit)


def _mapped_once(many: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one environment that is `many` under vmap, and refuses to be mapped any further."""

    @custom_vmap
    def mapped(*arrays: Array) -> Any:
        return many(*arrays)

    @mapped.def_vmap
    def refuse(size: int, batched: Any, *arrays: Array) -> Any:
        raise ValueError(
            "Environments that live on the host cannot be mapped over seeds or hyper-parameters: run one "
            "after the other."
        )

    @custom_vmap
    def single(*arrays: Array) -> Any:
        return jax.tree.map(lambda y: y[0], mapped(*(x[None] for x in arrays)))

    @single.def_vmap
    def all_at_once(size: int, batched: Sequence[bool], *arrays: Array) -> Any:
        pairs = zip(arrays, batched, strict=True)
        out = mapped(*(x if is_batch else jnp.broadcast_to(x, (size, *x.shape)) for x, is_batch in pairs))
        return out, jax.tree.map(lambda _: True, out)

    return single


def _cast(values: Sequence[Any], like: Sequence[Any]) -> tuple[np.ndarray[Any, Any], ...]:
    return tuple(np.asarray(x, aval.dtype) for x, aval in zip(values, like, strict=True))


def _checked_space(space: Any, what: str) -> Any:
    from gymnasium import spaces

    if not isinstance(space, spaces.Box | spaces.Discrete):
        raise ValueError(
            f"The {what} of this environment are a {type(space).__name__}, and not a Box or Discrete: change "
            "them by one of gymnasium's wrappers, such as FlattenObservation."
        )
    return space
