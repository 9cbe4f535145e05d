"""The mixing methods that the trainer has besides those of `dali_msda`'s table. Imports nothing heavy.

They need the model, which a pipeline does not have. :mod:`.mixers` has the code that runs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dali_msda.methods import TABLE, Argument, Beta, Entry
from dali_msda.mixing import Mixing
from dali_msda.validation import ArgumentValueError

# PuzzleMix draws the blocks per side for each batch, from those that divide the images.
GRIDS = (2, 4, 8, 16)

# The defaults are those of the authors' code for CIFAR-100 and ImageNet, github.com/snu-mllab/PuzzleMix.
WITH_MODEL: dict[str, Entry] = {
    method.name: method
    for method in (
        Entry(
            name="puzzlemix",
            title="PuzzleMix",
            summary="for each block, the image whose block is more salient; smooth, and `lam` on average",
            paper="Kim, Choo and Song, ICML 2020",
            arguments=(
                Argument(
                    name="alpha", default=1.0, cifar100=1.0, zero=True, help="lam ~ Beta(alpha, alpha)."
                ),
                Argument(name="beta", default=1.2, zero=True, help="Weight of the mask's smoothness."),
                Argument(
                    name="gamma",
                    default=0.5,
                    fraction=True,
                    help="How much the smoothness depends on the images' pixels.",
                ),
                Argument(
                    name="eta",
                    default=0.2,
                    zero=True,
                    help="Weight of the prior that the mask's mean is lam.",
                ),
                Argument(
                    name="levels",
                    default=3,
                    whole_from=2,
                    help="Values of the mask, evenly spaced from 0 to 1.",
                ),
                Argument(
                    name="neighbor_size",
                    default=4,
                    whole_from=1,
                    help="Average this many pixels, in both directions, where blocks are compared.",
                ),
                Argument(
                    name="transport_size",
                    default=4,
                    whole_from=0,
                    help="Side in pixels of the patches that are moved to where they are seen; 0 moves none."
                    " The mask's blocks are moved whole where it does not divide their side, or would make"
                    " more than 16 x 16 patches.",
                ),
                Argument(
                    name="transport_cost",
                    default=0.8,
                    zero=True,
                    help="Saliency that a patch must gain to be moved across the image.",
                ),
            ),
            draws={"lam": Beta("alpha")},
        ),
    )
}


def methods() -> dict[str, Entry]:
    """All methods that ``--mix`` takes, by name, those that a user has registered included."""
    return TABLE | WITH_MODEL


class ModelMixing(Mixing):
    """The settings of a method of :data:`WITH_MODEL`; otherwise like its base."""

    @classmethod
    def methods(cls) -> Mapping[str, Entry]:
        """The methods that it can name."""
        return WITH_MODEL

    def __init__(self, method: str, **fields: Any) -> None:
        super().__init__(method, **fields)
        if self.convention != "reference":
            expected = f"'reference' with {method!r}, whose masks have one form"
            raise ArgumentValueError("convention", expected, self.convention)


def mixing_of(method: str, **fields: Any) -> Mixing:
    """The settings of any method; `fields` as :class:`dali_msda.Mixing` takes them."""
    return (ModelMixing if method in WITH_MODEL else Mixing)(method, **fields)


def needs_model(mixing: Mixing) -> bool:
    """Whether the trainer mixes, and not the pipeline."""
    return mixing.method in WITH_MODEL


def mixing_of_pipeline(mixing: Mixing) -> Mixing:
    """The mixing that the pipeline does: none for a method that needs the model."""
    return Mixing("none", label_smoothing=mixing.label_smoothing) if needs_model(mixing) else mixing
