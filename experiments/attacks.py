"""Adversarial images: FGSM and PGD, untargeted, in the maximum norm; by foolbox.

Goodfellow, Shlens and Szegedy, "Explaining and harnessing adversarial examples" (ICLR 2015); Madry et al.,
"Towards deep learning models resistant to adversarial attacks" (ICLR 2018).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

# foolbox imports GitPython, which needs no git as long as nothing is downloaded.
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

import eagerpy
from foolbox import Misclassification, PyTorchModel
from foolbox.attacks import LinfFastGradientAttack, LinfProjectedGradientDescentAttack

ATTACKS = ("fgsm", "pgd")
STEP = 2.5
"""The steps of PGD add up to this many radii, so that it can cross the ball from any start."""


class _Margin:
    """For an attack: the loss log sum exp(other logits) - own logit, summed over the images.

    The cross-entropy is log(1 + exp(this)), so signs of gradients are the same. But its gradient loses digits
    where a network is certain: in float32, 1 - p is 0 beyond a margin of 17. Attacks would then seem to fail
    on networks for no other reason than large logits.
    """

    def get_loss_fn(self, model: Any, labels: Any) -> Callable[[Any], Any]:
        def loss(images: Any) -> Any:
            logits = model(images).raw
            own = labels.raw[:, None]
            others = logits.scatter(1, own, -torch.inf).logsumexp(1)
            return eagerpy.astensor((others - logits.gather(1, own)[:, 0]).sum())

        return loss


class _FGSM(_Margin, LinfFastGradientAttack):
    pass


class _PGD(_Margin, LinfProjectedGradientDescentAttack):
    pass


def attack(
    model: nn.Module, images: Tensor, labels: Tensor, *, method: str, radius: float, steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Raise the cross-entropy of every image within a distance.

    Parameters
    ----------
    model : Module
        In evaluation mode; takes images in [0, 1].
    images : Tensor
        Float N x 3 x H x W in [0, 1].
    labels : Tensor
        int64 [N], outputs of the model.
    method : str
        "fgsm": one step of `radius` along the gradient's sign. "pgd": `steps` of ``2.5 radius / steps``,
        from a random start.
    radius : float
        The largest change of a value.
    steps, seed : int
        Of PGD.

    Returns
    -------
    images : Tensor
        Within [0, 1] and `radius`.
    right : Tensor
        bool [N]: the model's class is still the label.
    """
    attacks: dict[str, Any] = {
        "fgsm": _FGSM(),
        "pgd": _PGD(rel_stepsize=STEP / steps, steps=steps),
    }
    wrapped = PyTorchModel(model, bounds=(0, 1), device=images.device)
    devices = [images.device] if images.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        _, found, success = attacks[method](wrapped, images, Misclassification(labels), epsilons=radius)
    return found, ~success
