"""Two ways to mix a batch, by the same formulas.

Each has a function ``mix(images, labels, draws, partner, arguments)``: the nodes of a batch, what `draw` and
`draw_partner` of :mod:`dali_msda.draws` made, and checked arguments. It returns mixed images, targets and, if
``arguments.return_params``, :class:`dali_msda.arguments.MixParams` (else None).

Masks are computed in float64 and applied in float32; uint8 is rounded to the nearest. Arguments are checked
before; what only the content of a batch shows (a label out of range, sizes that differ) is checked here, with
:mod:`dali_msda.checks`.
"""
