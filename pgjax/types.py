"""Data and protocols that every other module speaks in."""

from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import jax

Array: TypeAlias = jax.Array
PRNGKey: TypeAlias = jax.Array
Numeric: TypeAlias = jax.Array | float | int
"""A number that may be traced: it can be mapped over and differentiated."""

ArrayTree: TypeAlias = Any
"""A pytree of arrays: an observation, say."""

Params: TypeAlias = Any
"""A pytree of arrays; its structure belongs to the network that made it."""

Metrics: TypeAlias = dict[str, Array]
"""Scalars by name, already reduced on the device."""

State = TypeVar("State")

Policy: TypeAlias = Callable[[PRNGKey, ArrayTree], tuple[Array, Array]]
"""`(key, obs [N, ...]) -> (action [N, ...], log_prob [N])`, called once a step with one key."""

__all__ = [
    "Algorithm",
    "Array",
    "ArrayTree",
    "DescribedEnvironment",
    "Distribution",
    "Environment",
    "Metrics",
    "Network",
    "Numeric",
    "PRNGKey",
    "Params",
    "Policy",
    "State",
    "Transition",
]


class Transition(NamedTuple):
    """What happened: leaves `[T, N, ...]` from a rollout, `[B, ...]` from replay.

    Attributes:
        obs: what the policy saw.
        action: what it did, before any clipping at the environment.
        log_prob: log π(action | obs) under the policy that acted.
        reward: float.
        terminated: bool; the task ended, the future is worth nothing.
        truncated: bool; we stopped watching, the future still has value.
        next_obs: what the action led to; never the observation after a reset.
    """

    obs: ArrayTree
    action: Array
    log_prob: Array
    reward: Array
    terminated: Array
    truncated: Array
    next_obs: ArrayTree


class Algorithm(NamedTuple, Generic[State]):
    """Three pure functions; a training loop needs no more.

    Attributes:
        init: `key -> state`.
        step: `(key, state) -> (state, metrics)`; collect and learn, once.
        act: `(key, state, obs) -> action`; for evaluation: the policy's mode, greedy where values decide.
    """

    init: Callable[[PRNGKey], State]
    step: Callable[[PRNGKey, State], tuple[State, Metrics]]
    act: Callable[[PRNGKey, State, ArrayTree], Array]


class Network(Hashable, Protocol):
    """Anything with `init` and `apply`; every flax linen Module is one."""

    def init(self, key: PRNGKey, obs: ArrayTree, /) -> Params:
        """Parameters for observations of this shape."""
        ...

    def apply(self, params: Params, obs: ArrayTree, /) -> Any:
        """An actor gives a `Distribution`, a critic `[...]`, a Q network `[..., A]`."""
        ...


class Distribution(Protocol):
    """A pytree of arrays: it can be stored, mapped and stopped."""

    def sample(self, key: PRNGKey) -> Array:
        """One action per batch entry."""
        ...

    def sample_and_log_prob(self, key: PRNGKey) -> tuple[Array, Array]:
        """An action and its log-probability, without inverting any squashing."""
        ...

    def log_prob(self, action: Array) -> Array:
        """Log π(action), over the batch axes."""
        ...

    def entropy(self) -> Array:
        """−E[log π], over the batch axes."""
        ...

    def mode(self) -> Array:
        """The action to take when nothing is explored."""
        ...

    def kl(self, other: Any) -> Array:
        """KL(self ‖ other), over the batch axes; `other` is of the same kind."""
        ...


class Environment(Protocol):
    """What the rollouts ask of an environment: gymnax's `reset` and `step`, unbatched."""

    def reset(self, key: PRNGKey, params: Any, /) -> tuple[Any, Any]:
        """`(obs, env_state)`."""
        ...

    def step(
        self, key: PRNGKey, state: Any, action: Any, params: Any, /
    ) -> tuple[Any, Any, Array, Array, Array, dict[Any, Any]]:
        """`(obs, env_state, reward, terminated, truncated, info)`, already reset where the episode ended.

        `info["final_observation"]` is what the action led to before that reset: `obs`, unless the episode
        ended.
        """
        ...


class DescribedEnvironment(Environment, Protocol):
    """An environment that also says what its actions are, for those who try all of them."""

    def action_space(self, params: Any, /) -> Any:
        """A space with `n` where it is finite, or else with `low`, `high` and `shape`."""
        ...
