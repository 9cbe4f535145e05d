"""A user's own method, for tests of settings: no draws, and an argument that no other method has."""

from __future__ import annotations

from dali_msda.masks import Separable
from dali_msda.methods import Argument, Method

STRIPE = Method(
    name="stripe",
    title="Stripe",
    summary="`width`",
    arguments=(Argument(name="width", default=0.25, fraction=True, help="Width of the stripe."),),
    mask=lambda f, grid, width: Separable(width),
)
