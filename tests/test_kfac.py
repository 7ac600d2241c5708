import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from pgjax import networks
from pgjax.gradients import score
from pgjax.natural import kfac
from pgjax.natural.fisher import fisher_matrix

KEY = jax.random.key(0)
HEADS = networks.features_as_they_are


def small(sizes=(5, 4)):
    return networks.MLP(sizes)


def shared():
    return networks.ActorCritic(networks.CategoricalActor(3, HEADS), networks.Critic(HEADS), small())


ACTORS = {
    "categorical": lambda torso: networks.CategoricalActor(3, torso),
    "gaussian": lambda torso: networks.GaussianActor(2, torso, 0.3),
    "squashed": lambda torso: networks.TanhGaussianActor((-1.0, 0.0), (1.0, 2.0), torso),
}


def parameters(network, obs, seed=1):
    """Random parameters in the precision of the test; the small heads of the initialisers hide errors."""
    leaves, structure = jax.tree.flatten(network.init(KEY, obs))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    drawn = [0.5 * jax.random.normal(k, x.shape, float) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def block(tree, layer):
    """A layer's part of a tree like the parameters, in the order of A ⊗ G: the bias is the last row."""
    for name in layer.split("/"):
        tree = tree.get("params", tree)[name]
    kernel, bias = tree["kernel"], tree["bias"]
    return jnp.concatenate([kernel, bias[..., None, :]], -2).reshape(*bias.shape[:-1], -1)


def places(params, layer):
    """Where the numbers of `block` stand in the raveled parameters."""
    flat, unravel = ravel_pytree(params)
    return block(unravel(jnp.arange(flat.size, dtype=flat.dtype)), layer).astype(int)


def dense_fisher(apply, params, obs, layer):
    at = places(params, layer)
    return fisher_matrix(apply, params, obs)[at][:, at]


def refreshed(apply, params, obs, **options):
    state = kfac.init(params, kfac.dense_layers(apply, params, obs))
    return kfac.refresh(kfac.update_factors(state, kfac.factors(apply, params, obs, KEY, **options)))


@pytest.mark.usefixtures("x64")
class TestFactors:
    @pytest.mark.parametrize("seed", range(4))
    def test_one_layer_and_one_sample_are_score_times_score(self, seed):
        actor, obs = ACTORS["categorical"](HEADS), jnp.array([[0.3, -1.0, 2.0, 0.5]])
        params = parameters(actor, obs)
        a, g = kfac.factors(actor.apply, params, obs, jax.random.key(seed))["Dense_0"]
        scores = block(score(actor.apply, params, jnp.repeat(obs, 3, 0), jnp.arange(3)), "Dense_0")
        errors = [np.abs(np.kron(a, g) - np.outer(s, s)).max() for s in scores]
        assert min(errors) < 1e-12

    def test_one_gaussian_layer_and_one_sample_too(self):
        actor, obs = networks.GaussianActor(1, HEADS, 0.3), jnp.array([[0.3, -1.0, 2.0]])
        params = parameters(actor, obs)
        a, g = kfac.factors(actor.apply, params, obs, KEY)["Dense_0"]
        policy = actor.apply(params, obs)
        action = policy.mean + jnp.sqrt(g) * jnp.exp(2.0 * policy.log_std)  # g = ((a − μ) / σ²)²
        s = block(score(actor.apply, params, obs, action), "Dense_0")[0]
        np.testing.assert_allclose(np.kron(a, g), np.outer(s, s), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("kind", ACTORS)
    def test_the_blocks_of_an_mlp_are_expected_products_of_the_factors(self, kind, rng):
        """The Fisher's own diagonal blocks: E[A_s ⊗ G_s]; K-FAC takes E[A_s] ⊗ E[G_s]."""
        actor, obs = ACTORS[kind](small()), jnp.asarray(rng.normal(size=(6, 3)))
        params = parameters(actor, obs)
        one = jax.vmap(lambda o: kfac.factors(actor.apply, params, o, KEY, exact=True))(obs[:, None])
        whole = kfac.factors(actor.apply, params, obs, KEY, exact=True)
        assert set(whole) >= {"torso/Dense_0", "torso/Dense_1", "Dense_0"}
        for layer, (a, g) in one.items():
            products = np.mean([np.kron(x, y) for x, y in zip(a, g, strict=True)], 0)
            fisher = dense_fisher(actor.apply, params, obs, layer)
            np.testing.assert_allclose(products, fisher, rtol=1e-10, atol=1e-13)
            np.testing.assert_allclose(whole[layer].activation, a.mean(0), rtol=1e-10, atol=1e-13)
            np.testing.assert_allclose(whole[layer].derivative, g.mean(0), rtol=1e-10, atol=1e-13)

    @pytest.mark.parametrize("kind", ACTORS)
    def test_sampled_factors_are_unbiased(self, kind, rng):
        """Every entry within five standard errors of its expectation, 20,000 samples, seed 0."""
        actor, obs = ACTORS[kind](small()), jnp.asarray(rng.normal(size=(3,)))
        params = parameters(actor, obs)
        many = jnp.broadcast_to(obs, (100, 200, 3))
        keys = jax.random.split(KEY, 100)
        sampled = jax.jit(jax.vmap(lambda k, o: kfac.factors(actor.apply, params, o, k)))(keys, many)
        expected = kfac.factors(actor.apply, params, obs, KEY, exact=True)
        for layer, (_, g) in sampled.items():
            error = g.std(0) / np.sqrt(len(keys))
            assert (np.abs(g.mean(0) - expected[layer].derivative) <= 5.0 * error + 1e-12).all()

    def test_a_critic_is_a_gaussian_of_unit_variance(self, rng):
        critic, obs = networks.Critic(small()), jnp.asarray(rng.normal(size=(4, 3)))
        params = parameters(critic, obs)
        as_actor = _Unit(critic)
        exact = kfac.factors(critic.apply, params, obs, KEY, exact=True)
        for layer in exact:
            fisher = dense_fisher(as_actor.apply, params, obs[:1], layer)
            one = kfac.factors(critic.apply, params, obs[:1], KEY, exact=True)[layer]
            np.testing.assert_allclose(np.kron(*one), fisher, rtol=1e-10, atol=1e-13)
        sampled = kfac.factors(critic.apply, params, jnp.repeat(obs[:1], 40_000, 0), KEY)["Dense_0"]
        np.testing.assert_allclose(sampled.derivative, 1.0, atol=0.04)

    def test_policy_and_critic_add_up_where_they_share_a_torso(self, rng):
        network, obs = shared(), jnp.asarray(rng.normal(size=(6, 3)))
        params = parameters(network, obs)
        both = kfac.factors(network.apply, params, obs, KEY, exact=True)
        policy = kfac.factors(lambda p, o: network.apply(p, o)[0], params, obs, KEY, exact=True)
        value = kfac.factors(lambda p, o: network.apply(p, o)[1], params, obs, KEY, exact=True)
        assert set(both) == {"torso/Dense_0", "torso/Dense_1", "actor/Dense_0", "critic/Dense_0"}
        for layer in both:
            total = policy[layer].derivative + value[layer].derivative
            np.testing.assert_allclose(both[layer].derivative, total, rtol=1e-12)
            np.testing.assert_allclose(both[layer].activation, policy[layer].activation, rtol=1e-12)
        assert (policy["critic/Dense_0"].derivative == 0).all()
        assert (value["actor/Dense_0"].derivative == 0).all()

    def test_time_and_environments_are_one_batch(self, rng):
        network, obs = shared(), jnp.asarray(rng.normal(size=(4, 3, 3)))
        params = parameters(network, obs)
        flat = kfac.factors(network.apply, params, obs.reshape(12, 3), KEY, exact=True)
        nested = kfac.factors(network.apply, params, obs, KEY, exact=True)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), flat, nested)

    def test_inside_scan_and_vmap_as_outside(self, rng):
        network, obs = shared(), jnp.asarray(rng.normal(size=(5, 6, 3)))
        params, keys = parameters(network, obs), jax.random.split(KEY, 5)

        def one(key, obs):
            return kfac.factors(network.apply, params, obs, key)

        mapped = jax.vmap(one)(keys, obs)
        _, scanned = jax.lax.scan(lambda c, x: (c, one(*x)), 0, (keys, obs))
        alone = one(keys[3], obs[3])
        for other in (mapped, scanned):
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x[3], y, rtol=1e-10), other, alone)

    def test_a_layer_without_a_bias_has_no_row_for_it(self, rng):
        class Plain(nn.Module):
            @nn.compact
            def __call__(self, obs):
                return nn.Dense(1, use_bias=False)(obs)[..., 0]

        obs = jnp.asarray(rng.normal(size=(4, 3)))
        params = parameters(Plain(), obs)
        state = refreshed(Plain().apply, params, obs, exact=True)
        np.testing.assert_allclose(state.factors["Dense_0"].activation, 0.01 * obs.T @ obs / 4, rtol=1e-10)
        direction = kfac.precondition(state, params)
        solved = jnp.linalg.solve(obs.T @ obs / 4 + 0.01 * jnp.eye(3), params["params"]["Dense_0"]["kernel"])
        np.testing.assert_allclose(direction["params"]["Dense_0"]["kernel"], solved, rtol=1e-9)


class _Unit:
    """A critic as the policy that its Fisher information belongs to."""

    def __init__(self, critic):
        self.critic = critic

    def apply(self, params, obs):
        from pgjax.distributions import DiagGaussian

        mean = self.critic.apply(params, obs)[..., None]
        return DiagGaussian(mean, jnp.zeros_like(mean))


@pytest.mark.usefixtures("x64")
class TestState:
    def test_one_observation_gives_a_dense_layer_exactly_the_damped_natural_step(self, rng):
        for kind in ("categorical", "gaussian"):
            actor, obs = ACTORS[kind](HEADS), jnp.asarray(rng.normal(size=(1, 4)))
            params, gradient = parameters(actor, obs), parameters(actor, obs, seed=5)
            state = refreshed(actor.apply, params, obs, exact=True)
            for damping in (0.01, 1.0):
                flat, unravel = ravel_pytree(gradient)
                fisher = fisher_matrix(actor.apply, params, obs)
                solved = unravel(jnp.linalg.solve(fisher + damping * jnp.eye(flat.size), flat))
                found = kfac.precondition(state, gradient, damping=damping)
                jax.tree.map(
                    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-8, atol=1e-10), found, solved
                )

    @pytest.mark.parametrize("split", [False, True])
    def test_preconditioning_is_the_dense_inverse(self, split, rng):
        actor, obs = ACTORS["gaussian"](small()), jnp.asarray(rng.normal(size=(7, 3)))
        params, gradient = parameters(actor, obs), parameters(actor, obs, seed=5)
        state, damping = refreshed(actor.apply, params, obs), 0.03
        found = kfac.precondition(state, gradient, damping=damping, split_damping=split)
        for layer, sums in state.factors.items():
            a, g = (x / state.weight for x in sums)
            if split:
                pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
                a = a + pi * np.sqrt(damping) * np.eye(len(a))
                g = g + np.sqrt(damping) / pi * np.eye(len(g))
            matrix = np.kron(a, g) + (0.0 if split else damping) * np.eye(len(a) * len(g))
            solved = np.linalg.solve(matrix, block(gradient, layer))
            np.testing.assert_allclose(block(found, layer), solved, rtol=1e-8, atol=1e-10)
        expected = gradient["params"]["log_std"] / (2.0 + damping)
        np.testing.assert_allclose(found["params"]["log_std"], expected, rtol=1e-12)

    def test_the_log_std_block_is_exact(self, rng):
        actor, obs = ACTORS["gaussian"](small()), jnp.asarray(rng.normal(size=(7, 3)))
        params = parameters(actor, obs)
        flat, unravel = ravel_pytree(params)
        at = unravel(jnp.arange(flat.size, dtype=flat.dtype))["params"]["log_std"].astype(int)
        fisher = fisher_matrix(actor.apply, params, obs)[at]
        np.testing.assert_allclose(fisher[:, at], 2.0 * np.eye(2), atol=1e-12)
        np.testing.assert_allclose(np.delete(fisher, at, 1), 0.0, atol=1e-12)

    def test_running_averages_are_averages_from_the_first_update_on(self, rng):
        critic, obs = networks.Critic(HEADS), jnp.asarray(rng.normal(size=(3, 5, 2)))
        params = parameters(critic, obs)
        state, found = kfac.init(params, ["Dense_0"]), []
        for i, o in enumerate(obs):
            found.append(kfac.factors(critic.apply, params, o, jax.random.key(i)))
            state = kfac.update_factors(state, found[-1], decay=0.9)
            weights = 0.1 * 0.9 ** np.arange(i, -1.0, -1.0)
            np.testing.assert_allclose(state.weight, weights.sum(), rtol=1e-12)
            for j in range(2):
                mean = sum(w * f["Dense_0"][j] for w, f in zip(weights, found, strict=True)) / weights.sum()
                np.testing.assert_allclose(state.factors["Dense_0"][j] / state.weight, mean, rtol=1e-10)

    def test_factors_that_are_not_finite_are_left_out(self, rng):
        critic, obs = networks.Critic(HEADS), jnp.asarray(rng.normal(size=(5, 2)))
        params = parameters(critic, obs)
        state = refreshed(critic.apply, params, obs)
        broken = kfac.factors(critic.apply, params, obs.at[2, 1].set(jnp.inf), KEY)
        after = kfac.update_factors(state, broken)
        jax.tree.map(np.testing.assert_array_equal, after, state)

    def test_before_the_first_refresh_there_is_damping_alone(self, rng):
        critic, obs = networks.Critic(small()), jnp.asarray(rng.normal(size=(5, 2)))
        params = parameters(critic, obs)
        state = kfac.init(params, kfac.dense_layers(critic.apply, params, obs))
        for unknown in (state, kfac.refresh(state)):
            found = kfac.precondition(unknown, params, damping=0.5)
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, 2.0 * y, rtol=1e-12), found, params)

    def test_refresh_decomposes_and_does_so_under_vmap(self, rng):
        network, obs = shared(), jnp.asarray(rng.normal(size=(4, 6, 3)))
        params = parameters(network, obs)
        layers = kfac.dense_layers(network.apply, params, obs)

        def state(obs):
            found = kfac.factors(network.apply, params, obs, KEY)
            return kfac.refresh(kfac.update_factors(kfac.init(params, layers), found))

        states = jax.jit(jax.vmap(state))(obs)
        nested = jax.jit(jax.vmap(jax.vmap(state)))(obs.reshape(2, 2, 6, 3))
        for layer, eigen in states.eigen.items():
            again = nested.eigen[layer].activation_values.reshape(4, -1)
            np.testing.assert_allclose(again, eigen.activation_values, rtol=1e-8, atol=1e-12)
            for values, vectors, sums in zip(eigen[::2], eigen[1::2], states.factors[layer], strict=True):
                assert (values >= 0).all()
                whole = jnp.einsum("bij,bj,bkj->bik", vectors, values, vectors)
                np.testing.assert_allclose(whole, sums / states.weight[:, None, None], rtol=1e-8, atol=1e-11)


class TestSteps:
    @given(st.floats(0.1, 10.0), st.floats(0.1, 10.0))
    def test_pi_balances_the_two_factors(self, a, g):
        pi = kfac.pi_correction(jnp.full(3, a), jnp.full(2, g))
        np.testing.assert_allclose(pi, np.sqrt(a / g), rtol=1e-5)

    def test_pi_is_one_where_a_factor_vanishes(self):
        assert kfac.pi_correction(jnp.ones(3), jnp.zeros(2)) == 1.0
        assert kfac.pi_correction(jnp.zeros(3), jnp.ones(2)) == 1.0
        assert kfac.pi_correction(jnp.full(1, 1e30), jnp.full(1, 1e-30)) == 1e6

    @given(st.floats(1e-3, 1e3), st.floats(1e-3, 1.0))
    def test_the_trust_scale_keeps_the_step_in_its_region(self, size, rate):
        gradient = {"w": size * jnp.array([1.0, -2.0]), "b": size * jnp.array([0.5])}
        direction = jax.tree.map(lambda g: 3.0 * g, gradient)
        scale = kfac.trust_scale(gradient, direction, learning_rate=rate, max_kl=0.01)
        square = rate**2 * 3.0 * 5.25 * size**2
        np.testing.assert_allclose(scale, min(1.0, np.sqrt(0.01 / square)), rtol=1e-5)

    @pytest.mark.parametrize(("gradient", "scale"), [(0.0, 1.0), (1e30, 1e-33), (np.inf, 0.0), (np.nan, 0.0)])
    def test_the_trust_scale_of_nothing_and_of_too_much(self, gradient, scale):
        x = jnp.array([gradient, 0.0])
        found = kfac.trust_scale(x, x, learning_rate=1.0, max_kl=1e-6)
        np.testing.assert_allclose(found, scale, rtol=1e-5)

    @pytest.mark.parametrize("max_kl", [jnp.nan, -1.0])
    def test_a_trust_region_that_is_none_is_not_left_out(self, max_kl):
        x = jnp.array([1e3])
        assert jnp.isnan(kfac.trust_scale(x, x, learning_rate=1.0, max_kl=max_kl))

    def test_gradients_are_clipped_before_all_else(self, rng):
        critic, obs = networks.Critic(small()), jnp.asarray(rng.normal(size=(5, 2)))
        params = parameters(critic, obs)
        state = refreshed(critic.apply, params, obs)
        options = {"learning_rate": 0.1, "max_kl": jnp.inf}
        whole, scale = kfac.trusted_direction(state, params, **options)
        clipped, _ = kfac.trusted_direction(state, params, max_grad_norm=0.25, **options)
        assert scale == 1.0
        factor = 0.25 / float(optax.tree.norm(params))
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, factor * y, rtol=1e-4, atol=1e-6), clipped, whole
        )

    def test_a_gradient_that_is_not_finite_is_no_step(self, rng):
        critic, obs = networks.Critic(small()), jnp.asarray(rng.normal(size=(5, 2)))
        params = parameters(critic, obs)
        state = refreshed(critic.apply, params, obs)
        for bad in (jnp.nan, jnp.inf, 3e38):
            gradient = jax.tree.map(lambda x, bad=bad: x.at[0].set(bad), params)
            for clip in (None, 0.5):
                direction, scale = kfac.trusted_direction(
                    state, gradient, learning_rate=0.1, max_grad_norm=clip
                )
                is_clipped = clip is not None and jnp.isfinite(bad)  # to an honest gradient of norm ½
                assert (scale > 0.0) == is_clipped
                assert any((x != 0).any() for x in jax.tree.leaves(direction)) == is_clipped
                assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(direction))

    def test_momentum_averages_the_directions(self):
        velocity, directions = jnp.zeros(()), [1.0, -2.0, 4.0]
        for d in directions:
            velocity, step = kfac.momentum_step(velocity, jnp.asarray(d), learning_rate=0.5, momentum=0.8)
        np.testing.assert_allclose(step, -0.5 * 0.2 * (0.64 * 1.0 - 0.8 * 2.0 + 4.0), rtol=1e-6)
        for _ in range(200):
            velocity, step = kfac.momentum_step(velocity, jnp.asarray(3.0), learning_rate=0.5, momentum=0.8)
        np.testing.assert_allclose(step, -1.5, rtol=1e-5)

    def test_the_optimizer_does_what_the_functions_do(self, rng):
        network, obs = shared(), jnp.asarray(rng.normal(size=(3, 6, 3)))
        params = parameters(network, obs)
        layers = kfac.dense_layers(network.apply, params, obs)
        rate = optax.linear_schedule(0.3, 0.0, 10)
        optimizer = kfac.kfac_optimizer(rate, layers, decay=0.9)
        opt_state = optimizer.init(params)
        state, velocity = kfac.init(params, layers), jax.tree.map(jnp.zeros_like, params)
        for i, o in enumerate(obs):
            found = kfac.factors(network.apply, params, o, jax.random.key(i))
            gradient = jax.tree.map(jnp.sin, params)
            updates, opt_state = optimizer.update(gradient, opt_state, factors=found, refresh_now=i != 1)
            state = kfac.update_factors(state, found, decay=0.9)
            state = kfac.refresh(state) if i != 1 else state
            direction, scale = kfac.trusted_direction(state, gradient, learning_rate=rate(i))
            velocity, step = kfac.momentum_step(velocity, direction, learning_rate=rate(i))
            assert 0.0 < scale < 1.0
            jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), updates, step)
        assert opt_state.num_updates == 3
        with pytest.raises(ValueError, match="damping must be above 0, got 0"):
            kfac.kfac_optimizer(0.1, damping=0)
        with pytest.raises(ValueError, match="needs the curvature"):
            optimizer.update(gradient, opt_state)

    def test_the_same_network_compiles_once(self, rng):
        network, obs = shared(), jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
        params = network.init(KEY, obs)
        kfac.factors.clear_cache()
        for i in range(3):
            kfac.factors(network.apply, params, obs, jax.random.key(i))
        assert kfac.factors._cache_size() == 1


class Twice(nn.Module):
    @nn.compact
    def __call__(self, obs):
        layer = nn.Dense(3)
        return layer(layer(obs)).sum(-1)


class PerPlace(nn.Module):
    """One layer for every row of an observation `[..., 2, 3]`."""

    @nn.compact
    def __call__(self, obs):
        return nn.Dense(1)(obs).sum((-1, -2))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.BatchNorm(use_running_average=True)(nn.Dense(1)(obs))[..., 0]


def test_the_curvature_of_a_saturated_squashed_policy_is_that_of_its_gaussian():
    """Of the score of the mean, σ⁻² within 5 %; the actions themselves have lost their tails."""
    actor = networks.TanhGaussianActor((-1.0,), (1.0,), small())
    obs = jax.random.normal(KEY, (20_000, 3))
    params = actor.init(KEY, obs)
    params["params"]["Dense_0"]["bias"] = jnp.array([10.0])  # the head of the mean
    found = kfac.factors(actor.apply, params, obs, KEY)["Dense_0"].derivative
    expected = kfac.factors(actor.apply, params, obs[:50], KEY, exact=True)["Dense_0"].derivative
    np.testing.assert_allclose(found, expected, rtol=0.05)


class TestRefusals:
    @pytest.mark.parametrize("call", [kfac.dense_layers, lambda *a: kfac.factors(*a, KEY)])
    def test_a_layer_used_twice(self, call):
        params = Twice().init(KEY, jnp.zeros(3))
        with pytest.raises(ValueError, match="'Dense_0' is called twice"):
            call(Twice().apply, params, jnp.zeros((4, 3)))

    def test_a_layer_used_at_several_places(self):
        params = PerPlace().init(KEY, jnp.zeros((2, 3)))
        with pytest.raises(ValueError, match="several places of one observation"):
            kfac.factors(PerPlace().apply, params, jnp.zeros((4, 2, 3)), KEY)

    def test_parameters_of_other_kinds(self):
        for network, obs, name in (
            (networks.CategoricalActor(2, networks.CNN(2, 4)), jnp.zeros((5, 5, 1)), "torso/Conv_0/kernel"),
            (networks.LinearSoftmax(lambda obs: obs[..., None]), jnp.zeros(2), "theta"),
        ):
            params = network.init(KEY, obs)
            layers = kfac.dense_layers(network.apply, params, obs)
            with pytest.raises(ValueError, match=name):
                kfac.init(params, layers)

    def test_other_collections(self):
        params = Normed().init(KEY, jnp.zeros(3))
        with pytest.raises(ValueError, match="no other collection"):
            kfac.init(params, ["Dense_0"])

    def test_names_of_no_dense_layer(self):
        critic = networks.Critic(HEADS)
        params = critic.init(KEY, jnp.zeros(3))
        with pytest.raises(ValueError, match="no dense layer 'Dense_1'"):
            kfac.init(params, ["Dense_0", "Dense_1"])
        with pytest.raises(ValueError, match="belong to no dense layer"):
            kfac.init(params, [])

    def test_factors_of_other_layers(self):
        critic = networks.Critic(small())
        params = critic.init(KEY, jnp.zeros(3))
        state = kfac.init(params, kfac.dense_layers(critic.apply, params, jnp.zeros(3)))
        with pytest.raises(ValueError, match="the state knows"):
            kfac.update_factors(state, {})
