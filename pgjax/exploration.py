"""Ways to try what is not thought best: ε-greedy for values, noise for deterministic policies.

Noise is in units of half the action range, so one scale serves every component and every environment.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from pgjax._jit import compiled
from pgjax._random import flat_draw
from pgjax.distributions import Categorical
from pgjax.types import Array, Numeric, PRNGKey


def check_finite_actions(space: Any) -> None:
    """Refuse a space of actions that is not a finite set.

    Args:
        space: of an environment.

    Raises:
        ValueError: says which algorithms are for it.
    """
    if not hasattr(space, "n"):
        raise ValueError(
            "This algorithm has a value for every action, so it wants a finite number of them, and these are "
            "continuous: take ddpg, td3 or sac."
        )


def check_box_actions(space: Any) -> None:
    """Refuse a space of actions that is not a box with bounds.

    Args:
        space: of an environment.

    Raises:
        ValueError: says what to do.
    """
    if hasattr(space, "n"):
        raise ValueError(
            "This algorithm wants actions from a box, and these are a finite number: take sac or dqn."
        )
    known = [b for b in (space.low, space.high) if not isinstance(b, Tracer)]
    if not all(np.isfinite(b).all() for b in known):
        raise ValueError(
            "The actions are drawn from the whole of their box and scaled by it, and this one has no bounds: "
            "give the environment's action space a finite low and high."
        )


@compiled()
def epsilon_greedy(action_value: Array, mask: Array | None = None, *, epsilon: Numeric) -> Categorical:
    """The best action, but with probability ε any that is allowed.

        π(a) = (1 − ε) [a = argmax_b Q(s, b)] + ε / number of allowed actions

    Of several best actions the first is taken. As a distribution it has a log-probability, for importance
    ratios, and probabilities, for expected SARSA.

    Args:
        action_value: `[..., A]`, Q(s, ·).
        mask: `[..., A]` bool, False for an action that cannot be taken, or None.
        epsilon: ε in [0, 1], or `[...]`: each environment may have its own.

    Returns:
        The policy; its mode is the greedy action while ε < 1.

    References:
        Sutton & Barto 2018, section 5.4 (ε-greedy policies).

    Example:
        >>> import jax.numpy as jnp
        >>> epsilon_greedy(jnp.array([1.0, 3.0]), epsilon=0.5).probs
        Array([0.25, 0.75], dtype=float32)
    """
    allowed = jnp.ones(action_value.shape, bool) if mask is None else mask
    chex.assert_equal_shape([action_value, allowed])
    least = jnp.finfo(action_value.dtype).min
    best = jnp.argmax(jnp.where(allowed, jnp.maximum(action_value, least), -jnp.inf), -1, keepdims=True)
    greedy = best == jnp.arange(action_value.shape[-1]).reshape((1,) * (best.ndim - 1) + (-1,))
    epsilon = jnp.broadcast_to(jnp.asarray(epsilon, action_value.dtype), action_value.shape[:-1])[..., None]
    probs = epsilon * allowed / allowed.sum(-1, keepdims=True) + jnp.where(greedy, 1.0 - epsilon, 0.0)
    possible = probs > 0
    return Categorical(jnp.where(possible, jnp.log(jnp.where(possible, probs, 1.0)), least), mask)


@compiled()
def linear_epsilon(step: Array, *, start: Numeric, end: Numeric, num_steps: Numeric) -> Array:
    """ε that goes from one value to another in a straight line, and stays there.

        ε = start + min(step / num_steps, 1) (end − start)

    Args:
        step: environment steps so far.
        start: ε at step 0.
        end: ε from `num_steps` on.
        num_steps: environment steps, above 0; unlike those of optax's schedules it may be traced.

    Returns:
        ε, shaped as `step`.

    References:
        Mnih et al. 2015, Human-level control through deep reinforcement learning, methods.

    Example:
        >>> import jax.numpy as jnp
        >>> linear_epsilon(jnp.array([0, 50, 500]), start=1.0, end=0.5, num_steps=100)
        Array([1.  , 0.75, 0.5 ], dtype=float32)
    """
    return start + jnp.clip(jnp.asarray(step, float) / num_steps, 0.0, 1.0) * (end - start)


@compiled("shape")
def gaussian_noise(
    key: PRNGKey, shape: tuple[int, ...], *, std: Numeric, noise_clip: Numeric = jnp.inf
) -> Array:
    """Noise that is independent at every step.

        clip(std · N(0, 1), ±noise_clip)

    Args:
        key: consumed.
        shape: of the actions, `[..., D]`.
        std: in units of half the action range.
        noise_clip: in the same units; TD3 clips the noise of its targets.

    Returns:
        `[..., D]`, for `add_noise`.

    References:
        Fujimoto et al. 2018, Addressing function approximation error, section 5.3 and algorithm 1.

    Example:
        >>> import jax
        >>> gaussian_noise(jax.random.key(0), (2, 3), std=0.1).shape
        (2, 3)
    """
    return jnp.clip(std * flat_draw(jax.random.normal, key, shape), -noise_clip, noise_clip)


@compiled()
def ornstein_uhlenbeck_noise(
    key: PRNGKey, noise: Array, *, theta: Numeric = 0.15, sigma: Numeric = 0.2, dt: Numeric = 1.0
) -> Array:
    """The next step of noise that is correlated in time: it pushes one way for about 1 / θ units of time.

        n' = n − θ n dt + σ √dt N(0, 1)

    It starts at 0 and goes back to 0 where an episode begins, which is the caller's business. Left alone its
    variance becomes σ² / (θ (2 − θ dt)).

    Args:
        key: consumed.
        noise: `[..., D]`, of the step before, in units of half the action range.
        theta: θ, the rate of return to 0.
        sigma: σ, the strength.
        dt: length of a step; θ dt lies in [0, 2].

    Returns:
        `[..., D]`, for `add_noise` and for the next step.

    References:
        Uhlenbeck & Ornstein 1930, On the theory of the Brownian motion; Lillicrap et al. 2016, section 3 and
        7.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> ornstein_uhlenbeck_noise(jax.random.key(0), jnp.array([1.0]), sigma=0.0)
        Array([0.85], dtype=float32)
    """
    chance = flat_draw(jax.random.normal, key, noise.shape, noise.dtype)
    return noise - theta * dt * noise + sigma * jnp.sqrt(dt) * chance


@compiled()
def correlated_noise(key: PRNGKey, noise: Array, *, correlation: Numeric) -> Array:
    """The next step of standard normal noise that remembers: the process above, its variance tending to 1.

        n' = ρ n + √(1 − ρ²) N(0, 1)

    With ρ = 0 it is independent at every step. It starts at 0 and goes back to 0 where an episode begins,
    which is the caller's business.

    Args:
        key: consumed.
        noise: `[..., D]`, of the step before.
        correlation: ρ in [0, 1), of each step with the one before.

    Returns:
        `[..., D]`.

    References:
        Uhlenbeck & Ornstein 1930, On the theory of the Brownian motion; Eberhard et al. 2023, Pink noise is
        all you need (why correlation helps).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> correlated_noise(jax.random.key(0), jnp.zeros((8, 2)), correlation=0.9).shape
        (8, 2)
    """
    sigma = jnp.sqrt(1.0 - jnp.square(correlation))
    return ornstein_uhlenbeck_noise(key, noise, theta=1.0 - correlation, sigma=sigma)


@compiled()
def add_noise(action: Array, noise: Array, low: Numeric, high: Numeric) -> Array:
    """An action with noise, inside its bounds.

        clip(a + ½ (high − low) n, low, high)

    Args:
        action: `[..., D]`.
        noise: `[..., D]`, in units of half the action range.
        low: lower bounds, `[D]` or a number.
        high: upper bounds.

    Returns:
        `[..., D]`.

    Example:
        >>> import jax.numpy as jnp
        >>> add_noise(jnp.array([0.0, 1.5]), jnp.array([0.1, 0.5]), -2.0, 2.0)
        Array([0.2, 2. ], dtype=float32)
    """
    chex.assert_equal_shape([action, noise])
    low, high = (jnp.broadcast_to(jnp.asarray(b, action.dtype), action.shape) for b in (low, high))
    return jnp.clip(action + 0.5 * (high - low) * noise, low, high)
