import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pgjax import networks
from pgjax.distributions import Categorical, DiagGaussian, TanhGaussian

KEY = jax.random.key(0)
SMALL = networks.MLP((8, 4))
HEADS = {
    "categorical": networks.CategoricalActor(3, SMALL),
    "gaussian": networks.GaussianActor(2, SMALL, log_std_init=-0.5),
    "tanh_gaussian": networks.TanhGaussianActor((-1.0, 0.0), (4.0, 1.0), SMALL),
    "critic": networks.Critic(SMALL),
    "q": networks.QNetwork(3, SMALL),
}
ACTORS = ("categorical", "gaussian", "tanh_gaussian")


@pytest.fixture(scope="module")
def made():
    """Networks and their parameters."""
    obs = jnp.zeros(5)
    return {name: (net, net.init(KEY, obs)) for name, net in HEADS.items()}


def outputs(name, y):
    return (y.mode(), y.entropy()) if name in ACTORS else (y,)


@pytest.mark.parametrize("name", HEADS)
def test_any_number_of_batch_axes_gives_the_same_rows(name, made, rng):
    net, params = made[name]
    obs = rng.normal(size=(2, 3, 5)).astype(np.float32)
    whole = outputs(name, net.apply(params, obs))
    for row in (outputs(name, net.apply(params, obs[1])), outputs(name, net.apply(params, obs[1, 2]))):
        for w, r in zip(whole, row, strict=True):
            w = w[1] if r.shape[:1] == (3,) and r.ndim == w.ndim - 1 else w[1, 2]
            np.testing.assert_allclose(r, w, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("categorical", ()), ("gaussian", (2,)), ("tanh_gaussian", (2,)), ("critic", ()), ("q", (3,))],
)
def test_output_shapes(name, shape, made):
    net, params = made[name]
    assert outputs(name, net.apply(params, jnp.zeros((6, 4, 5))))[0].shape == (6, 4, *shape)


def test_actors_return_their_distributions(made):
    kinds = {"categorical": Categorical, "gaussian": DiagGaussian, "tanh_gaussian": TanhGaussian}
    for name, kind in kinds.items():
        net, params = made[name]
        assert type(net.apply(params, jnp.zeros(5))) is kind


@pytest.mark.parametrize("name", ACTORS)
def test_what_an_actor_returns_can_be_mapped_over_its_batch(name, made, rng):
    net, params = made[name]
    pi = net.apply(params, rng.normal(size=(3, 5)).astype(np.float32))
    mapped = jax.vmap(lambda d, a: d.log_prob(a))(pi, pi.mode())
    np.testing.assert_allclose(mapped, pi.log_prob(pi.mode()), rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "gain"), [("categorical", 0.01), ("gaussian", 0.01), ("critic", 1.0), ("q", 1.0)]
)
def test_weights_are_orthogonal_and_biases_zero(name, gain, made):
    params = made[name][1]["params"]
    torso, head = params["torso"], params["Dense_0"]
    for layer, scale in ((torso["Dense_0"], 2**0.5), (torso["Dense_1"], 2**0.5), (head, gain)):
        kernel = np.asarray(layer["kernel"])
        gram = kernel @ kernel.T if kernel.shape[0] <= kernel.shape[1] else kernel.T @ kernel
        np.testing.assert_allclose(gram, scale**2 * np.eye(len(gram)), atol=1e-5 * scale**2)
        np.testing.assert_array_equal(layer["bias"], 0.0)


@pytest.mark.parametrize("shape", [(4, 64), (64, 2), (64, 64), (3, 3, 4, 16)])
def test_weights_are_those_of_the_initializer_of_jax(shape):
    """Ours compiles faster and draws the same."""
    expected = jax.nn.initializers.orthogonal(1.3)(KEY, shape, jnp.float32)
    np.testing.assert_allclose(networks.orthogonal(1.3)(KEY, shape, jnp.float32), expected, atol=1e-6)


def test_a_new_actor_is_nearly_uniform(made, rng):
    net, params = made["categorical"]
    probs = net.apply(params, rng.normal(size=(50, 5)).astype(np.float32)).probs
    np.testing.assert_allclose(probs, 1 / 3, atol=0.02)


def test_the_gaussian_deviation_is_a_parameter_and_not_a_function_of_the_state(made, rng):
    net, params = made["gaussian"]
    pi = net.apply(params, rng.normal(size=(4, 5)).astype(np.float32))
    np.testing.assert_array_equal(pi.log_std, np.full((4, 2), -0.5, np.float32))
    np.testing.assert_array_equal(params["params"]["log_std"], [-0.5, -0.5])


def test_the_squashed_actor_keeps_its_bounds(made, rng):
    net, params = made["tanh_gaussian"]
    huge = jax.tree.map(lambda x: 1e6 * x, params)
    obs = 1e3 * rng.normal(size=(20, 5)).astype(np.float32)
    pi = net.apply(huge, obs)
    assert ((pi.log_std >= -5.0) & (pi.log_std <= 2.0)).all()
    action = np.asarray(pi.sample(KEY))
    assert ((action >= [-1.0, 0.0]) & (action <= [4.0, 1.0])).all()
    assert np.isfinite(pi.sample_and_log_prob(KEY)[1]).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bool_, jnp.int32])
def test_images_of_any_type_go_through_the_convolution(dtype, rng):
    net = networks.Critic(networks.CNN(channels=2, hidden=4))
    images = jnp.asarray(rng.integers(0, 2, (2, 3, 6, 6, 4))).astype(dtype)
    params = net.init(KEY, images[0, 0])
    value = net.apply(params, images)
    assert value.shape == (2, 3)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(net.apply(params, images[1, 2]), value[1, 2], rtol=1e-4, atol=1e-6)


def test_boards_are_flattened_and_integer_states_become_one_hot(rng):
    board = jnp.asarray(rng.integers(0, 2, (3, 4, 5))).astype(bool)
    flat, deep = networks.MLP((4,)), networks.MLP((4,), obs_ndim=2)
    params = deep.init(KEY, board[0])
    np.testing.assert_allclose(deep.apply(params, board), flat.apply(params, board.reshape(3, 20)), rtol=1e-5)
    state = jnp.array([[0, 2], [1, 1]])
    table = networks.MLP((4,), obs_ndim=0, num_states=3)
    params = table.init(KEY, state[0, 0])
    np.testing.assert_allclose(table.apply(params, state), flat.apply(params, jnp.eye(3)[state]), rtol=1e-5)
    assert table.apply(params, jnp.array(1)).shape == (4,)


def test_the_activation_is_the_one_that_was_passed(rng):
    net = networks.MLP((4,), activation=lambda x: 0.0 * x + 7.0)
    params = net.init(KEY, jnp.zeros(5))
    np.testing.assert_array_equal(net.apply(params, jnp.ones(5)), 7.0)


def test_masks_inside_the_observation_exclude_actions(made, rng):
    net, params = made["categorical"]
    obs = rng.normal(size=(2, 5)).astype(np.float32)
    mask = jnp.array([[True, False, True], [False, False, True]])
    pi = net.apply(params, {"obs": obs, "action_mask": mask})
    plain = net.apply(params, obs)
    assert (np.asarray(pi.probs)[~mask] == 0).all()
    kept = np.where(mask, plain.probs, 0.0)
    np.testing.assert_allclose(pi.probs, kept / kept.sum(-1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_actor_and_critic_in_one_network_share_a_torso_or_nothing(shared):
    as_they_are = networks.features_as_they_are
    if shared:
        heads = networks.CategoricalActor(3, as_they_are), networks.Critic(as_they_are)
        net = networks.ActorCritic(*heads, networks.MLP((4,)))
    else:
        heads = networks.CategoricalActor(3, networks.MLP((4,))), networks.Critic(networks.MLP((4,)))
        net = networks.ActorCritic(*heads)
    params = net.init(KEY, jnp.zeros(5))
    obs = jnp.ones((2, 5))
    pi, value = net.apply(params, obs)
    assert (pi.probs.shape, value.shape) == ((2, 3), (2,))
    gradient = jax.grad(lambda p: net.apply(p, obs)[1].sum())(params)["params"]
    touched = {name for name, part in gradient.items() if any((x != 0).any() for x in jax.tree.leaves(part))}
    assert touched == ({"critic", "torso"} if shared else {"critic"})


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_linear_softmax_is_the_boltzmann_policy_in_its_features(temperature, rng):
    table = jnp.asarray(rng.normal(size=(4, 3, 2)), jnp.float32)  # [state, action, feature]
    actor = networks.LinearSoftmax(lambda obs: table[obs], temperature)
    params = actor.init(KEY, jnp.array(0))
    np.testing.assert_allclose(actor.apply(params, jnp.arange(4)).probs, 1 / 3, rtol=1e-6)
    theta = np.array([0.7, -1.2], np.float32)
    probs = actor.apply({"params": {"theta": theta}}, jnp.arange(4)).probs
    expected = np.exp(np.asarray(table) @ theta / temperature)
    np.testing.assert_allclose(probs, expected / expected.sum(-1, keepdims=True), rtol=1e-5)


def test_linear_softmax_reads_a_mask():
    actor = networks.LinearSoftmax(lambda obs: jnp.stack([obs, 2.0 * obs, -obs], -1)[..., None])
    obs = {"obs": jnp.ones(2), "action_mask": jnp.array([[True, False, True], [True, True, True]])}
    probs = actor.apply(actor.init(KEY, obs), obs).probs
    np.testing.assert_allclose(probs, [[0.5, 0.0, 0.5], [1 / 3] * 3], rtol=1e-6)


def test_the_boltzmann_example_of_two_actions():
    actor = networks.LinearSoftmax(lambda obs: jnp.array([[3.0], [1.0]]))
    probs = actor.apply({"params": {"theta": jnp.ones(1)}}, jnp.zeros(1)).probs
    np.testing.assert_allclose(probs, [0.8808, 0.1192], atol=5e-5)


def test_one_torso_object_for_both_heads_is_refused():
    torso = networks.MLP()
    with pytest.raises(ValueError, match="same torso object"):
        networks.ActorCritic(networks.CategoricalActor(2, torso), networks.Critic(torso))
