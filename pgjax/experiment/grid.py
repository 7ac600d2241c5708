"""The settings of a sweep: combined or drawn, checked, and sorted by the program that they need."""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, get_args, get_type_hints

import jax
import numpy as np

from pgjax._checks import at_least_one, whole
from pgjax.experiment import parts, presets
from pgjax.experiment.presets import Hyper, Preset

Setting: TypeAlias = dict[str, Any]
"""What differs between the runs of a sweep, such as `{"clip_eps": 0.1, "optimizer.learning_rate": 1e-3}`."""

_DRAWS = 100  # tries for each setting that is wanted, before there seem to be no others


class Group(NamedTuple):
    """Settings that one compiled program serves: all that differs between them may be traced.

    Attributes:
        preset: of the first of them.
        numbers: which of the sweep's settings they are.
        hyper: their values for `presets.build`, leaves `[len(numbers)]`.
    """

    preset: Preset
    numbers: tuple[int, ...]
    hyper: Hyper


def plan(
    algorithm: str,
    environment: str | None = None,
    changes: Mapping[str, Any] | None = None,
    *,
    random: int | None = None,
    seed: int = 0,
) -> tuple[Preset, list[Setting]]:
    """What all runs share, and what differs.

    Args:
        algorithm: its name.
        environment: its name; None as in `presets.preset`.
        changes: as in `presets.change`, where a list stands for several values; "optimizer.learning_rate" may
            stand for the same within the dict of `optimizer`.
        random: how many settings to draw; None for all combinations.
        seed: of the draw.

    Returns:
        The preset, and the settings, each with the same names.

    Raises:
        ValueError: if a name is unknown, or if the values are no values to sweep over.

    Example:
        >>> changes = dict(num_envs=16, clip_eps=[0.1, 0.2], optimizer=dict(learning_rate=[1e-4, 1e-3]))
        >>> preset, settings = plan("ppo", changes=changes)
        >>> preset.options["num_envs"], len(settings), settings[1]
        (16, 4, {'clip_eps': 0.1, 'optimizer.learning_rate': 0.001})
    """
    preset = presets.preset(algorithm, environment)
    axes: dict[str, tuple[Any, ...]] = {}
    for name, value in _flat(preset, changes or {}).items():
        several = list(value) if isinstance(value, list | np.ndarray) else [value]
        values = tuple(_as_declared(preset, name, v) for v in several)
        if not values:
            raise ValueError(f"{name} has no value: give one, or a list of several.")
        twice = next((v for i, v in enumerate(values) if v in values[:i]), None)
        if twice is not None:
            raise ValueError(f"{name} has the value {show(twice)} twice.")
        preset = apply(preset, {name: values[0]})
        if len(values) > 1:
            axes[name] = values
    if random is None:
        return preset, combinations(axes)
    return preset, draw(axes, random, seed)


def combinations(axes: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Every value of each axis with every value of the others.

    Args:
        axes: values by name.

    Returns:
        The settings, the last axis changing first; a single empty one if there are no axes.
    """
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def draw(axes: Mapping[str, Sequence[Any]], number: int, seed: int) -> list[Setting]:
    """Settings at random, all different.

    Exactly two finite numbers are a range, both ends included: on a logarithmic scale if both are positive
    and their ratio is at least 10, whole if both are. From other values one is drawn, each as likely.

    Args:
        axes: values by name.
        number: of settings.
        seed: the same seed draws the same settings.

    Returns:
        The settings; their real numbers have four digits, so that they can be typed again.

    Raises:
        ValueError: if there is nothing to draw from, a range is the wrong way round, or if there are not so
            many different settings.
    """
    at_least_one(random=number)
    whole(seed=seed)
    if not axes:
        raise ValueError("A random search needs options to draw: give at least one of them several values.")
    for name, values in axes.items():
        if _is_range(values) and values[0] > values[1]:
            raise ValueError(f"{name} ranges from {values[0]} down to {values[1]}: give the lower end first.")
    rng = np.random.default_rng(seed)
    drawn: dict[str, Setting] = {}
    for _ in range(_DRAWS * number):
        setting = {name: _draw_one(values, rng) for name, values in axes.items()}
        drawn.setdefault(describe(setting), setting)
        if len(drawn) == number:
            return list(drawn.values())
    raise ValueError(
        f"There are hardly {number} different settings to draw, only {len(drawn)} were found: leave random "
        "out to run all of them."
    )


def apply(preset: Preset, setting: Setting) -> Preset:
    """A preset with a setting in it.

    Args:
        preset: what all runs share.
        setting: what differs.

    Returns:
        The preset of the setting.

    Raises:
        ValueError: if a name is unknown.
    """
    changes: dict[str, Any] = {}
    for name, value in setting.items():
        section, _, field = name.partition(".")
        if field:
            changes.setdefault(section, {})[field] = value
        else:
            changes[section] = value
    return presets.change(preset, **changes)


def groups(preset: Preset, settings: Sequence[Setting]) -> list[Group]:
    """The settings by the program they need, after each is seen to be one that can be trained.

    Values that may be traced differ within a group; sizes, names and switches, and whether an option is off
    (None), do not.

    Args:
        preset: what all runs share.
        settings: what differs.

    Returns:
        The groups, in the order of their first settings.

    Raises:
        ValueError: names the setting that cannot be trained.
    """
    members: dict[str, list[int]] = {}
    each = [apply(preset, setting) for setting in settings]
    for number, one in enumerate(each):
        with_name(lambda one=one: presets.build(one), settings[number])
        values = presets.hyper(one)
        nothing = {section: dict.fromkeys(names, 0.0) for section, names in values.items()}
        static = presets.change(one, **nothing.pop("options"), **nothing)
        members.setdefault(json.dumps(presets.to_json(static)), []).append(number)
    return [
        Group(
            each[numbers[0]],
            tuple(numbers),
            jax.tree.map(lambda *x: np.asarray(x, float), *(presets.hyper(each[n]) for n in numbers)),
        )
        for numbers in members.values()
    ]


def with_name(call: Any, setting: Setting) -> Any:
    """What a function returns, or its complaint with the name of the setting.

    Args:
        call: of no arguments.
        setting: that it is about.

    Returns:
        Its result.

    Raises:
        ValueError: of the function, the setting in front of it.
    """
    try:
        return call()
    except ValueError as error:
        if not setting:
            raise
        raise ValueError(f"With {describe(setting)}: {error}") from None


def describe(setting: Setting) -> str:
    """A setting in a line.

    Args:
        setting: what differs.

    Returns:
        Such as "clip_eps=0.1, optimizer.learning_rate=0.001".
    """
    return ", ".join(f"{name}={show(value)}" for name, value in setting.items()) or "the preset's values"


def show(value: Any) -> str:
    """A value as it is typed.

    Args:
        value: of an option.

    Returns:
        Such as "0.001", "True", "None" or "64,64".
    """
    return ",".join(map(show, value)) if isinstance(value, tuple) else str(value)


def to_json(settings: Sequence[Setting]) -> list[Setting]:
    """Settings as JSON takes them.

    Args:
        settings: of a sweep.

    Returns:
        Tuples as lists, infinities as strings.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return list(value)
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return [{name: plain(value) for name, value in setting.items()} for setting in settings]


def from_json(settings: Sequence[Setting]) -> list[Setting]:
    """The reverse of `to_json`.

    Args:
        settings: from `to_json`.

    Returns:
        The settings.
    """

    def value(plain: Any) -> Any:
        if isinstance(plain, list):
            return tuple(plain)
        return float(plain) if plain in ("inf", "-inf", "nan") else plain

    return [{name: value(plain) for name, plain in setting.items()} for setting in settings]


def _flat(preset: Preset, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names in place of dicts in dicts."""
    flat: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in ("network", "env_params", *preset.optimizers):
            flat[name] = value
        elif isinstance(value, Mapping):
            flat |= {f"{name}.{field}": inner for field, inner in value.items()}
        else:
            raise ValueError(f"{name} takes a dict of what to change in it: values, or lists of several.")
    return flat


def _as_declared(preset: Preset, name: str, value: Any) -> Any:
    """A plain value; whole numbers as real ones where real ones are meant."""
    value = value.item() if isinstance(value, np.generic) else value
    if name == "network.hidden" and not isinstance(value, tuple):
        raise ValueError("network.hidden takes a tuple of sizes, several in a list: [(64, 64), (128, 128)].")
    section, _, field = name.rpartition(".")
    if section in preset.optimizers or section == "network":
        spec = preset.network if section == "network" else preset.optimizers[section]
        kind = get_type_hints(type(spec)).get(field)
        real = kind is float or float in get_args(kind)
    else:
        option = None if section else presets.keyword_options(preset.algorithm).get(field)
        real = option is not None and presets.is_numeric(option) and field not in parts.WHOLE
    return float(value) if real and isinstance(value, int) and not isinstance(value, bool) else value


def _is_range(values: Sequence[Any]) -> bool:
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(values) == len(numbers) == 2 and all(map(math.isfinite, numbers))


def _draw_one(values: Sequence[Any], rng: np.random.Generator) -> Any:
    if not _is_range(values):
        return values[int(rng.integers(len(values)))]
    low, high = values
    whole = all(isinstance(v, int) for v in values)
    top = high + 1 if whole else high  # as likely as every other whole number
    if low > 0 and high / low >= 10:
        x = math.exp(rng.uniform(math.log(low), math.log(top)))
    else:
        x = rng.uniform(low, top)
    return min(math.floor(x), high) if whole else min(max(float(f"{x:.4g}"), low), high)
