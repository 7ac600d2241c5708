"""Gradients in chunks, and the product whose gradient is fast on CPUs."""

import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from jax import lax

import pgjax
from pgjax import descent, networks
from pgjax._matmul import convolve, dot_general
from pgjax.algorithms import ppo
from pgjax.experiment import presets, programs
from pgjax.experiment.store import Settings

KEY = jax.random.key(0)
DENSE = (((1,), (0,)), ((), ()))


def loss(params, batch):
    x, y = batch
    error = jnp.tanh(x @ params["w"] + params["b"]) - y
    return jnp.square(error).mean(), jnp.stack([jnp.abs(error).mean(), error.mean()])


def problem():
    keys = jax.random.split(KEY, 3)
    params = {"w": jax.random.normal(keys[0], (3,)), "b": jnp.zeros(())}
    return params, (jax.random.normal(keys[1], (24, 3)), jax.random.normal(keys[2], (24,)))


NUMBERS = ("NHWC", "HWIO", "NHWC")


def summed(convolution):
    """A scalar of a convolution."""
    return lambda x, k: jnp.sin(convolution(x, k, (1, 1), "VALID", dimension_numbers=NUMBERS)).sum()


class TestChunks:
    @pytest.mark.parametrize("num_chunks", [1, 2, 8, 24])
    def test_the_sum_of_chunks_is_the_gradient_of_the_whole(self, num_chunks, x64):
        params, batch = problem()
        wanted = jax.grad(loss, has_aux=True)(params, batch)
        chunks = jax.tree.map(lambda x: x.reshape(num_chunks, -1, *x.shape[1:]), batch)
        found = descent.mean_gradient(loss, params, chunks)
        chex.assert_trees_all_close(found, wanted, rtol=1e-12)

    def test_a_sum_over_the_first_chunks(self):
        chunks = {"a": jnp.arange(12.0).reshape(4, 3), "b": jnp.arange(4)}

        def terms(chunk):
            return {"sum": chunk["a"].sum(), "row": chunk["a"], "b": chunk["b"]}

        summed = jax.jit(lambda count: descent.sum_over_chunks(terms, chunks, count))
        for count in range(5):
            wanted = {
                "sum": chunks["a"][:count].sum(),
                "row": chunks["a"][:count].sum(0),
                "b": chunks["b"][:count].sum(),
            }
            chex.assert_trees_all_equal(summed(jnp.asarray(count)), wanted)
        chex.assert_trees_all_equal(descent.sum_over_chunks(terms, chunks), wanted)

    def test_the_loss_is_traced_once(self):
        """Not once more for the shapes of what it gives."""
        params, batch = problem()
        chunks, calls = jax.tree.map(lambda x: x.reshape(3, 8, *x.shape[1:]), batch), []

        def counted(params, chunk):
            calls.append(chunk)
            return loss(params, chunk)

        jax.jit(lambda params: descent.mean_gradient(counted, params, chunks)).trace(params)
        assert len(calls) == 1

    def test_only_one_chunk_is_in_memory(self):
        """Two layers of 64 and 4096 samples: half a megabyte each; in 32 chunks a thirty-second of it."""
        network = networks.Critic(networks.MLP((64, 64)))
        params = network.init(KEY, jnp.zeros(4))

        def gradient(params, obs):
            return descent.mean_gradient(lambda p, x: (network.apply(p, x).mean(), ()), params, obs)

        def bytes_of(num_chunks):
            obs = jnp.zeros((num_chunks, 4096 // num_chunks, 4))
            return jax.jit(gradient).lower(params, obs).compile().memory_analysis().temp_size_in_bytes

        assert 8 * bytes_of(32) < bytes_of(1)

    @pytest.mark.parametrize(
        ("num_shards", "size", "wanted"),
        [(1, 512, 1), (1, 600, 1), (8, 256, 4), (1, 2048, 4), (8, 8192, 128), (1, 1021, 1), (1, 1200, 2)],
    )
    def test_the_default_is_about_five_hundred_samples_on_a_cpu(self, num_shards, size, wanted, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
        found = descent.default_num_chunks(num_shards, size)
        assert found == wanted
        assert size % found == 0
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert descent.default_num_chunks(num_shards, size) == 1

    def test_ppo_learns_the_same_in_chunks(self):
        found = []
        for num_chunks in (1, 4):
            algorithm = ppo.make(*zoo.CARTPOLE, zoo.separate(), zoo.adam(), num_envs=4, num_steps=16,
                                 num_chunks=num_chunks)  # fmt: skip
            state = jax.jit(algorithm.init)(KEY)
            found.append(jax.jit(algorithm.step)(KEY, state))
        chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-6)

    def test_a_critic_is_fitted_the_same_in_chunks(self):
        params, (x, y) = problem()
        optimizer = optax.adam(0.1)
        fitted = [
            pgjax.minibatch_descent(
                KEY, lambda p, b: loss(p, b)[0], optimizer, params, optimizer.init(params),
                (x[None], y[None]), num_minibatches=2, num_epochs=3, num_chunks=num_chunks,
            )
            for num_chunks in (1, 3)
        ]  # fmt: skip
        chex.assert_trees_all_close(*fitted, rtol=1e-4, atol=1e-6)

    def test_chunks_that_do_not_divide_are_an_error_at_once(self):
        with pytest.raises(ValueError, match="num_chunks=3 must divide the 4 samples"):
            ppo.make(*zoo.CARTPOLE, zoo.separate(), zoo.adam(), num_envs=4, num_steps=16, num_chunks=3)
        with pytest.raises(ValueError, match="num_chunks=0 must divide"):
            pgjax.minibatch.in_chunks(jnp.zeros((2, 4), int), 0)


class TestProduct:
    """`dot_general` of the dense layers against the plain one."""

    def arguments(self, batch, outputs=9, inputs=10):
        x = jax.random.normal(KEY, (*batch, inputs))
        return x, jax.random.normal(jax.random.key(1), (inputs, outputs))

    @pytest.mark.parametrize(("inputs", "outputs"), [(10, 1), (10, 3), (10, 9), (5, 9)])
    @pytest.mark.parametrize("batch", [(), (7,), (2, 7), (2, 1, 7)])
    def test_values_and_gradients_of_every_kind(self, batch, inputs, outputs, x64, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
        x, kernel = self.arguments(batch, outputs, inputs)
        dims = (((x.ndim - 1,), (0,)), ((), ()))
        weights = jnp.arange(1.0, outputs + 1.0)  # of the outputs: their order matters

        def fast(x, kernel):
            return (jnp.sin(dot_general(x, kernel, dims)) @ weights).sum()

        def plain(x, kernel):
            return (jnp.sin(lax.dot_general(x, kernel, dims)) @ weights).sum()

        for transform in (
            lambda f: f,
            lambda f: jax.grad(f, argnums=(0, 1)),
            lambda f: lambda *a: jax.jvp(f, a, a)[1],
            lambda f: jax.hessian(f, argnums=(0, 1)),
            lambda f: lambda *a: jax.linearize(f, *a)[1](*a),
        ):
            chex.assert_trees_all_close(transform(fast)(x, kernel), transform(plain)(x, kernel), rtol=1e-9)

    @pytest.mark.parametrize(
        "options",
        [{}, {"strides": (2, 2)}, {"padding": "SAME"}, {"kernel_dilation": 2}, {"feature_group_count": 2}],
        ids=str,
    )
    def test_a_convolution_and_its_gradients_are_those_of_lax(self, options, x64, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
        images = jax.random.normal(KEY, (3, 7, 6, 2))
        forms = [
            nn.Conv(4, (3, 3), param_dtype=float, conv_general_dilated=form,
                    **{"padding": "VALID"} | options)
            for form in (convolve, lax.conv_general_dilated)
        ]  # fmt: skip
        params = forms[0].init(KEY, images)
        found, wanted = (
            jax.value_and_grad(lambda p, x, f=f: jnp.sin(f.apply(p, x)).sum(), (0, 1))(params, images)
            for f in forms
        )
        chex.assert_trees_all_close(found, wanted, rtol=1e-9)

    @pytest.mark.parametrize(
        "transform",
        [
            lambda f: f,
            lambda f: lambda *a: jax.jvp(f, a, a)[1],
            lambda f: jax.hessian(f, argnums=(0, 1)),
            lambda f: lambda *a: jax.linearize(f, *a)[1](*a),
            lambda f: jax.grad(lambda *a: jnp.sin(jax.grad(f, argnums=1)(*a)).sum(), argnums=(0, 1)),
        ],
        ids=["value", "jvp", "hessian", "linearize", "reverse twice"],
    )
    def test_a_convolution_under_every_transformation(self, transform, x64, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
        x = jax.random.normal(KEY, (3, 4, 5, 2))
        kernel = jax.random.normal(jax.random.key(1), (3, 2, 2, 4))
        found, wanted = (transform(summed(f))(x, kernel) for f in (convolve, lax.conv_general_dilated))
        chex.assert_trees_all_close(found, wanted, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("axes", [(None, 0), (0, None), (0, 0)])
    def test_a_convolution_mapped_over_images_and_kernels(self, axes, x64, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
        x, kernel = jax.random.normal(KEY, (2, 3, 4, 5, 2)), jax.random.normal(KEY, (2, 3, 2, 2, 4))
        x, kernel = (a[0] if axis is None else a for a, axis in zip((x, kernel), axes, strict=True))
        found, wanted = (
            jax.vmap(jax.grad(summed(f), argnums=(0, 1)), axes)(x, kernel)
            for f in (convolve, lax.conv_general_dilated)
        )
        chex.assert_trees_all_close(found, wanted, rtol=1e-9, atol=1e-12)

    def test_groups_of_images_are_convolved_as_by_lax(self, monkeypatch):
        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
        x, kernel = jax.random.normal(KEY, (4, 5, 5, 2)), jax.random.normal(KEY, (3, 3, 2, 4))
        found, wanted = (
            f(x, kernel, (1, 1), "VALID", dimension_numbers=NUMBERS, batch_group_count=2)
            for f in (convolve, lax.conv_general_dilated)
        )
        np.testing.assert_array_equal(found, wanted)

    @pytest.mark.parametrize("outputs", [1, 3, 9])
    def test_it_can_be_mapped_over_networks(self, outputs, x64):
        x, kernel = self.arguments((7,), outputs)
        kernels = jnp.stack([kernel, 2.0 * kernel])

        def loss(kernel):
            return jnp.sin(dot_general(x, kernel, DENSE)).sum()

        found = jax.vmap(jax.grad(loss))(kernels)
        for i in range(2):
            np.testing.assert_allclose(found[i], jax.grad(loss)(kernels[i]), rtol=1e-9)

    def test_few_outputs_are_multiplied_one_by_one_and_never_by_a_stored_transpose(self, monkeypatch):
        """A stored transpose of the observations would be an array `[10, 7]`."""
        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")

        def program(outputs):
            x, kernel = self.arguments((7,), outputs)
            return str(jax.make_jaxpr(jax.grad(lambda k: jnp.square(dot_general(x, k, DENSE)).sum()))(kernel))

        narrow, wide = program(2), program(9)
        assert "f32[10,7]" in wide
        assert "f32[10,7]" not in narrow
        products = re.findall(r"f32\[[\d,]*\](?= = dot_general)", narrow)
        assert products == ["f32[7,1]", "f32[7,1]", "f32[1,10]", "f32[1,10]"]  # forward, and the gradient

        x, kernel = self.arguments((7,), 2)
        towards_x = str(
            jax.make_jaxpr(jax.grad(lambda x: jnp.square(dot_general(x, kernel, DENSE)).sum()))(x)
        )
        products = re.findall(r"f32\[[\d,]*\](?= = dot_general)", towards_x)
        assert products == ["f32[7,1]", "f32[7,1]", "f32[7,10]", "f32[7,10]"]
        assert "optimization_barrier" not in program(1)

    @pytest.mark.parametrize("form", [dot_general, convolve])
    def test_what_does_not_vary_is_not_multiplied(self, form, monkeypatch):
        """Along a direction of the kernel alone there are two products, the value's and the direction's."""
        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
        if form is dot_general:
            (x, kernel), options = self.arguments((7,)), (DENSE,)
        else:
            x, kernel = jnp.ones((3, 4, 5, 2)), jnp.ones((3, 2, 2, 4))
            options = ((1, 1), "VALID")

        def products(function, point):
            program = jax.jit(lambda p: jax.jvp(function, (p,), (p,))).lower(point).as_text()
            return program.count("dot_general ")

        assert products(lambda k: form(x, k, *options), kernel) == 2
        assert products(lambda x: form(x, kernel, *options), x) == 2

    def test_the_transpose_is_stored_on_cpus_alone(self, monkeypatch):
        x, kernel = self.arguments((7,))

        def program():
            return str(jax.make_jaxpr(jax.grad(lambda k: dot_general(x, k, DENSE).sum()))(kernel))

        monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
        assert "optimization_barrier" in program()
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert "optimization_barrier" not in program()


class TestRaveled:
    def test_parameters_are_those_of_the_network(self):
        network = networks.ActorCritic(zoo.categorical(), zoo.critic())
        params = networks.Raveled(network).init(KEY, jnp.zeros(4))
        assert len(jax.tree.leaves(params)) == 1
        chex.assert_trees_all_equal(params.tree, network.init(KEY, jnp.zeros(4)))

    def test_a_stack_of_them_unravels_along_the_last_axis(self):
        critic = networks.Raveled(zoo.critic())
        stacked = jax.vmap(lambda key: critic.init(key, jnp.zeros(4)))(jax.random.split(KEY, 3))
        kernel = stacked.tree["params"]["torso"]["Dense_0"]["kernel"]
        assert kernel.shape == (3, 4, 8)
        second = jax.tree.map(lambda x: x[1], stacked)
        np.testing.assert_array_equal(kernel[1], second.tree["params"]["torso"]["Dense_0"]["kernel"])

    def test_ppo_learns_the_same(self):
        network = networks.ActorCritic(zoo.categorical(), zoo.critic())
        found = []
        for form in (network, networks.Raveled(network)):
            algorithm = ppo.make(*zoo.CARTPOLE, form, zoo.adam(), num_envs=4, num_steps=16)
            state, metrics = jax.jit(algorithm.step)(KEY, jax.jit(algorithm.init)(KEY))
            params = state.learned.params
            found.append((getattr(params, "tree", params), metrics))
        chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-6)

    def test_the_fisher_information_is_the_same(self):
        actor, obs = zoo.categorical(), jax.random.normal(KEY, (16, 4))
        raveled = networks.Raveled(actor)
        params, vector = actor.init(KEY, obs), raveled.init(KEY, obs)
        gradient = jax.grad(lambda p: actor.apply(p, obs).log_probs[:, 0].mean())(params)
        same = jax.grad(lambda p: raveled.apply(p, obs).log_probs[:, 0].mean())(vector)
        direction, _ = pgjax.natural_gradient(actor.apply, params, obs, gradient)
        found, _ = pgjax.natural_gradient(raveled.apply, vector, obs, same)
        chex.assert_trees_all_close(found.tree, direction, rtol=1e-3, atol=1e-5)

    def test_parameters_of_several_types_are_an_error(self):
        class Mixed:
            def init(self, key, obs):
                return {"a": jnp.zeros(2), "b": jnp.zeros(2, jnp.int32)}

        with pytest.raises(ValueError, match="parameters of one type"):
            networks.Raveled(Mixed()).init(KEY, jnp.zeros(4))


def test_a_run_that_spreads_its_environments_takes_whole_minibatches(monkeypatch):
    """Every chunk would be summed over the devices; seeds that are spread keep theirs."""
    chosen = {}

    def build(preset, hyper, made):
        chosen[settings.shard] = preset.options["num_chunks"]
        raise InterruptedError

    monkeypatch.setattr(presets, "build", build)
    for shard in ("data", "seed"):
        settings = Settings(presets.preset("ppo", "CartPole-v1"), seeds=1, shard=shard, devices=1)
        with pytest.raises(InterruptedError):
            programs.compile_programs(settings)
    assert chosen == {"data": 1, "seed": None}
