"""Proximal policy optimization: several epochs over one rollout, kept near the policy that acted.

Every core detail of Huang et al. 2022, and those for continuous actions, is an option of `make`, of the
network (orthogonal initialisation, shared or separate torso, state-independent deviation) or of the optimizer
(Adam's ε, annealing, clipping). Each has a value that switches it off, and that value may be traced: all
combinations of them are one program.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pgjax._checks import at_least_one
from pgjax.descent import mean_gradient
from pgjax.estimators.advantages import gae, standardize
from pgjax.losses.policy import clipped_surrogate_loss
from pgjax.losses.value import clipped_value_loss
from pgjax.metrics import approximate_kl, clip_fraction, explained_variance
from pgjax.minibatch import in_chunks, shuffled_minibatches, take_minibatch, to_shards
from pgjax.normalization import (
    RewardScaling,
    RunningMoments,
    Switch,
    blend,
    init_moments,
    init_reward_scaling,
    normalize,
    scale_reward,
    update_moments,
    update_reward_scaling,
)
from pgjax.rollouts import EnvCarry, EpisodeStats, reset_envs, rollout
from pgjax.types import (
    Algorithm,
    Array,
    ArrayTree,
    Environment,
    Metrics,
    Network,
    Numeric,
    PRNGKey,
    Transition,
)
from pgjax.values import rollout_values


class Learned(NamedTuple):
    """What learns.

    Attributes:
        params: of the network.
        opt_state: of the optimizer.
        obs_moments: of the observations; None if they are not normalised.
        reward_scaling: None if rewards are not scaled.
        kl_coef: weight of the KL penalty; None without one.
    """

    params: Any
    opt_state: Any
    obs_moments: RunningMoments | None
    reward_scaling: RewardScaling | None
    kl_coef: Array | None


class State(NamedTuple):
    """A run between two iterations.

    Attributes:
        learned: what learns.
        env_carry: where the environments stand.
        uncounted_steps: int32 scalar, steps of the warm-up that no iteration has reported yet.
    """

    learned: Learned
    env_carry: EnvCarry
    uncounted_steps: Array


class Batch(NamedTuple):
    """What a gradient step sees of a rollout, leaves `[..., *shape]`."""

    obs: ArrayTree
    action: Array
    log_prob: Array
    value: Array
    advantage: Array
    target: Array
    policy: Any


def make(
    env: Environment,
    env_params: Any,
    network: Network,
    optimizer: optax.GradientTransformation,
    *,
    num_envs: int = 8,
    num_steps: int = 128,
    num_epochs: int = 4,
    num_minibatches: int = 4,
    gamma: Numeric = 0.99,
    lambda_: Numeric = 0.95,
    clip_eps: Numeric = 0.2,
    value_clip_eps: Numeric = 0.2,
    value_coef: Numeric = 0.5,
    entropy_coef: Numeric = 0.01,
    normalize_advantage: Switch = True,
    normalize_obs: Switch = False,
    obs_clip: Numeric = 10.0,
    normalize_reward: Switch = False,
    reward_clip: Numeric = 10.0,
    max_kl: Numeric | None = None,
    kl_coef: Numeric | None = None,
    kl_target: Numeric | None = None,
    num_shards: int | None = None,
    num_chunks: int | None = None,
) -> Algorithm[State]:
    """PPO; one iteration is `num_envs * num_steps` steps and `num_epochs * num_minibatches` updates.

    The three options `normalize_...` are a bool, or an array between 0 and 1 that blends and may be traced.

    Args:
        env: the environment.
        env_params: its parameters.
        network: `obs -> (Distribution, value [...])`, such as `networks.ActorCritic`.
        optimizer: of all parameters; annealing and the clipping by global norm belong into it.
        num_envs: N.
        num_steps: T.
        num_epochs: passes over the rollout.
        num_minibatches: gradient steps in each pass.
        gamma: discount factor.
        lambda_: trace decay of the advantage.
        clip_eps: how far the ratio may move a loss; infinity switches the clipping off.
        value_clip_eps: how far the value may move from the old one; infinity switches it off.
        value_coef: weight of the critic's loss.
        entropy_coef: weight of the entropy bonus.
        normalize_advantage: standardise the advantages of each minibatch.
        normalize_obs: shift and scale observations by their running moments.
        obs_clip: where normalised observations are clipped.
        normalize_reward: divide rewards by the deviation of the discounted return.
        reward_clip: where scaled rewards are clipped.
        max_kl: no further update in an iteration once a minibatch's approximate KL is above; None: never.
        kl_coef: weight of KL(old ‖ new) in the loss; None: no penalty (use `clip_eps=inf` for it alone).
        kl_target: if given, the weight is doubled where an iteration's KL ends above 1.5 × this, halved
            where it ends below this / 1.5.
        num_shards: samples are shuffled within shards of whole environments; by default
            `gcd(num_envs, 8)`.
        num_chunks: a minibatch is differentiated in as many pieces, one after the other, in the memory of
            one; by default whole, on CPUs in pieces of about 512 samples, which fit their cache. With the
            environments spread over devices every piece is summed over them: 1 is best there.

    Returns:
        The algorithm.

    Raises:
        ValueError: if a number of something is below 1, if the sizes do not divide, or if `kl_target` is
            given without `kl_coef`.

    References:
        Schulman et al. 2017, Proximal policy optimization algorithms, algorithm 1, eq. 7 and 8;
        Huang et al. 2022, The 37 implementation details of PPO.
    """
    at_least_one(num_envs=num_envs, num_steps=num_steps, num_epochs=num_epochs)
    shards = math.gcd(num_envs, 8) if num_shards is None else num_shards
    if shards < 1 or num_envs % shards:
        raise ValueError(f"num_shards={shards} must divide num_envs={num_envs}.")
    shard_size = num_envs * num_steps // shards
    if num_minibatches < 1 or shard_size % num_minibatches:
        raise ValueError(
            f"num_minibatches={num_minibatches} must divide the {shard_size} samples of a shard "
            f"(num_envs={num_envs} × num_steps={num_steps} over num_shards={shards})."
        )
    if num_chunks is not None and (num_chunks < 1 or shard_size // num_minibatches % num_chunks):
        raise ValueError(
            f"num_chunks={num_chunks} must divide the {shard_size // num_minibatches} samples that a "
            f"minibatch takes from each of the {shards} shards."
        )
    if kl_target is not None and kl_coef is None:
        raise ValueError("kl_target adapts kl_coef: give kl_coef its initial value, such as 1.0.")

    def see(learned: Learned, obs: ArrayTree) -> ArrayTree:
        moments = learned.obs_moments
        if moments is None:
            return obs
        return blend(normalize_obs, lambda obs: normalize(moments, obs, clip=obs_clip), obs)

    def collect(
        key: PRNGKey, learned: Learned, env_carry: EnvCarry
    ) -> tuple[EnvCarry, Transition, EpisodeStats]:
        def policy(key: PRNGKey, obs: ArrayTree) -> tuple[Array, Array]:
            return network.apply(learned.params, see(learned, obs))[0].sample_and_log_prob(key)

        return rollout(key, env_carry, policy, env, env_params, num_steps)

    def count(learned: Learned, traj: Transition) -> Learned:
        """The normalisers, with one more rollout in them."""
        moments, scaling = learned.obs_moments, learned.reward_scaling
        if moments is not None:
            moments = update_moments(moments, traj.obs)
        if scaling is not None:
            scaling = update_reward_scaling(
                scaling, traj.reward, traj.terminated, traj.truncated, gamma=gamma
            )
        return learned._replace(obs_moments=moments, reward_scaling=scaling)

    def init(key: PRNGKey) -> State:
        env_key, params_key, warmup_key = jax.random.split(key, 3)
        env_carry = reset_envs(env_key, env, env_params, num_envs)
        params = network.init(params_key, env_carry.obs)
        one_obs = jax.tree.map(lambda x: x[0], env_carry.obs)
        learned = Learned(
            params,
            optimizer.init(params),
            None if normalize_obs is False else init_moments(one_obs),
            None if normalize_reward is False else init_reward_scaling(num_envs),
            None if kl_coef is None else jnp.asarray(kl_coef, float),
        )
        if learned.obs_moments is None and learned.reward_scaling is None:
            return State(learned, env_carry, jnp.zeros((), jnp.int32))
        env_carry, traj, _ = collect(warmup_key, learned, env_carry)
        return State(count(learned, traj), env_carry, jnp.full((), num_envs * num_steps, jnp.int32))

    def evaluate_rollout(learned: Learned, traj: Transition) -> tuple[Batch, Array]:
        obs = see(learned, traj.obs)
        policy = None
        if learned.kl_coef is not None:
            batch = traj.reward.shape
            policy = jax.tree.map(  # a parameter that all states share is one of each
                lambda x: x if jnp.shape(x)[:2] == batch else jnp.broadcast_to(x, batch + jnp.shape(x)),
                network.apply(learned.params, obs)[0],
            )

        def critic(obs: ArrayTree) -> Array:
            return network.apply(learned.params, see(learned, obs))[1]

        value, next_value = rollout_values(critic, traj)
        reward, scaling = traj.reward, learned.reward_scaling
        if scaling is not None:
            reward = blend(normalize_reward, lambda r: scale_reward(scaling, r, clip=reward_clip), reward)
        advantage = gae(
            reward, value, next_value, traj.terminated, traj.truncated, gamma=gamma, lambda_=lambda_
        )
        target = advantage + value
        batch = Batch(obs, traj.action, traj.log_prob, value, advantage, target, policy)
        return batch, explained_variance(value, target)

    names = ["policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"]
    names += [] if kl_coef is None else ["kl"]
    names += ["grad_norm"] if max_kl is None else ["grad_norm", "updates_skipped"]

    def loss(params: Any, batch: Batch, kl_coef: Array | None) -> tuple[Array, Array]:
        """What is minimised, and its terms, in the order of the names."""
        policy, value = network.apply(params, batch.obs)
        log_prob = policy.log_prob(batch.action)
        terms = [
            clipped_surrogate_loss(log_prob, batch.log_prob, batch.advantage, clip_eps=clip_eps),
            clipped_value_loss(value, batch.value, batch.target, clip_eps=value_clip_eps),
            policy.entropy(),
            approximate_kl(log_prob, batch.log_prob),
            clip_fraction(log_prob, batch.log_prob, clip_eps=clip_eps),
        ]
        if kl_coef is not None:
            terms.append(batch.policy.kl(policy))
        total = terms[0] + value_coef * terms[1] - entropy_coef * terms[2]
        if kl_coef is not None:
            total = total + kl_coef * terms[5]
        return total.mean(), jnp.stack(terms).mean(-1)  # not of these means: all would be differentiated

    def update(learned: Learned, batch: Batch, order: Array) -> tuple[Learned, Metrics]:
        """All epochs; `order [num_epochs, num_minibatches, num_chunks, ...]` says who learns when."""

        def epoch(loop: tuple[Any, Any, Array], indices: Array) -> tuple[Any, Array]:
            minibatches = take_minibatch(batch, indices)
            # of all minibatches at once: outside the loop, and on several devices in one sum
            advantage = blend(normalize_advantage, jax.vmap(standardize), minibatches.advantage)
            return jax.lax.scan(gradient_step, loop, minibatches._replace(advantage=advantage))

        def gradient_step(loop: tuple[Any, Any, Array], minibatch: Batch) -> tuple[Any, Array]:
            params, opt_state, stopped = loop
            gradient, metrics = mean_gradient(
                lambda params, batch: loss(params, batch, learned.kl_coef), params, minibatch
            )
            updates, new_opt_state = optimizer.update(gradient, opt_state, params)
            new = optax.apply_updates(params, updates), new_opt_state
            more = [optax.tree.norm(gradient)]
            if max_kl is not None:
                stopped = stopped | (metrics[names.index("approx_kl")] > max_kl)
                new = jax.tree.map(lambda n, o: jnp.where(stopped, o, n), new, (params, opt_state))
                more.append(stopped.astype(metrics.dtype))
            return (*new, stopped), jnp.concatenate([metrics, jnp.stack(more)])

        loop = learned.params, learned.opt_state, jnp.zeros((), bool)
        (params, opt_state, _), rows = jax.lax.scan(epoch, loop, order)
        metrics = dict(zip(names, rows.mean((0, 1)), strict=True))
        learned = learned._replace(params=params, opt_state=opt_state)
        if learned.kl_coef is not None and kl_target is not None:
            kl = rows[-1, :, names.index("kl")].mean()
            factor = jnp.where(kl > 1.5 * kl_target, 2.0, jnp.where(kl < kl_target / 1.5, 0.5, 1.0))
            learned = learned._replace(kl_coef=learned.kl_coef * factor)
        return learned, metrics

    def step(key: PRNGKey, state: State) -> tuple[State, Metrics]:
        act_key, shuffle_key = jax.random.split(key)
        order = shuffled_minibatches(shuffle_key, shards, shard_size, num_minibatches, num_epochs)
        order = in_chunks(order.reshape(num_epochs, num_minibatches, *order.shape[1:]), num_chunks)
        env_carry, traj, stats = collect(act_key, state.learned, state.env_carry)
        batch, variance_explained = evaluate_rollout(state.learned, traj)
        learned, metrics = update(state.learned, to_shards(batch, shards), order)
        metrics |= stats.metrics() | {
            "env_steps": num_envs * num_steps + state.uncounted_steps,
            "explained_variance": variance_explained,
        }
        if learned.kl_coef is not None:
            metrics["kl_coef"] = learned.kl_coef
        return State(count(learned, traj), env_carry, jnp.zeros((), jnp.int32)), metrics

    def act(key: PRNGKey, state: State, obs: ArrayTree) -> Array:
        del key
        return network.apply(state.learned.params, see(state.learned, obs))[0].mode()

    return Algorithm(init, step, act)
