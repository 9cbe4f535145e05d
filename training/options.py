"""The settings as command-line options, and as the flat dict of the same names that a run records.

Both come from the records in :class:`.config.Config`: each field is an option, its docstring the help text,
its default the default. Every argument of a method in the table is an option too.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import json
import operator
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from dali_msda.mixing import Mixing
from dali_msda.validation import is_number
from pipelines.files import expand_home
from pipelines.names import shown

from .architectures import AUXILIARY
from .config import ALIASES, DEMO, Config, as_options
from .config import option as written
from .inputs import read_json
from .methods import methods, mixing_of
from .optimization import DEFAULTS, Optimization


class Option(NamedTuple):
    """An option, and where the configuration keeps its value.

    Attributes
    ----------
    name : str
        With underscores.
    record : str
        The field of the configuration that holds the record; "" for a field of the configuration itself.
    field : str
        The field of the record.
    kind : type
        What values are parsed as.
    help : str
    """

    name: str
    record: str
    field: str
    kind: Any
    help: str


def options() -> list[Option]:
    """All options, in order, including those of the methods now in the table.

    Raises
    ------
    ValueError
        A user's method has an argument with the name of another option.
    """
    found: list[Option] = []
    hints, docs = typing.get_type_hints(Config), _field_docs(Config)
    for field in dataclasses.fields(Config):
        kind = hints[field.name]
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            found.append(Option(field.name, "", field.name, kind, docs[field.name]))
            continue
        inner, texts = typing.get_type_hints(kind), _field_docs(kind)
        for own in dataclasses.fields(kind):
            if kind is Mixing and own.name == "arguments":
                found += [
                    Option(_flat_name(field, name), field.name, name, *_argument(name))
                    for name in _argument_names()
                ]
            else:
                parsed, text = _parsed_type(inner[own.name]), texts[own.name]
                if kind is Mixing and own.name == "method":
                    parsed = Literal[tuple(methods())]
                if kind is Optimization and own.name != "method":
                    parsed, text = parsed | None, f"{text} {_defaults_of_optimizers(own.name)}"
                found.append(Option(_flat_name(field, own.name), field.name, own.name, parsed, text))
    twice = [name for name, count in Counter(option.name for option in found).items() if count > 1]
    for option in found:
        if option.name in twice and _is_argument(option):
            raise ValueError(
                f"the argument {option.field} of a method must have another name: the option"
                f" {written(option.name)} already exists"
            )
    return found


def parse(arguments: Sequence[str], default: Config, **texts: Any) -> Config:
    """Parse a command line into a configuration.

    Parameters
    ----------
    arguments : sequence of str
    default : Config
        Settings that are not given come from here; another ``--mix`` or ``--optimizer`` has the defaults of
        its own arguments, and another ``--mix`` keeps only the parts of the schedule that it can use. Another
        kind of crop or of learning-rate schedule replaces the one here.
    **texts
        ``prog`` and ``description``, as :func:`tyro.cli` takes them.

    Raises
    ------
    ValueError
        Naming the option, what was expected and what came.
    SystemExit
        After ``--help``, or after printing why an option cannot be parsed.
    """
    known = options()
    values, standard, demo = _flatten(default), _flatten(Config()), _flatten(DEMO)
    own = {option.name for option in known if _is_argument(option) or _is_of_optimizer(option)}
    without_data = {
        name: "" if demo[name] == value else f" Without --data: {_format_value(demo[name])}."
        for name, value in standard.items()
    }
    flat = dataclasses.make_dataclass(
        "Options",
        [
            (
                option.name,
                Annotated[
                    option.kind,
                    tyro.conf.arg(
                        help=option.help + without_data[option.name], aliases=ALIASES.get(option.name)
                    ),
                ],
                dataclasses.field(default=None if option.name in own else values[option.name]),
            )
            for option in known
        ],
    )
    given = vars(tyro.cli(flat, args=arguments, **texts))
    given = {name: expand_home(value) if isinstance(value, Path) else value for name, value in given.items()}
    if given["resume"] not in (None, "auto"):
        given["resume"] = str(expand_home(given["resume"]))
    given |= _drop_unused(default, given) | _drop_replaced(arguments, given, standard)
    return _build(default, given)


def settings(config: Config) -> dict[str, Any]:
    """The settings by option name, in types that JSON and checkpoints can hold."""
    return json.loads(json.dumps(_flatten(config), default=str))  # type: ignore[no-any-return]


def saved_settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a checkpoint; those it does not contain had their defaults."""
    method = saved.get("mix")
    known = isinstance(method, str) and method in methods()
    default = Config(mixing=mixing_of(str(method))) if known else Config()
    # Earlier versions kept an alpha for "none", which does not use it.
    unused = {"mix_alpha": None} if method == "none" else {}
    # Earlier versions trained without auxiliary heads.
    without_heads = {"aux_loss_weight": 0.0} if saved.get("arch") in AUXILIARY else {}
    return settings(default) | without_heads | {"scaled_decoding": "off"} | dict(saved) | unused


def _build(default: Config, values: Mapping[str, Any]) -> Config:
    """Build a configuration from `default` and values; None keeps a method's or an optimiser's argument."""
    known = options()
    changes = {option.field: values[option.name] for option in known if not option.record}
    for field in dataclasses.fields(Config):
        of_record = {o.field: values[o.name] for o in known if o.record == field.name}
        if of_record:
            with as_options(functools.partial(_flat_name, field)):
                changes[field.name] = _update_record(getattr(default, field.name), of_record)
    return dataclasses.replace(default, **changes)


def _drop_unused(default: Config, given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults for the parts of the default's schedule that another method cannot use."""
    if given["mix"] == default.mixing.method:
        return {}
    usable = default.mix_schedule.for_method(methods()[given["mix"]])
    before, after = (
        _flatten(dataclasses.replace(default, mix_schedule=it)) for it in (default.mix_schedule, usable)
    )
    return {name: after[name] for name in after if after[name] != before[name] == given[name]}


def _drop_replaced(
    arguments: Sequence[str], values: Mapping[str, Any], standard: Mapping[str, Any]
) -> dict[str, Any]:
    """Standard values for settings of the default that exclude what the command line gives instead."""
    there = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    given = {name for name in values if written(name) in there}
    by_area = {"crop_area", "crop_aspect_ratio"}
    replaced: set[str] = set()
    if "crop_padding" in given and values["crop_padding"] is not None:
        replaced |= by_area
    if by_area & given:
        replaced.add("crop_padding")
    if "lr_schedule" in given and values["lr_schedule"] != "step":
        replaced.add("lr_milestones")
    return {name: standard[name] for name in replaced - given}


def recorded_run(file: Path) -> Config:
    """The settings in a run's config.json, except its output folder and the checkpoint it resumed.

    Raises
    ------
    ValueError
        Naming the file: no run wrote it, or this version does not know a setting in it.
    OSError
        It cannot be read.
    """
    expected = "--from-config must be the config.json of a run"
    saved = read_json(file, expected).get("settings")
    if not isinstance(saved, dict):
        raise ValueError(f"{expected}; {shown(file)} holds no settings")
    try:
        config = _from_settings(saved)
    except ValueError as error:
        raise ValueError(f"{expected} of this version; in {shown(file)} {error}") from None
    # Equal sizes count as --image-size alone: a new --image-size then sets both.
    same = config.val_image_size == config.image_size
    standard = config.aux_loss_weight == AUXILIARY.get(config.arch)
    return dataclasses.replace(
        config,
        output=None,
        resume=None,
        val_image_size=None if same else config.val_image_size,
        aux_loss_weight=None if standard else config.aux_loss_weight,
    )


def _from_settings(saved: Mapping[str, Any]) -> Config:
    """The configuration with these :func:`settings`; missing ones have their defaults."""
    known = options()
    if unknown := sorted(saved.keys() - {option.name for option in known}):
        raise ValueError(f"{written(unknown[0])} is not an option of this version")
    filled = saved_settings(saved)
    return _build(Config(), {option.name: _convert(option, filled[option.name]) for option in known})


def _convert(option: Option, value: Any) -> Any:
    """Convert a JSON value to the option's type."""
    is_union = typing.get_origin(option.kind) in (typing.Union, types.UnionType)
    for kind in typing.get_args(option.kind) if is_union else (option.kind,):
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin is Literal:
            if value in inner:
                return value
        elif origin is tuple:
            kinds = inner[:1] * len(value) if inner[1:] == (...,) and isinstance(value, list) else inner
            if isinstance(value, list) and len(value) == len(kinds):
                numbers = zip(kinds, value, strict=True)
                return tuple(_convert(option._replace(kind=each), number) for each, number in numbers)
        elif kind is Path:
            if isinstance(value, str):
                return Path(value)
        elif kind is float:
            if is_number(value):
                return float(value)
        elif type(value) is kind:
            return value
    raise ValueError(f"{written(option.name)} is {value!r}")


def _update_record(record: Any, values: dict[str, Any]) -> Any:
    """Replace values of a record; None keeps a method's or an optimiser's argument."""
    if isinstance(record, Optimization):
        given = {name: value for name, value in values.items() if value is not None}
        same = given["method"] == record.method
        return dataclasses.replace(record, **given) if same else Optimization(**given)
    if not isinstance(record, Mixing):
        return dataclasses.replace(record, **values)
    own = {name: values.pop(name) for name in _argument_names()}
    given = {name: value for name, value in own.items() if value is not None}
    before = dict(record.arguments) if values["method"] == record.method else {}
    if "alpha" in given:  # it sets all of them
        before = {name: value for name, value in before.items() if name not in record.entry.alphas}
    return mixing_of(**values, arguments=before | given)


def _flatten(config: Config) -> dict[str, Any]:
    """The values of all options, by name."""
    own = _values(config)
    records = {"": own} | {name: _values(it) for name, it in own.items() if dataclasses.is_dataclass(it)}
    return {option.name: records[option.record][option.field] for option in options()}


def _values(record: Any) -> dict[str, Any]:
    """The values of a record's fields, with all methods' arguments: None where the method has none."""
    found = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    if isinstance(record, Mixing):
        found |= dict.fromkeys(_argument_names()) | _shown_arguments(record)
    return found


def _shown_arguments(mixing: Mixing) -> dict[str, Any]:
    """A method's arguments, with a single alpha if all its alphas are equal."""
    alphas = mixing.entry.alphas
    values = {mixing.arguments[name] for name in alphas}
    if len(values) != 1:
        return dict(mixing.arguments)
    others = {name: value for name, value in mixing.arguments.items() if name not in alphas}
    return {"alpha": values.pop(), **others}


def _format_value(value: Any) -> str:
    """Format a value as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _is_argument(option: Option) -> bool:
    return option.record == "mixing" and option.field in _argument_names()


def _is_of_optimizer(option: Option) -> bool:
    return option.record == "optimization" and option.field != "method"


def _defaults_of_optimizers(name: str) -> str:
    """The help text for an argument's default in each optimiser that takes it."""
    defaults = {method: own[name] for method, own in DEFAULTS.items() if name in own}
    said = (
        f"{'none' if value is None else _format_value(value)} for {method}"
        for method, value in defaults.items()
    )
    return f"Default: {', '.join(said)}."


def _argument_names() -> list[str]:
    """The arguments of all methods, each once."""
    return list(dict.fromkeys(name for method in methods().values() for name in method.defaults))


def _argument(name: str) -> tuple[Any, str]:
    """The type of a method's argument, and its help text: meaning, range, default in each method."""
    taken = {
        method.name: argument
        for method in methods().values()
        for argument in method.arguments
        if argument.name == name
    }
    first = next(iter(taken.values()))
    defaults = ", ".join(f"{argument.default:g} for {method}" for method, argument in taken.items())
    text = f"{first.help} {first.expected.capitalize()}. Default: {defaults}."
    shared = [method.name for method in methods().values() if len(method.alphas) > 1]
    if name == "alpha" and shared:
        text = f"{text} Stands for all alphas of {', '.join(shared)}."
    return (float if first.whole_from is None else int) | None, text


def _flat_name(holder: dataclasses.Field[Any], name: str) -> str:
    """The option name for a field of the record in `holder`."""
    return str(holder.metadata.get("names", {}).get(name, holder.metadata.get("prefix", "") + name))


def _parsed_type(hint: Any) -> Any:
    """Those of several types that a command line can express."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return functools.reduce(operator.or_, (k for k in kinds if typing.get_origin(k) is not Callable))


@functools.cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module's source, by name: `inspect.getsource` parses the file once for each."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {part.name: part for part in tree.body if isinstance(part, ast.ClassDef)}


@functools.cache
def _field_docs(record: type) -> dict[str, str]:
    """The text below each field of a class."""
    tree = _classes(record.__module__)[record.__name__]
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in itertools.pairwise(tree.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }
