"""From plain data to what `make` takes: networks by size, optimizers and weights by name, checks."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer

from pgjax import envs, networks
from pgjax._advice import advice
from pgjax.estimators.baselines import (
    constant_baseline,
    leave_one_out_baseline,
    linear_baseline,
    subtract_baseline,
    time_baseline,
    time_features,
)
from pgjax.estimators.returns import reward_to_go, total_return
from pgjax.natural.kfac import KFACOptimizer, kfac_optimizer
from pgjax.types import Array, Numeric, Transition


class NetworkSpec(NamedTuple):
    """Networks by size.

    Attributes:
        torso: "mlp", "cnn" for images, or "linear": the observation itself, one-hot where it is an integer.
        hidden: sizes of the dense layers; a CNN takes exactly one, "linear" none.
        activation: between the layers.
        channels: of the CNN's convolution.
        shared: one torso for policy and value, where the algorithm takes one network.
        log_std_init: initial log σ of a Gaussian policy.
        dueling: action values as a value and advantages.
        dtype: in which torsos compute. None: that of the parameters, float32, or float64 where x64 is on.
            Parameters, heads, losses and optimizers are of that type in any case.
    """

    torso: Literal["mlp", "cnn", "linear"] = "mlp"
    hidden: tuple[int, ...] = (64, 64)
    activation: Literal["tanh", "relu", "elu", "gelu", "silu"] = "tanh"
    channels: int = 16
    shared: bool = False
    log_std_init: float = 0.0
    dueling: bool = False
    dtype: Literal["bfloat16"] | None = None


class OptimizerSpec(NamedTuple):
    """An optax optimizer by name.

    Attributes:
        name: adam, rmsprop or sgd.
        learning_rate: at the start.
        eps: added to the denominator (adam, rmsprop).
        decay: of the average of squares (rmsprop).
        max_grad_norm: gradients are clipped to this global norm; None: not at all.
        schedule: "linear" takes the rate to 0 at the last gradient step of the run.
    """

    name: Literal["adam", "rmsprop", "sgd"] = "adam"
    learning_rate: float = 3e-4
    eps: float = 1e-5
    decay: float = 0.99
    max_grad_norm: float | None = 0.5
    schedule: Literal["constant", "linear"] = "constant"


class KFACSpec(NamedTuple):
    """A Kronecker-factored optimizer, `natural.kfac.kfac_optimizer`.

    Attributes:
        learning_rate: at the start; the trust region makes it smaller where it must.
        max_kl: KL divergence that one step may make, by the curvature, times two.
        momentum: of the steps.
        decay: of the running averages of the curvature.
        damping: added to the curvature.
        split_damping: between the factors of the curvature instead of to their product.
        max_grad_norm: gradients are clipped to this global norm; None: not at all.
        schedule: "linear" takes the rate to 0 at the last update of the run.
    """

    learning_rate: float = 0.25
    max_kl: float = 1e-3
    momentum: float = 0.9
    decay: float = 0.99
    damping: float = 0.01
    split_damping: bool = False
    max_grad_norm: float | None = None
    schedule: Literal["constant", "linear"] = "linear"


Spec: TypeAlias = OptimizerSpec | KFACSpec
"""Of an optimizer."""


def _weight(baseline: Callable[[Transition, Array, Array], Array]) -> Callable[[Numeric], Any]:
    """REINFORCE's weight: the reward-to-go minus a baseline of `(traj, reward_to_go, valid)`."""

    def with_gamma(gamma: Numeric) -> Any:
        def weight(traj: Transition, valid: Array, value: Any) -> Array:
            del value
            to_go = reward_to_go(traj.reward, traj.terminated, traj.truncated, gamma=gamma)
            return subtract_baseline(to_go, baseline(traj, to_go, valid), valid)

        return weight

    return with_gamma


# REINFORCE's Ψ by name, for a given γ; None is the algorithm's own: reward-to-go minus the learned critic.
WEIGHTS: dict[str, Callable[[Numeric], Any]] = {
    "critic": lambda gamma: None,
    "total_return": lambda gamma: lambda traj, valid, value: total_return(traj.reward, valid),
    "reward_to_go": _weight(lambda traj, to_go, valid: 0.0 * to_go),
    "constant": _weight(lambda traj, to_go, valid: constant_baseline(to_go, valid)),
    "time": _weight(lambda traj, to_go, valid: time_baseline(to_go, valid)),
    "leave_one_out": _weight(lambda traj, to_go, valid: leave_one_out_baseline(to_go, valid)),
    "linear": _weight(
        lambda traj, to_go, valid: linear_baseline(time_features(jnp.asarray(traj.obs)), to_go, valid)
    ),
}

# Ranges of concrete values: (lowest, highest, whether the lowest itself will do).
_RANGES: dict[str, tuple[float, float, bool]] = {
    **dict.fromkeys(("gamma", "lambda_", "decay", "momentum"), (0.0, 1.0, True)),
    **dict.fromkeys(("epsilon_start", "epsilon_end"), (0.0, 1.0, True)),
    "noise_correlation": (0.0, 0.9999, True),  # at 1 there would be no noise at all
    "tau": (0.0, 1.0, False),
    **dict.fromkeys(("delay", "alpha"), (0.0, math.inf, True)),
    "target_period": (1.0, math.inf, True),
    **dict.fromkeys(("entropy_coef", "value_coef", "kl_coef", "eps"), (0.0, math.inf, True)),
    **dict.fromkeys(("noise_std", "target_noise_std", "target_noise_clip"), (0.0, math.inf, True)),
    **dict.fromkeys(("clip_eps", "value_clip_eps", "obs_clip", "reward_clip"), (0.0, math.inf, False)),
    **dict.fromkeys(("max_kl", "kl_target", "learning_rate", "max_grad_norm"), (0.0, math.inf, False)),
    "exploration_steps": (0.0, math.inf, False),
    "damping": (0.0, math.inf, True),
    # of Kronecker factors, which are divided by their product with it
    **dict.fromkeys(("actor_optimizer.damping", "critic_optimizer.damping"), (0.0, math.inf, False)),
    **dict.fromkeys(("normalize_obs", "normalize_reward"), (0.0, 1.0, True)),
    "step_size": (0.0, math.inf, False),
    "backtrack": (0.0, 1.0, False),
}
_SIZES = ("num_", "max_steps", "steps", "hidden", "channels", "capacity", "batch_size", "warmup_steps")
_SIZES += ("n_step", "policy_delay")
WHOLE = ("target_period", "delay")
"""Whole numbers that may be traced; what is traced is real."""

_CHOICES = {
    "weight": list(WEIGHTS),
    "torso": ["mlp", "cnn", "linear"],
    "activation": ["tanh", "relu", "elu", "gelu", "silu"],
    "dtype": ["bfloat16"],
    "name": ["adam", "rmsprop", "sgd"],
    "schedule": ["constant", "linear"],
}


def make_networks(
    spec: NetworkSpec, name: str, env: Any, env_params: Any, heads: Mapping[str, str]
) -> dict[str, Any]:
    """The networks that some `make` asks for, by the name it asks with.

    Args:
        spec: the sizes.
        name: the environment's, for messages.
        env: the environment.
        env_params: its parameters.
        heads: the kind of each network by its name: "policy", "value", "both" in one network,
            "action_values" Q(s, ·), a "deterministic" policy in a box, "pair_value" Q(s, a),
            and for SAC "soft_policy" and "soft_value", which depend on the actions.

    Returns:
        The networks by the same names.

    Raises:
        ValueError: if the networks do not fit the environment's spaces.
    """
    action_space = env.action_space(env_params)
    # The space that an environment declares is not always the shape that it returns.
    obs = jax.eval_shape(env.reset, jax.random.key(0), env_params)[0]
    torso = _torso(spec, name, obs, env.observation_space(env_params))
    own = torso.clone()  # the same object in both heads would share its parameters
    discrete = envs.is_discrete(action_space)

    def policy(torso: Any) -> Any:
        if discrete:
            return networks.CategoricalActor(int(action_space.n), torso)
        return networks.GaussianActor(math.prod(action_space.shape), torso, spec.log_std_init)

    def both() -> Any:
        if spec.shared:
            heads = networks.features_as_they_are
            return networks.ActorCritic(policy(heads), networks.Critic(heads), torso)
        return networks.ActorCritic(policy(torso), networks.Critic(own))

    def action_values() -> Any:
        if not discrete:
            raise ValueError(
                f"Q(s, ·) needs a finite number of actions, but those of {name} are continuous: of the "
                "algorithms that learn values ddpg, td3 and sac are for them, and all_action is to be off."
            )
        if spec.torso == "linear":
            if spec.dueling:
                raise ValueError("A linear Q has no dueling heads: leave network.dueling off.")
            return networks.LinearQ(int(action_space.n), own)
        kind = networks.DuelingQNetwork if spec.dueling else networks.QNetwork
        return kind(int(action_space.n), own)

    def box() -> tuple[tuple[float, ...], tuple[float, ...]]:
        if discrete:
            raise ValueError(
                f"The actions of {name} are a finite number, and this algorithm wants a box: take sac or dqn."
            )
        low, high = (
            tuple(np.broadcast_to(b, action_space.shape).ravel().tolist())
            for b in (action_space.low, action_space.high)
        )
        return low, high

    def pair_value() -> Any:
        # what it sees is one vector, whatever the observation was
        vector = networks.MLP(spec.hidden, own.activation, dtype=own.dtype)
        return networks.ActionCritic(*box(), vector, obs.ndim)

    kinds: dict[str, Callable[[], Any]] = {
        "both": both,
        "policy": lambda: policy(torso),
        "value": lambda: networks.Critic(own),
        "action_values": action_values,
        "deterministic": lambda: networks.DeterministicActor(*box(), torso),
        "pair_value": pair_value,
        "soft_policy": lambda: policy(torso) if discrete else networks.TanhGaussianActor(*box(), torso),
        "soft_value": lambda: action_values() if discrete else pair_value(),
    }
    return {parameter: kinds[kind]() for parameter, kind in heads.items()}


def _torso(spec: NetworkSpec, name: str, obs: Any, space: Any) -> Any:
    activation = getattr(jax.nn, spec.activation)
    dtype = None if spec.dtype is None else jnp.dtype(spec.dtype)
    if spec.torso == "cnn":
        if obs.ndim != 3:
            raise ValueError(
                f'A CNN needs images, but {name} shows an array of shape {obs.shape}: use the torso "mlp".'
            )
        if len(spec.hidden) != 1:
            raise ValueError(
                f"A CNN has one dense layer: give network.hidden one size, not {[*spec.hidden]}."
            )
        return networks.CNN(spec.channels, spec.hidden[0], activation, dtype)
    num_states = getattr(space, "n", 0) if obs.ndim == 0 else 0
    hidden = () if spec.torso == "linear" else spec.hidden
    if dtype is not None and not hidden:
        raise ValueError("A torso without layers computes nothing: leave network.dtype out.")
    return networks.MLP(hidden, activation, obs.ndim, num_states, dtype)


def default_spec(annotation: Any) -> Spec:
    """The optimizer that a parameter of `make` asks for.

    Args:
        annotation: of the parameter.

    Returns:
        Its settings.
    """
    return KFACSpec() if annotation is KFACOptimizer else OptimizerSpec()


def make_optimizer(spec: Spec, num_updates: int | None) -> optax.GradientTransformation:
    """An optax optimizer.

    Args:
        spec: which, its numbers traced or not.
        num_updates: gradient steps until a rate of 0; None for a constant rate.

    Returns:
        The optimizer, clipping included.
    """
    rate: Any = spec.learning_rate
    if num_updates is not None:
        rate = optax.linear_schedule(spec.learning_rate, 0.0, num_updates)
    if isinstance(spec, KFACSpec):
        settings = spec._replace(learning_rate=rate)._asdict()
        return kfac_optimizer(**{name: x for name, x in settings.items() if name != "schedule"})
    if spec.name == "adam":
        step = optax.adam(rate, eps=spec.eps)
    elif spec.name == "rmsprop":
        step = optax.rmsprop(rate, decay=spec.decay, eps=spec.eps, eps_in_sqrt=False)
    else:
        step = optax.sgd(rate)
    return (
        step
        if spec.max_grad_norm is None
        else optax.chain(optax.clip_by_global_norm(spec.max_grad_norm), step)
    )


def check_kinds(values: Iterable[tuple[str, Any, Any]]) -> None:
    """Refuse None where a value is needed, and switches where numbers are.

    Args:
        values: names, values, and what is declared for them.

    Raises:
        ValueError: for the first that is not of its kind.
    """
    for name, value, declared in values:
        kinds = get_args(declared) or (declared,)
        if value is None and type(None) not in kinds:
            raise ValueError(f"{name} must have a value, got None.")
        if isinstance(value, bool) and bool not in kinds:
            raise ValueError(f"{name} must be a number, got {value}.")


def check_ranges(values: Iterable[tuple[str, Any]]) -> None:
    """Check concrete values: numbers, and names where there are choices; what is traced or None passes.

    Args:
        values: names, with the optimizer's name and a dot in front where there is one, and values.

    Raises:
        ValueError: for the first that is out of its range.
    """
    for name, value in values:
        field = name.rpartition(".")[2]
        if value is None or isinstance(value, Tracer):
            continue
        if field in _CHOICES:
            check_known(name, value, _CHOICES[field])
            continue
        low, high, inclusive = _range(name)
        if not (isinstance(value, bool | int | float) or hasattr(value, "dtype")) or value != value:
            raise ValueError(f"{name} must be a number, got {value!r}.")
        fraction = (_is_size(field) and not isinstance(value, int | np.integer)) or (
            field in WHOLE and value % 1 != 0
        )
        if fraction:
            raise ValueError(f"{name} must be a whole number, got {value!r}.")
        if isinstance(value, bool) or (low <= value <= high if inclusive else low < value <= high):
            continue
        bound = f"{'at least' if inclusive else 'above'} {low:g}"
        raise ValueError(
            f"{name} must be {f'between {low:g} and {high:g}' if high < math.inf else bound}, got {value}."
        )


def _range(name: str) -> tuple[float, float, bool]:
    field = name.rpartition(".")[2]
    if name in _RANGES:
        return _RANGES[name]
    if field in _RANGES:
        return _RANGES[field]
    return (1, math.inf, True) if _is_size(field) else (-math.inf, math.inf, True)


def _is_size(field: str) -> bool:
    return field.startswith(_SIZES)


def check_known(what: str, name: str, known: list[str]) -> None:
    """Check a name against those there are.

    Args:
        what: it names.
        name: the name.
        known: all that there are.

    Raises:
        ValueError: if it is not among them; near matches are listed.
    """
    if name in known:
        return
    raise ValueError(f"Unknown {what} {name!r}. {advice(str(name), known)}")
