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
from typing import Annotated, Any, Literal, NoReturn, get_args

_USAGE = """\
usage: pgjax COMMAND ...

  pgjax train ALGORITHM [--env NAME] [--seeds N] [--steps N] [--out DIR] [--seed S] [--stop-return R]
                        [--checkpoint-every N] [--tensorboard] [--wandb] [--devices N] [--shard seed|data]
                        [any option of the algorithm]
                                        train, with a learning curve at the end; without --env on the first
                                        environment of its presets, CartPole-v1 for most
  pgjax train --resume RUN [--steps N]  go on with a run that was cut off, bit for bit
  pgjax evaluate RUN [--episodes N] [--seed S]
                                        play the final policies of a run
  pgjax plot RUN... [--out FILE]        compare the learning curves of runs
  pgjax list                            algorithms, environments, presets

"pgjax train ALGORITHM --help" shows every option with its preset value."""


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


def main(argv: Sequence[str] | None = None) -> int:
    """The command.

    Args:
        argv: its arguments; None for the process's.

    Returns:
        Exit status: 0; 1 if a seed diverged; 2 for a mistake of the user; 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": _train, "evaluate": _evaluate, "plot": _plot, "list": _list}
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
    from pgjax.experiment import presets

    run = _peek(args, "--resume", "")
    if "--resume" in args and (not run or run.startswith("-")):
        _fail("Name the folder to go on with: --resume RUN.")
    algorithm = args[0] if args and not args[0].startswith("-") else None
    if algorithm is None and not run:
        known = ", ".join(presets.algorithm_names())
        if args and args[0] in ("-h", "--help"):
            print(f"{_USAGE}\n\nalgorithms: {known}")
            return 0
        _fail(f"Name the algorithm first: pgjax train ALGORITHM. Known are {known}.")
    args = args[1:] if algorithm else args
    _start_devices(args, Path(run) if run else None)

    from pgjax.experiment import processes, store

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
        _fail(f"{run} is a run on {settings.preset.environment}." if run else "Give --env once.")
    wanted = _chosen_settings(settings, chosen)
    if processes.is_first():
        return _train_here(wanted, chosen)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return _train_here(wanted, chosen)


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

    from pgjax.experiment import display, resuming, runner

    console = Console()
    say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    warn = lambda text: print(f"pgjax: {text}", file=sys.stderr)  # noqa: E731
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
    say(f"{preset.algorithm} on {preset.environment}: {preset.steps:,} steps, {count}{where}; compiling")
    with display.live(console) as report:
        made = [listener(folder) for listener in listeners]
        result = _checked(
            lambda: runner.run_in(folder, settings, start, sinks=made, report=report, warn=warn)
        )
    console.print(display.result_table(result))
    folder = result.folder
    picture = folder / "curve.png"
    say(f"curve: {picture}" if picture.exists() else f"run: {folder} (no curve: no episode has ended)")
    if result.summary["diverged"]:
        warn(display.divergence(result))
    if result.status == "interrupted":
        warn(f"interrupted; go on with: pgjax train --resume {folder}")
        return 130
    return 1 if result.summary["diverged"] else 0


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
    _checked(lambda: plots.save(ax, chosen.out))
    print(f"curves: {chosen.out}")
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
    help_of = _argument_help(presets.make_function(preset.algorithm))

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
    for name, option in presets.keyword_options(preset.algorithm).items():
        default = preset.options[name]
        kind: Any = float if presets.is_numeric(option) else option.annotation
        if name == "weight":
            kind = Literal[tuple(presets.WEIGHTS)]
        elif default is None or type(None) in get_args(option.annotation):
            kind = kind | None
        default = float(default) if kind is float and default is not None else default
        argument = tyro.conf.arg(name=name.rstrip("_").replace("_", "-"), help=help_of.get(name))
        fields.append((name, Annotated[kind, argument], default))
    fields.append(("network", presets.NetworkSpec, preset.network))
    fields += [(name, type(spec), spec) for name, spec in preset.optimizers.items()]
    if parameters := _env_parameters(preset):
        env_params = dataclasses.make_dataclass("EnvParams", parameters)
        fields.append(("env_params", env_params, env_params()))
    described = [
        (name, kind, dataclasses.field(default_factory=lambda default=default: default))
        for name, kind, default in fields
    ]
    options = dataclasses.make_dataclass("Train", described)
    options.__doc__ = f"Train {preset.algorithm} on {preset.environment}; the defaults are its preset's."
    return options


def _env_parameters(preset: Any) -> list[tuple[str, Any, Any]]:
    """The plain numbers among an environment's parameters; None stands for the environment's own value."""
    from pgjax.experiment import presets

    _, env_params = _checked(lambda: presets.environment(preset))
    import tyro

    values = ((name, getattr(env_params, name)) for name in getattr(env_params, "__dataclass_fields__", {}))
    return [
        (name, Annotated[type(value) | None, tyro.conf.arg(help=f"The environment's own is {value}.")], None)
        for name, value in values
        if isinstance(value, bool | int | float)
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


def _argument_help(function: Callable[..., Any]) -> dict[str, str]:
    """What the docstring says of each argument."""
    section = re.search(r"\nArgs:\n(.*?)\n\n", inspect.getdoc(function) or "", re.DOTALL)
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section[1] if section else "", re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "") for name, text in entries}


def _peek(args: list[str], option: str, default: str) -> str:
    """An option's value before all options are known: which there are depends on it."""
    for arg, following in zip(args, [*args[1:], default], strict=False):
        if arg == option:
            return following
        if arg.startswith(f"{option}="):
            return arg.partition("=")[2]
    return default


def _start_devices(args: list[str], run: Path | None) -> None:
    """The other processes, and how many CPU devices there are: both must come before JAX's backend starts.

    One device for each core, seeds being spread over them; a run that goes on has as many as before.
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
    wanted = before.get("devices", cores if spread else min(cores, seeds))
    wanted = given.get("devices", wanted)
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if isinstance(wanted, int) and wanted >= 1 and not forced:
        with contextlib.suppress(RuntimeError):  # it has started: called from a program of one's own
            jax.config.update("jax_num_cpu_devices", wanted)
    coordinator = _peek(args, "--coordinator", "") or None
    _checked(lambda: processes.start(coordinator, given.get("processes"), given.get("process-index")))


def _checked(call: Callable[[], Any]) -> Any:
    """What is wrong with what the user asked for, in one line."""
    try:
        return call()
    except (ValueError, OSError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"pgjax: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
