"""Estimates for one policy from the actions of another.

The target policy π is evaluated, the behaviour policy μ acted. A product of importance ratios π/μ corrects
for the difference and varies without bound, so both estimators here clip its factors: V-trace for state
values, Retrace for action values. Truncation and the end of the window cut the trace as everywhere.
"""

import chex
import jax.numpy as jnp

from pgjax._jit import compiled
from pgjax.estimators.advantages import td_error
from pgjax.estimators.recurrence import reverse_recurrence, time_major
from pgjax.types import Array, Numeric


@compiled()
def importance_ratio(log_prob: Array, behaviour_log_prob: Array) -> Array:
    """How much more likely an action is under the target policy than under the policy that acted.

        ρ = π(a | s) / μ(a | s)

    Its mean under μ is 1, wherever μ covers π.

    Args:
        log_prob: `[...]`, log π(a | s).
        behaviour_log_prob: `[...]`, log μ(a | s): `Transition.log_prob`.

    Returns:
        `[...]`.

    References:
        Precup et al. 2000, Eligibility traces for off-policy policy evaluation, section 2.

    Example:
        >>> import jax.numpy as jnp
        >>> importance_ratio(jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25])))
        Array([2.], dtype=float32)
    """
    chex.assert_equal_shape([log_prob, behaviour_log_prob])
    return jnp.exp(log_prob - behaviour_log_prob)


@compiled()
def vtrace(
    ratio: Array,
    reward: Array,
    value: Array,
    next_value: Array,
    terminated: Array,
    truncated: Array,
    *,
    gamma: Numeric,
    lambda_: Numeric = 1.0,
    rho_clip: Numeric = 1.0,
    c_clip: Numeric = 1.0,
) -> tuple[Array, Array]:
    """V-trace: the λ-return of another policy than the one that acted.

        ρ_t = min(ρ̄, ratio_t),   c_t = λ min(c̄, ratio_t),   trace_t = λ (1 − truncated_t)
        v_t − V_t = ρ_t δ_t + discount_t (1 − truncated_t) c_t (v_{t+1} − V_{t+1})
        A_t = ρ_t (r_t + discount_t [(1 − trace_t) V(next_obs_t) + trace_t v_{t+1}] − V_t)

    with discount = γ (1 − terminated) and δ the TD error. With ratio 1, v is the λ-return and A is GAE(λ).
    ρ̄ decides *which* value is found: that of π_ρ̄ ∝ min(ρ̄ μ, π), π itself where ρ̄ is infinite; c̄ and λ
    decide only how fast. The weight ρ is already in the advantage.

    Args:
        ratio: `[T, ...]`, π/μ of the action taken, from `importance_ratio`.
        reward: `[T, ...]`.
        value: `[T, ...]`, V(obs_t).
        next_value: `[T, ...]`, V(next_obs_t); ignored where terminated, even if it is NaN.
        terminated: `[T, ...]` bool.
        truncated: `[T, ...]` bool.
        gamma: discount factor.
        lambda_: trace decay.
        rho_clip: ρ̄, infinity for no clip.
        c_clip: c̄, at most ρ̄.

    Returns:
        The target v of the critic and the weight A of the score, both `[T, ...]`.

    References:
        Espeholt et al. 2018, IMPALA, eq. 1 and section 4.2; λ in remark 2.

    Example:
        >>> import jax.numpy as jnp
        >>> no, ratio = jnp.zeros(2, bool), jnp.array([0.5, 4.0])
        >>> vtrace(ratio, jnp.ones(2), jnp.zeros(2), jnp.zeros(2), no, no, gamma=1.0)
        (Array([1., 1.], dtype=float32), Array([1., 1.], dtype=float32))
    """
    ratio, reward, value, next_value, terminated, truncated = time_major(
        ratio, reward, value, next_value, terminated, truncated
    )
    rho, c = jnp.minimum(rho_clip, ratio), lambda_ * jnp.minimum(c_clip, ratio)
    delta = td_error(reward, value, next_value, terminated, gamma=gamma)
    decay = jnp.where(terminated | truncated, 0.0, gamma * c)
    target = value + reverse_recurrence(rho * delta, decay, 0.0)

    cut = truncated.at[-1].set(True)
    next_value = jnp.where(terminated, 0.0, next_value)
    next_target = jnp.concatenate([target[1:], target[-1:]])  # the last is not looked at
    bootstrap = jnp.where(cut | terminated, next_value, (1.0 - lambda_) * next_value + lambda_ * next_target)
    return target, rho * (reward + gamma * bootstrap - value)


@compiled()
def retrace(
    ratio: Array,
    reward: Array,
    action_value: Array,
    next_state_value: Array,
    terminated: Array,
    truncated: Array,
    *,
    gamma: Numeric,
    lambda_: Numeric = 1.0,
) -> Array:
    """Retrace(λ): a multi-step target of Q^π from any policy's actions.

        c_t = λ min(1, ratio_t)
        G_t − Q_t = δ_t + discount_t (1 − truncated_t) c_{t+1} (G_{t+1} − Q_{t+1})
        δ_t = r_t + discount_t E_π Q(next_obs_t, ·) − Q_t

    with discount = γ (1 − terminated). Its mean is Q^π where Q is, whatever policy acted; the first action
    is given, so its own ratio plays no part. A greedy π gives Watkins' Q(λ): the trace ends before the first
    action that is not greedy.

    Args:
        ratio: `[T, ...]`, π/μ of the action taken, from `importance_ratio`.
        reward: `[T, ...]`.
        action_value: `[T, ...]`, Q(obs_t, action_t).
        next_state_value: `[T, ...]`, E_π Q(next_obs_t, ·), or the maximum for a greedy π; ignored where
            terminated, even if it is NaN.
        terminated: `[T, ...]` bool.
        truncated: `[T, ...]` bool.
        gamma: discount factor.
        lambda_: trace decay; 0 gives the target of expected SARSA.

    Returns:
        `[T, ...]`.

    References:
        Munos et al. 2016, Safe and efficient off-policy reinforcement learning, eq. 3 and section 3.

    Example:
        >>> import jax.numpy as jnp
        >>> no, ratio = jnp.zeros(3, bool), jnp.array([0.0, 2.0, 0.5])
        >>> retrace(ratio, jnp.ones(3), jnp.zeros(3), jnp.zeros(3), no, no, gamma=1.0)
        Array([2.5, 1.5, 1. ], dtype=float32)
    """
    ratio, reward, action_value, next_state_value, terminated, truncated = time_major(
        ratio, reward, action_value, next_state_value, terminated, truncated
    )
    delta = td_error(reward, action_value, next_state_value, terminated, gamma=gamma)
    c = lambda_ * jnp.minimum(1.0, ratio)
    next_c = jnp.concatenate([c[1:], jnp.zeros_like(c[:1])])
    decay = jnp.where(terminated | truncated, 0.0, gamma * next_c)
    return action_value + reverse_recurrence(delta, decay, 0.0)
