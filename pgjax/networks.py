"""Actors, critics and Q networks in flax linen.

Every network takes observations with any number of batch axes in front, none included, because gradients
per sample are taken one observation at a time. Weights are orthogonal, √2 inside, 0.01 at the head of an
actor and 1 at that of a critic, biases zero (Huang et al. 2022, detail 2).

Parameters are float32, and float64 where `jax_enable_x64` is on, unless `param_dtype` says otherwise. A torso
may compute in bfloat16, by its `dtype`: it casts what it sees and its parameters to it, and its features are
of it. A head always computes in the type of its parameters, or in that of its features where that is wider.
So a distribution or a value is never rounded to bfloat16, and neither is what estimators, losses, optimizers
and metrics make of it: next to a value of 100 bfloat16 knows no other below 100.5, and advantages and ratios
are differences finer than that. A head is narrow, so little is lost. Gradients come back in the type of the
parameters.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pgjax._matmul import convolve, dot_general
from pgjax._random import flat_draw
from pgjax.distributions import Categorical, DiagGaussian, TanhGaussian
from pgjax.types import Array, ArrayTree, Network, Params, PRNGKey

Activation = Callable[[Array], Array]


def parameter_dtype(param_dtype: DTypeLike | None = None) -> Any:
    """The type of parameters.

    Args:
        param_dtype: the one asked for; None: float32, and float64 where `jax_enable_x64` is on.

    Returns:
        The type.

    Raises:
        ValueError: if it is none of these.

    Example:
        >>> parameter_dtype()
        dtype('float32')
    """
    default = jnp.result_type(float)
    dtype = default if param_dtype is None else jnp.dtype(param_dtype)
    if dtype not in (default, jnp.dtype("float32")):
        raise ValueError(
            f"Parameters are float32, or float64 where jax_enable_x64 is on, not {dtype}: in less, small "
            "steps would be lost beside large weights. A torso with dtype=jnp.bfloat16 computes in bfloat16."
        )
    return dtype


def orthogonal(scale: float) -> Callable[..., Array]:
    """As `jax.nn.initializers.orthogonal`, in programs that compile faster (see `pgjax._random`).

    Args:
        scale: gain of the weights.

    Returns:
        The initializer, `(key, shape, dtype) -> weights`; the last axis counts outputs.

    References:
        Saxe et al. 2014, Exact solutions to the nonlinear dynamics of learning in deep linear networks;
        Mezzadri 2007, How to generate random matrices from the classical compact groups.
    """

    def init(key: PRNGKey, shape: Sequence[int], dtype: DTypeLike | None = None) -> Array:
        return scale * _orthogonal(key, tuple(shape), jnp.result_type(float) if dtype is None else dtype)

    return init


@functools.partial(jax.jit, static_argnums=(1, 2))  # flax traces it in every `apply` too, to check shapes
def _orthogonal(key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    num_inputs, num_outputs = math.prod(shape[:-1]), shape[-1]
    size = max(num_inputs, num_outputs), min(num_inputs, num_outputs)
    q, r = jnp.linalg.qr(flat_draw(jax.random.normal, key, size, dtype))
    diagonal = (r * jnp.eye(size[1], dtype=dtype)).sum(0, keepdims=True)
    q = q * jnp.sign(diagonal)  # otherwise not all of them are equally likely
    return (q.T if num_inputs < num_outputs else q).reshape(shape)


def dense(
    size: int, scale: float, param_dtype: DTypeLike | None = None, dtype: DTypeLike | None = None
) -> nn.Dense:
    """A dense layer with orthogonal weights and zero biases.

    Args:
        size: number of outputs.
        scale: gain of the weights.
        param_dtype: see `parameter_dtype`.
        dtype: in which it computes; None: the wider one of its input's and its parameters'.

    Returns:
        The layer.
    """
    return nn.Dense(
        size,
        kernel_init=orthogonal(scale),
        dtype=dtype,
        param_dtype=parameter_dtype(param_dtype),
        dot_general=dot_general,
    )


class MLP(nn.Module):
    """Dense layers, each followed by the activation: observation -> features `[..., hidden[-1]]`.

    Attributes:
        hidden: sizes of the layers.
        activation: elementwise.
        obs_ndim: rank of one observation, flattened first (1 for a vector, 2 for Catch's board, 0 for an
            integer state, which becomes one-hot).
        num_states: number of integer states where `obs_ndim` is 0.
        dtype: in which the layers compute; None: the wider one of the observation's and the parameters'.
        param_dtype: see `parameter_dtype`.

    Example:
        >>> torso, obs = MLP((8,), dtype=jnp.bfloat16), jnp.ones((5, 4))
        >>> critic = Critic(torso)
        >>> params = critic.init(jax.random.key(0), obs)
        >>> torso.apply({"params": params["params"]["torso"]}, obs).dtype, critic.apply(params, obs).dtype
        (dtype(bfloat16), dtype('float32'))
    """

    hidden: Sequence[int] = (64, 64)
    activation: Activation = nn.tanh
    obs_ndim: int = 1
    num_states: int = 0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Features `[..., hidden[-1]]` of `obs [..., *shape]`."""
        if self.obs_ndim == 0:
            x = nn.one_hot(obs, self.num_states)
        else:
            x = obs.reshape(*obs.shape[: obs.ndim - self.obs_ndim], -1).astype(jnp.result_type(obs, float))
        for size in self.hidden:
            x = self.activation(dense(size, math.sqrt(2.0), self.param_dtype, self.dtype)(x))
        return x


class CNN(nn.Module):
    """One 3×3 convolution and a dense layer, the network of the MinAtar paper.

    Attributes:
        channels: of the convolution.
        hidden: size of the dense layer.
        activation: elementwise.
        dtype: in which the layers compute; None: the wider one of the image's and the parameters'.
        param_dtype: see `parameter_dtype`.

    References:
        Young & Tian 2019, MinAtar, section 3.
    """

    channels: int = 16
    hidden: int = 128
    activation: Activation = nn.relu
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, obs: Array) -> Array:
        """Features `[..., hidden]` of images `[..., H, W, C]`."""
        x = obs.astype(jnp.result_type(obs, float))
        types = {"dtype": self.dtype, "param_dtype": parameter_dtype(self.param_dtype)}
        form = {"kernel_init": orthogonal(math.sqrt(2.0)), "conv_general_dilated": convolve}
        x = nn.Conv(self.channels, (3, 3), padding="VALID", **form, **types)(x)
        x = self.activation(x)
        x = x.reshape(*x.shape[:-3], -1)
        return self.activation(dense(self.hidden, math.sqrt(2.0), self.param_dtype, self.dtype)(x))


def split_mask(obs: ArrayTree) -> tuple[Any, Array | None]:
    """What a torso sees, and the action mask that travels beside it.

    Args:
        obs: an observation, or a mapping `{"obs": …, "action_mask": bool [..., A]}`.

    Returns:
        The observation, and the mask or None.
    """
    if isinstance(obs, Mapping) and "action_mask" in obs:
        return obs["obs"], obs["action_mask"]
    return obs, None


def allowed(action_value: Array, obs: ArrayTree) -> Array:
    """Action values, −∞ for what the mask in the observation forbids.

    Args:
        action_value: `[..., A]`.
        obs: the observation, with a mask in it or without.

    Returns:
        `[..., A]`.
    """
    mask = split_mask(obs)[1]
    return action_value if mask is None else jnp.where(mask, action_value, -jnp.inf)


class CategoricalActor(nn.Module):
    """A softmax policy on top of a torso.

    Observations may be a mapping `{"obs": …, "action_mask": bool [..., A]}`: the mask then excludes
    actions and the torso sees `"obs"`. All networks for a finite number of actions read such observations.

    Attributes:
        num_actions: A.
        torso: observation -> features.
        param_dtype: of the head; see `parameter_dtype`.
    """

    num_actions: int
    torso: Callable[[Any], Array] = MLP()
    param_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, obs: ArrayTree) -> Categorical:
        """The policy's distribution at `obs`."""
        seen, mask = split_mask(obs)
        return Categorical(dense(self.num_actions, 0.01, self.param_dtype)(self.torso(seen)), mask)


class GaussianActor(nn.Module):
    """A Gaussian policy whose deviation does not depend on the state.

    Attributes:
        action_size: D.
        torso: observation -> features.
        log_std_init: initial log σ of every component.
        param_dtype: of the head; see `parameter_dtype`.
    """

    action_size: int
    torso: Callable[[Any], Array] = MLP()
    log_std_init: float = 0.0
    param_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, obs: ArrayTree) -> DiagGaussian:
        """The policy's distribution at `obs`."""
        mean = dense(self.action_size, 0.01, self.param_dtype)(self.torso(obs))
        start = nn.initializers.constant(self.log_std_init)
        log_std = self.param("log_std", start, (self.action_size,), parameter_dtype(self.param_dtype))
        return DiagGaussian(mean, jnp.broadcast_to(log_std, mean.shape))


class TanhGaussianActor(nn.Module):
    """A Gaussian squashed into the action box, its deviation a function of the state.

    Attributes:
        low: lower bounds, one a component.
        high: upper bounds.
        torso: observation -> features.
        log_std_min: log σ is squashed by tanh into [log_std_min, log_std_max].
        log_std_max: see there.
        param_dtype: of the head; see `parameter_dtype`.
    """

    low: Sequence[float]
    high: Sequence[float]
    torso: Callable[[Any], Array] = MLP()
    log_std_min: float = -5.0
    log_std_max: float = 2.0
    param_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, obs: ArrayTree) -> TanhGaussian:
        """The policy's distribution at `obs`."""
        features = self.torso(obs)
        mean = dense(len(self.low), 0.01, self.param_dtype)(features)
        raw = jnp.tanh(dense(len(self.low), 0.01, self.param_dtype)(features))
        log_std = self.log_std_min + 0.5 * (self.log_std_max - self.log_std_min) * (raw + 1.0)
        return TanhGaussian(mean, log_std, *_bounds(self.low, self.high, mean))


class Critic(nn.Module):
    """A state value V(s).

    Attributes:
        torso: observation -> features.
        param_dtype: of the head; see `parameter_dtype`.
    """

    torso: Callable[[Any], Array] = MLP()
    param_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, obs: ArrayTree) -> Array:
        """Values `[...]`."""
        return dense(1, 1.0, self.param_dtype)(self.torso(split_mask(obs)[0]))[..., 0]


class QNetwork(nn.Module):
    """Action values Q(s, ·) for a finite number of actions.

    Attributes:
        num_actions: A.
        torso: observation -> features.
        param_dtype: of the head; see `parameter_dtype`.
    """

    num_actions: int
    torso: Callable[[Any], Array] = MLP()
    param_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, obs: ArrayTree) -> Array:
        """Action values `[..., A]`."""
        return dense(self.num_actions, 1.0, self.param_dtype)(self.torso(split_mask(obs)[0]))


class DuelingQNetwork(nn.Module):
    """Action values as the value of the state plus what each action adds to the mean.

        Q(s, a) = V(s) + A(s, a) − mean_b A(s, b)

    Attributes:
        num_actions: A.
        torso: observation -> features.
        param_dtype: of the head; see `parameter_dtype`.

    References:
        Wang et al. 2016, Dueling network architectures, eq. 9.
    """

    num_actions: int
    torso: Callable[[Any], Array] = MLP()
    param_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, obs: ArrayTree) -> Array:
        """Action values `[..., A]`."""
        features = self.torso(split_mask(obs)[0])
        value = dense(1, 1.0, self.param_dtype)(features)
        advantage = dense(self.num_actions, 1.0, self.param_dtype)(features)
        return value + advantage - advantage.mean(-1, keepdims=True)


class LinearQ(nn.Module):
    """Action values that are linear in features of the observation, all zero at the start.

        Q(s, a) = φ(s)ᵀ θ_a

    With one-hot features it is a table.

    Attributes:
        num_actions: A.
        features: `obs -> φ(s) [..., K]`.
        param_dtype: see `parameter_dtype`.

    References:
        Sutton & Barto 2018, section 9.4 (linear methods).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> table = LinearQ(2, lambda obs: jax.nn.one_hot(obs, 3))
        >>> params = table.init(jax.random.key(0), jnp.array(1))
        >>> params["params"]["theta"].shape, table.apply(params, jnp.array([0, 1, 2, 1])).shape
        ((3, 2), (4, 2))
    """

    num_actions: int
    features: Callable[[Any], Array]
    param_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, obs: ArrayTree) -> Array:
        """Action values `[..., A]`."""
        features = self.features(split_mask(obs)[0])
        shape = features.shape[-1], self.num_actions
        theta = self.param("theta", nn.initializers.zeros_init(), shape, parameter_dtype(self.param_dtype))
        return features @ theta


class DeterministicActor(nn.Module):
    """A policy that is one action of a box: the tanh of a torso's features, scaled to the bounds.

    Attributes:
        low: lower bounds, one a component.
        high: upper bounds.
        torso: observation -> features.
        param_dtype: of the head; see `parameter_dtype`.

    References:
        Lillicrap et al. 2016, Continuous control with deep RL, section 7.
    """

    low: Sequence[float]
    high: Sequence[float]
    torso: Callable[[Any], Array] = MLP()
    param_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, obs: ArrayTree) -> Array:
        """Actions `[..., D]`."""
        raw = dense(len(self.low), 0.01, self.param_dtype)(self.torso(obs))
        low, high = _bounds(self.low, self.high, raw)
        return jnp.clip(low + 0.5 * (high - low) * (jnp.tanh(raw) + 1.0), low, high)


class ActionCritic(nn.Module):
    """The value Q(s, a) of an observation with an action from a box.

    The pair is what this network observes. The torso sees one vector: the observation, flattened, and the
    action scaled to [−1, 1].

    Attributes:
        low: lower bounds of the action, one a component.
        high: upper bounds.
        torso: vector -> features.
        obs_ndim: rank of one observation.
        param_dtype: of the head; see `parameter_dtype`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> critic = ActionCritic((-2.0,), (2.0,))
        >>> pair = jnp.zeros((5, 3)), jnp.zeros((5, 1))
        >>> critic.apply(critic.init(jax.random.key(0), pair), pair).shape
        (5,)
    """

    low: Sequence[float]
    high: Sequence[float]
    torso: Callable[[Any], Array] = MLP()
    obs_ndim: int = 1
    param_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, obs: tuple[Array, Array]) -> Array:
        """Values `[...]` of `(obs [..., *shape], action [..., D])`."""
        seen, action = obs
        action = action.astype(jnp.result_type(seen, action, float))
        low, high = _bounds(self.low, self.high, action)
        scaled = 2.0 * (action - low) / (high - low) - 1.0
        flat = seen.reshape(*seen.shape[: seen.ndim - self.obs_ndim], -1).astype(action.dtype)
        features = self.torso(jnp.concatenate([flat, scaled], -1))
        return dense(1, 1.0, self.param_dtype)(features)[..., 0]


class Ensemble(NamedTuple):
    """Several networks of one kind, each with parameters of its own, as one network.

    They are initialised one after the other: several orthogonal initialisations in one batch deadlock in
    jaxlib 0.10 on machines with few cores.

    Attributes:
        network: what each of them is.
        size: K.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> twins = Ensemble(Critic(), 2)
        >>> twins.apply(twins.init(jax.random.key(0), jnp.zeros(4)), jnp.zeros((8, 4))).shape
        (2, 8)
    """

    network: Network
    size: int

    def init(self, key: PRNGKey, obs: ArrayTree) -> Params:
        """Parameters, leaves `[K, ...]`."""
        return lax.map(lambda key: self.network.init(key, obs), jax.random.split(key, self.size))

    def apply(self, params: Params, obs: ArrayTree) -> Any:
        """What each of them returns, leaves `[K, ...]`."""
        return jax.vmap(self.network.apply, in_axes=(0, None))(params, obs)


class _Form(NamedTuple):
    """How a vector of parameters is cut into a pytree."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RaveledParams:
    """Parameters that lie in one vector: a pytree of one leaf.

    Attributes:
        vector: `[P]`, with whatever axes are mapped over in front.
        form: of the pytree that they are.

    Example:
        >>> network = Raveled(Critic(MLP((8,))))
        >>> params = network.init(jax.random.key(0), jnp.zeros(4))
        >>> params.vector.shape, params.tree["params"]["torso"]["Dense_0"]["kernel"].shape
        ((49,), (4, 8))
    """

    vector: Array
    form: _Form = dataclasses.field(metadata={"static": True})

    @property
    def tree(self) -> Any:
        """The pytree, leaves `[..., *shape]`."""
        structure, shapes = self.form
        parts = lax.split(self.vector, [math.prod(shape) for shape in shapes], self.vector.ndim - 1)
        leading = self.vector.shape[:-1]
        leaves = [part.reshape(*leading, *shape) for part, shape in zip(parts, shapes, strict=True)]
        return jax.tree.unflatten(structure, leaves)


class Raveled(NamedTuple):
    """A network whose parameters lie in one vector, so that a gradient step is a handful of operations.

    An Adam step on the pytree of a policy and a value is fifty small operations, on the vector five; on CPUs
    that is a tenth of a training with small minibatches, and it compiles faster. It is for optimizers to
    which a parameter is a number among others, such as Adam with clipping by the global norm; not for those
    that look at layers (K-FAC, LAMB, masks by name).

    Attributes:
        network: what it is else.

    Example:
        >>> critic, obs = Critic(), jnp.ones((2, 4))
        >>> params, raveled = critic.init(jax.random.key(0), obs), Raveled(critic)
        >>> same = raveled.apply(raveled.init(jax.random.key(0), obs), obs) == critic.apply(params, obs)
        >>> bool(same.all())
        True
    """

    network: Network

    def init(self, key: PRNGKey, obs: ArrayTree) -> RaveledParams:
        """Parameters, as those of the network.

        Raises:
            ValueError: if they are of several types.
        """
        leaves, structure = jax.tree.flatten(self.network.init(key, obs))
        types = {str(jnp.result_type(leaf)) for leaf in leaves}
        if len(types) != 1:
            raise ValueError(f"One vector holds parameters of one type, but these are {sorted(types)}.")
        form = _Form(structure, tuple(leaf.shape for leaf in leaves))
        return RaveledParams(jnp.concatenate([leaf.ravel() for leaf in leaves]), form)

    def apply(self, params: RaveledParams, obs: ArrayTree) -> Any:
        """What the network returns."""
        return self.network.apply(params.tree, obs)


def features_as_they_are(features: Array) -> Array:
    """The torso of a head whose features come from elsewhere.

    Args:
        features: `[...]`.

    Returns:
        The same.
    """
    return features


class ActorCritic(nn.Module):
    """A policy and a value in one network: `obs -> (Distribution, value [...])`.

    Separate networks are an actor and a critic with torsos of their own; a shared torso goes in `torso`,
    with `features_as_they_are` as the torso of both heads.

    Attributes:
        actor: observation (or features) -> Distribution.
        critic: observation (or features) -> value.
        torso: what both share.

    Raises:
        ValueError: if actor and critic hold the same torso object.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = ActorCritic(CategoricalActor(2), Critic())
        >>> policy, value = network.apply(network.init(jax.random.key(0), jnp.zeros(4)), jnp.zeros((8, 4)))
        >>> policy.probs.shape, value.shape
        ((8, 2), (8,))
    """

    actor: Callable[[Any], Any]
    critic: Callable[[Any], Array]
    torso: Callable[[Any], Any] = features_as_they_are

    def __post_init__(self) -> None:
        torsos = [getattr(head, "torso", None) for head in (self.actor, self.critic)]
        if isinstance(torsos[0], nn.Module) and torsos[0] is torsos[1]:
            raise ValueError(
                "Actor and critic were given the same torso object, and flax would share its parameters. "
                "Give each a torso of its own, or share one on purpose: ActorCritic(actor, critic, torso) "
                "with features_as_they_are as the torso of both heads."
            )
        super().__post_init__()

    def __call__(self, obs: ArrayTree) -> tuple[Any, Array]:
        """The distribution and the value at `obs`."""
        seen, mask = split_mask(obs)
        features = self.torso(seen)
        masked = features if mask is None else {"obs": features, "action_mask": mask}
        return self.actor(masked), self.critic(features)


def _bounds(low: Sequence[float], high: Sequence[float], like: Array) -> tuple[Array, Array]:
    """The bounds of a box, for every action of a batch."""
    low_array, high_array = (jnp.broadcast_to(jnp.asarray(b, like.dtype), like.shape) for b in (low, high))
    return low_array, high_array


class FeatureFunction(Protocol):
    """φ(s, ·): features of an observation with every action."""

    def __call__(self, obs: ArrayTree, /) -> Array:
        """Features `[..., A, K]`."""
        ...


class LinearSoftmax(nn.Module):
    """The Boltzmann policy that is linear in features of observation and action.

        π(a | s) ∝ exp(θᵀ φ(s, a) / temperature)

    Attributes:
        features: `obs -> φ(s, ·) [..., A, K]`; of an observation with an action mask it sees `"obs"`.
        temperature: above 0.
        param_dtype: see `parameter_dtype`.

    References:
        Sutton et al. 2000, section 3 (the Gibbs policy).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> actor = LinearSoftmax(lambda obs: jnp.array([[3.0], [1.0]]))
        >>> actor.apply({"params": {"theta": jnp.ones(1)}}, jnp.zeros(1)).probs.round(2)
        Array([0.88, 0.12], dtype=float32)
    """

    features: FeatureFunction
    temperature: float = 1.0
    param_dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, obs: ArrayTree) -> Categorical:
        """The policy's distribution at `obs`."""
        seen, mask = split_mask(obs)
        features = self.features(seen)
        shape = (features.shape[-1],)
        theta = self.param("theta", nn.initializers.zeros_init(), shape, parameter_dtype(self.param_dtype))
        return Categorical.boltzmann(features @ theta, self.temperature, mask)
