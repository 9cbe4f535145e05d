"""A class for each method, made from the table: :class:`.mixers.Mix` with a fixed method."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from ..common_arguments import check_known
from ..methods import Method
from .mixers import COMMON, Mix

_NAMES = {"mixup": "MixUp", "cutmix": "CutMix", "hmix": "HMix", "gmix": "GMix"}


def class_name(method: str) -> str:
    """The name of a method's class: that of the paper, or the method's own in CamelCase."""
    return _NAMES.get(method, "".join(part[:1].upper() + part[1:] for part in method.split("_")))


@functools.cache
def mixer_class(method: Method) -> type[Mix]:
    """The class of a method: :class:`Mix` with a fixed method, and that method's own arguments."""

    def __init__(self: Mix, num_classes: int | None = None, **arguments: Any) -> None:
        check_known(method, [name for name in arguments if name not in parameters], parameters)
        Mix.__init__(self, method.name, num_classes, **arguments)

    of_mix = inspect.signature(Mix.__init__).parameters
    own = [
        inspect.Parameter(
            argument.name, inspect.Parameter.KEYWORD_ONLY, default=argument.default, annotation=float
        )
        for argument in method.arguments
    ]
    common = [parameter for name, parameter in COMMON.items() if name not in method.defaults]
    parameters = [parameter.name for parameter in (*own, *common)]
    __init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [of_mix["self"], of_mix["num_classes"], *own, *common]
    )
    name = class_name(method.name)
    summary = method.summary.replace("`", "")
    doc = f"{method.title}: the own image's weight is {summary}. See :class:`Mix`."
    return type(name, (Mix,), {"__init__": __init__, "__doc__": doc, "__module__": __package__})
