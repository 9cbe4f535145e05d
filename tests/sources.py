"""The in-memory source from the protocol's docstring."""

from __future__ import annotations

import doctest
from typing import Any

from pipelines.sources import Source


def memory_class() -> Any:
    """The class ``Memory`` from the docstring of :class:`pipelines.sources.Source`."""
    names: dict[str, Any] = {}
    for example in doctest.DocTestParser().get_examples(Source.__doc__ or ""):
        exec(example.source, names)
    return names["Memory"]
