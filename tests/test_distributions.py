import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from pgjax.distributions import Categorical, DiagGaussian, TanhGaussian

LOW, HIGH = -1.0, 4.0  # asymmetric, and not of width 2
NUM_SAMPLES = 20_000


def squashed_density(action, mean, std):
    """The density of LOW + (HIGH − LOW)(tanh u + 1)/2 with u normal."""
    y = 2 * (action - LOW) / (HIGH - LOW) - 1
    return stats.norm.pdf(np.arctanh(y), mean, std) / (1 - y**2) * 2 / (HIGH - LOW)


def one(mean, log_std):
    return jnp.full((1,), mean), jnp.full((1,), log_std)


def tanh_gaussian(mean, log_std):
    return TanhGaussian(*one(mean, log_std), LOW, HIGH)


def gaussian(mean, log_std):
    return DiagGaussian(*one(mean, log_std))


# against SciPy and against integrals


def test_categorical_equals_scipy(x64, rng):
    logits = rng.normal(size=(5, 4)) * 3
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    pi, other = Categorical(jnp.asarray(logits)), Categorical(jnp.asarray(logits[::-1].copy()))
    np.testing.assert_allclose(pi.probs, p, rtol=1e-12)
    np.testing.assert_allclose(pi.entropy(), stats.entropy(p, axis=-1), rtol=1e-12)
    np.testing.assert_allclose(pi.kl(other), stats.entropy(p, p[::-1], axis=-1), rtol=1e-12, atol=1e-14)
    action = rng.integers(0, 4, 5)
    np.testing.assert_allclose(pi.log_prob(action), np.log(p[np.arange(5), action]), rtol=1e-12)
    np.testing.assert_array_equal(pi.mode(), p.argmax(-1))


def test_gaussian_equals_scipy(x64, rng):
    mean, log_std, action = rng.normal(size=(3, 5, 2))
    pi = DiagGaussian(jnp.asarray(mean), jnp.asarray(log_std))
    normal = stats.norm(mean, np.exp(log_std))
    np.testing.assert_allclose(pi.log_prob(action), normal.logpdf(action).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(pi.entropy(), normal.entropy().sum(-1), rtol=1e-12)
    np.testing.assert_array_equal(pi.mode(), mean)


def test_one_deviation_serves_all_states(x64, rng):
    mean, action = rng.normal(size=(2, 5, 2))
    log_std = jnp.array([0.3, -1.0])
    shared, full = (DiagGaussian(jnp.asarray(mean), s) for s in (log_std, jnp.tile(log_std, (5, 1))))
    for value in ("entropy", "mode"):
        np.testing.assert_array_equal(getattr(shared, value)(), getattr(full, value)())
    np.testing.assert_array_equal(shared.log_prob(action), full.log_prob(action))
    np.testing.assert_allclose(shared.kl(full), np.zeros(5), atol=1e-15)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-1.0, 0.5)])
def test_the_squashed_density_is_in_units_of_the_action(mean, log_std, x64):
    action = np.linspace(LOW, HIGH, 52)[1:-1]
    density = jnp.exp(jax.vmap(tanh_gaussian(mean, log_std).log_prob)(action[:, None]))
    np.testing.assert_allclose(density, squashed_density(action, mean, np.exp(log_std)), rtol=1e-9)


@pytest.mark.parametrize(
    ("pi", "low", "high"),
    [(gaussian, -12.0, 12.0), (tanh_gaussian, LOW + 1e-9, HIGH - 1e-9)],
    ids=["gaussian", "tanh_gaussian"],
)
@pytest.mark.parametrize(("mean", "log_std"), [(0.3, -0.5), (-1.0, -1.5)])
def test_density_entropy_and_kl_by_numerical_integration(pi, low, high, mean, log_std, x64):
    p, q = pi(mean, log_std), pi(0.1, -0.2)
    grid = np.linspace(low, high, 200_001)[:, None]
    log_p, log_q = (np.asarray(jax.vmap(d.log_prob)(grid)) for d in (p, q))

    def integral(values):
        return integrate.simpson(values, x=grid[:, 0])

    np.testing.assert_allclose(integral(np.exp(log_p)), 1.0, rtol=1e-7)
    np.testing.assert_allclose(p.entropy(), -integral(np.exp(log_p) * log_p), rtol=1e-6)
    np.testing.assert_allclose(p.kl(q), integral(np.exp(log_p) * (log_p - log_q)), rtol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 1.0, -4.0])
@pytest.mark.parametrize(
    ("std", "error"),
    [(0.1, 1e-6), (1.6, 1e-6), (np.e, 1e-4), (np.e**2, 0.03), (np.e**3, "relative"), (np.e**5, "relative")],
)
def test_the_squashed_entropy_is_as_exact_as_it_says(mean, std, error, x64):
    u = np.linspace(mean - 12 * std, mean + 12 * std, 400_001)
    slope = 2 * (np.log(2) - u - np.logaddexp(0, -2 * u)) + np.log((HIGH - LOW) / 2)
    normal = stats.norm(mean, std)
    exact = normal.entropy() + integrate.simpson(normal.pdf(u) * slope, x=u)
    if error == "relative":
        error = 0.025 * stats.foldnorm.mean(abs(mean) / std, scale=std)  # of E|u|
    np.testing.assert_allclose(tanh_gaussian(mean, np.log(std)).entropy(), exact, rtol=0, atol=error)


def test_components_add_up_and_have_bounds_of_their_own(x64, rng):
    mean, log_std = rng.normal(size=(2, 5, 2))
    low, high = np.array([-1.0, 0.0]), np.array([4.0, 1.0])
    action = low + (high - low) * rng.uniform(0.1, 0.9, size=(5, 2))
    arrays = [jnp.asarray(x) for x in (mean, log_std, low, high)]
    pi = TanhGaussian(*arrays)
    parts = [
        TanhGaussian(arrays[0][:, i : i + 1], arrays[1][:, i : i + 1], low[i], high[i]) for i in range(2)
    ]
    log_prob = sum(p.log_prob(action[:, i : i + 1]) for i, p in enumerate(parts))
    np.testing.assert_allclose(pi.log_prob(action), log_prob, rtol=1e-12)
    np.testing.assert_allclose(pi.entropy(), sum(p.entropy() for p in parts), rtol=1e-12)
    np.testing.assert_allclose(pi.mode(), np.concatenate([p.mode() for p in parts], -1), rtol=1e-12)
    sample, log_prob = pi.sample_and_log_prob(jax.random.key(0))
    assert ((np.asarray(sample) > low) & (np.asarray(sample) < high)).all()
    np.testing.assert_allclose(log_prob, pi.log_prob(sample), atol=1e-6)


PAIRS = {
    "categorical": lambda x: Categorical(jnp.stack([x, -x, 2 * x], -1)),
    "gaussian": lambda x: DiagGaussian(jnp.stack([x, -x], -1), jnp.stack([0.5 * x, x], -1)),
    "tanh_gaussian": lambda x: TanhGaussian(jnp.stack([x, -x], -1), jnp.stack([0.5 * x, x], -1), LOW, HIGH),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_kl_is_zero_only_between_equals_and_has_a_zero_gradient_there(kind):
    p, q = PAIRS[kind](jnp.linspace(-1.0, 1.0, 5)), PAIRS[kind](jnp.linspace(1.0, 2.0, 5))
    np.testing.assert_array_equal(p.kl(p), 0.0)
    assert (p.kl(q) > 1e-3).all()
    gradient = jax.grad(lambda d: d.kl(p).sum())(p)
    for leaf in jax.tree.leaves(gradient)[:2]:
        np.testing.assert_allclose(leaf, 0.0, atol=1e-6)


@pytest.mark.parametrize("kind", ["gaussian", "tanh_gaussian"])
def test_float32_keeps_the_small_kl_that_a_trust_region_is_made_of(kind):
    kl = PAIRS[kind](jnp.array([0.5])).kl(PAIRS[kind](jnp.array([0.5 + 2e-3])))
    with jax.enable_x64(True):
        exact = PAIRS[kind](np.array([np.float32(0.5)], float)).kl(
            PAIRS[kind](np.array([np.float32(0.5 + 2e-3)], float))
        )
    np.testing.assert_allclose(kl, exact, rtol=5e-2)


# samples


@pytest.mark.parametrize("mask", [None, (True, False, True, True)])
def test_categorical_samples_have_the_frequencies_of_its_probabilities(mask):
    """Chi-square, rejects a right sampler once in 1e6 seeds; seed 0."""
    pi = Categorical(jnp.array([0.0, 1.0, -1.0, 0.5]), None if mask is None else jnp.array(mask))
    actions = jax.jit(jax.vmap(pi.sample))(jax.random.split(jax.random.key(0), NUM_SAMPLES))
    count, probs = np.bincount(actions, minlength=4), np.asarray(pi.probs, np.float64)
    assert (count[probs == 0] == 0).all()
    expected = probs[probs > 0] / probs.sum() * NUM_SAMPLES
    assert stats.chisquare(count[probs > 0], expected).pvalue > 1e-6


@pytest.mark.parametrize(("pi", "squash"), [(gaussian, False), (tanh_gaussian, True)])
def test_continuous_samples_have_their_distribution(pi, squash):
    """Kolmogorov-Smirnov, rejects a right sampler once in 1e6 seeds; seed 0."""
    samples = jax.jit(jax.vmap(pi(0.4, -0.3).sample))(jax.random.split(jax.random.key(0), NUM_SAMPLES))
    samples = np.asarray(samples[:, 0], np.float64)
    if squash:
        samples = np.arctanh(2 * (samples - LOW) / (HIGH - LOW) - 1)
    assert stats.kstest(samples, stats.norm(0.4, np.exp(-0.3)).cdf).pvalue > 1e-6


@pytest.mark.parametrize("kind", PAIRS)
def test_the_log_probability_of_a_sample_is_that_of_the_sampled_action(kind, x64):
    pi, key = PAIRS[kind](jnp.linspace(-1.0, 1.0, 50)), jax.random.key(0)
    action, log_prob = pi.sample_and_log_prob(key)
    np.testing.assert_array_equal(action, pi.sample(key))
    np.testing.assert_allclose(log_prob, pi.log_prob(action), rtol=1e-6)


@pytest.mark.parametrize("mean", [-15.0, 8.0, 12.0, 40.0])
def test_float32_sample_and_log_prob_is_exact_where_tanh_is_one(mean):
    pi, key = tanh_gaussian(mean, -1.0), jax.random.key(1)
    u = np.asarray(pi.base.sample(key), np.float64)
    slope = 2 * (np.log(2) - u - np.logaddexp(0, -2 * u)) + np.log((HIGH - LOW) / 2)
    exact = (stats.norm.logpdf(u, mean, np.exp(-1.0)) - slope).sum()
    np.testing.assert_allclose(pi.sample_and_log_prob(key)[1], exact, rtol=1e-4)


@pytest.mark.parametrize(("pi", "slope"), [(gaussian, 1.0), (tanh_gaussian, None)])
def test_samples_are_differentiable_in_the_parameters(pi, slope, x64):
    key = jax.random.key(0)

    def sample(x):
        return pi(x, 0.1).sample(key)[0]

    numeric = (sample(0.2 + 1e-6) - sample(0.2 - 1e-6)) / 2e-6
    np.testing.assert_allclose(jax.grad(sample)(0.2), numeric, rtol=1e-6)
    if slope is not None:
        np.testing.assert_allclose(numeric, slope, rtol=1e-6)


# extremes, in float32


def finite(name, tree):
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(leaf).all(), (name, leaf)


def value_and_gradients(function, *arguments):
    """Per row: the value, and its gradient in every argument."""
    rows = jax.vmap(jax.value_and_grad(function, tuple(range(len(arguments)))))
    return jax.jit(rows)(*arguments)


HUGE = [  # logits
    (1e30, -1e30, 0.0),
    (1e30, 1e30, 1e30),
    (-1e30, -1e30, -1e30),
    (-np.inf, 0.0, 1.0),
    (-np.inf, -np.inf, 0.0),
    (0.0, -np.inf, -np.inf),
    (3e38, -3e38, 0.0),
    (-3e38, 3e38, 3e38),
    (1e4, 0.0, -1e4),
    (0.0, 0.0, 0.0),
]
MASKS = [(True, True, True), (True, True, False), (False, False, True), (True, False, False)]


@pytest.mark.parametrize("method", ["entropy", "log_prob", "kl", "sample_and_log_prob"])
@pytest.mark.parametrize("masked", [False, True])
def test_extreme_logits_give_finite_values_and_gradients(method, masked):
    rows = list(itertools.product(range(len(HUGE)), range(len(HUGE)), range(4), range(4)))
    if not masked:
        rows = [r for r in rows if r[2] == r[3] == 0]
    i, j, k, m = np.array(rows).T
    huge, masks = np.array(HUGE, np.float32), np.array(MASKS)
    # the finite part of a row may be masked away; what is left then has to be a number
    kept = np.where(masks[k], huge[i], -np.inf).max(-1) > -np.inf
    kept &= np.where(masks[m], huge[j], -np.inf).max(-1) > -np.inf
    i, j, k, m = i[kept], j[kept], k[kept], m[kept]
    key = jax.random.key(0)

    def evaluate(logits, other, mask, other_mask):
        pi = Categorical(logits, mask if masked else None)
        return {
            "entropy": lambda: pi.entropy(),
            "log_prob": lambda: jax.vmap(pi.log_prob)(jnp.arange(3)),
            "kl": lambda: pi.kl(Categorical(other, other_mask if masked else None)),
            "sample_and_log_prob": lambda: pi.sample_and_log_prob(key)[1],
        }[method]()

    arrays = huge[i], huge[j], masks[k], masks[m]
    value = jax.jit(jax.vmap(evaluate))(*arrays)
    jacobian = jax.jit(jax.vmap(jax.jacrev(evaluate, (0, 1))))(*arrays)
    finite(method, (value, jacobian))
    if method in ("entropy", "kl"):
        assert (value >= -1e-6).all()


@pytest.mark.parametrize("size", [1e30, 3e38], ids=["1e30", "near the largest float"])
@pytest.mark.parametrize("kind", ["gaussian", "tanh_gaussian"])
@pytest.mark.parametrize("method", ["entropy", "log_prob", "kl", "sample_and_log_prob"])
def test_extreme_means_and_deviations_give_finite_values_and_gradients(method, kind, size):
    means, log_stds = (-size, -30.0, 0.0, 30.0, size), (-100.0, -20.0, 0.0, 20.0, 100.0)
    actions = (-size, 0.0, 1.0, size) if kind == "gaussian" else (LOW, 0.0, HIGH, np.nextafter(HIGH, 0))
    rows = np.array(list(itertools.product(means, log_stds, means, log_stds[::2], actions)), np.float32)
    make = {
        "gaussian": lambda m, s: DiagGaussian(m[None], s[None]),
        "tanh_gaussian": lambda m, s: TanhGaussian(m[None], s[None], LOW, HIGH),
    }[kind]
    key = jax.random.key(0)

    def evaluate(mean, log_std, other_mean, other_log_std, action):
        pi = make(mean, log_std)
        return {
            "entropy": lambda: pi.entropy(),
            "log_prob": lambda: pi.log_prob(action[None]),
            "kl": lambda: pi.kl(make(other_mean, other_log_std)),
            "sample_and_log_prob": lambda: pi.sample_and_log_prob(key)[1],
        }[method]()

    finite(method, value_and_gradients(evaluate, *rows.T))


@pytest.mark.parametrize("mean", [-1e30, -50.0, 50.0, 1e30])
def test_squashed_samples_and_modes_stay_in_the_box(mean):
    for log_std in (-100.0, 0.0, 100.0):
        pi = tanh_gaussian(mean, log_std)
        for action in (pi.mode(), pi.sample(jax.random.key(0))):
            assert ((action >= LOW) & (action <= HIGH)).all()


def test_zero_probability_times_its_logarithm_is_zero():
    pi = Categorical(jnp.array([0.0, -jnp.inf, -1e30]))
    assert pi.entropy() == 0.0
    assert pi.kl(pi) == 0.0
    np.testing.assert_array_equal(pi.probs, [1.0, 0.0, 0.0])


def test_kl_to_a_policy_that_excludes_an_action_is_large_and_finite():
    p, q = Categorical(jnp.zeros(3)), Categorical(jnp.zeros(3), jnp.array([False, False, True]))
    assert 1e30 < p.kl(q) < np.inf
    np.testing.assert_allclose(q.kl(p), np.log(3.0), rtol=1e-6)


# masks and temperature


@pytest.mark.parametrize(
    "logits", [(0.0, 0.0, 0.0), (5.0, -3.0, 1e30), (-1e30, -1e30, 1e30), (-np.inf, 0.0, 3.0)]
)
def test_masked_actions_have_probability_zero_and_no_gradient(logits):
    mask = jnp.array([True, True, False])
    pi = Categorical(jnp.array(logits), mask)
    assert pi.probs[2] == 0.0
    np.testing.assert_allclose(pi.probs.sum(), 1.0, rtol=1e-6)
    np.testing.assert_allclose(pi.probs[:2], Categorical(jnp.array(logits[:2])).probs, rtol=1e-6)
    np.testing.assert_allclose(pi.entropy(), Categorical(jnp.array(logits[:2])).entropy(), rtol=1e-6)
    for value in (lambda x: Categorical(x, mask).entropy(), lambda x: Categorical(x, mask).log_prob(1)):
        gradient = jax.grad(value)(jnp.array(logits))
        assert gradient[2] == 0.0


def test_masked_actions_are_never_sampled_nor_the_mode():
    pi = Categorical(jnp.array([0.0, 1e30, -1e30, 100.0]), jnp.array([True, False, True, False]))
    actions = jax.vmap(pi.sample)(jax.random.split(jax.random.key(0), 5000))
    assert set(np.unique(actions)) == {0}  # the other one left is 1e30 less likely
    assert pi.mode() == 0
    even = Categorical(jnp.zeros(4), jnp.array([True, False, True, False]))
    assert set(np.unique(jax.vmap(even.sample)(jax.random.split(jax.random.key(0), 5000)))) == {0, 2}


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1e-3, (0.0, 0.5, 0.5)),
        (1e-30, (0.0, 0.5, 0.5)),
        (1e6, (1 / 3, 1 / 3, 1 / 3)),
        (1.0, np.exp([0, 1, 1]) / np.exp([0, 1, 1]).sum()),
        (0.5, np.exp([0, 2, 2]) / np.exp([0, 2, 2]).sum()),
    ],
)
def test_temperature_goes_from_greedy_to_uniform(temperature, expected):
    pi = Categorical.boltzmann(jnp.array([0.0, 1.0, 1.0]), temperature)
    np.testing.assert_allclose(pi.probs, expected, atol=1e-5)
    masked = Categorical.boltzmann(jnp.array([0.0, 1.0, 1.0]), temperature, jnp.array([True, False, False]))
    np.testing.assert_allclose(masked.probs, [1.0, 0.0, 0.0])


# pytrees


FULL = {
    **{kind: functools.partial(PAIRS[kind]) for kind in ("categorical", "gaussian")},
    "masked categorical": lambda x: Categorical(
        jnp.stack([x, -x, 2 * x], -1), jnp.stack([x < 0, x >= 0, x < 9], -1)
    ),
    "tanh_gaussian": lambda x: TanhGaussian(
        jnp.stack([x, -x], -1),
        jnp.stack([0.5 * x, x], -1),
        jnp.full((*x.shape, 2), LOW),
        jnp.full((*x.shape, 2), HIGH),
    ),
}


@pytest.mark.parametrize("kind", FULL)
def test_a_distribution_can_be_stored_indexed_and_mapped(kind):
    pi = FULL[kind](jnp.linspace(-1.0, 1.0, 4))
    action = pi.mode()
    restored = jax.tree.unflatten(jax.tree.structure(pi), jax.tree.leaves(pi))
    assert type(restored) is type(pi)
    np.testing.assert_array_equal(restored.log_prob(action), pi.log_prob(action))
    second = jax.tree.map(lambda x: x[2], pi)
    np.testing.assert_allclose(second.log_prob(action[2]), pi.log_prob(action)[2], rtol=1e-6)
    for mapped, batched in (
        (jax.vmap(lambda d, a: d.log_prob(a))(pi, action), pi.log_prob(action)),
        (jax.vmap(lambda d: d.entropy())(pi), pi.entropy()),
        (
            jax.vmap(lambda d: d.kl(second))(pi),
            jnp.stack([jax.tree.map(lambda x, i=i: x[i], pi).kl(second) for i in range(4)]),
        ),
    ):
        np.testing.assert_allclose(mapped, batched, rtol=1e-5)


@pytest.mark.parametrize("kind", PAIRS)
def test_a_stopped_distribution_passes_no_gradient(kind):
    def log_prob(x, stop):
        pi = PAIRS[kind](x)
        return (jax.lax.stop_gradient(pi) if stop else pi).log_prob(PAIRS[kind](jnp.ones(3)).mode()).sum()

    x = jnp.linspace(0.2, 0.6, 3)
    np.testing.assert_array_equal(jax.grad(log_prob)(x, True), 0.0)
    assert (jax.grad(log_prob)(x, False) != 0).all()


@pytest.mark.parametrize("kind", PAIRS)
def test_a_distribution_passes_through_jit(kind):
    pi = jax.jit(PAIRS[kind])(jnp.linspace(-1.0, 1.0, 3))
    np.testing.assert_allclose(pi.entropy(), jax.jit(lambda d: d.entropy())(pi), rtol=1e-6)


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3)])
def test_what_is_drawn_as_a_vector_is_what_jax_draws(shape, rng):
    """Programs with it compile faster; no number is another one."""
    key, x = jax.random.key(7), jnp.asarray(rng.normal(size=shape), jnp.float32)
    np.testing.assert_array_equal(
        Categorical(x).sample(key), jax.random.categorical(key, jax.nn.log_softmax(x))
    )
    noise = jax.random.normal(key, shape)
    np.testing.assert_array_equal(DiagGaussian(x, jnp.zeros(3)).sample(key), x + noise)
