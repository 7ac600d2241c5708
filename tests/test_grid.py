import math

import numpy as np
import pytest

from pgjax.experiment import grid, presets


def test_lists_are_axes_and_everything_else_is_shared():
    changes = {
        "num_envs": 16,
        "clip_eps": [0.1, 0.2],
        "max_kl": [None, 1],
        "optimizer": {"learning_rate": np.array([1e-4, 1e-3]), "eps": 1},
        "network": {"hidden": [(64, 64), (32,)]},
        "env_params": {"max_steps_in_episode": 200},
    }
    preset, settings = grid.plan("ppo", "CartPole-v1", changes)
    assert preset.options["num_envs"] == 16
    assert preset.optimizers["optimizer"].eps == 1.0
    assert preset.env_params == {"max_steps_in_episode": 200}
    assert len(settings) == 2**4
    assert list(settings[0]) == ["clip_eps", "max_kl", "optimizer.learning_rate", "network.hidden"]
    assert settings[0] == dict(zip(settings[0], (0.1, None, 1e-4, (64, 64)), strict=True))
    assert settings[-1] == dict(zip(settings[0], (0.2, 1.0, 1e-3, (32,)), strict=True))
    assert all(type(value) in (float, tuple, type(None)) for s in settings for value in s.values())
    last = grid.apply(preset, settings[-1])
    assert last.optimizers["optimizer"].learning_rate == 1e-3
    assert last.network.hidden == (32,)
    assert last.options["num_envs"] == 16


def test_without_lists_there_is_one_setting():
    preset, settings = grid.plan("a2c", None, {"gamma": 0.9})
    assert settings == [{}]
    assert grid.apply(preset, {}) == preset == presets.preset("a2c", gamma=0.9)
    assert len(grid.groups(preset, settings)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_epz": [0.1, 0.2]}, "clip_eps"),
        ({"optimizer": {"learning_rat": [1e-3, 1e-4]}}, "learning_rate"),
        ({"optimizer": [{"learning_rate": 1e-3}]}, "takes a dict"),
        ({"clip_eps": []}, "clip_eps has no value"),
        ({"clip_eps": [0.1, 0.2, 0.1]}, "the value 0.1 twice"),
        ({"network": {"hidden": [64, 32]}}, "takes a tuple of sizes"),
    ],
)
def test_what_is_no_sweep(changes, message):
    with pytest.raises(ValueError, match=message):
        grid.plan("ppo", None, changes)


AXES = {
    "optimizer.learning_rate": (1e-5, 1e-2),
    "clip_eps": (0.1, 0.4),
    "num_envs": (2, 64),
    "num_epochs": (2, 5),
    "gamma": (0.9, 0.99, 0.999),
    "max_kl": (None, 0.01),
    "value_clip_eps": (0.2, math.inf),
}


def test_a_draw_can_be_repeated_and_stays_in_its_ranges():
    settings = grid.draw(AXES, 300, seed=3)
    assert settings == grid.draw(AXES, 300, seed=3)
    assert settings[:5] == grid.draw(AXES, 5, seed=3)
    assert settings != grid.draw(AXES, 300, seed=4)
    assert len({str(s) for s in settings}) == 300
    drawn = {name: [s[name] for s in settings] for name in AXES}
    for name, (low, *_, high) in list(AXES.items())[:4]:
        assert low <= min(drawn[name]) <= max(drawn[name]) <= high
    for name in list(AXES)[4:]:
        assert set(drawn[name]) == set(AXES[name])
    assert all(isinstance(n, int) for n in drawn["num_envs"])
    assert set(drawn["num_epochs"]) == {2, 3, 4, 5}
    assert all(float(f"{x:.4g}") == x for x in drawn["optimizer.learning_rate"])


def test_whole_numbers_that_may_be_traced_are_drawn_as_such():
    for algorithm, option in (("dqn", "target_period"), ("a3c", "delay")):
        _, settings = grid.plan(algorithm, None, {option: [3, 300]}, random=20)
        assert all(isinstance(s[option], int) for s in settings)


def test_a_range_of_a_decade_is_logarithmic_and_a_shorter_one_is_not():
    drawn = grid.draw({"wide": (1e-4, 1.0), "narrow": (1.0, 9.0), "sizes": (1, 1000)}, 4000, seed=0)
    wide, narrow, sizes = (np.array([s[name] for s in drawn]) for name in ("wide", "narrow", "sizes"))
    # medians of 4000 draws: within 4 deviations of a uniform's median, 0.5 / sqrt(4000) of the range
    np.testing.assert_allclose(np.median(np.log10(wide)), -2.0, atol=4 * 4 * 0.008)
    np.testing.assert_allclose(np.median(narrow), 5.0, atol=4 * 8 * 0.008)
    np.testing.assert_allclose(np.median(np.log10(sizes)), 1.5, atol=4 * 3 * 0.008)


@pytest.mark.parametrize(
    ("axes", "number", "message"),
    [
        ({}, 3, "options to draw"),
        ({"gamma": (0.9, 0.99)}, 0, "random must be at least 1"),
        ({"gamma": (0.9, 0.99)}, "3", "random must be a whole number, got '3'"),
        ({"gamma": (0.99, 0.9)}, 3, "lower end first"),
        ({"name": ("adam", "sgd")}, 3, "only 2 were found"),
    ],
)
def test_what_cannot_be_drawn(axes, number, message):
    with pytest.raises(ValueError, match=message):
        grid.draw(axes, number, 0)


def test_a_group_is_what_one_program_serves():
    changes = {
        "gamma": [0.9, 0.99],
        "num_envs": [4, 8],
        "optimizer": {"max_grad_norm": [None, 0.5, 1.0]},
    }
    preset, settings = grid.plan("a2c", "CartPole-v1", changes)
    groups = grid.groups(preset, settings)
    static = {}
    for number, s in enumerate(settings):
        off = s["optimizer.max_grad_norm"] is None
        static.setdefault((s["num_envs"], off), []).append(number)
    assert [group.numbers for group in groups] == [tuple(numbers) for numbers in static.values()]
    for group in groups:
        for row, number in enumerate(group.numbers):
            wanted = presets.hyper(grid.apply(preset, settings[number]))
            found = {s: {k: x[row] for k, x in values.items()} for s, values in group.hyper.items()}
            assert found == wanted


def test_a_value_out_of_its_range_is_named_with_its_setting():
    preset, settings = grid.plan("ppo", None, {"gamma": [0.9, 2.0], "clip_eps": [0.1, 0.2]})
    with pytest.raises(ValueError, match=r"With gamma=2\.0, clip_eps=0\.1: gamma must be between 0 and 1"):
        grid.groups(preset, settings)


def test_settings_survive_json():
    settings = [
        {"clip_eps": math.inf, "max_kl": None, "network.hidden": (64, 64), "name": "adam", "on": True}
    ]
    plain = grid.to_json(settings)
    assert plain[0]["clip_eps"] == "inf"
    assert plain[0]["network.hidden"] == [64, 64]
    assert grid.from_json(plain) == settings
