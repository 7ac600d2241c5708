import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

import pgjax

PER = ("trajectory", "time", "parameter")


@pytest.fixture
def batch(rng):
    """`(reward_to_go, valid)`, `[4, 3]`: lengths 4, 2 and 1."""
    return rng.normal(size=(4, 3)), np.arange(4)[:, None] < [4, 2, 1]


def others_mean(weight, valid):
    out = np.zeros(weight.shape)
    for t, i in np.ndindex(weight.shape):
        others = [weight[t, j] for j in range(weight.shape[1]) if j != i and valid[t, j]]
        out[t, i] = np.mean(others) if others else 0.0
    return out


def time_mean(weight, valid):
    rows = [w[v].mean() if v.any() else 0.0 for w, v in zip(weight, valid, strict=True)]
    return np.broadcast_to(np.array(rows)[:, None], weight.shape)


FORMULAS = {
    "constant_baseline": lambda weight, valid: np.full(weight.shape, weight[valid].mean()),
    "time_baseline": time_mean,
    "leave_one_out_baseline": others_mean,
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_means_equal_their_formulas(name, masked, batch, x64):
    weight, valid = batch
    if not masked:
        valid = np.ones_like(valid)
    baseline = getattr(pgjax, name)(weight, valid if masked else None)
    np.testing.assert_allclose(baseline, FORMULAS[name](weight, valid), rtol=1e-12)


def random_scores(rng):
    return {"w": rng.normal(size=(4, 3, 2, 2)), "b": rng.normal(size=(4, 3))}


FITTED = {
    **{name: lambda g, v, s, f, name=name: getattr(pgjax, name)(g, v) for name in FORMULAS},
    "linear_baseline": lambda g, v, s, f: pgjax.linear_baseline(f, g, v),
    **{
        f"optimal_baseline per {per}": lambda g, v, s, f, per=per: pgjax.optimal_baseline(s, g, v, per=per)
        for per in PER
    },
}


@pytest.mark.parametrize("name", FITTED)
def test_what_is_not_valid_counts_for_nothing_even_if_it_is_nan(name, batch, rng, x64):
    weight, valid = batch
    scores, features = random_scores(rng), rng.normal(size=(4, 3, 2))

    def fit(padding):
        def pad(x):
            return np.where(valid.reshape(valid.shape + (1,) * (x.ndim - 2)), x, padding)

        baseline = FITTED[name](pad(weight), valid, jax.tree.map(pad, scores), pad(features))
        if "parameter" not in name:
            baseline = jnp.where(valid, baseline, 0.0)
        return jnp.concatenate([x.ravel() for x in jax.tree.leaves(baseline)])

    zeros, nans = fit(0.0), fit(np.nan)
    assert np.isfinite(zeros).all()
    np.testing.assert_array_equal(nans, zeros)


@pytest.mark.parametrize("name", FITTED)
def test_nothing_valid_gives_zero(name, rng):
    weight, valid = np.ones((4, 3)), np.zeros((4, 3), bool)
    baseline = FITTED[name](weight, valid, random_scores(rng), rng.normal(size=(4, 3, 2)))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(baseline))


@pytest.mark.parametrize("name", [n for n in FITTED if n.startswith(("constant", "time", "leave", "linear"))])
def test_a_baseline_shifts_with_its_returns(name, batch, rng, x64):
    weight, valid = batch
    features = np.concatenate([rng.normal(size=(4, 3, 1)), np.ones((4, 3, 1))], -1)
    alone = valid.sum(1, keepdims=True) < 2  # no other trajectory: leave-one-out stays 0 there
    before, after = (np.asarray(FITTED[name](weight + c, valid, None, features)) for c in (0.0, 7.0))
    shifted = valid & ~alone if name.startswith("leave") else valid
    np.testing.assert_allclose((after - before)[shifted], 7.0, rtol=1e-9)


def test_subtract_baseline_is_zero_where_not_valid_and_broadcasts(rng, x64):
    weight, valid = rng.normal(size=(4, 3, 2)), np.arange(4)[:, None] < [4, 2, 1]
    baseline = rng.normal(size=(4, 3))
    expected = np.where(valid[..., None], weight - baseline[..., None], 0.0)
    np.testing.assert_allclose(pgjax.subtract_baseline(weight, baseline, valid), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (4, 1), (4, 3)])
@pytest.mark.parametrize("masked", [False, True])
def test_a_baseline_of_fewer_axes_broadcasts_against_the_returns(shape, masked, rng, x64):
    weight, baseline = rng.normal(size=(4, 3)), rng.normal(size=shape)
    valid = jnp.ones((4, 3), bool) if masked else None
    np.testing.assert_allclose(
        pgjax.subtract_baseline(weight, baseline, valid), weight - baseline, rtol=1e-12
    )


# Exact expectations: every batch of N trajectories, weighted by its probability.


def expected_gradient(baseline, num, *, early_end):
    """`(E[(1/N) Σ_i Σ_t s (G − b)], ∇J)` by the sum over all batches of N trajectories."""
    tau = oracles.enumerate_trajectories(2, early_end=early_end)
    weight = np.cumsum(tau.reward[::-1], 0)[::-1]
    scores = oracles.softmax_scores(tau)
    batches = np.array(list(itertools.product(range(len(tau.probability)), repeat=num)))
    weights, valid = (np.moveaxis(x[:, batches], 0, 1) for x in (weight, tau.valid))  # [B, T, N]
    baselines = np.asarray(jax.vmap(baseline)(jnp.asarray(weights), jnp.asarray(valid)))
    gradient = np.einsum("btn,tbnsa->bsa", weights - baselines, scores[:, batches]) / num
    probability = tau.probability[batches].prod(1)
    np.testing.assert_allclose(probability.sum(), 1.0, rtol=1e-12)
    exact = np.einsum("m,tm,tmsa->sa", tau.probability, weight, scores)
    return np.einsum("b,bsa->sa", probability, gradient), exact


@pytest.mark.parametrize("early_end", [False, True])
@pytest.mark.parametrize("num", [2, 3])
def test_leave_one_out_is_unbiased_over_all_batches(num, early_end, x64):
    expected, exact = expected_gradient(pgjax.leave_one_out_baseline, num, early_end=early_end)
    np.testing.assert_allclose(expected, exact, rtol=1e-10)


@pytest.mark.parametrize("num", [2, 3])
def test_the_mean_per_time_scales_the_gradient_by_1_minus_1_over_n(num, x64):
    expected, exact = expected_gradient(pgjax.time_baseline, num, early_end=False)
    np.testing.assert_allclose(expected, (1 - 1 / num) * exact, rtol=1e-10)


def test_the_constant_baseline_is_biased(x64):
    expected, exact = expected_gradient(pgjax.constant_baseline, 2, early_end=False)
    assert np.abs(expected / exact - 1.0).min() > 0.05


@pytest.fixture(scope="module")
def population():
    """Columns that occur as often as their trajectory is probable: means over them are expectations."""
    tau = oracles.enumerate_trajectories(3, early_end=True)
    copies = tau.probability * 2048
    assert (copies == copies.round()).all()
    tau = oracles.Trajectories(*(np.repeat(x, copies.astype(int), axis=-1) for x in tau))
    weight = np.cumsum(tau.reward[::-1], 0)[::-1]
    return weight, oracles.softmax_scores(tau), tau.valid


def trace(weight, scores):
    """The trace of the covariance of Σ_t s_t Ψ_t, exactly; `weight` may have parameter axes."""
    gradient = np.einsum("tnsa,tnsa->nsa", np.broadcast_to(weight, scores.shape), scores)
    return gradient.var(0).sum()


def deep(weight):
    return np.asarray(weight)[..., None, None]


@pytest.mark.parametrize("shift", [-0.3, -1e-3, 1e-3, 0.3])
@pytest.mark.parametrize("per", PER)
def test_moving_any_part_of_an_optimal_baseline_raises_the_exact_variance(per, shift, population, x64):
    weight, scores, valid = population
    baseline = np.asarray(pgjax.optimal_baseline(scores, weight, valid, per=per))
    if per != "parameter":
        baseline = deep(baseline)
    least = trace(deep(weight) - baseline, scores)
    assert least < trace(deep(weight), scores)
    moves = {
        "trajectory": [np.ones((1, 1, 1, 1))],
        "time": [np.eye(3)[t].reshape(3, 1, 1, 1) for t in range(3)],
        "parameter": [np.eye(4)[p].reshape(1, 1, 2, 2) for p in range(4)],
    }[per]
    for move in moves:
        assert trace(deep(weight) - baseline - shift * move, scores) > least


def test_finer_optimal_baselines_leave_less_variance(population, x64):
    weight, scores, valid = population
    left = {}
    for per in PER:
        baseline = np.asarray(pgjax.optimal_baseline(scores, weight, valid, per=per))
        left[per] = trace(deep(weight) - (baseline if per == "parameter" else deep(baseline)), scores)
    assert left["time"] < left["trajectory"]
    assert left["parameter"] < left["trajectory"]
    assert left["trajectory"] < trace(deep(weight - pgjax.constant_baseline(weight, valid)), scores)


@pytest.mark.parametrize("per", PER)
def test_an_optimal_baseline_shifts_with_its_returns(per, population, x64):
    weight, scores, valid = population
    before, after = (
        np.asarray(pgjax.optimal_baseline(scores, weight + c, valid, per=per)) for c in (0.0, 7.0)
    )
    np.testing.assert_allclose(after - before, 7.0, rtol=1e-9)


def test_with_the_total_return_it_is_greensmiths(population, x64):
    weight, scores, valid = population
    total = np.where(valid, weight[0], 0.0)
    square = np.square(scores.sum(0)).sum((-2, -1))
    expected = (square * weight[0]).mean() / square.mean()
    baseline = pgjax.optimal_baseline(scores, total, valid, per="trajectory")
    np.testing.assert_allclose(baseline, np.full(weight.shape, expected), rtol=1e-12)
    # Var(b) − Var(b*) = E‖S‖² (b − b*)²
    gap = trace(deep(total - (expected + 0.5)), scores) - trace(deep(total - expected), scores)
    np.testing.assert_allclose(gap, square.mean() * 0.25, rtol=1e-10)


def test_the_optimal_baseline_sums_over_all_leaves_of_the_scores(batch, rng, x64):
    weight, valid = batch
    scores = random_scores(rng)
    flat = np.concatenate([scores["w"].reshape(4, 3, 4), scores["b"][..., None]], -1)
    for per in ("trajectory", "time"):
        split = pgjax.optimal_baseline(scores, weight, valid, per=per)
        np.testing.assert_allclose(split, pgjax.optimal_baseline(flat, weight, valid, per=per), rtol=1e-12)
    split = pgjax.optimal_baseline(scores, weight, valid, per="parameter")
    joined = pgjax.optimal_baseline(flat, weight, valid, per="parameter")
    np.testing.assert_allclose(split["w"].ravel(), joined[:4], rtol=1e-12)
    np.testing.assert_allclose(split["b"], joined[4], rtol=1e-12)


def test_another_kind_of_optimal_baseline_is_an_error(batch, rng):
    with pytest.raises(ValueError, match="per must be"):
        pgjax.optimal_baseline(random_scores(rng), *batch, per="state")


@pytest.mark.parametrize("masked", [False, True])
def test_the_linear_baseline_is_the_least_squares_fit(masked, batch, rng, x64):
    weight, valid = batch
    valid = valid if masked else np.ones_like(valid)
    features = rng.normal(size=(4, 3, 2)) * [1e3, 1e-3]
    solution = np.linalg.lstsq(features[valid], weight[valid], rcond=None)[0]
    baseline = np.asarray(pgjax.linear_baseline(features, weight, valid if masked else None))
    np.testing.assert_allclose(baseline[valid], features[valid] @ solution, rtol=1e-9)


def test_the_linear_fit_of_a_large_batch_in_float32_leaves_no_feature_out():
    """Targets in the span of the features of time; 500,000 steps."""
    time = jnp.arange(500.0)[:, None] / 100.0
    wanted = jnp.broadcast_to(0.3 - 0.2 * time + 0.1 * time**2 - 0.013 * time**3, (500, 1000))
    features = pgjax.time_features(jnp.zeros((500, 1000, 1)))
    baseline = pgjax.linear_baseline(features, wanted)
    assert jnp.sqrt(jnp.mean((baseline - wanted) ** 2)) < 1e-3 * jnp.std(wanted)


@pytest.mark.parametrize("extra", ["a copy", "a sum", "zeros", "more features than steps", "nearly a copy"])
def test_collinear_features_change_nothing_in_float32(extra, rng):
    weight = rng.normal(size=(4, 3)).astype(np.float32)
    features = rng.normal(size=(4, 3, 2)).astype(np.float32)
    more = {
        "a copy": features[..., :1],
        "a sum": features.sum(-1, keepdims=True),
        "zeros": np.zeros((4, 3, 1)),
        "more features than steps": np.tile(features, 8),
        "nearly a copy": features[..., :1] * (1 + 1e-7 * rng.normal(size=(4, 3, 1))),
    }[extra].astype(np.float32)
    baseline = pgjax.linear_baseline(np.concatenate([features, more], -1), weight)
    np.testing.assert_allclose(baseline, pgjax.linear_baseline(features, weight), atol=1e-4)


def test_the_usual_features_fit_a_cubic_in_time_exactly(rng, x64):
    time = np.arange(50.0)[:, None] / 100
    obs = rng.normal(size=(50, 2, 1, 2))
    weight = 3 - 2 * time + time**2 - 5 * time**3 + obs[:, :, 0, 0] ** 2 - obs[:, :, 0, 1]
    features = pgjax.time_features(obs)
    assert features.shape == (50, 2, 8)
    np.testing.assert_allclose(pgjax.linear_baseline(features, weight), weight, rtol=1e-8)
