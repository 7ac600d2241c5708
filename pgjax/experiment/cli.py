"""The `pgjax` command."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pgjax.experiment import options, startup
from pgjax.experiment.options import checked, complain, fail, parse, peek, positional

_USAGE = """\
usage: pgjax COMMAND ...

  pgjax train ALGORITHM [--env NAME] [--seeds N] [--steps N] [--out DIR] [--seed S] [--stop-return R]
                        [--checkpoint-every N] [--tensorboard] [--wandb] [--devices N] [--shard seed|data]
                        [any option of the algorithm]
                                        train, with a learning curve at the end; without --env on the first
                                        environment of its presets, CartPole-v1 for most
  pgjax train --resume RUN [--steps N]  go on with a run that was cut off, bit for bit
  pgjax sweep ALGORITHM [--env NAME] [--seeds N] [--steps N] [--random N] [--memory 4GB] [--out DIR] ...
                        [any option of the algorithm, with one value or several]
                                        train every combination of the values, or N settings at random, as one
                                        program where it can be; ends with a table and a heat map
  pgjax sweep --resume RUN              do what is left of a sweep that was cut off
  pgjax evaluate RUN [--episodes N] [--seed S]
                                        play the final policies of a run
  pgjax plot RUN... [--out FILE]        compare the learning curves of runs
  pgjax list                            algorithms, environments, presets

"pgjax train ALGORITHM --help" shows every option with its preset value, "pgjax sweep ALGORITHM --help" what
is different there. What was compiled is kept in ~/.cache/pgjax, so that the next start is a short one;
PGJAX_COMPILATION_CACHE=0 switches that off."""


@dataclasses.dataclass
class _Evaluate:
    """Play the final policies of a run: greedy actions, whole episodes.

    Attributes:
        run: the run's folder.
        episodes: of every seed.
        seed: of the evaluation.
    """

    run: Path
    episodes: int = 100
    seed: int = 0


@dataclasses.dataclass
class _Plot:
    """Compare runs: interquartile mean over seeds with its 95 % bootstrap interval.

    Attributes:
        runs: the runs' folders.
        out: the picture; its ending says in which format.
    """

    runs: tuple[Path, ...]
    out: Path = Path("comparison.png")


@dataclasses.dataclass
class _SweepOn:
    """Do what is left of a sweep that was cut off: the runs that had not ended, from their beginning.

    Attributes:
        resume: the sweep's folder.
        memory: what runs may fill at a time, such as 4GB; by default as before.
        devices: how many; by default all, on CPUs as many as before.
    """

    resume: Path
    memory: str | None = None
    devices: int | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """The command.

    Args:
        argv: its arguments; None for the process's, which is then the command's own: only then are compiled
            programs kept for the next one, and XLA's threads chosen.

    Returns:
        Exit status: 0; 1 if a seed diverged, in a sweep if none has a return; 2 for a mistake of the user;
        130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": _train, "sweep": _sweep, "evaluate": _evaluate, "plot": _plot, "list": _list}
    try:
        if not args or args[0] in ("-h", "--help"):
            print(_USAGE)
            return 0 if args else 2
        if args[0] == "--version":
            from pgjax import __version__

            print(__version__)
            return 0
        if args[0] not in commands:
            from pgjax._advice import advice

            fail(f"Unknown command {args[0]!r}. {advice(args[0], list(commands))}")
        if argv is None and args[0] in ("train", "sweep", "evaluate"):
            from pgjax.experiment import compilation

            compilation.keep_programs(warn=complain)
            if args[0] == "train":
                startup.choose_threads(args[1:])
        return commands[args[0]](args[1:])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except OSError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 130


def _train(args: list[str]) -> int:
    algorithm, args, run = _named(args, "train")
    startup.start_devices(args, Path(run) if run else None)

    from pgjax.experiment import presets, processes, store

    if run:
        config = checked(lambda: store.read_config(Path(run)))
        settings = store.Settings(**{name: config[name] for name in store.Settings._fields})
        settings = settings._replace(devices=None)
        if algorithm not in (None, settings.preset.algorithm):
            fail(f"{run} is a run of {settings.preset.algorithm}, not of {algorithm}.")
    else:
        environment = peek(args, "--env", "") or None
        settings = store.Settings(checked(lambda: presets.preset(algorithm or "", environment)))
    chosen = parse(options.train_options(settings), args, f"pgjax train {settings.preset.algorithm}")
    if chosen.env != settings.preset.environment:
        once = "Give --env once." if chosen.env else "--env is empty: name an environment, or leave it away."
        fail(f"{run} is a run on {settings.preset.environment}." if run else once)
    if run and chosen.out is not None:
        fail("A run that goes on stays in its folder: leave --out away.")
    if chosen.allow_inexact and not run:
        fail("--allow-inexact goes with --resume RUN.")
    wanted = _chosen_settings(settings, chosen)
    if processes.is_first():
        return _train_here(wanted, chosen)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return _train_here(wanted, chosen)


def _named(args: list[str], command: str) -> tuple[str | None, list[str], str]:
    """The algorithm that stands first, what follows, and the run to go on with; one of the two is there."""
    from pgjax.experiment import presets

    run = peek(args, "--resume", "")
    if "--resume" in args and (not run or run.startswith("-")):
        fail("Name the folder to go on with: --resume RUN.")
    algorithm = args[0] if args and not args[0].startswith("-") else None
    if algorithm is None and not run:
        known = ", ".join(presets.algorithm_names())
        if args and args[0] in ("-h", "--help"):
            print(f"{_USAGE}\n\nalgorithms: {known}")
            raise SystemExit(0)
        fail(f"Name the algorithm first: pgjax {command} ALGORITHM. Known are {known}.")
    return algorithm, args[1:] if algorithm else args, run


def _chosen_settings(settings: Any, chosen: Any) -> Any:
    """The settings with what was typed in them."""
    import jax

    from pgjax.experiment import presets

    preset = settings.preset
    changes = {name: getattr(chosen, name) for name in [*preset.options, "steps"]}
    changes |= {name: getattr(chosen, name)._asdict() for name in ["network", *preset.optimizers]}
    params = dataclasses.asdict(chosen.env_params) if hasattr(chosen, "env_params") else {}
    changes["env_params"] = {k: v for k, v in params.items() if v is not None}
    fields = ("seeds", "seed", "stop_return", "checkpoint_every", "keep", "shard", "devices")
    settings = settings._replace(
        preset=presets.change(preset, **changes), **{name: getattr(chosen, name) for name in fields}
    )
    # with several processes the number is that of each one's devices, and all of them are used
    return settings._replace(devices=None) if jax.process_count() > 1 else settings


def _train_here(settings: Any, chosen: Any) -> int:
    """Train with settings that are read, and say how it goes."""
    from rich.console import Console

    from pgjax.experiment import display, history, presets, processes, resuming, runner

    console = Console()
    say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    # of several processes the first reports; an error is said by each
    warn = complain if processes.is_first() else lambda text: None
    checked(lambda: runner.check(settings))
    listeners = checked(lambda: _listeners(settings, chosen))
    if chosen.resume is None:
        folder, start = (
            checked(lambda: runner.create(chosen.out, settings)),
            resuming.beginning(settings.seeds),
        )
    else:
        folder, changes = chosen.resume, settings._asdict()
        settings, start = checked(
            lambda: resuming.read(folder, changes=changes, allow_inexact=chosen.allow_inexact, warn=warn)
        )
    preset = settings.preset
    count = f"{settings.seeds} seeds" if settings.seeds > 1 else f"seed {settings.seed}"
    where = f" from iteration {start.iteration}" if chosen.resume else ""
    most = presets.iteration_size(preset)[0]
    left = history.iterations_left(preset.steps, most, start.history, start.diverged_at)
    then = "compiling" if left else "nothing is left to do"
    say(f"{preset.algorithm} on {preset.environment}: {preset.steps:,} steps, {count}{where}; {then}")
    with display.live(console) as report:
        made = [listener(folder) for listener in listeners]
        result = checked(lambda: runner.run_in(folder, settings, start, sinks=made, report=report, warn=warn))
    console.print(display.result_table(result))
    _say_what_was_loaded(say)
    folder = result.folder
    picture = folder / "curve.png"
    say(f"curve: {picture}" if picture.exists() else f"run: {folder} (no curve: no episode has ended)")
    if result.summary["diverged"]:
        warn(display.divergence(result))
    if result.status == "interrupted":
        warn(f"interrupted; go on with: pgjax train --resume {folder}")
        return 130
    return 1 if result.summary["diverged"] else 0


def _say_what_was_loaded(say: Callable[[str], None]) -> None:
    """So that nobody takes the seconds of a second start for those that compiling takes."""
    from pgjax.experiment import compilation

    loaded, programs = compilation.loaded()
    if loaded:
        say(f"programs: {loaded} of {programs} had been compiled before, and were loaded")


def _listeners(settings: Any, chosen: Any) -> list[Callable[[Path], Any]]:
    """What makes the sinks that were asked for, once the folder is there; complains before if it cannot."""
    from pgjax.experiment import presets, processes, sinks

    if not processes.is_first():
        return []
    makers: list[Callable[[Path], Any]] = []
    if chosen.tensorboard:
        sinks.require("tensorboardX", "tensorboard")
        makers.append(sinks.tensorboard)
    if chosen.wandb:
        sinks.require("wandb", "wandb")
        config = settings._asdict() | {"preset": presets.to_json(settings.preset)}
        makers.append(lambda folder: sinks.wandb(folder, name=folder.resolve().name, config=config))
    return makers


def _sweep(args: list[str]) -> int:
    algorithm, args, run = _named(args, "sweep")
    if run and algorithm:
        fail(
            "A sweep that goes on keeps its settings: pgjax sweep --resume RUN, with --memory and --devices."
        )
    startup.start_devices(args, Path(run) if run else None, fill=True)
    from rich.console import Console

    from pgjax.experiment import display, grid, presets, sweep_display, sweeps

    console = Console()
    if not console.is_terminal:  # nothing is there to fold the table for
        console = Console(width=max(console.width, 120))
    say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    if run:
        chosen = parse(_SweepOn, args, "pgjax sweep")
        memory = checked(lambda: options.num_bytes(chosen.memory))
        sweep = checked(lambda: sweeps.read_config(chosen.resume))[0]
        go = lambda report: sweeps.resume(  # noqa: E731
            chosen.resume, memory=memory, devices=chosen.devices, report=report, warn=complain
        )
    else:
        preset = checked(lambda: presets.preset(algorithm or "", peek(args, "--env", "") or None))
        chosen = parse(options.sweep_options(preset), args, f"pgjax sweep {algorithm}")
        if chosen.env != preset.environment:
            fail("Give --env once.")
        changes = checked(lambda: options.swept(preset, chosen, args))
        random, memory = chosen.random, checked(lambda: options.num_bytes(chosen.memory))
        shared, settings = checked(
            lambda: grid.plan(preset.algorithm, preset.environment, changes, random=random, seed=chosen.seed)
        )
        kept = {name: getattr(chosen, name) for name in ("seeds", "seed", "devices", "format")}
        sweep = sweeps.Sweep(shared, settings, drawn=random is not None, memory=memory, **kept)
        go = lambda report: sweeps.run(sweep, out=chosen.out, report=report, warn=complain)  # noqa: E731
    preset = sweep.preset
    count, each = len(sweep.settings), f"{sweep.seeds} seed{'s' if sweep.seeds > 1 else ''}"
    count = f"{count} setting{'s' if count > 1 else ''} × {each}"
    steps = sorted(set(sweep.steps_of_settings()))
    each = " to ".join(f"{n:,}" for n in dict.fromkeys((steps[0], steps[-1])))
    say(f"{preset.algorithm} on {preset.environment}: {count}, {each} steps each; compiling")
    with display.live(console, sweep_display.describe) as report:
        result = checked(lambda: go(report))
    summary, folder = result.summary, result.folder
    console.print(sweep_display.table(summary))
    say(sweep_display.verdict(summary))
    _say_what_was_loaded(say)
    pictures = [path for name in ("heat_map.png", "scatter.png") if (path := folder / name).exists()]
    say(f"picture: {pictures[0]}" if pictures else f"sweep: {folder}")
    if result.status == "interrupted":
        complain(f"interrupted; go on with: pgjax sweep --resume {folder}")
        return 130
    return 0 if summary["best"] is not None else 1


def _evaluate(args: list[str]) -> int:
    chosen = parse(positional(_Evaluate, "run"), args, "pgjax evaluate")
    from pgjax.experiment import display, runner

    means = checked(lambda: runner.evaluate(chosen.run, episodes=chosen.episodes, seed=chosen.seed))
    for seed, mean in means.items():
        print(f"seed {seed}: return {mean:.1f} over {chosen.episodes} episodes")
    if len(means) > 1:
        print(f"interquartile mean {display.with_interval(list(means.values()))}")
    return 0


def _plot(args: list[str]) -> int:
    chosen = parse(positional(_Plot, "runs"), args, "pgjax plot")
    if not chosen.runs:
        fail("Name the folder of at least one run: pgjax plot RUN...")
    from pgjax.experiment import plots, store

    runs = checked(lambda: {run: store.read_metrics(run) for run in chosen.runs})
    names = [run.resolve().name for run in runs]
    labels = [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]
    ax = plots.compare(dict(zip(labels, runs.values(), strict=True)))
    for label, metrics in zip(labels, runs.values(), strict=True):
        if not metrics["episodes"].any():
            complain(f"{label} has no curve: no episode has ended.")
    out = chosen.out if chosen.out.suffix else chosen.out.with_suffix(".png")
    checked(lambda: plots.save(ax, out))
    print(f"curves: {out}")
    return 0


def _list(args: list[str]) -> int:
    if args:
        fail(f"pgjax list takes no arguments, got {' '.join(args)}.")
    from rich.console import Console
    from rich.table import Table

    from pgjax import envs
    from pgjax.experiment import presets

    algorithms = presets.algorithm_names()
    table = Table(
        title="presets: steps by default", caption="elsewhere: the algorithm's defaults, 500,000 steps"
    )
    table.add_column("environment")
    table.add_column("algorithms")
    for environment in dict.fromkeys(environment for _, environment in presets.TUNED):
        steps = [
            f"{a} {presets.preset(a, environment).steps:,}"
            for a in algorithms
            if (a, environment) in presets.TUNED
        ]
        table.add_row(environment, ", ".join(steps))
    console = Console()
    console.print("algorithms: " + ", ".join(algorithms), highlight=False)
    console.print("environments: " + ", ".join(envs.names()), highlight=False)
    console.print(table)
    return 0
