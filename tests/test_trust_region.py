"""Step lengths from a KL bound, and the line search."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pgjax


def quadratic(x):
    """Improves until x = 1, with a KL of x²/2 beside it."""
    return 1.0 - (x - 1.0) ** 2, 0.5 * x**2


def search(full_step, **options):
    options = {"max_kl": 10.0, "backtrack": 0.5, "num_backtracks": 6} | options
    return pgjax.backtracking_line_search(jnp.array(0.0), jnp.array(full_step), quadratic, **options)


class TestStepSize:
    def test_the_quadratic_kl_is_met(self):
        step = pgjax.kl_step_size(jnp.array([0.5, 8.0]), max_kl=0.01)
        np.testing.assert_allclose(0.5 * step**2 * np.array([0.5, 8.0]), 0.01, rtol=1e-6)

    @pytest.mark.parametrize("curvature", [0.0, -1.0, np.nan, np.inf, 1e-45])
    def test_without_curvature_there_is_no_step(self, curvature):
        assert pgjax.kl_step_size(jnp.array(curvature), max_kl=0.01) == 0.0

    def test_a_gradient_through_it_is_finite(self):
        gradient = jax.vmap(jax.grad(lambda c: pgjax.kl_step_size(c, max_kl=0.01)))(jnp.array([0.0, 2.0]))
        np.testing.assert_allclose(gradient, [0.0, -0.025], rtol=1e-5)


class TestLineSearch:
    @pytest.mark.parametrize(
        ("full_step", "max_kl", "chosen"),
        [(1.0, 10.0, 0), (2.5, 10.0, 1), (1.0, 0.1, 2), (8.0, 10.0, 3)],
        ids=["full step", "improvement", "KL", "both"],
    )
    def test_the_first_feasible_candidate_is_taken(self, full_step, max_kl, chosen):
        new, info = search(full_step, max_kl=max_kl)
        assert info.accepted
        assert info.chosen == chosen
        np.testing.assert_allclose(new, full_step * 0.5**chosen)
        improvement, kl = quadratic(new)
        np.testing.assert_allclose([info.improvement, info.kl, info.scale], [improvement, kl, 0.5**chosen])

    def test_nothing_is_evaluated_beyond_the_first_feasible_candidate(self):
        seen = []

        def evaluate(x):
            jax.debug.callback(lambda x: seen.append(float(x)), x)
            return quadratic(x)

        _, info = pgjax.backtracking_line_search(
            jnp.array(0.0), jnp.array(2.5), evaluate, max_kl=10.0, backtrack=0.5
        )
        jax.effects_barrier()
        assert info.chosen == 1
        assert seen == [2.5, 1.25]

    @pytest.mark.parametrize("full_step", [-1.0, 0.0, 1e9, np.nan, np.inf])
    def test_without_one_nothing_changes(self, full_step):
        params = {"a": jnp.array([0.1, -0.0]), "b": jnp.array(3, jnp.int32)}
        step = {"a": jnp.array([full_step, full_step]), "b": jnp.array(0, jnp.int32)}

        def evaluate(params):
            return quadratic(params["a"][0] - 0.1)

        new, info = pgjax.backtracking_line_search(params, step, evaluate, max_kl=10.0)
        assert not info.accepted
        assert info.chosen == -1
        assert (info.scale, info.improvement, info.kl) == (0.0, 0.0, 0.0)
        assert jax.tree.all(
            jax.tree.map(lambda a, b: a.tobytes() == b.tobytes(), *map(to_numpy, (new, params)))
        )

    def test_a_nan_in_what_is_evaluated_is_not_feasible(self):
        def evaluate(x):
            return jnp.where(x > 0.5, jnp.nan, x), jnp.where(x > 0.3, jnp.nan, 0.0)

        new, info = pgjax.backtracking_line_search(
            jnp.array(0.0), jnp.array(1.0), evaluate, max_kl=1.0, backtrack=0.5
        )
        assert info.chosen == 2
        assert new == 0.25

    @given(st.floats(-4.0, 4.0), st.floats(0.01, 4.0))
    def test_it_never_breaks_its_promises(self, full_step, max_kl):
        new, info = search(full_step, max_kl=max_kl)
        improvement, kl = quadratic(new)
        assert (new == 0.0) == (not info.accepted)
        if info.accepted:
            assert kl <= max_kl * (1 + 1e-6)
            assert improvement > 0

    def test_it_maps(self):
        steps = jnp.array([1.0, 2.5, -1.0])
        new, info = jax.jit(
            jax.vmap(
                lambda s: pgjax.backtracking_line_search(0.0 * s, s, quadratic, max_kl=10.0, backtrack=0.5)
            )
        )(steps)
        np.testing.assert_array_equal(info.chosen, [0, 1, -1])
        np.testing.assert_allclose(new, [1.0, 1.25, 0.0])

    def test_no_candidates_are_an_error(self):
        with pytest.raises(ValueError, match="num_backtracks must be at least 1"):
            search(1.0, num_backtracks=0)


def to_numpy(tree):
    return jax.tree.map(np.asarray, tree)
