import importlib.util
import signal
import subprocess
import sys

import pytest
from experiment_fixtures import compile_once, tiny_run

from pgjax.experiment import cli, files, grid, options, parts, presets, runner, store

TINY = ["train", "a2c", "--seeds", "3", "--seed", "5", "--num-envs", "4", "--num-steps=16", "--steps", "697"]
TINY += ["--network.hidden", "8"]


@pytest.fixture(autouse=True)
def _compile_once(monkeypatch):
    monkeypatch.setattr(runner, "compile_programs", compile_once)


def test_train_says_what_came_out_and_where_the_picture_is(tmp_path, capsys):
    assert cli.main([*TINY, "--out", str(tmp_path / "run")]) == 0
    shown = capsys.readouterr()
    assert "697/697" not in shown.out  # whole iterations: 704
    assert "704/697 steps" in shown.out
    assert "a2c on CartPole-v1: finished" in shown.out
    assert "IQM" in shown.out
    assert str(tmp_path / "run" / "curve.png") in shown.out.replace("\n", "")
    assert shown.err == ""
    assert store.read_config(tmp_path / "run")["preset"] == store.read_config(tiny_run().folder)["preset"]


def test_a_diverged_run_has_an_exit_status(tmp_path, capsys):
    args = [*TINY, "--optimizer.name", "sgd", "--optimizer.learning-rate", "1e38"]
    args += ["--optimizer.max-grad-norm", "None", "--out", str(tmp_path / "run")]
    assert cli.main(args) == 1
    shown, error = capsys.readouterr()
    assert shown.count("(diverged in iteration ") == 3  # which, and when
    assert "diverged" in error
    assert "seed 5 in iteration" in error
    assert "Traceback" not in error
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") > 1


def test_ctrl_c_has_the_usual_exit_status(tmp_path, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "Snapshot", interrupt)
    assert cli.main([*TINY, "--out", str(tmp_path / "run")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert (tmp_path / "run" / "summary.json").exists()


def test_evaluate_and_plot(tmp_path, capsys):
    run = str(tiny_run().folder)
    assert cli.main(["evaluate", run, "--episodes", "2"]) == 0
    assert "seed 5: return" in capsys.readouterr().out
    assert cli.main(["plot", run, run, "--out", str(tmp_path / "both")]) == 0
    assert (tmp_path / "both.png").stat().st_size > 5_000
    assert capsys.readouterr().out == f"curves: {tmp_path / 'both.png'}\n"


def test_list(capsys):
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("actor_critic", "ppo", "Breakout-MinAtar", "FrozenLake-misc"))


def test_help_shows_every_option_with_the_presets_value(capsys):
    assert cli.main(["--help"]) == 0
    assert "pgjax train ALGORITHM" in capsys.readouterr().out
    assert cli.main(["train", "ppo", "--env", "Pendulum-v1", "--help"]) == 0
    shown = capsys.readouterr().out
    options = ("--clip-eps", "--lambda", "--normalize-obs", "--optimizer.learning-rate", "--network.hidden")
    assert all(
        name in shown for name in (*options, "--env-params.max-steps-in-episode", "--env-params.rescale-obs")
    )
    assert "(default: True)" in shown


@pytest.mark.parametrize("name", presets.algorithm_names())
def test_every_algorithm_is_made_from_its_options_as_they_are_shown_and_typed(name):
    settings = store.Settings(presets.preset(name))
    given = {k: v for k, v in settings.preset.options.items() if v is not None and not isinstance(v, bool)}

    def chosen(args):
        return cli._chosen_settings(settings, options.parse(options.train_options(settings), args, "pgjax"))

    shown = chosen([])
    assert shown == settings
    assert chosen([f"--{k.rstrip('_').replace('_', '-')}={v}" for k, v in given.items()]) == settings
    assert all(isinstance(shown.preset.options[k], int) for k in given if k in parts.WHOLE)
    presets.build(shown.preset)
    presets.build(shown.preset, presets.hyper(shown.preset))  # numbers that could be traced, and are not
    plan = grid.plan(name, None, {k: [v] for k, v in given.items()})
    assert [grid.apply(plan[0], setting).options for setting in plan[1]] == [settings.preset.options]
    grid.groups(*plan)


@pytest.mark.parametrize(
    "command, message",
    [
        ("trian ppo", "Did you mean train?"),
        ("train", "Name the algorithm first"),
        ("train --env CartPole-v1", "Name the algorithm first"),
        ("train ppoo", "Did you mean ppo or trpo?"),
        ("train ppo --env CartPol-v1", "CartPole-v1"),
        ("train ppo --env", "--env"),
        ("train ppo --env=", "--env is empty"),
        ("train ppo --env MNISTBandit-bsuite", "download"),
        ("train ppo --env CartPole-v1 --env-params.rescale-obs True", "finite bounds"),
        ("train ppo --clip-epz 0.1", "--clip-eps"),
        ("train ppo --num-envs x", "--num-envs"),
        ("train ppo --num-envs 0", "num_envs must be at least 1"),
        ("train dqn --target-period 0", "target_period must be at least 1"),
        ("train dqn --target-period 2.5", "--target-period"),
        ("train ppo --num-minibatches 7", "must divide"),
        ("train ppo --gamma 2", "gamma must be between 0 and 1"),
        ("train ppo --lambda_ 2", "lambda_ must be between 0 and 1"),
        ("train ppo --seeds 0", "seeds must be at least 1"),
        ("train ppo --steps -5", "steps must be at least 1"),
        ("train ppo --optimizer.name adamm", "adamm"),
        ("train ppo --network.torso cnn", "CNN needs images"),
        ("train actor_critic --env Pendulum-v1 --all-action", "continuous"),
        ("train reinforce --weight best", "best"),
        ("train ppo --out .", "exists already"),
        ("evaluate nowhere", "nowhere/config.json is missing"),
        ("plot", "at least one run"),
        ("plot nowhere", "nowhere/metrics.csv is missing"),
        ("list everything", "takes no arguments"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_two(command, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(command.split()) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("pgjax: ")
    assert shown.err.count("\n") == 1
    assert message in shown.err
    assert not list(tmp_path.iterdir())


def test_python_m_pgjax_is_the_command():
    done = subprocess.run([sys.executable, "-m", "pgjax", "tarin"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Did you mean train?" in done.stderr


def test_a_run_is_cut_off_and_goes_on(tmp_path, capsys, monkeypatch):
    folder = str(tmp_path / "run")
    monkeypatch.setattr(runner, "_CHUNK_SECONDS", 0.0)  # one iteration at a time
    snapshot, seen = runner.Snapshot, []

    def note(*args):
        seen.append(args)
        if len(seen) == 3:
            signal.raise_signal(signal.SIGINT)
        return snapshot(*args)

    with monkeypatch.context() as patched:
        patched.setattr(runner, "Snapshot", note)
        assert cli.main([*TINY, "--out", folder, "--checkpoint-every", "2"]) == 130
    assert f"go on with: pgjax train --resume {folder}" in capsys.readouterr().err
    assert cli.main(["train", "--resume", folder]) == 0
    assert f"from iteration {len(seen)}; compiling" in capsys.readouterr().out
    times = files.read_json(tmp_path / "run" / "summary.json")
    assert cli.main(["train", "--resume", folder]) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert files.read_json(tmp_path / "run" / "summary.json") == times
    whole = tiny_run().folder
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--clip-eps", "0.3"], "Unrecognized"),
        (["--gamma", "0.5"], "cannot go on with other settings: gamma is 0.5 now"),
        (["--env", "Acrobot-v1"], "is a run on CartPole-v1"),
        (["--seeds", "4"], "seeds is 4 now, the run has 3"),
        (["--steps", "9999"], "schedule of optimizer ends with them"),
        (["--devices", "7"], "devices must be between 1 and"),
        (["--out", "elsewhere"], "stays in its folder: leave --out away"),
    ],
)
def test_a_run_that_goes_on_keeps_its_settings(capsys, args, message):
    assert cli.main(["train", "--resume", str(tiny_run().folder), *args]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_resume_wants_a_run(tmp_path, capsys):
    assert cli.main(["train", "--resume"]) == 2
    assert "Name the folder to go on with" in capsys.readouterr().err
    assert cli.main(["train", "ppo", "--resume", str(tiny_run().folder)]) == 2
    assert "is a run of a2c, not of ppo" in capsys.readouterr().err
    assert cli.main(["train", "--resume", str(tmp_path)]) == 2
    assert "config.json is missing" in capsys.readouterr().err


def test_a_sink_that_is_not_installed_is_said_before_anything_is_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main([*TINY, "--out", str(tmp_path / "run"), "--tensorboard"]) == 2
    assert 'pip install "pgjax[tensorboard]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_tensorboard_writes_into_the_runs_folder(tmp_path):
    assert cli.main([*TINY, "--out", str(tmp_path / "run"), "--tensorboard"]) == 0
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
