"""Returns: what followed an action, exactly or with a bootstrapped tail.

Termination zeroes the discount, truncation cuts the trace. With discount = γ(1 − terminated) and
trace = λ(1 − truncated),

    G_t = r_t + discount_t [(1 − trace_t) V(next_obs_t) + trace_t G_{t+1}]

and the end of the window is one more truncation. When both flags are set, termination wins. Arrays are
time-major, `[T, ...]`; flags of lower rank gain trailing axes.
"""

import chex
import jax.numpy as jnp
from jax import lax

from pgjax._checks import at_least_one
from pgjax._jit import compiled
from pgjax.estimators.recurrence import fused_recurrence, reverse_recurrence, time_major
from pgjax.types import Array, Numeric


@compiled()
def total_return(reward: Array, valid: Array | None = None) -> Array:
    """The undiscounted return of the whole trajectory, at every one of its steps.

        R(τ) = Σ_t r_t

    Multiplied by the score it is the plainest unbiased estimator of the policy gradient, and the noisiest.

    Args:
        reward: `[T, N, ...]`, one episode a column.
        valid: `[T, N]` bool, False after the end of the episode; None if all steps count.

    Returns:
        `[T, N, ...]`; 0 where not valid.

    References:
        Williams 1992, Simple statistical gradient-following algorithms, section 5 (episodic REINFORCE).

    Example:
        >>> import jax.numpy as jnp
        >>> total_return(jnp.array([1.0, 2.0, 3.0]))
        Array([6., 6., 6.], dtype=float32)
    """
    if valid is None:
        return jnp.broadcast_to(reward.sum(0, keepdims=True), reward.shape)
    reward, valid = time_major(reward, valid)
    total = jnp.where(valid, reward, 0.0).sum(0, keepdims=True)
    return jnp.where(valid, total, 0.0)


@compiled()
def reward_to_go(reward: Array, terminated: Array, truncated: Array, *, gamma: Numeric = 1.0) -> Array:
    """The rewards from an action on, to the end of its episode or of the window.

        G_t = r_t + γ (1 − terminated_t)(1 − truncated_t) G_{t+1}

    It never bootstraps: any end ends the sum. On whole episodes it is unbiased for Q(s_t, a_t); on a window
    that cuts episodes it is not.

    Args:
        reward: `[T, ...]`.
        terminated: `[T, ...]` bool.
        truncated: `[T, ...]` bool.
        gamma: discount factor.

    Returns:
        `[T, ...]`.

    References:
        Sutton et al. 2000, Policy gradient methods for RL with function approximation, theorem 1.

    Example:
        >>> import jax.numpy as jnp
        >>> end = jnp.array([False, False, True])
        >>> reward_to_go(jnp.array([1.0, 2.0, 3.0]), end, jnp.zeros(3, bool))
        Array([6., 5., 3.], dtype=float32)
    """
    reward, terminated, truncated = time_major(reward, terminated, truncated)
    decay = jnp.where(terminated | truncated, 0.0, gamma)
    return reverse_recurrence(reward, decay, 0.0)


@compiled("n")
def n_step_return(
    reward: Array, next_value: Array, terminated: Array, truncated: Array, *, gamma: Numeric, n: int
) -> Array:
    """N rewards, then the critic.

        G_t = Σ_{k<n} γ^k r_{t+k} + γ^n V(next_obs_{t+n−1})

    cut short at a termination (nothing follows), at a truncation and at the end of the window (the critic
    follows). Biased by γ^n times the critic's error. The n steps are composed by repeated squaring, which is
    O(T log n) work.

    Args:
        reward: `[T, ...]`.
        next_value: `[T, ...]`, V(next_obs_t); ignored where terminated.
        terminated: `[T, ...]` bool.
        truncated: `[T, ...]` bool.
        gamma: discount factor.
        n: number of rewards, at least 1; `n >= T` is the λ-return at λ = 1.

    Returns:
        `[T, ...]`.

    Raises:
        ValueError: if n < 1.

    References:
        Sutton & Barto 2018, eq. 7.1.

    Example:
        >>> import jax.numpy as jnp
        >>> no = jnp.zeros(3, bool)
        >>> n_step_return(jnp.ones(3), jnp.full(3, 10.0), no, no, gamma=1.0, n=2)
        Array([12., 12., 11.], dtype=float32)
    """
    at_least_one(n=n)
    reward, next_value, terminated, truncated = time_major(reward, next_value, terminated, truncated)
    reward, next_value, terminated, truncated = jnp.broadcast_arrays(
        reward, next_value, terminated, truncated
    )
    next_value = jnp.where(terminated, 0.0, next_value)
    truncated = truncated.at[-1].set(True)
    one_step = reward + gamma * next_value
    # One backup is the map y -> shift + scale y of what comes after; a window of m backups is one as well.
    backup = (
        jnp.where(truncated, one_step, reward),
        jnp.where(terminated | truncated, 0.0, gamma).astype(one_step.dtype),
    )
    window = (jnp.zeros_like(reward), jnp.ones_like(reward))
    length, power, remaining = 0, 1, min(n, reward.shape[0]) - 1
    while remaining:
        if remaining % 2:
            window = _compose(window, _advance(backup, length))
            length += power
        backup = _compose(backup, _advance(backup, power))
        power, remaining = 2 * power, remaining // 2
    (last,) = _advance((one_step,), length)
    return window[0] + window[1] * last


def _advance(arrays: tuple[Array, ...], steps: int) -> tuple[Array, ...]:
    """Element t becomes element t + steps; zeros follow the window, where no backup reaches."""
    return tuple(
        jnp.concatenate([x[steps:], jnp.zeros((min(steps, len(x)), *x.shape[1:]), x.dtype)]) for x in arrays
    )


def _compose(first: tuple[Array, ...], second: tuple[Array, ...]) -> tuple[Array, Array]:
    return first[0] + first[1] * second[0], first[1] * second[1]


@compiled()
def lambda_return(
    reward: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    *,
    gamma: Numeric,
    lambda_: Numeric,
) -> Array:
    """The exponentially weighted mean of all n-step returns.

        G_t = r_t + discount_t [(1 − trace_t) V(next_obs_t) + trace_t G_{t+1}]

    Biased by the critic's error, the less the larger λ; not at all with the true V.

    Args:
        reward: `[T, ...]`.
        next_value: `[T, ...]`, V(next_obs_t); ignored where terminated, even if it is NaN.
        terminated: `[T, ...]` bool.
        truncated: `[T, ...]` bool.
        gamma: discount factor.
        lambda_: trace decay; 0 gives the one-step target, 1 the bootstrapped reward-to-go.

    Returns:
        `[T, ...]`.

    References:
        Sutton & Barto 2018, eq. 12.2 and 12.18.

    Example:
        >>> import jax.numpy as jnp
        >>> no = jnp.zeros(3, bool)
        >>> lambda_return(jnp.ones(3), jnp.full(3, 10.0), no, no, gamma=1.0, lambda_=1.0)
        Array([13., 12., 11.], dtype=float32)
    """
    reward, next_value, terminated, truncated = time_major(reward, next_value, terminated, truncated)

    def coefficients(
        reward: Array, next_value: Array, terminated: Array, truncated: Array
    ) -> tuple[Array, Array]:
        trace = jnp.where(truncated, 0.0, lambda_)
        bootstrap = gamma * (1.0 - trace) * jnp.where(terminated, 0.0, next_value)
        return reward + bootstrap, jnp.where(terminated, 0.0, gamma * trace)

    last_value = jnp.where(terminated[-1], 0.0, next_value[-1])
    return fused_recurrence(coefficients, (reward, next_value, terminated, truncated), last_value)


@compiled()
def episode_time(terminated: Array, truncated: Array, *, start: Numeric = 0) -> Array:
    """The number of steps that were taken before this one in the same episode.

    Args:
        terminated: `[T, ...]` bool.
        truncated: `[T, ...]` bool.
        start: `[...]` int, the steps taken before the window began.

    Returns:
        `[T, ...]` int32.

    Example:
        >>> import jax.numpy as jnp
        >>> end = jnp.array([False, True, False, False])
        >>> episode_time(end, jnp.zeros(4, bool), start=5)
        Array([5, 6, 0, 1], dtype=int32)
    """
    chex.assert_equal_shape([terminated, truncated])
    done = (terminated | truncated)[:-1]
    step = jnp.arange(len(terminated), dtype=jnp.int32).reshape(-1, *[1] * (terminated.ndim - 1))
    start = jnp.broadcast_to(jnp.asarray(start, jnp.int32), terminated.shape[1:])
    began = jnp.concatenate([-start[None], jnp.where(done, step[1:], -start)])
    return step - lax.cummax(jnp.broadcast_to(began, terminated.shape), axis=0)


@compiled()
def time_discount(terminated: Array, truncated: Array, *, gamma: Numeric, start: Numeric = 0) -> Array:
    """γ^t, with t counted within the episode.

    In front of every term it makes the discounted estimator a gradient of the discounted objective;
    practical algorithms drop it, and what they follow is then not the gradient of anything.

    Args:
        terminated: `[T, ...]` bool.
        truncated: `[T, ...]` bool.
        gamma: discount factor.
        start: `[...]` int, the steps taken before the window began (0 for whole episodes).

    Returns:
        `[T, ...]`.

    References:
        Nota & Thomas 2020, Is the policy gradient a gradient?

    Example:
        >>> import jax.numpy as jnp
        >>> no = jnp.zeros(3, bool)
        >>> time_discount(no, no, gamma=0.5)
        Array([1.  , 0.5 , 0.25], dtype=float32)
    """
    gamma = jnp.asarray(gamma, jnp.result_type(gamma, float))
    return jnp.power(gamma, episode_time(terminated, truncated, start=start))


@compiled()
def return_so_far(
    reward: Array, terminated: Array, truncated: Array, *, gamma: Numeric = 1.0, start: Numeric = 0.0
) -> Array:
    """What an episode has collected up to and including a step, its end counted before the reset.

        F_t = r_t + γ (1 − done_{t−1}) F_{t−1}

    At the last step of an episode, with γ = 1, it is the episode's return.

    Args:
        reward: `[T, ...]`.
        terminated: `[T, ...]` bool.
        truncated: `[T, ...]` bool.
        gamma: discount factor of the past.
        start: `[...]`, F of the step before the window (0 where an episode begins with the window).

    Returns:
        `[T, ...]`.

    Example:
        >>> import jax.numpy as jnp
        >>> end = jnp.array([False, True, False])
        >>> return_so_far(jnp.ones(3), end, jnp.zeros(3, bool), start=4.0)
        Array([5., 6., 1.], dtype=float32)
    """
    reward, terminated, truncated = time_major(reward, terminated, truncated)
    goes_on = jnp.where((terminated | truncated)[:-1], 0.0, 1.0)
    decay = gamma * jnp.concatenate([jnp.ones_like(goes_on, shape=(1, *goes_on.shape[1:])), goes_on])
    return jnp.flip(reverse_recurrence(jnp.flip(reward, 0), jnp.flip(decay, 0), start), 0)
