"""Scores, trajectory log-probabilities and policy gradients, for any network that returns a distribution.

`apply` is a static argument: a bound method (`actor.apply`) compiles once, a fresh lambda at every call
compiles anew. Weights are not stopped: a gradient can be differentiated through them, in γ or the reward.
"""

from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp

from pgjax._axes import beside
from pgjax._jit import compiled
from pgjax.types import Array, ArrayTree, Distribution, Params, Transition


class Apply(Protocol):
    """A network's `apply`."""

    def __call__(self, params: Params, obs: ArrayTree, /) -> Distribution:
        """The policy's distribution at `obs`."""
        ...


@compiled("apply")
def score(apply: Apply, params: Params, obs: ArrayTree, action: Array) -> Any:
    """The score of every sample.

        s = ∇_θ log π_θ(a | s)

    Args:
        apply: the actor's apply, called on one observation at a time.
        params: θ.
        obs: leaves `[B, ...]` or `[T, N, ...]`.
        action: `[B, ...]` or `[T, N, ...]`.

    Returns:
        A pytree like `params`, leaves `[B, ...]` or `[T, N, ...]` in front of the parameter's shape.

    References:
        Williams 1992, the characteristic eligibility.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> score(apply, jnp.zeros(2), jnp.zeros((1, 1)), jnp.array([0]))
        Array([[ 0.5, -0.5]], dtype=float32)
    """

    def log_prob(params: Params, obs: ArrayTree, action: Array) -> Array:
        return apply(params, obs).log_prob(action)

    one = jax.grad(log_prob)
    for _ in range(_log_prob_rank(apply, params, obs, action)):
        one = jax.vmap(one, in_axes=(None, 0, 0))
    return one(params, obs, action)


@compiled("apply")
def trajectory_log_prob(apply: Apply, params: Params, traj: Transition, valid: Array | None = None) -> Array:
    """The part of a trajectory's log-probability that depends on the policy.

        Σ_t log π_θ(a_t | s_t)

    The dynamics' terms do not depend on θ and drop out of every gradient.

    Args:
        apply: the actor's apply.
        params: θ.
        traj: leaves `[T, N, ...]`.
        valid: `[T, N]` bool, or None if all steps count.

    Returns:
        `[N]`.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> from pgjax.types import Transition
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> obs, zero = jnp.zeros((3, 1, 1)), jnp.zeros((3, 1))
        >>> traj = Transition(obs, zero.astype(int), zero, zero, zero > 0, zero > 0, obs)
        >>> trajectory_log_prob(apply, jnp.zeros(2), traj)
        Array([-2.0794415], dtype=float32)
    """
    log_prob = apply(params, traj.obs).log_prob(traj.action)
    if valid is not None:
        chex.assert_equal_shape([log_prob, valid])
        log_prob = jnp.where(valid, log_prob, 0.0)
    return log_prob.sum(0)


@compiled("apply")
def policy_gradient(
    apply: Apply, params: Params, traj: Transition, weight: Array, valid: Array | None = None
) -> Any:
    """The direction of steepest ascent of the expected return, estimated from N trajectories.

        g = (1/N) Σ_i Σ_t ∇_θ log π_θ(a_{i,t} | s_{i,t}) Ψ_{i,t}

    Args:
        apply: the actor's apply.
        params: θ.
        traj: leaves `[T, N, ...]`, one trajectory a column.
        weight: `[T, N]`, Ψ: a return, an advantage. Constant in θ.
        valid: `[T, N]` bool, or None if all steps count.

    Returns:
        A pytree like `params`: ascend along it, or hand its negative to an optimizer.

    References:
        Williams 1992, theorem 1; Sutton et al. 2000, theorem 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> from pgjax.types import Transition
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> obs, zero = jnp.zeros((1, 2, 1)), jnp.zeros((1, 2))
        >>> traj = Transition(obs, jnp.array([[0, 1]]), zero, zero, zero > 0, zero > 0, obs)
        >>> policy_gradient(apply, jnp.zeros(2), traj, jnp.array([[4.0, 0.0]]))
        Array([ 1., -1.], dtype=float32)
    """

    def weighted(params: Params) -> Array:
        return _weighted_log_prob(apply, params, traj, weight, valid).mean()

    return jax.grad(weighted)(params)


@compiled("apply")
def trajectory_gradients(
    apply: Apply, params: Params, traj: Transition, weight: Array, valid: Array | None = None
) -> Any:
    """The policy gradient of every trajectory, before the mean over them.

        g_i = Σ_t ∇_θ log π_θ(a_{i,t} | s_{i,t}) Ψ_{i,t}

    One backward pass a trajectory: memory for N gradients, not for T × N scores.

    Args:
        apply: the actor's apply.
        params: θ.
        traj: leaves `[T, N, ...]`.
        weight: `[T, N]`.
        valid: `[T, N]` bool, or None if all steps count.

    Returns:
        A pytree like `params`, leaves `[N, ...]`; their mean is `policy_gradient`.

    Example:
        >>> import jax.numpy as jnp
        >>> from pgjax.distributions import Categorical
        >>> from pgjax.types import Transition
        >>> def apply(params, obs):
        ...     return Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))
        >>> obs, zero = jnp.zeros((1, 2, 1)), jnp.zeros((1, 2))
        >>> traj = Transition(obs, jnp.array([[0, 1]]), zero, zero, zero > 0, zero > 0, obs)
        >>> trajectory_gradients(apply, jnp.zeros(2), traj, jnp.array([[4.0, 0.0]]))
        Array([[ 2., -2.],
               [ 0.,  0.]], dtype=float32)
    """

    def gradient(traj: Transition, weight: Array, valid: Array | None) -> Any:
        def weighted(params: Params) -> Array:
            return _weighted_log_prob(apply, params, traj, weight, valid)

        return jax.grad(weighted)(params)

    return jax.vmap(gradient, in_axes=(1, 1, None if valid is None else 1))(traj, weight, valid)


def _weighted_log_prob(
    apply: Apply, params: Params, traj: Transition, weight: Array, valid: Array | None
) -> Array:
    """Σ_t log π Ψ, over the axes behind time."""
    obs = traj.obs
    if valid is not None:  # all three, so that nothing leaks out of the padding backwards
        obs = jax.tree.map(lambda x: jnp.where(beside(valid, x), x, jnp.zeros_like(x)), obs)
        weight = jnp.where(valid, weight, 0.0)
    log_prob = apply(params, obs).log_prob(traj.action)
    chex.assert_equal_shape([log_prob, weight])
    if valid is not None:
        chex.assert_equal_shape([log_prob, valid])
        log_prob = jnp.where(valid, log_prob, 0.0)
    return (log_prob * weight).sum(0)


def _log_prob_rank(apply: Apply, params: Params, obs: ArrayTree, action: Array) -> int:
    return jax.eval_shape(lambda: apply(params, obs).log_prob(action)).ndim
