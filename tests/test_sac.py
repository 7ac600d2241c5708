"""SAC for boxes and for finite sets of actions, against its parts."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import probe_envs
import pytest
from zoo import CARTPOLE, HIGH, LOW, OTHER_TORSO, PENDULUM, SMALL, TORSO, categorical, pair_value

import pgjax
from pgjax import networks
from pgjax.algorithms import sac

KEY = jax.random.key(0)
ACTOR = networks.TanhGaussianActor(LOW, HIGH, TORSO)


def make(discrete=False, temperature=0.0, **options):
    env = CARTPOLE if discrete else PENDULUM
    heads = (categorical(), networks.QNetwork(2, OTHER_TORSO)) if discrete else (ACTOR, pair_value())
    optimizers = optax.sgd(0.0), optax.sgd(0.1), optax.sgd(temperature)
    return sac.make(*env, *heads, *optimizers, **SMALL | {"num_updates": 1} | options)


def step_of(algorithm):
    state = jax.jit(algorithm.init)(KEY)
    return state, *jax.jit(algorithm.step)(jax.random.key(1), state)


@pytest.mark.parametrize("discrete", [False, True], ids=["box", "finite"])
def test_the_temperature_rises_where_entropy_is_wanting_and_falls_where_it_abounds(discrete):
    for target, direction in ((100.0, 1), (-100.0, -1)):
        old, new, metrics = step_of(make(discrete, temperature=0.1, target_entropy=target))
        change = new.learned.log_alpha - old.learned.log_alpha
        assert np.sign(change) == direction
        np.testing.assert_allclose(change, 0.1 * (target - metrics["entropy"]), rtol=1e-4)


def test_a_fixed_temperature_stays():
    _, new, metrics = step_of(make(learn_alpha=False, alpha=0.3, temperature=1.0))
    np.testing.assert_allclose(jnp.exp(new.learned.log_alpha), 0.3, rtol=1e-6)
    np.testing.assert_allclose(metrics["alpha"], 0.3, rtol=1e-6)


def test_the_entropy_that_is_wanted_is_in_units_of_the_action():
    """Pendulum's box is twice [−1, 1]: −1 + log 2. A finite number of actions: ½ log 2."""
    for discrete, wanted in ((False, np.log(2.0) - 1.0), (True, 0.5 * np.log(2.0))):
        old, new, metrics = step_of(make(discrete, temperature=0.1))
        change = new.learned.log_alpha - old.learned.log_alpha
        np.testing.assert_allclose(change, 0.1 * (wanted - metrics["entropy"]), rtol=1e-3, atol=1e-6)


def test_without_temperature_and_with_a_fixed_policy_its_target_is_that_of_expected_sarsa():
    """One critic, α = 0, the policy fixed: the critic's step is that of expected SARSA on the same batch."""
    options = {"num_critics": 1, "alpha": 0.0, "learn_alpha": False, "batch_size": 64}
    old, new, _ = step_of(make(True, **options))
    keys = jax.random.split(jax.random.split(jax.random.key(1), 1)[0], 3)
    transition = pgjax.sample_replay(keys[1], new.replay, 64)
    critic = networks.QNetwork(2, OTHER_TORSO)
    probs = categorical().apply(old.learned.actor_params, transition.next_obs).probs
    target_params = jax.tree.map(lambda x: x[0], old.learned.target_critic_params)
    next_value = critic.apply(target_params, transition.next_obs)

    def loss(params):
        value = critic.apply(params, transition.obs)
        return pgjax.expected_sarsa_loss(
            value,
            transition.action,
            transition.reward,
            next_value,
            probs,
            transition.terminated,
            gamma=0.99,
        ).mean()

    params = jax.tree.map(lambda x: x[0], old.learned.critic_params)
    wanted = jax.tree.map(lambda p, g: p - 0.1 * g, params, jax.grad(loss)(params))
    found = jax.tree.map(lambda x: x[0], new.learned.critic_params)
    chex.assert_trees_all_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_a_step_by_hand():
    """Away from the start: target critics of their own, a temperature, episodes that end."""
    alpha, rate = 0.3, 0.1
    env = probe_envs.Probe(lambda obs, time, action: action[0] * obs, signs=True, length=2, box=True)
    actor = networks.TanhGaussianActor((-1.0,), (1.0,), TORSO)
    pair = networks.ActionCritic((-1.0,), (1.0,), OTHER_TORSO)
    options = SMALL | {"num_updates": 1, "alpha": alpha, "learn_alpha": False}
    optimizers = optax.sgd(rate), optax.sgd(rate), optax.sgd(0.0)
    algorithm = sac.make(env, None, actor, pair, *optimizers, **options)
    state = jax.jit(algorithm.init)(KEY)
    target_params = jax.tree.map(lambda x: 1.5 * x, state.learned.critic_params)
    old = state.learned._replace(target_critic_params=target_params)
    new, _ = jax.jit(algorithm.step)(jax.random.key(1), state._replace(learned=old))

    _, sample_key, learn_key = jax.random.split(jax.random.split(jax.random.key(1), 1)[0], 3)
    batch = pgjax.sample_replay(sample_key, new.replay, 8)
    assert 0 < batch.terminated.sum() < 8
    critic_key, actor_key = jax.random.split(jax.random.split(learn_key, 1)[0])
    critics = networks.Ensemble(pair, 2)
    next_action, log_prob = actor.apply(old.actor_params, batch.next_obs).sample_and_log_prob(critic_key)
    least = critics.apply(target_params, (batch.next_obs, next_action)).min(0)
    target = batch.reward + 0.99 * jnp.where(batch.terminated, 0.0, least - alpha * log_prob)

    def critic_loss(params):
        return 0.5 * jnp.square(critics.apply(params, (batch.obs, batch.action)) - target[None]).mean(1).sum()

    def descend(params, gradient):
        return jax.tree.map(lambda p, g: p - rate * g, params, gradient)

    critic_params = descend(old.critic_params, jax.grad(critic_loss)(old.critic_params))

    def actor_loss(params):
        action, log_prob = actor.apply(params, batch.obs).sample_and_log_prob(actor_key)
        return (alpha * log_prob - critics.apply(critic_params, (batch.obs, action)).min(0)).mean()

    actor_params = descend(old.actor_params, jax.grad(actor_loss)(old.actor_params))
    found = new.learned.critic_params, new.learned.actor_params
    chex.assert_trees_all_close(found, (critic_params, actor_params), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("discrete", [False, True], ids=["box", "finite"])
def test_it_explores_as_its_policy_draws(discrete):
    """Two thousand environments at once act as widely as the policy: deviations, or frequencies, to 10 %."""
    many = {"num_envs": 2000, "warmup_steps": 2000, "capacity": 4000}
    old, new, _ = step_of(make(discrete, learn_alpha=False, **many))
    acted = new.replay.storage.action[2000:]
    actor = categorical() if discrete else ACTOR
    policy = actor.apply(old.learned.actor_params, old.env_carry.obs)
    drawn = policy.sample(jax.random.key(9))
    if discrete:
        best = (acted == policy.mode()).mean()
        np.testing.assert_allclose(best, policy.probs.max(-1).mean(), atol=0.05)
        assert best < 0.9
    np.testing.assert_allclose(acted.mean(), drawn.mean(), atol=0.1)
    np.testing.assert_allclose(acted.std(), drawn.std(), rtol=0.1)
    assert drawn.std() > 0.2


def test_the_target_critics_follow_and_the_actor_has_none():
    old, new, _ = step_of(make(tau=0.25))
    wanted = jax.tree.map(
        lambda t, p: 0.75 * t + 0.25 * p, old.learned.target_critic_params, new.learned.critic_params
    )
    chex.assert_trees_all_close(new.learned.target_critic_params, wanted, rtol=1e-5, atol=1e-7)


def test_correlated_noise_leaves_every_single_action_to_the_policy():
    """Started in its long run, its actions are the policy's; neighbours agree."""
    params = ACTOR.init(KEY, jnp.zeros(3))
    policy = ACTOR.apply(params, jnp.zeros((5000, 3)))
    noise = jax.random.normal(KEY, (5000, 1))
    following = pgjax.correlated_noise(jax.random.key(1), noise, correlation=0.8)
    np.testing.assert_allclose(following.std(), 1.0, atol=0.04)
    np.testing.assert_allclose(np.corrcoef(noise[:, 0], following[:, 0])[0, 1], 0.8, atol=0.03)
    acted = policy._replace(mean=policy.mean + jnp.exp(policy.log_std) * following).mode()
    drawn = policy.sample(jax.random.key(2))
    np.testing.assert_allclose(acted.std(), drawn.std(), rtol=0.05)


def test_what_acts_is_the_policy_that_is_learned_however_wide_its_actor_makes_it():
    """A log σ of 100 is one of 20 in samples and densities; times a noise of 0 it is no NaN."""

    class Wide:
        def init(self, key, obs):
            return ACTOR.init(key, obs)

        def apply(self, params, obs):
            policy = ACTOR.apply(params, obs)
            return policy._replace(log_std=jnp.full_like(policy.log_std, 100.0))

    optimizers = [optax.sgd(0.0)] * 3
    _, after, _ = step_of(
        sac.make(*PENDULUM, Wide(), pair_value(), *optimizers, **SMALL, noise_correlation=1.0)
    )
    assert jnp.isfinite(after.env_carry.obs).all()


def test_no_critic_is_refused():
    with pytest.raises(ValueError, match="num_critics must be at least 1"):
        make(num_critics=0)


def test_a_temperature_of_0_cannot_be_learned_but_can_be_fixed():
    with pytest.raises(ValueError, match="set learn_alpha off"):
        make(alpha=0.0)
    _, new, _ = step_of(make(alpha=0.0, learn_alpha=False))
    chex.assert_tree_all_finite(new.learned)
