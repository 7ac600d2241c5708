"""Running means and variances, as values.

`Transition` keeps raw observations and rewards. The statistics as they stood when an iteration began serve
acting and learning alike, and are updated last; so the first observation of a run is normalised like all
others, and a policy never changes under its own log-probabilities.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from pgjax._jit import compiled
from pgjax.estimators.returns import return_so_far
from pgjax.types import Array, ArrayTree, Numeric

if TYPE_CHECKING:
    Switch: TypeAlias = bool | Array
else:
    Switch: TypeAlias = bool  # what reads annotations, such as the command line, knows it as a flag


class RunningMoments(NamedTuple):
    """Mean and variance of all that was seen, element by element.

    Attributes:
        num_samples: float scalar, samples seen.
        mean: a pytree like one sample.
        variance: a pytree like one sample.
    """

    num_samples: Array
    mean: Any
    variance: Any


def init_moments(example: ArrayTree) -> RunningMoments:
    """Moments before any data: mean 0 and variance 1, with no weight.

    Args:
        example: one sample, without batch axes.

    Returns:
        The moments.

    Example:
        >>> import jax.numpy as jnp
        >>> init_moments(jnp.zeros(2)).variance
        Array([1., 1.], dtype=float32)
    """

    def full(value: float) -> Any:
        return jax.tree.map(lambda x: jnp.full(jnp.shape(x), value, jnp.result_type(x, float)), example)

    return RunningMoments(jnp.zeros(()), full(0.0), full(1.0))


@compiled()
def update_moments(moments: RunningMoments, batch: ArrayTree) -> RunningMoments:
    """Merge a batch into the moments, exactly.

    Args:
        moments: what was seen before.
        batch: leaves with any number of batch axes in front of the sample's shape.

    Returns:
        The moments of all samples together.

    References:
        Chan, Golub & LeVeque 1983, Algorithms for computing the sample variance, eq. 2.1.

    Example:
        >>> import jax.numpy as jnp
        >>> update_moments(init_moments(jnp.zeros(())), jnp.array([1.0, 3.0])).mean
        Array(2., dtype=float32)
    """
    first, first_mean = jax.tree.leaves(batch)[0], jax.tree.leaves(moments.mean)[0]
    axes = tuple(range(first.ndim - first_mean.ndim))
    added = float(first.size // max(first_mean.size, 1))
    count = moments.num_samples + added
    share = added / count

    def merge(mean: Array, variance: Array, x: Array) -> tuple[Array, Array]:
        x = x.astype(mean.dtype)
        shift = x.mean(axes) - mean
        merged = (1.0 - share) * variance + share * x.var(axes) + share * (1.0 - share) * shift**2
        return mean + share * shift, merged

    merged = jax.tree.map(merge, moments.mean, moments.variance, batch)
    mean, variance = jax.tree.transpose(jax.tree.structure(moments.mean), jax.tree.structure((0, 0)), merged)
    return RunningMoments(count, mean, variance)


@compiled()
def normalize(moments: RunningMoments, x: ArrayTree, *, clip: Numeric = 10.0) -> Any:
    """Shift and scale by the moments, then clip.

        clip((x − mean) / √(variance + 1e-8), ±clip)

    Args:
        moments: of one sample.
        x: leaves with any number of batch axes in front.
        clip: in standard deviations.

    Returns:
        The pytree, floating but for bool leaves (action masks), which stay as they are.

    Example:
        >>> import jax.numpy as jnp
        >>> normalize(init_moments(jnp.zeros(())), jnp.array([0.0, 99.0]))
        Array([ 0., 10.], dtype=float32)
    """

    def scale(mean: Array, variance: Array, x: Array) -> Array:
        if x.dtype == bool:  # an action mask
            return x
        rank = (1,) * (x.ndim - mean.ndim)
        mean, variance = mean.reshape(rank + mean.shape), variance.reshape(rank + variance.shape)
        return jnp.clip((x - mean) / jnp.sqrt(variance + 1e-8), -clip, clip)

    return jax.tree.map(scale, moments.mean, moments.variance, x)


class RewardScaling(NamedTuple):
    """The spread of the discounted return, by which rewards are divided.

    Attributes:
        moments: of the discounted return so far.
        return_so_far: `[N]`, of the running episodes; 0 where one has just ended.
    """

    moments: RunningMoments
    return_so_far: Array


def init_reward_scaling(num_envs: int) -> RewardScaling:
    """No reward seen yet.

    Args:
        num_envs: N.

    Returns:
        The state.

    Example:
        >>> init_reward_scaling(3).return_so_far
        Array([0., 0., 0.], dtype=float32)
    """
    return RewardScaling(init_moments(jnp.zeros(())), jnp.zeros(num_envs))


@compiled()
def update_reward_scaling(
    scaling: RewardScaling, reward: Array, terminated: Array, truncated: Array, *, gamma: Numeric
) -> RewardScaling:
    """Count a rollout; an episode's last reward is counted before its return starts anew.

    Args:
        scaling: the state before.
        reward: `[T, N]`, raw.
        terminated: `[T, N]` bool.
        truncated: `[T, N]` bool.
        gamma: discount factor of the return.

    Returns:
        The state after.

    References:
        Engstrom et al. 2020, Implementation matters in deep policy gradients (reward scaling).

    Example:
        >>> import jax.numpy as jnp
        >>> end = jnp.array([[False], [True]])
        >>> no, reward = jnp.zeros((2, 1), bool), jnp.ones((2, 1))
        >>> scaling = update_reward_scaling(init_reward_scaling(1), reward, end, no, gamma=1.0)
        >>> scaling.moments.mean, scaling.return_so_far
        (Array(1.5, dtype=float32), Array([0.], dtype=float32))
    """
    so_far = return_so_far(reward, terminated, truncated, gamma=gamma, start=scaling.return_so_far)
    running = jnp.where(terminated[-1] | truncated[-1], 0.0, so_far[-1])
    return RewardScaling(update_moments(scaling.moments, so_far), running)


@compiled()
def scale_reward(scaling: RewardScaling, reward: Array, *, clip: Numeric = 10.0) -> Array:
    """Divide by the standard deviation of the discounted return, do not shift, then clip.

    Args:
        scaling: the state.
        reward: `[...]`.
        clip: in standard deviations.

    Returns:
        `[...]`.

    Example:
        >>> import jax.numpy as jnp
        >>> scale_reward(init_reward_scaling(1), jnp.array([0.5, -20.0]))
        Array([  0.5, -10. ], dtype=float32)
    """
    return jnp.clip(reward / jnp.sqrt(scaling.moments.variance + 1e-8), -clip, clip)


def blend(weight: Switch, transform: Callable[[ArrayTree], Any], x: ArrayTree) -> Any:
    """Apply a transformation, leave it out, or do something in between.

        (1 − w) x + w f(x)

    Args:
        weight: w. A bool is decided before compiling, and what is off costs nothing; an array between 0 and
            1 may be traced, so that one program serves both and can be mapped over.
        transform: f, which keeps structure and shapes.
        x: leaves of any shape.

    Returns:
        The pytree; of bool leaves (action masks) those of f(x).

    Example:
        >>> import jax.numpy as jnp
        >>> blend(jnp.array(0.25), jnp.square, jnp.array([0.0, 1.0, 3.0]))
        Array([0. , 1. , 4.5], dtype=float32)
    """
    if isinstance(weight, bool):
        return transform(x) if weight else x

    def mix(before: Array, after: Array) -> Array:
        return after if before.dtype == bool else (1.0 - weight) * before + weight * after

    return jax.tree.map(mix, x, transform(x))
