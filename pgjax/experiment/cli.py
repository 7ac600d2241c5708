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
                        [any option of the algorithm]
                                        train, with a learning curve at the end; without --env on the first
                                        environment of its presets, CartPole-v1 for most
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

    if not args or args[0].startswith("-"):
        known = ", ".join(presets.algorithm_names())
        if args and args[0] in ("-h", "--help"):
            print(f"{_USAGE}\n\nalgorithms: {known}")
            return 0
        _fail(f"Name the algorithm first: pgjax train ALGORITHM. Known are {known}.")
    algorithm, args = args[0], args[1:]
    _use_all_cores(_peek(args, "--seeds", "1"))
    preset = _checked(lambda: presets.preset(algorithm, _peek(args, "--env", "") or None))
    chosen = _parse(_train_options(preset), args, f"pgjax train {algorithm}")
    if chosen.env != preset.environment:
        _fail("Give --env once.")

    from rich.console import Console

    from pgjax.experiment import display, runner, store

    changes = {name: getattr(chosen, name) for name in [*preset.options, "steps"]}
    changes |= {name: getattr(chosen, name)._asdict() for name in ["network", *preset.optimizers]}
    params = dataclasses.asdict(chosen.env_params) if hasattr(chosen, "env_params") else {}
    changes["env_params"] = {k: v for k, v in params.items() if v is not None}
    preset = presets.change(preset, **changes)
    _checked(lambda: runner.check(preset, chosen.seeds, chosen.seed))
    folder = _checked(lambda: store.create(chosen.out, preset))

    console = Console()
    count = f"{chosen.seeds} seeds" if chosen.seeds > 1 else f"seed {chosen.seed}"
    say = lambda text: console.print(text, highlight=False, markup=False, soft_wrap=True)  # noqa: E731
    say(f"{algorithm} on {preset.environment}: {preset.steps:,} steps, {count}; compiling")
    with display.live(console) as report:
        result = runner.run_in(
            folder,
            preset,
            seeds=chosen.seeds,
            seed=chosen.seed,
            stop_return=chosen.stop_return,
            report=report,
        )
    console.print(display.result_table(result))
    picture = folder / "curve.png"
    say(f"curve: {picture}" if picture.exists() else f"run: {folder} (no curve: no episode has ended)")
    if result.summary["diverged"]:
        print(f"pgjax: {display.divergence(result)}", file=sys.stderr)
    if result.status == "interrupted":
        print(f"pgjax: interrupted; what there is is kept in {folder}", file=sys.stderr)
        return 130
    return 1 if result.summary["diverged"] else 0


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


def _train_options(preset: Any) -> type:
    """A dataclass of everything that `pgjax train` takes, filled with the preset's values."""
    import tyro

    from pgjax.experiment import presets

    help_of = _argument_help(presets.make_function(preset.algorithm))
    fields: list[tuple[str, Any, Any]] = [
        ("env", Annotated[str, tyro.conf.arg(help="Name of the environment.")], preset.environment),
        ("seeds", Annotated[int, tyro.conf.arg(help="Runs side by side.")], 1),
        ("steps", Annotated[int, tyro.conf.arg(help="Environment steps of every seed.")], preset.steps),
        ("out", Annotated[Path | None, tyro.conf.arg(help="Folder; by default one in runs/.")], None),
        ("seed", Annotated[int, tyro.conf.arg(help="Of the first run.")], 0),
        ("stop_return", Annotated[float | None, tyro.conf.arg(help="Stop at this mean return.")], None),
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


def _use_all_cores(seeds: str) -> None:
    """One XLA device for each core, seeds being spread over them; must come before JAX's backend starts."""
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    forced = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if seeds.isdigit() and int(seeds) > 1 and cores > 1 and not forced:
        with contextlib.suppress(RuntimeError):  # it has started: called from a program of one's own
            jax.config.update("jax_num_cpu_devices", min(cores, int(seeds)))


def _checked(call: Callable[[], Any]) -> Any:
    """What is wrong with what the user asked for, in one line."""
    try:
        return call()
    except (ValueError, OSError) as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    print(f"pgjax: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
