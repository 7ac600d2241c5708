"""The `pgjax` command."""

import contextlib
import dataclasses
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints

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

            _fail(f"Unknown command {args[0]!r}. {advice(args[0], list(commands))}")
        if argv is None and args[0] in ("train", "sweep", "evaluate"):
            from pgjax.experiment import compilation

            compilation.keep_programs(warn=lambda text: print(f"pgjax: {text}", file=sys.stderr))
            if args[0] == "train":
                _choose_threads(args[1:])
        return commands[args[0]](args[1:])
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except OSError as error:
        print(f"pgjax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pgjax: interrupted", file=sys.stderr)
        return 130


def _train(args: list[str]) -> int:
    algorithm, args, run = _named(args, "train")
    _start_devices(args, Path(run) if run else None)

    from pgjax.experiment import presets, processes, store

    if run:
        config = _checked(lambda: store.read_config(Path(run)))
        settings = store.Settings(**{name: config[name] for name in store.Settings._fields})
        settings = settings._replace(devices=None)
        if algorithm not in (None, settings.preset.algorithm):
            _fail(f"{run} is a run of {settings.preset.algorithm}, not of {algorithm}.")
    else:
        environment = _peek(args, "--env", "") or None
        settings = store.Settings(_checked(lambda: presets.preset(algorithm or "", environment)))
    chosen = _parse(_train_options(settings), args, f"pgjax train {settings.preset.algorithm}")
    if chosen.env != settings.preset.environment:
        once = "Give --env once." if chosen.env else "--env is empty: name an environment, or leave it away."
        _fail(f"{run} is a run on {settings.preset.environment}." if run else once)
    if run and chosen.out is not None:
        _fail("A run that goes on stays in its folder: leave --out away.")
    if chosen.allow_inexact and not run:
        _fail("--allow-inexact goes with --resume RUN.")
    wanted = _chosen_settings(settings, chosen)
    if processes.is_first():
        return _train_here(wanted, chosen)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return _train_here(wanted, chosen)


def _named(args: list[str], command: str) -> tuple[str | None, list[str], str]:
    """The algorithm that stands first, what follows, and the run to go on with; one of the two is there."""
    from pgjax.experiment import presets

    run = _peek(args, "--resume", "")
    if "--resume" in args and (not run or run.startswith("-")):
        _fail("Name the folder to go on with: --resume RUN.")
    algorithm = args[0] if args and not args[0].startswith("-") else None
    if algorithm is None and not run:
        known = ", ".join(presets.algorithm_names())
        if args and args[0] in ("-h", "--help"):
            print(f"{_USAGE}\n\nalgorithms: {known}")
            raise SystemExit(0)
        _fail(f"Name the algorithm first: pgjax {command} ALGORITHM. Known are {known}.")
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
    warn = lambda text: print(f"pgjax: {text}", file=sys.stderr) if processes.is_first() else None  # noqa: E731
    _checked(lambda: runner.check(settings))
    listeners = _checked(lambda: _listeners(settings, chosen))
    if chosen.resume is None:
        folder, start = (
            _checked(lambda: runner.create(chosen.out, settings)),
            resuming.beginning(settings.seeds),
        )
    else:
        folder, changes = chosen.resume, settings._asdict()
        settings, start = _checked(
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
        result = _checked(
            lambda: runner.run_in(folder, settings, start, sinks=made, report=report, warn=warn)
        )
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
        _fail(
            "A sweep that goes on keeps its settings: pgjax sweep --resume RUN, with --memory and --devices."
        )
    _start_devices(args, Path(run) if run else None, fill=True)
    from rich.console import Console

    from pgjax.experiment import display, grid, presets, sweep_display, sweeps

    console = Console()
    if not console.is_terminal:  # nothing is there to fold the table for
        console = Console(width=max(console.width, 120))
    say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    warn = lambda text: print(f"pgjax: {text}", file=sys.stderr)  # noqa: E731
    if run:
        chosen = _parse(_SweepOn, args, "pgjax sweep")
        memory = _checked(lambda: _num_bytes(chosen.memory))
        sweep = _checked(lambda: sweeps.read_config(chosen.resume))[0]
        go = lambda report: sweeps.resume(  # noqa: E731
            chosen.resume, memory=memory, devices=chosen.devices, report=report, warn=warn
        )
    else:
        preset = _checked(lambda: presets.preset(algorithm or "", _peek(args, "--env", "") or None))
        chosen = _parse(_sweep_options(preset), args, f"pgjax sweep {algorithm}")
        if chosen.env != preset.environment:
            _fail("Give --env once.")
        changes = _checked(lambda: _swept(preset, chosen, args))
        random, memory = chosen.random, _checked(lambda: _num_bytes(chosen.memory))
        shared, settings = _checked(
            lambda: grid.plan(preset.algorithm, preset.environment, changes, random=random, seed=chosen.seed)
        )
        kept = {name: getattr(chosen, name) for name in ("seeds", "seed", "devices", "format")}
        sweep = sweeps.Sweep(shared, settings, drawn=random is not None, memory=memory, **kept)
        go = lambda report: sweeps.run(sweep, out=chosen.out, report=report, warn=warn)  # noqa: E731
    preset = sweep.preset
    count, each = len(sweep.settings), f"{sweep.seeds} seed{'s' if sweep.seeds > 1 else ''}"
    count = f"{count} setting{'s' if count > 1 else ''} × {each}"
    steps = sorted(set(sweep.steps_of_settings()))
    each = " to ".join(f"{n:,}" for n in dict.fromkeys((steps[0], steps[-1])))
    say(f"{preset.algorithm} on {preset.environment}: {count}, {each} steps each; compiling")
    with display.live(console, sweep_display.describe) as report:
        result = _checked(lambda: go(report))
    summary, folder = result.summary, result.folder
    console.print(sweep_display.table(summary))
    say(sweep_display.verdict(summary))
    _say_what_was_loaded(say)
    pictures = [path for name in ("heat_map.png", "scatter.png") if (path := folder / name).exists()]
    say(f"picture: {pictures[0]}" if pictures else f"sweep: {folder}")
    if result.status == "interrupted":
        warn(f"interrupted; go on with: pgjax sweep --resume {folder}")
        return 130
    return 0 if summary["best"] is not None else 1


def _swept(preset: Any, chosen: Any, args: list[str]) -> dict[str, Any]:
    """What was chosen, as `grid.plan` takes it: several values in a list, in the order they are typed in."""
    typed = [arg.partition("=")[0].replace("_", "-") for arg in args]

    def place(name: str) -> int:
        flag = f"--{name.rstrip('_').replace('_', '-')}"
        return typed.index(flag) if flag in typed else -1

    values = {name: getattr(chosen, name) for name in [*preset.options, "steps"]}
    for section in [
        "network",
        *preset.optimizers,
        *(["env_params"] if hasattr(chosen, "env_params") else []),
    ]:
        inner = dataclasses.asdict(getattr(chosen, section))
        values |= {f"{section}.{name}": value for name, value in inner.items()}
    values["network.hidden"] = tuple(_sizes(text) for text in values["network.hidden"])
    # None stands for the environment's own value
    own = [name for name, value in values.items() if name.startswith("env_params.") and value == (None,)]
    names = sorted((name for name in values if name not in own), key=place)
    return {name: values[name][0] if len(values[name]) == 1 else list(values[name]) for name in names}


def _sizes(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(
            f"--network.hidden takes sizes with commas between them, such as 64,64, got {text!r}."
        )
    return tuple(map(int, text.split(",")))


def _num_bytes(text: str | None) -> float | None:
    """Bytes from such as "4GB", "512 MiB" or "1e9"."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]?)(i?)b?", text.lower())
    if match is None:
        raise ValueError(f"--memory takes a size such as 4GB, 512MiB or 1e9, got {text!r}.")
    return float(match[1]) * (1024 if match[3] else 1000) ** ("kmgt".find(match[2]) + 1 if match[2] else 0)


def _evaluate(args: list[str]) -> int:
    chosen = _parse(_positional(_Evaluate, "run"), args, "pgjax evaluate")
    from pgjax.experiment import display, runner

    means = _checked(lambda: runner.evaluate(chosen.run, episodes=chosen.episodes, seed=chosen.seed))
    for seed, mean in means.items():
        print(f"seed {seed}: return {mean:.1f} over {chosen.episodes} episodes")
    if len(means) > 1:
        print(f"interquartile mean {display.with_interval(list(means.values()))}")
    return 0


def _plot(args: list[str]) -> int:
    chosen = _parse(_positional(_Plot, "runs"), args, "pgjax plot")
    if not chosen.runs:
        _fail("Name the folder of at least one run: pgjax plot RUN...")
    from pgjax.experiment import plots, store

    runs = _checked(lambda: {run: store.read_metrics(run) for run in chosen.runs})
    names = [run.resolve().name for run in runs]
    labels = [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs, strict=True)]
    ax = plots.compare(dict(zip(labels, runs.values(), strict=True)))
    for label, metrics in zip(labels, runs.values(), strict=True):
        if not metrics["episodes"].any():
            print(f"pgjax: {label} has no curve: no episode has ended.", file=sys.stderr)
    out = chosen.out if chosen.out.suffix else chosen.out.with_suffix(".png")
    _checked(lambda: plots.save(ax, out))
    print(f"curves: {out}")
    return 0


def _list(args: list[str]) -> int:
    if args:
        _fail(f"pgjax list takes no arguments, got {' '.join(args)}.")
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


def _train_options(settings: Any) -> type:
    """A dataclass of everything that `pgjax train` takes, filled with the settings' values."""
    import tyro

    from pgjax.experiment import presets

    preset = settings.preset

    def field(name: str, kind: Any, default: Any, text: str) -> tuple[str, Any, Any]:
        return name, Annotated[kind, tyro.conf.arg(help=text)], default

    fields: list[tuple[str, Any, Any]] = [
        field("env", str, preset.environment, "Name of the environment."),
        field("seeds", int, settings.seeds, "Runs side by side."),
        field("steps", int, preset.steps, "Environment steps of every seed."),
        field("out", Path | None, None, "Folder; by default one in runs/."),
        field("seed", int, settings.seed, "Of the first run."),
        field("stop_return", float | None, settings.stop_return, "Stop at this mean return."),
        field("resume", Path | None, None, "Go on with the run in this folder; its settings stay."),
        field("allow_inexact", bool, False, "Go on although versions or devices differ."),
        field(
            "checkpoint_every",
            int | None,
            settings.checkpoint_every,
            "Iterations between two checkpoints; by default ten minutes.",
        ),
        field("keep", int, settings.keep, "How many checkpoints stay."),
        field("tensorboard", bool, False, "Write for TensorBoard, into the run's folder."),
        field("wandb", bool, False, "Write to Weights & Biases; WANDB_PROJECT and WANDB_MODE say where."),
        field("devices", int | None, None, "How many; by default all, on CPUs one for each core."),
        field("shard", Literal["seed", "data"], settings.shard, "Spread seeds or environments over devices."),
        field("coordinator", str | None, None, "HOST:PORT of the first of several processes."),
        field("processes", int | None, None, "How many processes run this command."),
        field("process_index", int | None, None, "Which of them this is, from 0."),
    ]
    for name, kind, default, about in _algorithm_options(preset):
        fields.append((name, Annotated[kind, tyro.conf.arg(**about)], default))
    fields.append(("network", presets.NetworkSpec, preset.network))
    fields += [(name, type(spec), spec) for name, spec in preset.optimizers.items()]
    if parameters := _env_parameters(preset):
        env_params = dataclasses.make_dataclass("EnvParams", parameters)
        fields.append(("env_params", env_params, env_params()))
    about = f"Train {preset.algorithm} on {preset.environment}; the defaults are its preset's."
    return _options("Train", fields, about)


def _options(title: str, fields: list[tuple[str, Any, Any]], about: str = "") -> type:
    """A dataclass from names, types and defaults."""
    described = [
        (name, kind, dataclasses.field(default_factory=lambda default=default: default))
        for name, kind, default in fields
    ]
    options = dataclasses.make_dataclass(title, described)
    options.__doc__ = about
    return options


def _algorithm_options(preset: Any) -> list[tuple[str, Any, Any, dict[str, Any]]]:
    """Name, type and default of every option of an algorithm's `make`, and how it is typed and explained."""
    from pgjax.experiment import presets

    help_of = _docstring_entries(presets.make_function(preset.algorithm), "Args")
    found = []
    for name, option in presets.keyword_options(preset.algorithm).items():
        default = preset.options[name]
        kind: Any = float if presets.is_numeric(option) else option.annotation
        if name == "weight":
            kind = Literal[tuple(presets.WEIGHTS)]
        elif default is None or type(None) in get_args(option.annotation):
            kind = kind | None
        default = float(default) if kind is float and default is not None else default
        found.append((name, kind, default, {"name": _typed(name), "help": help_of.get(name)}))
    return found


def _typed(name: str) -> str:
    return name.rstrip("_").replace("_", "-")


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if parts := get_args(kind):
        return "|".join(map(_metavar, parts))
    return "{True,False}" if kind is bool else kind.__name__.upper().replace("NONETYPE", "None")


def _sweep_options(preset: Any) -> type:
    """A dataclass of everything that `pgjax sweep` takes: several values of whatever makes an algorithm."""
    import tyro

    def one(name: str, kind: Any, default: Any, text: str) -> tuple[str, Any, Any]:
        return name, Annotated[kind, tyro.conf.arg(help=text)], default

    def several(field: str, kind: Any, default: Any, **about: Any) -> tuple[str, Any, Any]:
        about = {"metavar": f"{_metavar(kind)} ...", **about}
        return field, Annotated[tuple[kind, ...], tyro.conf.arg(**about)], (default,)

    fields = [
        one("env", str, preset.environment, "Name of the environment."),
        one("seeds", int, 1, "Runs of every setting; the same seeds for each."),
        several("steps", int, preset.steps, help="Environment steps of every run."),
        one("random", int | None, None, "Settings to draw at random in place of all combinations."),
        one("out", Path | None, None, "Folder; by default one in runs/."),
        one("seed", int, 0, "The first one, and that of the draw."),
        one("memory", str | None, None, "What runs may fill at a time, such as 4GB; by default most of it."),
        one("format", Literal["csv", "parquet"], "csv", "Of the metrics; Parquet needs pyarrow."),
        one("devices", int | None, None, "How many; by default all, on CPUs one for each core."),
        one("resume", Path | None, None, "Do what is left of the sweep in this folder."),
    ]
    fields += [several(name, kind, d, **about) for name, kind, d, about in _algorithm_options(preset)]
    for section, spec in {"network": preset.network, **preset.optimizers}.items():
        kinds, help_of = get_type_hints(type(spec)), _docstring_entries(type(spec), "Attributes")
        inner = []
        for name, default in spec._asdict().items():
            kind, text = kinds[name], help_of.get(name)
            if name == "hidden":
                kind, default = str, ",".join(map(str, default))
                text = f"{text} Commas between the layers: 64,64 128,128 are two networks."
            inner.append(several(name, kind, default, help=text))
        made = _options(section.title().replace("_", ""), inner)
        fields.append((section, made, made()))
    if parameters := _env_parameters(preset):
        inner = [several(n, k.__origin__, d, help=k.__metadata__[0].help) for n, k, d in parameters]
        made = _options("EnvParams", inner)
        fields.append(("env_params", made, made()))
    about = (
        f"Sweep {preset.algorithm} on {preset.environment}: every option of the algorithm, its network, its "
        "optimizers and its environment takes one value or several; the defaults are the preset's. All "
        "combinations are trained. With --random N there are N settings instead: exactly two numbers are "
        "then a range with both its ends, logarithmic if they are positive and a factor of 10 or more apart, "
        "whole if both are; of other values one is drawn. Real numbers that differ share one compiled "
        "program; every other difference needs a program of its own."
    )
    return _options("Sweep", fields, about)


def _env_parameters(preset: Any) -> list[tuple[str, Any, Any]]:
    """What can be said of an environment: `rescale_obs`, and the plain numbers among its parameters.

    None stands for the value that it has already.
    """
    from pgjax.experiment import presets

    _, env_params = _checked(lambda: presets.environment(preset))
    import tyro

    values = ((name, getattr(env_params, name)) for name in getattr(env_params, "__dataclass_fields__", {}))
    rescales = preset.env_params.get("rescale_obs", False)
    about = f"Bring observations from their bounds to [-1, 1]. The preset's is {rescales}."
    return [
        ("rescale_obs", Annotated[bool | None, tyro.conf.arg(help=about)], None),
        *(
            (
                name,
                Annotated[type(value) | None, tyro.conf.arg(help=f"The environment's own is {value}.")],
                None,
            )
            for name, value in values
            if isinstance(value, bool | int | float)
        ),
    ]


def _positional(command: type, name: str) -> type:
    """The command's dataclass, one field given without its name."""
    import tyro

    command.__annotations__[name] = tyro.conf.Positional[command.__annotations__[name]]
    return dataclasses.dataclass(command)


def _parse(options: type, args: list[str], prog: str) -> Any:
    """Parse by tyro, with one line in place of its box where something is wrong."""
    import tyro

    # the name of the option is Python's without its underscore, and both are typed
    args = [re.sub(r"^--lambda[_-](?=$|=)", "--lambda", arg) for arg in args]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(options, args=args, prog=prog, description=options.__doc__)
    except SystemExit as stop:
        if not stop.code:
            raise
        _fail(_one_line(complaint.getvalue()))


def _one_line(box: str) -> str:
    """The message in tyro's box, which has a frame or, where the terminal cannot show one, a title row."""
    rows = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    paragraphs = re.split(r"\n[─-]{5,}\n", "\n".join(rows).strip())
    message, *hints = paragraphs if "╭" in box else paragraphs[1:]
    text = " ".join(message.split()).rstrip(".")
    near = [name for hint in hints if "Perhaps" in hint for name in re.findall(r"^--\S+", hint, re.MULTILINE)]
    return f"{text}. Did you mean {' or '.join(near[:3])}?" if near else f"{text}."


def _docstring_entries(documented: Any, title: str) -> dict[str, str]:
    """What a docstring says of each argument or attribute."""
    section = re.search(rf"\n{title}:\n(.*?)(\n\n|$)", inspect.getdoc(documented) or "", re.DOTALL)
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "") for name, text in entries}


def _peek(args: list[str], option: str, default: str) -> str:
    """An option's value before all options are known: which there are depends on it."""
    for arg, following in zip(args, [*args[1:], default], strict=False):
        name, is_one, value = arg.partition("=")
        if name.replace("_", "-") == option:
            return value if is_one else following
    return default


def _start_devices(args: list[str], run: Path | None, *, fill: bool = False) -> None:
    """The other processes, and how many CPU devices there are: both must come before JAX's backend starts.

    One device for each core, seeds being spread over them (`fill`: there is work for all of them, however few
    seeds there are); a run that goes on has as many as before.
    """
    import jax

    from pgjax.experiment import files, processes

    before = _checked(lambda: files.read_json(run / "config.json")) if run else {}
    numbers = {
        name: _peek(args, f"--{name}", "") for name in ("devices", "processes", "process-index", "seeds")
    }
    given = {name: int(text) for name, text in numbers.items() if text.isdigit()}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    seeds, spread = given.get("seeds", 1), _peek(args, "--shard", "seed") == "data"
    wanted = cores if spread or fill else min(cores, seeds)
    if run:  # of each process, where there were several
        with contextlib.suppress(TypeError, KeyError):  # damaged: it is said where all of it is read
            wanted = before["devices"] // before["processes"]
    wanted = given.get("devices", wanted)
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if isinstance(wanted, int) and wanted >= 1 and not forced:
        with contextlib.suppress(RuntimeError):  # it has started: called from a program of one's own
            jax.config.update("jax_num_cpu_devices", wanted)
    coordinator = _peek(args, "--coordinator", "") or None
    try:
        _checked(lambda: processes.start(coordinator, given.get("processes"), given.get("process-index")))
    except RuntimeError as error:
        _fail(f"The processes did not come together: {error}")


def _choose_threads(args: list[str]) -> None:
    """By what is typed, or stands in the run that goes on: to read a preset would start JAX's backend."""
    from pgjax.experiment import files, threads

    preset = {"environment": _peek(args, "--env", ""), "options": {}, "network": {}}
    seeds = _peek(args, "--seeds", "1")
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # it is said where all of it is read
        before = files.read_json(Path(_peek(args, "--resume", "")) / "config.json")
        if "threads" in before:
            if str(before["threads"]).isdigit():
                threads.keep_threads(int(before["threads"]))
            return
        preset, seeds = before["preset"], str(before["seeds"])  # of before that was noted
    typed = _peek(args, "--num-envs", "")
    num_envs = int(typed) if typed.isdigit() else preset["options"].get("num_envs", 1)
    torso = _peek(args, "--network.torso", "") or preset["network"].get("torso", "")
    images = torso == "cnn" or (not torso and preset["environment"].endswith("MinAtar"))
    threads.choose_threads(num_envs * int(seeds) if seeds.isdigit() else num_envs, images=images)


def _checked(call: Callable[[], Any]) -> Any:
    """What is wrong with what the user asked for, in one line."""
    try:
        return call()
    except (ValueError, OSError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"pgjax: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
