"""The options that the command takes, read from signatures and docstrings, and what was typed for them."""

import contextlib
import dataclasses
import inspect
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin, get_type_hints


def train_options(settings: Any) -> type:
    """Everything that `pgjax train` takes.

    Args:
        settings: of the run.

    Returns:
        A dataclass, filled with the settings' values.
    """
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
    from pgjax.experiment import parts, presets

    help_of = _docstring_entries(presets.make_function(preset.algorithm), "Args")
    found = []
    for name, option in presets.keyword_options(preset.algorithm).items():
        default = preset.options[name]
        kind: Any = option.annotation
        if presets.is_numeric(option):
            kind = int if name in parts.WHOLE else float
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


def sweep_options(preset: Any) -> type:
    """Everything that `pgjax sweep` takes: several values of whatever makes an algorithm.

    Args:
        preset: of the algorithm and the environment.

    Returns:
        A dataclass, filled with the preset's values.
    """
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

    _, env_params = checked(lambda: presets.environment(preset))
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


def positional(command: type, name: str) -> type:
    """A dataclass of which one field is given without its name.

    Args:
        command: the dataclass.
        name: of the field.

    Returns:
        The dataclass anew.
    """
    import tyro

    command.__annotations__[name] = tyro.conf.Positional[command.__annotations__[name]]
    return dataclasses.dataclass(command)


def parse(options: type, args: list[str], prog: str) -> Any:
    """Parse by tyro, with one line in place of its box where something is wrong.

    Args:
        options: a dataclass.
        args: what was typed.
        prog: the command, as its help names it.

    Returns:
        Its instance.

    Raises:
        SystemExit: if something is wrong, which is said; after help, which is printed.
    """
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
        fail(_one_line(complaint.getvalue()))


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


def peek(args: list[str], option: str, default: str) -> str:
    """An option's value before all options are known: which there are depends on it.

    Args:
        args: what was typed.
        option: its name, dashes included.
        default: if it was not typed.

    Returns:
        The value.
    """
    for arg, following in zip(args, [*args[1:], default], strict=False):
        name, is_one, value = arg.partition("=")
        if name.replace("_", "-") == option:
            return value if is_one else following
    return default


def swept(preset: Any, chosen: Any, args: list[str]) -> dict[str, Any]:
    """What was chosen, as `grid.plan` takes it: several values in a list, in the order they are typed in.

    Args:
        preset: as in `sweep_options`.
        chosen: an instance of what that gives.
        args: what was typed.

    Returns:
        Values by name.

    Raises:
        ValueError: if the sizes of a network are none.
    """
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


def num_bytes(text: str | None) -> float | None:
    """Bytes from such as "4GB", "512 MiB" or "1e9".

    Args:
        text: a number and perhaps a unit; None for no number.

    Returns:
        Bytes.

    Raises:
        ValueError: if it is something else.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]?)(i?)b?", text.lower())
    if match is None:
        raise ValueError(f"--memory takes a size such as 4GB, 512MiB or 1e9, got {text!r}.")
    return float(match[1]) * (1024 if match[3] else 1000) ** ("kmgt".find(match[2]) + 1 if match[2] else 0)


def checked(call: Callable[[], Any]) -> Any:
    """Call what a user's mistake makes fail, which is then said in one line.

    Args:
        call: takes nothing.

    Returns:
        What it gives.

    Raises:
        SystemExit: with status 2, if it raises ValueError or OSError.
    """
    try:
        return call()
    except (ValueError, OSError) as error:
        fail(str(error))


def fail(message: str) -> NoReturn:
    """End the command for a mistake of the user.

    Args:
        message: what to do instead.

    Raises:
        SystemExit: with status 2.
    """
    complain(" ".join(message.split()))
    raise SystemExit(2)


def complain(message: str) -> None:
    """Say what is wrong, and go on.

    Args:
        message: one line.
    """
    print(f"pgjax: {message}", file=sys.stderr)
