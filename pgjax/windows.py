"""What A2C and A3C share: the gradient that one window of experience gives."""

from typing import Any

import jax
import optax

from pgjax.estimators.advantages import gae, standardize
from pgjax.estimators.off_policy import importance_ratio, vtrace
from pgjax.losses.policy import score_function_loss
from pgjax.losses.value import squared_error_loss
from pgjax.metrics import explained_variance
from pgjax.minibatch import by_time, to_batch
from pgjax.types import Array, Metrics, Network, Numeric, Transition


def window_gradient(
    network: Network,
    params: Any,
    traj: Transition,
    *,
    gamma: Numeric,
    lambda_: Numeric,
    value_coef: Numeric,
    entropy_coef: Numeric,
    normalize_advantage: bool = False,
    corrected: bool = False,
) -> tuple[Any, Metrics]:
    """The gradient of policy, value and entropy losses, bootstrapping at the end of the window.

    Args:
        network: `obs -> (Distribution, value [...])`.
        params: where the gradient is taken.
        traj: leaves `[T, N, ...]`.
        gamma: discount factor.
        lambda_: trace decay of the advantage; 1 is the n-step advantage.
        value_coef: weight of the critic's loss.
        entropy_coef: weight of the entropy bonus.
        normalize_advantage: standardise the advantages of the batch.
        corrected: correct by V-trace for the policy that acted having been another than that of `params`.

    Returns:
        The gradient, to be descended, and metrics.

    References:
        Mnih et al. 2016, Asynchronous methods for deep RL, algorithm S3; Espeholt et al. 2018, IMPALA,
        section 4.2 (`corrected`).
    """
    batch = to_batch(traj)
    # one forward pass, both for the values that the weights come from and for the gradient
    outputs, pull_back = jax.vjp(lambda params: network.apply(params, batch.obs), params)
    policy, value = outputs
    next_value = network.apply(params, batch.next_obs)[1]
    num_steps = traj.reward.shape[0]
    value, next_value = by_time((value, next_value), num_steps)
    common = traj.reward, value, next_value, traj.terminated, traj.truncated
    if corrected:
        ratio = by_time(importance_ratio(policy.log_prob(batch.action), batch.log_prob), num_steps)
        target, advantage = vtrace(ratio, *common, gamma=gamma, lambda_=lambda_)
    else:
        advantage = gae(*common, gamma=gamma, lambda_=lambda_)
        target = advantage + value
    weight = standardize(advantage) if normalize_advantage else advantage
    explained = explained_variance(value, target)
    weight, target = to_batch((weight, target))

    def loss(outputs: tuple[Any, Array]) -> tuple[Array, Metrics]:
        policy, value = outputs
        policy_loss = score_function_loss(policy.log_prob(batch.action), weight).mean()
        value_loss = squared_error_loss(value, target).mean()
        entropy = policy.entropy().mean()
        total = policy_loss + value_coef * value_loss - entropy_coef * entropy
        return total, {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}

    # a policy may hold a mask, which has no gradient
    output_gradient, metrics = jax.grad(loss, has_aux=True, allow_int=True)(outputs)
    (gradient,) = pull_back(output_gradient)
    return gradient, metrics | {
        "grad_norm": optax.tree.norm(gradient),
        "explained_variance": explained,
    }
