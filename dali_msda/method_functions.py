"""Makes the function of a method from the function that takes the method by name. Imports nothing heavy."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .common_arguments import check_known
from .methods import Method


def common_parameters(mix: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The arguments that all methods take, with the defaults of `mix`."""
    return {
        name: parameter
        for name, parameter in inspect.signature(mix).parameters.items()
        if parameter.kind == parameter.KEYWORD_ONLY and name not in ("method", "alpha")
    }


def make_function(mix: Callable[..., Any], method: Method, node: str) -> Any:
    """The function of a method, with signature and help text from the table's entry.

    Parameters
    ----------
    mix : callable
        ``mix(images, labels, num_classes, *, method, ...)``, whose help text the new one shares.
    method : Method
    node : str
        What arguments can be besides numbers: the name of a type.
    """
    of_mix, common = inspect.signature(mix).parameters, common_parameters(mix)

    def mixing(images: Any, labels: Any, num_classes: int | None = None, **arguments: Any) -> Any:
        check_known(method, [name for name in arguments if name not in signature.parameters], common)
        return mix(images, labels, num_classes, method=method.name, **arguments)

    own = [
        inspect.Parameter(
            argument.name, inspect.Parameter.KEYWORD_ONLY, default=argument.default, annotation=float
        )
        for argument in method.arguments
    ]
    shared = [of_mix[name] for name in ("images", "labels", "num_classes")]
    signature = inspect.Signature([*shared, *own, *common.values()], return_annotation=Any)
    mixing.__name__ = mixing.__qualname__ = method.name
    mixing.__doc__ = _help_text(mix, method, node)
    mixing.__signature__ = signature  # type: ignore[attr-defined]
    return mixing


def _help_text(mix: Callable[..., Any], method: Method, node: str) -> str:
    """That of :func:`mix`, with the method's own arguments in place of those of all methods."""
    before, _, rest = inspect.cleandoc(str(mix.__doc__)).partition("method : str, optional\n")
    common = rest[rest.index("probability : ") :]
    common = common[: common.index("**arguments")] + common[common.index("\nReturns\n") :]
    summary = method.summary.replace("`", "")
    own = []
    for argument in method.arguments:
        cifar = "" if argument.cifar100 is None else f" (CIFAR-100: {argument.cifar100})"
        kinds = f"float, {node} or Beta" if argument.fraction else f"float or {node}"
        own += [f"{argument.name} : {kinds}, {argument.expected}, optional"]
        own += [f"    {argument.help} By default {argument.default}{cifar}."]
    text = f"{method.title}: the own image's weight is {summary}.\n\n{before}" + "\n".join([*own, common])
    return text + (f"\n\nThe method in the paper: {method.paper}.\n" if method.paper else "\n")
