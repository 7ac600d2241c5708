"""DDPG and TD3: what one is without the other's additions, and what each addition does."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from zoo import CARTPOLE, HIGH, LOW, OTHER_TORSO, PENDULUM, SMALL, TORSO, ZOO, pair_value

import pgjax
from pgjax import networks
from pgjax.algorithms import ddpg, td3
from pgjax.deterministic import Learner, explorer
from pgjax.experience import Batch
from pgjax.tabular.mdp import Box
from pgjax.types import Transition

KEY = jax.random.key(0)
ACTOR = networks.DeterministicActor(LOW, HIGH, TORSO)


def make(module, **options):
    optimizers = optax.adam(1e-2), optax.adam(1e-2)
    return module.make(*PENDULUM, ACTOR, pair_value(), *optimizers, **SMALL | options)


def learner(num_critics=2):
    return Learner(ACTOR, networks.Ensemble(pair_value(), num_critics), optax.sgd(0.1), optax.sgd(0.1))


def batch(size=8):
    keys = jax.random.split(KEY, 4)
    obs, next_obs = (jax.random.normal(k, (size, 3)) for k in keys[:2])
    action = 2.0 * jnp.tanh(jax.random.normal(keys[2], (size, 1)))
    reward = jax.random.normal(keys[3], (size,))
    terminated = jnp.arange(size) % 3 == 0
    transition = Transition(obs, action, reward, reward, terminated, ~terminated, next_obs)
    return Batch(transition, jnp.full(size, 0.9))


def test_td3_without_twin_delay_and_smoothing_is_ddpg():
    """Step for step, from the same state and key."""
    off = {"num_critics": 1, "policy_delay": 1, "target_noise_std": 0.0}
    once = {"num_steps": 1, "num_gradient_steps": 1, "noise_std": 0.3}
    by_td3, by_ddpg = make(td3, **off | once), make(ddpg, **once)
    state = other = jax.jit(by_ddpg.init)(KEY)
    steps = jax.jit(by_td3.step), jax.jit(by_ddpg.step)
    for i in range(3):
        key = jax.random.fold_in(KEY, i)
        (state, metrics), (other, other_metrics) = steps[0](key, state), steps[1](key, other)
    chex.assert_trees_all_close(state.learned, other.learned, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_close(state.replay, other.replay, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(metrics, other_metrics, rtol=1e-4, atol=1e-6)


def test_the_actor_follows_the_first_critic_alone():
    parts, data = learner(), batch()
    learned = parts.init(KEY, data.transition.obs, data.transition.action)
    second = jax.tree.map(lambda x: x.at[1].multiply(-3.0), learned.critic_params)
    first = jax.tree.map(lambda x: x.at[0].multiply(-3.0), learned.critic_params)

    def moved(critic_params):
        new, _ = parts.improve_actor(learned._replace(critic_params=critic_params), data.transition.obs)
        return new.actor_params

    chex.assert_trees_all_equal(moved(learned.critic_params), moved(second))
    difference = jax.tree.map(jnp.subtract, moved(learned.critic_params), moved(first))
    assert optax.tree.norm(difference) > 1e-4


def test_a_step_of_the_actor_is_the_deterministic_policy_gradient():
    parts, data = learner(), batch()
    learned = parts.init(KEY, data.transition.obs, data.transition.action)
    learned = learned._replace(actor_params=jax.tree.map(lambda x: 5.0 * x, learned.actor_params))
    critic_params = jax.tree.map(lambda x: x[0], learned.critic_params)
    new, _ = parts.improve_actor(learned, data.transition.obs)
    total = jax.tree.map(jnp.zeros_like, learned.actor_params)
    for obs in data.transition.obs:  # ∇_θ μ(s) ∇_a Q(s, a), summed by hand
        action = ACTOR.apply(learned.actor_params, obs)
        slope = jax.grad(lambda a, obs=obs: pair_value().apply(critic_params, (obs, a)))(action)
        jacobian = jax.jacobian(ACTOR.apply)(learned.actor_params, obs)
        total = jax.tree.map(lambda t, j, s=slope: t + jnp.tensordot(s, j, 1), total, jacobian)
    wanted = jax.tree.map(lambda p, t: p + 0.1 * t / 8, learned.actor_params, total)
    chex.assert_trees_all_close(new.actor_params, wanted, rtol=1e-4, atol=1e-6)


def test_a_step_of_the_critics_goes_towards_the_lower_target_and_moves_nothing_else():
    parts, data = learner(), batch()
    learned = parts.init(KEY, data.transition.obs, data.transition.action)
    next_action = jnp.ones((8, 1))
    new, metrics = parts.fit_critics(learned, data, next_action)
    chex.assert_trees_all_equal(
        new._replace(critic_params=None), learned._replace(critic_params=None)
    )  # SGD has no state
    critics = parts.critics
    lower = critics.apply(learned.target_critic_params, (data.transition.next_obs, next_action)).min(0)
    target = data.transition.reward + 0.9 * jnp.where(data.transition.terminated, 0.0, lower)
    pair = data.transition.obs, data.transition.action

    def loss(params):
        return 0.5 * jnp.square(critics.apply(params, pair) - target[None]).mean(1).sum()

    value, gradient = jax.value_and_grad(loss)(learned.critic_params)
    wanted = jax.tree.map(lambda p, g: p - 0.1 * g, learned.critic_params, gradient)
    chex.assert_trees_all_close(new.critic_params, wanted, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["value_loss"], value / 2, rtol=1e-5)


def test_targets_and_actor_wait_for_the_delay():
    """Three steps of the critics to one of the actor: with targets that stand still, one move of τ."""
    options = {"num_envs": 1, "num_updates": 1, "num_steps": 3, "num_gradient_steps": 3, "policy_delay": 3}
    state = jax.jit(make(td3, **options).init)(KEY)
    new, _ = jax.jit(make(td3, **options, tau=0.25).step)(KEY, state)
    old, learned = state.learned, new.learned
    wanted = jax.tree.map(lambda t, p: 0.75 * t + 0.25 * p, old.target_critic_params, learned.critic_params)
    chex.assert_trees_all_close(learned.target_critic_params, wanted, rtol=1e-5, atol=1e-7)
    assert learned.actor_opt_state[0].count == 1
    assert learned.critic_opt_state[0].count == 3


def test_the_noise_of_exploration_is_in_units_of_half_the_action_range():
    wide = networks.DeterministicActor((-20.0,), (20.0,), TORSO)
    noisy = explorer(wide, -20.0, 20.0, noise_std=0.1, noise_correlation=0.0)
    params = wide.init(KEY, jnp.zeros(3))
    learned = learner().init(KEY, jnp.zeros((1, 3)), jnp.zeros((1, 1)))._replace(actor_params=params)
    obs = jnp.zeros((4000, 3))
    action, noise = noisy(KEY, learned, obs, jnp.zeros((4000, 1)), jnp.zeros((), jnp.int32))
    assert abs(float(action.std()) - 2.0) < 0.1  # a tenth of half the range
    assert noise.shape == (4000, 1)


class Sees(NamedTuple):
    """A critic that says the size of the action it is asked about; the actor always means 0."""

    def init(self, key, pair):
        return jnp.zeros(())

    def apply(self, params, pair):
        return params + jnp.abs(pair[1][..., 0])


def test_the_noise_of_the_target_is_in_units_of_half_the_action_range_and_clipped():
    """Pendulum's box is ±2: noise far beyond its clip of 0.25 moves the target's action by 0.5 exactly."""
    options = SMALL | {"num_updates": 1, "num_gradient_steps": 2, "gamma": 1.0, "tau": 0.0}
    noise = {"target_noise_std": 1e6, "target_noise_clip": 0.25}
    rate = 1e-3
    centre = networks.DeterministicActor(LOW, HIGH, TORSO)
    algorithm = td3.make(*PENDULUM, centre, Sees(), optax.sgd(0.0), optax.sgd(rate), **options, **noise)
    state = jax.jit(algorithm.init)(KEY)
    zero = jax.tree.map(jnp.zeros_like, state.learned.actor_params)  # means the middle of the box
    state = state._replace(learned=state.learned._replace(actor_params=zero, target_actor_params=zero))
    batch_key = jax.random.split(jax.random.split(jax.random.key(1), 1)[0], 3)[1]
    new, _ = jax.jit(algorithm.step)(jax.random.key(1), state)
    found = pgjax.sample_replay(batch_key, new.replay, 2 * SMALL["batch_size"])
    target = found.reward + jnp.where(found.terminated, 0.0, 0.5)
    params = 0.0
    for half in jnp.split(target - jnp.abs(found.action[:, 0]), 2):
        params = params + rate * (half.mean() - params)
    np.testing.assert_allclose(new.learned.critic_params, params, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy_delay": 3}, "policy_delay=3 must divide num_gradient_steps=2"),
        ({"policy_delay": 0}, "policy_delay=0"),
        ({"num_critics": 0}, "num_critics must be at least 1"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(td3, **options)


def test_the_critic_sees_actions_scaled():
    """The same network and the same parameters on a box of another size: equal where the scaled are."""
    small, large = (networks.ActionCritic((-b,), (b,), OTHER_TORSO) for b in (1.0, 10.0))
    params = small.init(KEY, (jnp.zeros(3), jnp.zeros(1)))
    at = jnp.array([0.3])
    np.testing.assert_allclose(
        small.apply(params, (jnp.ones(3), at)), large.apply(params, (jnp.ones(3), 10 * at)), rtol=1e-5
    )


def test_actions_stay_in_the_box_whatever_the_noise():
    algorithm = ZOO["td3-continuous"](noise_std=50.0)
    state, _ = jax.jit(algorithm.step)(KEY, jax.jit(algorithm.init)(KEY))
    action = state.replay.storage.action
    assert jnp.abs(action).max() <= 2.0
    assert (jnp.abs(action) == 2.0).any()


@pytest.mark.parametrize("module", [ddpg, td3], ids=["ddpg", "td3"])
def test_a_finite_number_of_actions_is_refused(module):
    with pytest.raises(ValueError, match="wants actions from a box"):
        module.make(*CARTPOLE, ACTOR, pair_value(), optax.sgd(0.1), optax.sgd(0.1))


def test_the_bounds_of_the_box_may_be_traced():
    def step(low):
        class Bounded(type(PENDULUM[0])):
            def action_space(self, params):
                return Box((1,), float, low, -low)

        env = Bounded(*(getattr(PENDULUM[0], name) for name in ("env", "low", "high")))
        algorithm = td3.make(env, PENDULUM[1], ACTOR, pair_value(), optax.sgd(0.1), optax.sgd(0.1), **SMALL)
        return algorithm.step(KEY, algorithm.init(KEY))[1]

    assert jax.eval_shape(step, -2.0)["value_loss"].shape == ()
