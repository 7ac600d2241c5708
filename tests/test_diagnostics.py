"""Intervals are tested at the confidence they state; every random test fixes its key."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import pgjax
from pgjax import tabular

KEY = jax.random.key(0)
TRUE = {"w": jnp.array([[1.0, -2.0], [0.5, 0.0]]), "b": jnp.array([3.0])}  # a gradient of five parameters
SCALE = {"w": jnp.array([[1.0, 3.0], [0.1, 1.0]]), "b": jnp.array([2.0])}  # the noise of one trajectory


def normal_sample(key, n):
    """n "trajectories" of one step: a gradient with normal noise each, leaves `[1, n, ...]`."""
    true, unravel = jax.flatten_util.ravel_pytree(TRUE)
    noise = flat(SCALE)[None] * jax.random.normal(key, (n, 5))
    return jax.tree.map(lambda x: x[None], jax.vmap(unravel)(true[None] + noise)), None


def mean_gradient(traj, valid):
    return jax.tree.map(lambda g: g.mean((0, 1)), traj)


def flat(tree):
    return jax.flatten_util.ravel_pytree(tree)[0]


def close(actual, desired, **tolerance):
    jax.tree.map(lambda a, d: np.testing.assert_allclose(a, d, **tolerance), actual, desired)


def test_the_figures_are_those_of_numpy_over_the_very_gradients(x64):
    seen = []

    def estimator(traj, valid):
        gradient = jax.tree.map(lambda g: 1.1 * g, mean_gradient(traj, valid))
        jax.debug.callback(lambda g: seen.append(np.array(g)), flat(gradient))
        return gradient

    found = pgjax.audit(
        KEY, estimator, normal_sample, exact=TRUE, batch_sizes=(4,), num_batches=12, max_trajectories=16
    )
    jax.effects_barrier()
    g, truth = np.array(seen), np.asarray(flat(TRUE), np.float64)
    assert g.shape == (12, 5)
    bias, variance = g.mean(0) - truth, g.var(0, ddof=1)
    by_size = pgjax.Audit._fields[: pgjax.Audit._fields.index("exact")]
    first = found._replace(**{f: jax.tree.map(lambda x: x[0], getattr(found, f)) for f in by_size})
    close(flat(first.bias), bias, rtol=1e-10)
    close(flat(first.variance), variance, rtol=1e-10)
    close(first.total_variance, variance.sum(), rtol=1e-10)
    close(first.bias_norm, np.sqrt(max((bias**2).sum() - variance.sum() / 12, 0)), rtol=1e-10)
    close(first.mean_squared_error, ((g - truth) ** 2).sum(1).mean(), rtol=1e-10)
    cosine = g @ truth / np.linalg.norm(g, axis=1) / np.linalg.norm(truth)
    close(first.cosine, cosine.mean(), rtol=1e-10)
    signal = (g.mean(0) ** 2).sum() - variance.sum() / 12
    close(first.signal_to_noise, signal / variance.sum(), rtol=1e-10)
    margin = scipy.stats.t.ppf(0.975, 11) * np.sqrt(variance / 12)
    close(flat(first.bias_interval[0]), bias - margin, rtol=1e-3)
    close(flat(first.bias_interval[1]), bias + margin, rtol=1e-3)
    assert jax.tree.structure(first.bias) == jax.tree.structure(TRUE)
    close(first.exact, TRUE)
    close(flat(first.exact_variance), np.zeros(5))


@pytest.mark.parametrize(("num_batches", "confidence"), [(2, 0.9), (3, 0.999), (10, 0.9), (300, 0.999)])
def test_one_parameter_has_students_interval(num_batches, confidence):
    found = pgjax.audit(
        KEY,
        lambda traj, valid: traj.mean(),
        lambda key, n: (5.0 + jax.random.normal(key, (1, n)), None),
        exact=jnp.array(1.0),
        batch_sizes=(3,),
        num_batches=num_batches,
        confidence=confidence,
    )
    margin = scipy.stats.t.ppf((1 + confidence) / 2, num_batches - 1)
    margin *= np.sqrt(found.variance / num_batches)
    close(found.bias_interval[0], found.bias - margin, rtol=1e-3)
    close(found.bias_interval[1], found.bias + margin, rtol=1e-3)
    low, high = found.bias_norm_interval[0]  # the norm of one number is its absolute value
    close(low, np.maximum(np.abs(found.bias[0]) - margin[0], 0.0), rtol=2e-3, atol=1e-5)
    close(high, np.abs(found.bias[0]) + margin[0], rtol=2e-3)


CASES = {  # the bias and the deviation of one trajectory
    "one parameter": (np.zeros(1), np.ones(1)),
    "one parameter, biased": (np.ones(1), np.ones(1)),
    "equal noise": (np.zeros(6), np.ones(6)),
    "one noisy direction": (np.zeros(6), np.array([1.0, 1.0, 6.0, 1.0, 1.0, 1.0])),
    "many scales": (np.zeros(6), 1.0 / np.arange(1, 7)),
    "many scales, biased": (0.2 / np.arange(6, 0, -1), 1.0 / np.arange(1, 7)),
}


@functools.cache
def many_audits(num_parameters, num_batches, known):
    """A compiled function that runs 2000 audits."""

    def audit(key, bias, deviation):
        def sample(key, n):
            return deviation[None] * jax.random.normal(key, (n, num_parameters)), None

        estimators = {
            "this": lambda traj, valid: traj.mean(0) + bias,
            "unbiased": lambda traj, valid: traj.mean(0),
        }
        return pgjax.audit(
            key,
            estimators,
            sample,
            exact=jnp.zeros(num_parameters) if known else None,
            reference=None if known else "unbiased",
            batch_sizes=(1,) if known else (1, 3),
            num_batches=num_batches,
        )["this"]

    return jax.jit(jax.vmap(audit, in_axes=(0, None, None)))


@functools.cache
def coverage(case, num_batches, known):
    """How often the intervals hold the truth, the share of lower ends at 0, the squares of the norm."""
    bias, deviation = (jnp.asarray(x, jnp.float32) for x in CASES[case])
    run, keys = many_audits(len(bias), num_batches, known), jax.random.split(jax.random.key(1), 2000)
    found, bias = run(keys, bias, deviation), np.asarray(bias)
    norm = np.linalg.norm(bias)
    low, high = np.asarray(found.bias_norm_interval[:, 0]).T
    ends = np.asarray(found.bias_interval[0][:, 0]), np.asarray(found.bias_interval[1][:, 0])
    within = (ends[0] <= bias) & (bias <= ends[1])
    squares = np.asarray(found.bias_norm[:, 0]) ** 2
    return ((low <= norm) & (norm <= high)).mean(), (low == 0).mean(), within.mean(0), squares.mean(), norm**2


BAND = 0.0161  # 3.29 standard deviations of a mean of 2000 draws at 0.95: 99.9 % confidence


@pytest.mark.parametrize("case", ["one parameter", "equal noise", "one noisy direction", "many scales"])
def test_without_bias_the_interval_of_the_norm_holds_zero_at_its_confidence(case):
    covered, zero, within, *_ = coverage(case, 40, True)
    assert covered == zero
    assert zero > 0.95 - BAND
    assert zero < 0.95 + BAND + (0.02 if case == "equal noise" else 0.0)  # too wide with few batches
    assert (abs(within - 0.95) < BAND).all()


@pytest.mark.parametrize("case", ["equal noise", "one noisy direction", "many scales"])
def test_with_few_batches_the_interval_of_the_norm_is_rather_too_wide(case):
    covered, _, within, *_ = coverage(case, 4, True)
    assert covered > 0.95 - BAND
    assert (abs(within - 0.95) < BAND).all()


@pytest.mark.parametrize("case", ["one parameter, biased", "many scales, biased"])
def test_with_bias_the_interval_of_the_norm_holds_it(case):
    covered, _, within, *_ = coverage(case, 40, True)
    assert covered > 0.95 - BAND
    assert (abs(within - 0.95) < BAND).all()
    if case == "one parameter, biased":
        assert covered < 0.95 + BAND


@pytest.mark.parametrize("case", ["one parameter", "many scales, biased"])
def test_the_noise_of_the_reference_is_in_the_intervals(case):
    covered, _, within, *_ = coverage(case, 20, False)
    assert covered > 0.95 - BAND
    assert (within > 0.95 - BAND).all()


def test_noise_does_not_inflate_the_norm_of_the_bias():
    """Its square is clipped at 0; with a clear bias its mean is the true one, to 3.29 standard errors."""
    *_, squares, truth = coverage("one parameter, biased", 40, True)
    np.testing.assert_allclose(squares, truth, atol=3.29 * np.sqrt(4 * truth / 40 / 2000) * 1.1)


def normal_audit(estimator=mean_gradient, *, key=KEY, **options):
    defaults = {"exact": TRUE, "batch_sizes": (1, 16), "num_batches": 200}
    return pgjax.audit(key, estimator, normal_sample, **{**defaults, **options})


def test_the_variance_falls_with_the_batch_and_the_signal_rises():
    found = normal_audit(batch_sizes=(1, 4, 16), num_batches=2000)
    variance = float(sum(jnp.square(s).sum() for s in jax.tree.leaves(SCALE)))
    signal = float(sum(jnp.square(g).sum() for g in jax.tree.leaves(TRUE)))
    sizes = np.array([1, 4, 16])
    # the variance of a sample variance of 2000 normals is 2/2000; 10 % are more than three deviations
    close(found.total_variance, variance / sizes, rtol=0.1)
    close(found.signal_to_noise, signal / variance * sizes, rtol=0.1)
    close(found.mean_squared_error, variance / sizes, rtol=0.1)
    assert (np.diff(found.cosine) > 0.05).all()  # Ilyas et al. 2018
    np.testing.assert_array_equal(found.batch_size, sizes)


def test_the_mean_squared_error_is_the_squared_bias_and_the_variance():
    def double(traj, valid):
        return jax.tree.map(lambda g: 2.0 * g, mean_gradient(traj, valid))

    for exact in (TRUE, None):
        found = pgjax.audit(
            KEY,
            {"double": double, "plain": mean_gradient},
            normal_sample,
            exact=exact,
            reference=None if exact else "plain",
            batch_sizes=(2,),
            num_batches=50,
        )["double"]
        close(found.mean_squared_error, found.bias_norm**2 + found.total_variance, rtol=1e-5)


def test_all_estimators_see_the_same_trajectories_and_the_chunks_do_not_matter():
    whole = normal_audit()
    both = normal_audit({"a": mean_gradient, "b": mean_gradient}, max_trajectories=16)  # 16: without vmap
    some = normal_audit(max_trajectories=123)  # chunks that do not divide the batches
    for other in (some, both["a"], both["b"]):
        close(other, whole, rtol=1e-4, atol=1e-6)


def test_the_key_decides():
    first, again, other = (normal_audit(key=jax.random.key(i), batch_sizes=(1,)) for i in (0, 0, 1))
    close(first, again, rtol=0)
    assert (other.bias["b"] != first.bias["b"]).all()


@pytest.mark.parametrize("exact", [jnp.zeros(()), None])
def test_no_key_is_used_twice(exact):
    seen = []

    def sample(key, n):
        jax.debug.callback(lambda k: seen.append(tuple(np.array(k))), jax.random.key_data(key))
        return jax.random.normal(key, (1, n)), None

    pgjax.audit(
        KEY,
        lambda traj, valid: traj.mean(),
        sample,
        exact=exact,
        batch_sizes=(2, 3, 2),
        num_batches=7,
        max_trajectories=6,
    )
    jax.effects_barrier()
    per_size = {2: 9, 3: 8}  # chunks of 3 and of 2 batches, filled up
    expected = per_size[2] + per_size[3] + per_size[2] + (0 if exact is not None else per_size[3])
    assert len(seen) == len(set(seen)) == expected
    assert tuple(np.array(jax.random.key_data(KEY))) not in seen


def test_the_memory_is_that_of_one_chunk_and_the_gradients():
    """A trajectory here is 16 kB; 1000 batches of 4 would be 64 MB."""

    def sample(key, n):
        return jnp.sin(jax.random.normal(key, (256, n, 16))), None

    def audit(key, num_batches, max_trajectories):
        return pgjax.audit(
            key,
            lambda traj, valid: jnp.fft.rfft(traj, axis=0).real.mean((0, 1)),  # wants its input at once
            sample,
            exact=jnp.zeros(16),
            batch_sizes=(4,),
            num_batches=num_batches,
            max_trajectories=max_trajectories,
        )

    def megabytes(*sizes):
        program = jax.jit(functools.partial(audit, num_batches=sizes[0], max_trajectories=sizes[1]))
        return program.lower(KEY).compile().memory_analysis().temp_size_in_bytes / 1e6

    few, many, wide = megabytes(100, 40), megabytes(1000, 40), megabytes(1000, 400)
    assert many - few < 16 * 4 * 900 * 12 / 1e6  # gradients: 16 floats a batch, a dozen copies at most
    assert many < 10
    assert wide > 5 * many / 2


def test_it_can_be_compiled_and_mapped_over():
    def audit(key):
        return normal_audit(key=key, num_batches=20)

    keys = jax.random.split(KEY, 2)
    found = jax.jit(jax.vmap(audit))(keys)
    close(jax.tree.map(lambda x: x[1], found), audit(keys[1]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("disabled", [False, True])
def test_the_key_may_be_a_constant_of_a_compiled_function(disabled):
    before = jax.config.read("jax_disable_most_optimizations")
    try:
        jax.config.update("jax_disable_most_optimizations", disabled)
        inside = jax.jit(lambda: normal_audit(batch_sizes=(1,), num_batches=3).bias)()
        outside = normal_audit(batch_sizes=(1,), num_batches=3).bias
    finally:
        jax.config.update("jax_disable_most_optimizations", before)
    close(inside, outside, rtol=1e-4, atol=1e-6)


def test_an_estimator_that_is_always_right_has_no_bias_no_noise_and_endless_signal():
    found = pgjax.audit(
        KEY,
        {
            "right": lambda traj, valid: jax.tree.map(lambda g: g / 3.0 * 3.0, TRUE),
            "nothing": lambda traj, valid: jax.tree.map(jnp.zeros_like, TRUE),
        },
        normal_sample,
        exact=TRUE,
        batch_sizes=(1,),
        num_batches=1000,
    )
    right, nothing = found["right"], found["nothing"]
    assert right.bias_norm_interval[0, 0] == 0.0  # rounding is no bias
    assert right.bias_norm_interval[0, 1] < 1e-5
    close(right.cosine, [1.0], rtol=1e-6)
    assert right.signal_to_noise[0] > 1e9
    norm = np.linalg.norm(flat(TRUE))
    close(nothing.bias_norm_interval, [[norm, norm]], rtol=1e-5)
    close([nothing.cosine[0], nothing.signal_to_noise[0], nothing.total_variance[0]], [0.0, 0.0, 0.0])
    close(nothing.mean_squared_error, [norm**2], rtol=1e-5)


def test_tiny_gradients_keep_their_figures_in_float32():
    small = jax.tree.map(lambda g: 1e-12 * g, TRUE)

    def estimator(traj, valid):
        return jax.tree.map(lambda g: 1e-12 * g, mean_gradient(traj, valid))

    tiny, plain = normal_audit(estimator, exact=small), normal_audit()
    close(1e12 * tiny.bias_norm_interval, plain.bias_norm_interval, rtol=1e-4, atol=1e-5)
    close(tiny.cosine, plain.cosine, rtol=1e-4)
    close(tiny.signal_to_noise, plain.signal_to_noise, rtol=1e-4)


def test_without_the_exact_gradient_a_large_batch_serves_and_says_so():
    def shifted(traj, valid):
        return jax.tree.map(lambda g: g + 1.0, mean_gradient(traj, valid))

    def shrinking(traj, valid):
        return jax.tree.map(lambda g, m: m + 1.0 / g.shape[1], traj, mean_gradient(traj, valid))

    estimators = {"plain": mean_gradient, "shifted": shifted, "shrinking": shrinking}
    options = {"batch_sizes": (4, 64), "num_batches": 200, "confidence": 0.999}
    own = pgjax.audit(KEY, estimators, normal_sample, **options)
    common = pgjax.audit(KEY, estimators, normal_sample, reference="plain", **options)
    for found in (*own.values(), *common.values()):
        assert not found.exact_known
        assert found.reference_size == 64 * 200
        expected = np.square(flat(SCALE)) / (64 * 200)
        close(flat(found.exact_variance), expected, rtol=0.5)
    for audits in (own, common):
        assert (audits["plain"].bias_norm_interval[:, 0] == 0).all()
    assert (own["shifted"].bias_norm_interval[:, 0] == 0).all()  # its own mean is shifted as well
    assert (common["shifted"].bias_norm_interval[:, 0] > 1.0).all()
    low, high = own["shrinking"].bias_norm_interval.T
    assert low[0] > 0
    assert low[0] < (1 / 4 - 1 / 64) * np.sqrt(5) < high[0]
    close(flat(common["shifted"].exact), flat(common["plain"].exact), rtol=0)
    distance = np.abs(flat(own["plain"].exact) - flat(TRUE))
    assert (distance < 3.29 * np.sqrt(flat(own["plain"].exact_variance))).all()


GOOD = {"exact": TRUE, "batch_sizes": (1, 2), "num_batches": 3}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_sizes": ()}, "batch_sizes must be at least one number"),
        ({"batch_sizes": (4, 0)}, "at least 1, got"),
        ({"batch_sizes": 4}, "sequence of integers"),
        ({"batch_sizes": (1.5,)}, "sequence of integers"),
        ({"num_batches": 1}, "num_batches must be at least 2"),
        ({"confidence": 95}, "confidence must lie between 0 and 1"),
        ({"max_trajectories": 1}, "does not hold one batch of 2"),
        ({"exact": {"w": TRUE["w"]}}, "The gradient of estimator and exact must have the same structure"),
        ({"exact": {**TRUE, "b": jnp.zeros(2)}}, "same structure and shapes"),
        ({"reference": "estimator"}, "either exact or reference"),
        ({"exact": None, "reference": "other"}, "none of the estimators: estimator"),
        ({"estimator": 3}, "estimator must be a function, got int"),
        ({"estimator": {"mine": None}}, "mine must be a function, got NoneType"),
        ({"estimator": {}}, "at least one estimator"),
        ({"estimator": lambda traj, valid: {"w": 1, "b": 2}}, "pytree of floating arrays"),
        ({"estimator": lambda traj, valid: None}, "pytree of floating arrays"),
        ({"sample": None}, "sample must be a function"),
        ({"sample": lambda key, n: jnp.zeros(n)}, "must return the pair"),
    ],
)
def test_mistakes_are_named_before_anything_runs(change, message):
    arguments = {"estimator": mean_gradient, "sample": normal_sample, **GOOD, **change}
    with pytest.raises(ValueError, match=message):
        pgjax.audit(KEY, **arguments)


def test_estimators_of_different_shapes_have_no_common_reference():
    estimators = {"all": mean_gradient, "part": lambda traj, valid: mean_gradient(traj, valid)["w"]}
    options = {"batch_sizes": (1,), "num_batches": 3}
    assert set(pgjax.audit(KEY, estimators, normal_sample, **options)) == {"all", "part"}
    with pytest.raises(ValueError, match="gradient of part and the reference all"):
        pgjax.audit(KEY, estimators, normal_sample, reference="all", **options)


def test_a_gradient_that_is_not_finite_is_reported_with_its_estimator():
    def estimator(traj, valid):
        broken = (traj["b"].shape[1] == 2) & (traj["b"][0, 0, 0] > 3.0)
        return jax.tree.map(lambda g: jnp.where(broken, jnp.nan, g), mean_gradient(traj, valid))

    def audit(key):
        return pgjax.audit(key, {"fine": mean_gradient, "broken": estimator}, normal_sample, **GOOD)

    message = r"broken gave NaN or infinite gradients in \d of 3 batches of size 2"
    with pytest.raises(ValueError, match=message):
        audit(KEY)
    found = jax.jit(audit)(KEY)  # nothing can be raised here; it is visible instead
    assert np.isfinite(found["fine"].total_variance).all()
    np.testing.assert_array_equal(np.isfinite(found["broken"].total_variance), [True, False])


def example(**fields):
    audit = pgjax.Audit(
        batch_size=jnp.array([1, 64]),
        bias=jnp.zeros((2, 1)),
        bias_interval=(jnp.zeros((2, 1)), jnp.zeros((2, 1))),
        bias_norm=jnp.array([0.0, 0.123456]),
        bias_norm_interval=jnp.array([[0.0, 1.0], [0.1, 0.2]]),
        variance=jnp.ones((2, 1)),
        total_variance=jnp.array([1234.0, 1e-7]),
        mean_squared_error=jnp.array([10.0, 0.5]),
        cosine=jnp.array([-0.5, 0.99]),
        signal_to_noise=jnp.array([0.25, jnp.inf]),
        exact={"a": jnp.array([3.0]), "b": jnp.array([4.0])},
        exact_known=True,
        exact_variance={"a": jnp.array([0.0]), "b": jnp.array([0.0])},
        reference_size=0,
        num_batches=100,
        confidence=0.95,
    )
    return audit._replace(**fields)


def test_the_table_reads_like_this():
    assert example().table().splitlines() == [
        "reference: exact gradient, norm 5; 100 batches of each size",
        "batch   bias  95 % interval  variance  MSE  cosine   SNR",
        "    1      0         [0, 1]  1.23e+03   10    -0.5  0.25",
        "   64  0.123     [0.1, 0.2]     1e-07  0.5    0.99   inf",
    ]


def test_several_audits_are_one_table():
    noise = {"a": jnp.array([0.03]), "b": jnp.array([0.01])}
    other = example(exact_known=False, exact_variance=noise, reference_size=6400)
    both = pgjax.audit_table({"plain": example(), "with a baseline": example()})
    assert both.splitlines()[0] == example().table().splitlines()[0]
    assert both.splitlines()[2].startswith("plain                1 ")
    assert len({len(line) for line in both.splitlines()[1:]}) == 1
    mixed = pgjax.audit_table({"a": example(), "b": other, "c": example(confidence=0.99)}).splitlines()
    assert mixed[1] == "b: reference: large batch, 6400 trajectories, norm 5 ± 0.2; 100 batches of each size"
    assert mixed[3].split() == ["estimator", "batch", "bias", "interval", "variance", "MSE", "cosine", "SNR"]
    assert len(mixed) == 3 + 1 + 6


NUM_STATES, NUM_ACTIONS, HORIZON, GAMMA = 4, 3, 3, 0.6


def softmax(params, obs):
    return pgjax.Categorical(obs @ params)


@functools.cache
def problem(num_terminal):
    mdp = tabular.random_mdp(
        jax.random.key(3), NUM_STATES, NUM_ACTIONS, GAMMA, horizon=HORIZON, num_terminal=num_terminal
    )
    return mdp, jax.random.normal(jax.random.key(4), (NUM_STATES + HORIZON, NUM_ACTIONS))


def rollouts(mdp, params):
    def sample(key, n):
        def policy(key, obs):
            return softmax(params, obs).sample_and_log_prob(key)

        return pgjax.rollout_episodes(key, policy, mdp, None, n, HORIZON)

    return sample


def drawn_from_all(mdp, params):
    """Draws of whole trajectories by their probability: faster to compile than an environment."""
    policy, trajectories = tabular.policy_matrix(mdp, softmax, params), tabular.enumerate_trajectories(mdp)
    below = jnp.cumsum(jnp.exp(tabular.trajectory_log_prob(mdp, policy, trajectories)))
    every = tabular.to_transitions(mdp, policy, trajectories)

    def sample(key, n):
        index = jnp.searchsorted(below, below[-1] * jax.random.uniform(key, (n,)))
        return jax.tree.map(lambda x: jnp.take(x, index, axis=1), every)

    return sample


def estimators(mdp, params):
    value = tabular.state_value(mdp, tabular.policy_matrix(mdp, softmax, params))

    def critic(traj, scale):
        now, after = (obs[..., :NUM_STATES].argmax(-1) for obs in (traj.obs, traj.next_obs))
        time = jnp.arange(HORIZON)[:, None]
        return scale * value[time, now], scale * value[time + 1, after]

    def gradient(traj, valid, psi, discounted=True):
        if discounted:
            psi = psi * pgjax.time_discount(traj.terminated, traj.truncated, gamma=GAMMA)
        return pgjax.policy_gradient(softmax, params, traj, psi, valid)

    def to_go(traj):
        return pgjax.reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=GAMMA)

    def total(traj, valid):
        discount = GAMMA ** jnp.arange(HORIZON)[:, None]
        return gradient(traj, valid, pgjax.total_return(discount * traj.reward, valid), discounted=False)

    def baseline(function):
        def estimator(traj, valid):
            weight = to_go(traj)
            return gradient(traj, valid, pgjax.subtract_baseline(weight, function(weight, valid), valid))

        return estimator

    def gae(scale, lambda_):
        def estimator(traj, valid):
            flags = traj.terminated, traj.truncated
            options = {"gamma": GAMMA, "lambda_": lambda_}
            return gradient(traj, valid, pgjax.gae(traj.reward, *critic(traj, scale), *flags, **options))

        return estimator

    return {
        "total return": total,
        "reward-to-go": lambda traj, valid: gradient(traj, valid, to_go(traj)),
        "leave one out": baseline(pgjax.leave_one_out_baseline),
        "gae, true value": gae(1.0, 0.5),
        "gae, wrong value, one": gae(-2.0, 1.0),
        "no time discount": lambda traj, valid: gradient(traj, valid, to_go(traj), discounted=False),
        "time baseline": baseline(pgjax.time_baseline),
        "gae, wrong value": gae(-2.0, 0.5),
    }


def tabular_audit(mdp, params, judged, sample, **options):
    exact = tabular.policy_gradient(mdp, softmax, params)
    options = {"exact": exact, "num_batches": 2000, "confidence": 0.999, **options}
    return pgjax.audit(jax.random.key(6), judged, sample, **options)


@functools.cache
def all_audits():
    mdp, params = problem(1)
    return tabular_audit(mdp, params, estimators(mdp, params), drawn_from_all(mdp, params), batch_sizes=(3,))


@pytest.mark.parametrize(
    "name", ["total return", "reward-to-go", "leave one out", "gae, true value", "gae, wrong value, one"]
)
def test_unbiased_estimators_are_found_unbiased(name):
    """At 99.9 % confidence each."""
    assert all_audits()[name].bias_norm_interval[0, 0] == 0


@pytest.mark.parametrize("name", ["no time discount", "time baseline", "gae, wrong value"])
def test_biased_estimators_are_found_biased(name):
    assert all_audits()[name].bias_norm_interval[0, 0] > 0


def test_the_time_baseline_scales_the_gradient_by_one_minus_one_over_n():
    """Every parameter within its interval of 99.9 %, with allowance for one of 18; on real rollouts."""
    mdp, params = problem(0)
    judged = estimators(mdp, params)["time baseline"]
    found = tabular_audit(mdp, params, judged, rollouts(mdp, params), batch_sizes=(4,))
    low, high = (np.asarray(end[0]) for end in found.bias_interval)
    expected = -found.exact / 4
    assert ((expected < low) | (expected > high)).sum() <= 1
    assert found.bias_norm_interval[0, 0] > 0
    assert found.bias_norm_interval[0, 0] < np.linalg.norm(expected) < found.bias_norm_interval[0, 1]


def test_without_the_time_discount_the_mean_is_that_of_the_undiscounted_visitation():
    mdp, params = problem(1)
    policy = tabular.policy_matrix(mdp, softmax, params)
    weight = tabular.visitation(mdp, policy, normalized=False, discounted=False)
    followed = tabular.policy_gradient(mdp, softmax, params, state_weight=weight)
    found = all_audits()["no time discount"]
    low, high = (np.asarray(end[0]) for end in found.bias_interval)
    assert (((followed - found.exact) < low) | ((followed - found.exact) > high)).sum() <= 1


def test_variance_falls_along_the_ladder():
    ladder = ["total return", "reward-to-go", "leave one out", "gae, true value"]
    variances = [float(all_audits()[name].total_variance[0]) for name in ladder]
    assert variances == sorted(variances, reverse=True)


def one_draw(mdp, params, baseline):
    """Every value that the gradient of one (s, a) draw can take, with its probability, in NumPy."""
    transition, reward, initial = (np.asarray(x) for x in (mdp.transition, mdp.reward, mdp.initial))
    gamma, obs, terminal = float(mdp.gamma), np.asarray(mdp.observations), np.asarray(mdp.terminal)
    logits = obs @ np.asarray(params)
    policy = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def returns(t, s, a):
        """(probability, return) of everything that may follow."""
        for after in range(NUM_STATES):
            chance = transition[s, a, after]
            if terminal[after] or t + 1 == HORIZON:
                yield chance, reward[s, a]
                continue
            for action in range(NUM_ACTIONS):
                for p, g in returns(t + 1, after, action):
                    yield chance * policy[t + 1, after, action] * p, reward[s, a] + gamma * g

    visits, at = np.zeros((HORIZON, NUM_STATES)), initial
    for t in range(HORIZON):
        visits[t] = gamma**t * at * ~terminal
        at = np.einsum("s,sa,sat->t", at * ~terminal, policy[t], transition)
    visits /= visits.sum()
    draws = []  # (t, s, a, probability, gradient)
    for t, s, a in itertools.product(range(HORIZON), range(NUM_STATES), range(NUM_ACTIONS)):
        if visits[t, s] == 0:
            continue
        score = np.outer(obs[t, s], np.eye(NUM_ACTIONS)[a] - policy[t, s]).ravel()
        for p, g in returns(t, s, a):
            draws.append((t, s, a, visits[t, s] * policy[t, s, a] * p, score * (g - baseline[t, s])))
    return draws


def parts_by_enumeration(draws):
    """The three traces of the law of total variance, from all draws."""

    def moments(group):
        p = np.array([d[3] for d in group])
        g = np.array([d[4] for d in group])
        mean = p @ g / p.sum()
        return p.sum(), mean, p @ ((g - mean) ** 2).sum(1) / p.sum()

    def between(groups):
        p, means = np.array([x[0] for x in groups]), np.array([x[1] for x in groups])
        centre = p @ means / p.sum()
        return p @ ((means - centre) ** 2).sum(1) / p.sum()

    by_action, by_state = {}, {}
    for draw in draws:
        by_action.setdefault(draw[:3], []).append(draw)
        by_state.setdefault(draw[:2], []).append(draw)
    actions = {k: moments(v) for k, v in by_action.items()}
    states = {k: moments(v) for k, v in by_state.items()}
    trajectory = sum(p * within for p, _, within in actions.values())
    action = sum(p * between([a for k, a in actions.items() if k[:2] == s]) for s, (p, *_) in states.items())
    return trajectory, action, between(list(states.values())), moments(draws)[2]


@pytest.mark.parametrize("num_terminal", [0, 1])
def test_the_parts_of_the_variance_are_those_of_all_draws(num_terminal, x64, rng):
    mdp = tabular.random_mdp(KEY, NUM_STATES, NUM_ACTIONS, GAMMA, horizon=HORIZON, num_terminal=num_terminal)
    params = jnp.asarray(rng.normal(size=(NUM_STATES + HORIZON, NUM_ACTIONS)))
    baseline = rng.normal(size=(HORIZON, NUM_STATES))
    *expected, total = parts_by_enumeration(one_draw(mdp, params, baseline))
    found = pgjax.variance_decomposition(mdp, softmax, params, baseline=baseline)
    close(list(found), expected, rtol=1e-10)
    close(found.total, total, rtol=1e-10)
    without = pgjax.variance_decomposition(mdp, softmax, params)
    close([without.trajectory, without.state], [found.trajectory, found.state], rtol=1e-12)
    assert abs(without.action - found.action) > 1e-3
    close(pgjax.variance_decomposition(mdp, softmax, params, baseline=baseline * 0), without, rtol=1e-12)


@pytest.fixture
def continuing(x64, rng):
    mdp = tabular.random_mdp(KEY, 5, NUM_ACTIONS, 0.8)
    params = jnp.asarray(rng.normal(size=(5, NUM_ACTIONS)))
    return mdp, params, tabular.policy_matrix(mdp, softmax, params)


def test_the_total_is_the_variance_of_the_whole_on_a_continuing_problem(continuing, rng):
    mdp, params, policy = continuing
    baseline = jnp.asarray(rng.normal(size=5))
    weight = tabular.visitation(mdp, policy)[:, None] * policy
    scores = np.eye(5)[:, None, :, None] * (np.eye(NUM_ACTIONS)[None] - policy[:, None])[:, :, None]
    scores = scores.reshape(5, NUM_ACTIONS, -1)
    surplus = tabular.action_value(mdp, policy) - baseline[:, None]
    second = weight * (scores**2).sum(-1) * (tabular.return_variance(mdp, policy) + surplus**2)
    mean = np.einsum("sa,sap->p", weight * surplus, scores)
    found = pgjax.variance_decomposition(mdp, softmax, params, baseline=baseline)
    close(found.total, second.sum() - (mean**2).sum(), rtol=1e-10)
    gradient = tabular.policy_gradient(mdp, softmax, params)
    close(mean, (1 - 0.8) * gradient.ravel(), rtol=1e-8, atol=1e-12)


def test_the_optimal_state_baseline_is_the_minimiser_and_the_value_is_not(continuing):
    mdp, params, policy = continuing

    def total(baseline):
        return pgjax.variance_decomposition(mdp, softmax, params, baseline=baseline).total

    best = pgjax.optimal_state_baseline(mdp, softmax, params)
    close(jax.grad(total)(best), np.zeros(5), atol=1e-12)
    assert (jnp.diagonal(jax.hessian(total)(best)) > 0).all()
    value = tabular.state_value(mdp, policy)
    assert total(best) < total(value) < total(jnp.zeros(5))
    found = jnp.zeros(5) + best.mean()
    assert total(best) < total(found)


def test_the_value_can_be_worse_than_no_baseline():
    """Probabilities .9 and .1, rewards 10 and 1: V = 9.1, but the rare action has the long score."""
    mdp, params = tabular.bandit_mdp(jnp.array([10.0, 1.0])), jnp.log(jnp.array([0.9, 0.1]))

    def apply(params, obs):
        return pgjax.Categorical(jnp.broadcast_to(params, (*obs.shape[:-1], 2)))

    best = pgjax.optimal_state_baseline(mdp, apply, params)
    close(best, [[1.9]], rtol=1e-5)
    value = tabular.state_value(mdp, tabular.policy_matrix(mdp, apply, params))[:-1]
    close(value, [[9.1]], rtol=1e-5)
    totals = [pgjax.variance_decomposition(mdp, apply, params, baseline=b).total for b in (best, None, value)]
    assert totals == sorted(totals)


def test_a_state_baseline_serves_all_times_and_another_shape_is_refused():
    mdp, params = problem(1)
    each = pgjax.variance_decomposition(mdp, softmax, params, baseline=jnp.ones((HORIZON, NUM_STATES)))
    close(pgjax.variance_decomposition(mdp, softmax, params, baseline=jnp.ones(NUM_STATES)), each)
    with pytest.raises(ValueError, match="broadcast"):
        pgjax.variance_decomposition(mdp, softmax, params, baseline=jnp.ones(NUM_STATES + 1))


def test_a_policy_without_choice_has_no_variance_and_no_optimal_baseline(continuing):
    mdp, params, _ = continuing
    certain = jnp.zeros_like(params).at[:, 1].set(1e4)
    parts = pgjax.variance_decomposition(mdp, softmax, certain)
    close(list(parts), [0.0, 0.0, 0.0], atol=1e-12)
    assert np.isfinite(pgjax.optimal_state_baseline(mdp, softmax, certain)).all()
