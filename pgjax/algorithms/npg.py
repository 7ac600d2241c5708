"""The natural policy gradient: plain ascent, measured in policies instead of parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from pgjax import improvement
from pgjax.improvement import State, natural_step
from pgjax.natural.trust_region import kl_step_size
from pgjax.types import Algorithm, Array, Environment, Metrics, Network, Numeric, Transition


def make(
    env: Environment,
    env_params: Any,
    actor: Network,
    critic: Network,
    critic_optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 8,
    num_steps: int = 128,
    gamma: Numeric = 0.99,
    lambda_: Numeric = 0.95,
    max_kl: Numeric | None = 0.01,
    step_size: Numeric | None = None,
    damping: Numeric = 0.1,
    cg_iters: int = 10,
    count_damping: bool = True,
    fisher_stride: int = 1,
    num_chunks: int = 1,
    normalize_advantage: bool = True,
    entropy_coef: Numeric = 0.0,
    critic_epochs: int = 10,
    critic_minibatches: int = 4,
    num_shards: int | None = None,
) -> Algorithm[State]:
    """NPG; one iteration is `num_envs * num_steps` steps and one step of the policy.

    Args:
        env: the environment.
        env_params: its parameters.
        actor: `obs -> Distribution`.
        critic: `obs -> V [...]`.
        critic_optimizer: of the critic; the actor has none.
        num_envs: N.
        num_steps: T.
        gamma: discount factor.
        lambda_: trace decay of the advantage.
        max_kl: δ in nats: every step is scaled so that KL(old ‖ new) is δ to second order. None with
            `step_size`.
        step_size: η of a fixed step θ + η F⁻¹ g instead; give `max_kl=None` with it.
        damping: λ, added to the Fisher information.
        cg_iters: iterations of conjugate gradients.
        count_damping: measure the step with the damped matrix, as all reference implementations do; False
            measures it with the Fisher information itself, as the bound has it.
        fisher_stride: take every `fisher_stride`-th time step for the curvature; the gradient sees all.
        num_chunks: of the Fisher's batch, to bound its memory at the price of recomputation.
        normalize_advantage: standardise the advantages of a rollout.
        entropy_coef: weight of an entropy bonus, a part of the objective: of the gradient, of
            `predicted_improvement` and of `improvement`; `policy_loss` is without it.
        critic_epochs: passes of the critic over a rollout.
        critic_minibatches: gradient steps of the critic in each pass.
        num_shards: the critic's samples are shuffled within shards of whole environments; by default
            `gcd(num_envs, 8)`.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1, if the sizes do not divide, or unless one of `max_kl`
            and `step_size` is given.

    References:
        Kakade 2002, A natural policy gradient, section 2; Peters & Schaal 2008, Natural actor-critic;
        Rajeswaran et al. 2017, Towards generalization and simplicity in continuous control, eq. 5 (the
        normalised step).
    """
    if (max_kl is None) == (step_size is None):
        raise ValueError("Give either max_kl, for a normalised step, or step_size with max_kl=None.")

    def improve(params: Any, traj: Transition, advantage: Array) -> tuple[Any, Metrics]:
        """One step of the policy."""
        surrogate, gradient, direction, cg, metrics = natural_step(
            actor,
            params,
            traj,
            advantage,
            damping=damping,
            cg_iters=cg_iters,
            fisher_stride=fisher_stride,
            num_chunks=num_chunks,
            entropy_coef=entropy_coef,
        )
        if max_kl is None:
            size = step_size
        else:
            size = kl_step_size(cg.damped_curvature if count_damping else cg.curvature, max_kl=max_kl)
        change = jax.tree.map(lambda x: size * x, direction)
        params = optax.apply_updates(params, change)
        gained, kl = surrogate(params)
        return params, metrics | {
            "kl": kl,
            "predicted_improvement": jnp.asarray(optax.tree.vdot(gradient, change)),
            "improvement": gained,
            "cg_residual": cg.relative_residual,
            "step_norm": optax.tree.norm(change),
        }

    return improvement.make(
        env,
        env_params,
        actor,
        critic,
        critic_optimizer,
        improve,
        num_envs=num_envs,
        num_steps=num_steps,
        gamma=gamma,
        lambda_=lambda_,
        fisher_stride=fisher_stride,
        num_chunks=num_chunks,
        normalize_advantage=normalize_advantage,
        critic_epochs=critic_epochs,
        critic_minibatches=critic_minibatches,
        num_shards=num_shards,
    )
