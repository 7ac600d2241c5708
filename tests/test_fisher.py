"""The Fisher information and the natural gradient, against dense matrices, SciPy and identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import pgjax
from pgjax import networks, tabular
from pgjax.distributions import Categorical
from pgjax.natural import fisher

ACTORS = {
    "categorical": networks.CategoricalActor(3, networks.MLP((4,))),
    "gaussian": networks.GaussianActor(2, networks.MLP((4,))),
    "tanh_gaussian": networks.TanhGaussianActor((-1.0, -2.0), (1.0, 3.0), networks.MLP((4,))),
}
NUM_OBS = 6


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def setting(name):
    """An actor with parameters away from symmetry, and observations."""
    actor = ACTORS[name]
    obs_key, init_key, noise_key = jax.random.split(jax.random.key(0), 3)
    obs = jax.random.normal(obs_key, (NUM_OBS, 3))
    start = jax.tree.map(lambda x: x.astype(float), actor.init(init_key, obs))
    flat, unravel = ravel_pytree(start)
    return actor, unravel(flat + 0.3 * jax.random.normal(noise_key, flat.shape)), obs


def ravel(tree):
    return np.asarray(ravel_pytree(tree)[0])


def relative(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


class TestFisher:
    @pytest.mark.parametrize("name", ACTORS)
    def test_matrix_product_and_kl_hessian_agree(self, name):
        actor, params, obs = setting(name)
        flat, unravel = ravel_pytree(params)
        matrix = pgjax.fisher_matrix(actor.apply, params, obs)

        def kl(flat):
            return actor.apply(params, obs).kl(actor.apply(unravel(flat), obs)).mean()

        assert relative(matrix, jax.hessian(kl)(flat)) < 1e-10
        vector = jax.random.normal(jax.random.key(5), flat.shape)
        product = pgjax.fisher_vector_product(actor.apply, params, obs, unravel(vector), damping=0.3)
        assert relative(ravel(product), matrix @ vector + 0.3 * vector) < 1e-10

    def test_the_categorical_one_is_the_expectation_over_actions(self):
        actor, params, obs = setting("categorical")
        probs = actor.apply(params, obs).probs
        expected = 0.0
        for action in range(3):
            scores = pgjax.score(actor.apply, params, obs, jnp.full(NUM_OBS, action))
            rows = jax.vmap(lambda s: ravel_pytree(s)[0])(scores)
            expected += jnp.einsum("s,sp,sq->pq", probs[:, action], rows, rows) / NUM_OBS
        assert relative(pgjax.fisher_matrix(actor.apply, params, obs), expected) < 1e-10

    def test_the_gaussian_one_is_the_closed_form(self):
        """F = Jᵀ diag(1/σ², 2) J over the outputs (mean, log σ)."""
        actor, params, obs = setting("gaussian")
        flat, unravel = ravel_pytree(params)

        sigma = jnp.exp(actor.apply(params, obs[0]).clipped_log_std)
        expected = 0.0
        for one in obs:
            policy_jacobian = jax.jacobian(
                lambda flat, one=one: jnp.concatenate(list(actor.apply(unravel(flat), one)))
            )(flat)
            metric = jnp.diag(jnp.concatenate([1.0 / sigma**2, jnp.full(2, 2.0)]))
            expected += policy_jacobian.T @ metric @ policy_jacobian / NUM_OBS
        assert relative(pgjax.fisher_matrix(actor.apply, params, obs), expected) < 1e-10

    @pytest.mark.parametrize("name", ACTORS)
    @pytest.mark.last_bits
    def test_it_is_positive_semi_definite(self, name):
        actor, params, obs = setting(name)
        matrix = np.asarray(pgjax.fisher_matrix(actor.apply, params, obs))
        np.testing.assert_array_equal(matrix, matrix.T)
        values = np.linalg.eigvalsh(matrix)
        assert values[0] > -1e-13 * values[-1]

    def test_weights_are_shares_and_padding_may_be_anything(self):
        actor, params, obs = setting("categorical")
        weight = jnp.array([1.0, 0.0, 2.0, 1.0, 0.0, 0.5])
        whole = pgjax.fisher_matrix(actor.apply, params, obs.at[1].set(jnp.nan), weight=weight)
        each = [pgjax.fisher_matrix(actor.apply, params, obs[i : i + 1]) for i in range(NUM_OBS)]
        expected = sum(w * f for w, f in zip(weight, each, strict=True)) / weight.sum()
        assert relative(whole, expected) < 1e-12
        grid = obs.at[1].set(jnp.nan).reshape(3, 2, 3)
        again = pgjax.fisher_matrix(actor.apply, params, grid, weight=weight.reshape(3, 2))
        assert relative(again, expected) < 1e-12

    def test_no_weight_at_all_is_a_fisher_of_zero(self):
        actor, params, obs = setting("categorical")
        matrix = pgjax.fisher_matrix(actor.apply, params, obs, weight=jnp.zeros(NUM_OBS))
        np.testing.assert_array_equal(matrix, 0.0)

    def test_masked_actions_are_left_out(self):
        actor = networks.CategoricalActor(3, networks.MLP((4,)))
        obs = {"obs": jnp.ones((2, 3)), "action_mask": jnp.array([[True, True, False]] * 2)}
        params = actor.init(jax.random.key(0), obs)
        matrix = pgjax.fisher_matrix(actor.apply, params, obs)
        assert np.isfinite(matrix).all()
        bias = ravel(jax.tree.map(jnp.zeros_like, params))
        named = jax.tree_util.tree_map_with_path(
            lambda path, x: jnp.full_like(x, float("bias" in str(path) and x.shape == (3,))), params
        )
        rows = np.flatnonzero(ravel(named) + bias)
        np.testing.assert_allclose(matrix[rows[-1]], 0.0, atol=1e-15)

    def test_it_is_that_of_the_exact_solution_under_the_visitation(self):
        mdp = tabular.random_mdp(jax.random.key(0), 4, 3, 0.9, num_terminal=1)
        actor = ACTORS["categorical"]
        params = jax.tree.map(lambda x: x.astype(float), actor.init(jax.random.key(1), mdp.observations))
        weight = tabular.visitation(mdp, tabular.policy_matrix(mdp, actor.apply, params))
        found = pgjax.fisher_matrix(actor.apply, params, mdp.observations, weight=weight)
        assert relative(found, tabular.fisher(mdp, actor.apply, params)) < 1e-10


class TestEmpirical:
    def test_with_the_policys_own_actions_it_is_unbiased(self):
        """20,000 actions a state; each entry within 5 standard errors (one in 1e4 seeds per matrix fails)."""
        actor, params, obs = setting("categorical")
        many = jnp.broadcast_to(obs, (20_000, *obs.shape))
        action = actor.apply(params, many).sample(jax.random.key(3))
        scores = pgjax.score(actor.apply, params, many, action)
        rows = np.concatenate([np.reshape(x, (20_000 * NUM_OBS, -1)) for x in jax.tree.leaves(scores)], -1)
        found = np.asarray(pgjax.empirical_fisher_matrix(actor.apply, params, many, action))
        np.testing.assert_allclose(found, rows.T @ rows / len(rows), rtol=1e-9, atol=1e-14)
        fourth = (rows**2).T @ rows**2 / len(rows)
        error = np.sqrt((fourth - found**2) / len(rows))
        exact = np.asarray(pgjax.fisher_matrix(actor.apply, params, obs))
        assert (np.abs(found - exact) <= 5.0 * error + 1e-12).all()

    def test_with_other_actions_it_is_not(self):
        actor, params, obs = setting("categorical")
        least = actor.apply(params, obs).logits.argmin(-1)
        found = pgjax.empirical_fisher_matrix(actor.apply, params, obs, least)
        assert relative(found, pgjax.fisher_matrix(actor.apply, params, obs)) > 0.5

    def test_weights_and_padding(self):
        actor, params, obs = setting("categorical")
        action = jnp.zeros(NUM_OBS, int)
        weight = jnp.array([2.0, 0.0, 1.0, 0.0, 0.0, 0.0])
        found = pgjax.empirical_fisher_matrix(
            actor.apply, params, obs.at[1].set(jnp.nan), action, weight=weight
        )
        kept = jnp.array([0, 0, 2])
        expected = pgjax.empirical_fisher_matrix(actor.apply, params, obs[kept], action[:3])
        assert relative(found, expected) < 1e-12


class TestNaturalGradient:
    @pytest.mark.parametrize("name", ACTORS)
    def test_enough_iterations_solve_the_system(self, name):
        actor, params, obs = setting(name)
        flat, unravel = ravel_pytree(params)
        target = jax.random.normal(jax.random.key(2), flat.shape)
        matrix = pgjax.fisher_matrix(actor.apply, params, obs) + 0.1 * jnp.eye(flat.size)
        found, info = pgjax.natural_gradient(
            actor.apply, params, obs, unravel(target), cg_iters=200, tol=1e-11
        )
        expected = np.linalg.solve(matrix, target)
        assert relative(ravel(found), expected) < 1e-9
        assert info.converged
        assert info.iterations < 200
        assert info.relative_residual < 1e-11
        np.testing.assert_allclose(info.damped_curvature, expected @ matrix @ expected, rtol=1e-8)
        undamped = info.damped_curvature - 0.1 * expected @ expected
        np.testing.assert_allclose(info.curvature, undamped, rtol=1e-6)

    @pytest.mark.parametrize("cg_iters", [1, 3, 10])
    def test_it_takes_the_iterations_of_jax(self, cg_iters):
        actor, params, obs = setting("categorical")
        flat, unravel = ravel_pytree(params)
        target = jax.random.normal(jax.random.key(2), flat.shape)
        matrix = pgjax.fisher_matrix(actor.apply, params, obs) + 0.1 * jnp.eye(flat.size)
        expected, _ = jax.scipy.sparse.linalg.cg(lambda v: matrix @ v, target, tol=0.0, maxiter=cg_iters)
        found, info = pgjax.natural_gradient(actor.apply, params, obs, unravel(target), cg_iters=cg_iters)
        assert relative(ravel(found), expected) < 1e-8
        assert info.iterations == cg_iters
        residual = np.linalg.norm(target - matrix @ ravel(found)) / np.linalg.norm(target)
        np.testing.assert_allclose(info.relative_residual, residual, rtol=1e-6)

    def test_chunks_change_nothing(self):
        actor, params, obs = setting("gaussian")
        flat, unravel = ravel_pytree(params)
        gradient = unravel(jax.random.normal(jax.random.key(2), flat.shape))
        weight = jnp.arange(1.0, 7.0)
        whole, _ = pgjax.natural_gradient(actor.apply, params, obs, gradient, cg_iters=4, weight=weight)
        for num_chunks in (2, 3, 6):
            parts, _ = pgjax.natural_gradient(
                actor.apply, params, obs, gradient, cg_iters=4, weight=weight, num_chunks=num_chunks
            )
            assert relative(ravel(parts), ravel(whole)) < 1e-12

    def test_a_zero_gradient_gives_a_zero_step(self):
        actor, params, obs = setting("categorical")
        found, info = pgjax.natural_gradient(actor.apply, params, obs, jax.tree.map(jnp.zeros_like, params))
        np.testing.assert_array_equal(ravel(found), 0.0)
        assert info.converged
        assert info.iterations == 0

    @pytest.mark.parametrize("scale", [0.0, 1e8])
    def test_a_singular_fisher_gives_a_finite_step_and_says_so(self, scale):
        """Logits that are all equal in θ (scale 0: no curvature at all), and a deterministic policy."""

        def apply(params, obs):
            return Categorical(obs * scale * params[None])

        obs = jnp.array([[1.0, -1.0]])
        found, info = pgjax.natural_gradient(apply, jnp.ones(2), obs, jnp.ones(2), damping=0.0)
        assert np.isfinite(found).all()
        assert not info.converged
        assert info.curvature == 0.0

    def test_collinear_features_give_a_finite_step(self):
        """The gradient of a policy lies in the range of its Fisher: the undamped system is consistent."""

        def apply(params, obs):
            return Categorical(obs @ params)

        obs = jax.random.normal(jax.random.key(0), (20, 1)) * jnp.ones((20, 3))
        params = jnp.zeros((3, 2))
        gradient = jnp.ones((3, 1)) * jnp.array([[1.0, -1.0]])
        found, info = pgjax.natural_gradient(
            apply, params, obs, gradient, damping=0.0, cg_iters=20, tol=1e-10
        )
        matrix = pgjax.fisher_matrix(apply, params, obs)
        np.testing.assert_allclose(found.ravel(), np.linalg.pinv(matrix, 1e-10) @ gradient.ravel(), rtol=1e-8)
        assert info.converged
        outside, info = pgjax.natural_gradient(
            apply, params, obs, gradient.at[0].add(1.0), damping=0.0, cg_iters=50
        )
        assert np.isfinite(outside).all()
        assert not info.converged

    def test_it_works_under_jit_and_vmap(self):
        actor, params, obs = setting("categorical")
        gradients = jax.tree.map(lambda x: jnp.stack([x, 2.0 * x, 0.0 * x]), params)

        def solve(gradient, damping):
            return pgjax.natural_gradient(actor.apply, params, obs, gradient, damping=damping)

        many, info = jax.jit(jax.vmap(solve, (0, 0)))(gradients, jnp.array([0.1, 1.0, 0.1]))
        for i, damping in enumerate([0.1, 1.0, 0.1]):
            one, one_info = solve(jax.tree.map(lambda x, i=i: x[i], gradients), damping)
            np.testing.assert_allclose(ravel(jax.tree.map(lambda x, i=i: x[i], many)), ravel(one), rtol=1e-8)
            assert info.iterations[i] == one_info.iterations

    def test_the_policy_it_leads_to_does_not_depend_on_the_parameters(self):
        """θ = Aφ: the same change of logits, for the natural step; another one for the plain step."""
        features = jax.random.normal(jax.random.key(0), (5, 3, 2))
        mix = jax.random.normal(jax.random.key(1), (2, 2)) + 2.0 * jnp.eye(2)
        theta = jnp.array([0.3, -0.7])
        weight = jax.random.normal(jax.random.key(2), (5, 3))

        def by_theta(params, obs):
            return Categorical(features[obs] @ params)

        def by_phi(params, obs):
            return Categorical(features[obs] @ (mix @ params))

        obs = jnp.arange(5)
        changes = {}
        for name, apply, params in [
            ("theta", by_theta, theta),
            ("phi", by_phi, jnp.linalg.solve(mix, theta)),
        ]:

            def gain(params, apply=apply):
                return (apply(params, obs).probs * weight).sum(-1).mean()

            gradient = jax.grad(gain)(params)
            natural, _ = pgjax.natural_gradient(apply, params, obs, gradient, damping=0.0, cg_iters=10)
            for kind, step in [("natural", natural), ("plain", gradient)]:
                changes[name, kind] = apply(params + 0.1 * step, obs).probs
        np.testing.assert_allclose(changes["theta", "natural"], changes["phi", "natural"], atol=1e-6)
        assert np.abs(changes["theta", "plain"] - changes["phi", "plain"]).max() > 1e-3

    def test_a_nonlinear_change_of_parameters_matters_only_to_second_order(self):
        features = jax.random.normal(jax.random.key(0), (5, 3, 2))
        weight = jax.random.normal(jax.random.key(2), (5, 3))
        obs, theta = jnp.arange(5), jnp.array([0.3, -0.7])

        def by_theta(params, obs):
            return Categorical(features[obs] @ params)

        def by_sinh(params, obs):
            return Categorical(features[obs] @ jnp.sinh(params))

        def step(apply, params, size):
            gradient = jax.grad(lambda p: (apply(p, obs).probs * weight).sum(-1).mean())(params)
            natural, _ = pgjax.natural_gradient(apply, params, obs, gradient, damping=0.0)
            return apply(params + size * natural, obs).probs - apply(params, obs).probs

        gaps = [
            relative(step(by_sinh, jnp.arcsinh(theta), size), step(by_theta, theta, size))
            for size in (1e-2, 1e-3, 1e-4)
        ]
        assert gaps[0] < 0.1
        np.testing.assert_allclose(np.divide(gaps[:-1], gaps[1:]), 10.0, rtol=0.1)

    def test_it_is_that_of_the_exact_solution(self):
        mdp = tabular.random_mdp(jax.random.key(0), 4, 3, 0.9)
        params = jax.random.normal(jax.random.key(1), (4, 3))
        weight = tabular.visitation(mdp, tabular.policy_matrix(mdp, linear_softmax, params))
        gradient = tabular.policy_gradient(mdp, linear_softmax, params)
        found, _ = pgjax.natural_gradient(
            linear_softmax,
            params,
            mdp.observations,
            gradient,
            damping=1e-3,
            weight=weight,
            cg_iters=50,
            tol=1e-12,
        )
        expected = tabular.natural_gradient(mdp, linear_softmax, params, damping=1e-3)
        assert relative(ravel(found), ravel(expected)) < 1e-8

    @settings(max_examples=20)
    @given(st.integers(0, 10_000), st.floats(-6.0, 6.0), st.floats(-6.0, 6.0))
    def test_nothing_becomes_nan(self, seed, log_logits, log_gradient):
        with jax.enable_x64(False):
            keys = jax.random.split(jax.random.key(seed), 3)
            obs = jax.random.normal(keys[0], (4, 3))
            params = 10.0**log_logits * jax.random.normal(keys[1], (3, 2))
            gradient = 10.0**log_gradient * jax.random.normal(keys[2], (3, 2))
            for damping in (0.0, 0.1):
                found, info = pgjax.natural_gradient(
                    linear_softmax, params, obs, gradient, damping=damping, cg_iters=20
                )
                assert np.isfinite(found).all()
                assert np.isfinite(ravel(info)).all()

    @pytest.mark.parametrize("size", [1e20, 1e-30])
    def test_a_gradient_whose_square_has_no_number_gives_no_direction_and_no_nan(self, size):
        actor, params, obs = setting("categorical")
        params, obs = (jax.tree.map(lambda x: x.astype(jnp.float32), x) for x in (params, obs))
        gradient = jax.tree.map(lambda p: jnp.full_like(p, size), params)
        found, info = pgjax.natural_gradient(actor.apply, params, obs, gradient)
        np.testing.assert_array_equal(ravel(found), 0.0)
        assert np.isfinite(ravel(info)).all()
        assert info.relative_residual == (size > 1)

    def test_bad_numbers_are_an_error(self):
        actor, params, obs = setting("categorical")
        with pytest.raises(ValueError, match="num_chunks=4 must divide the first axis of obs, 6"):
            pgjax.natural_gradient(actor.apply, params, obs, params, num_chunks=4)
        with pytest.raises(ValueError, match="cg_iters must be at least 1"):
            pgjax.natural_gradient(actor.apply, params, obs, params, cg_iters=0)
        with pytest.raises(AssertionError):
            pgjax.fisher_matrix(actor.apply, params, obs, weight=jnp.ones(NUM_OBS + 1))


def linear_softmax(params, obs):
    return Categorical(obs @ params)


def test_the_kl_after_a_normalised_step_tends_to_the_bound():
    with jax.enable_x64(True):
        actor, params, obs = setting("categorical")
        flat, unravel = ravel_pytree(params)
        gradient = unravel(jax.random.normal(jax.random.key(2), flat.shape))
        direction, info = pgjax.natural_gradient(actor.apply, params, obs, gradient, cg_iters=60)
        gaps = []
        for max_kl in (1e-2, 1e-4, 1e-6):
            size = pgjax.kl_step_size(info.curvature, max_kl=max_kl)
            new = jax.tree.map(lambda p, d, size=size: p + size * d, params, direction)
            kl = actor.apply(params, obs).kl(actor.apply(new, obs)).mean()
            gaps.append(abs(float(kl / max_kl) - 1.0))
        assert gaps[2] < 1e-2
        assert gaps[2] < gaps[1] < gaps[0] + 1e-12


def test_one_linearisation_serves_all_iterations():
    """The forward pass stands before the loop of conjugate gradients, not in it."""
    actor = ACTORS["categorical"]
    obs = jnp.ones((4, 3))
    params = actor.init(jax.random.key(0), obs)
    program = jax.make_jaxpr(
        lambda g: fisher.natural_gradient.__wrapped__(actor.apply, params, obs, g, cg_iters=5)
    )(params)
    loops = [eqn for eqn in program.eqns if eqn.primitive.name in ("scan", "while")]
    assert len(loops) == 1
    assert "tanh" not in str(loops[0].params)
    assert "tanh" in str(program)
