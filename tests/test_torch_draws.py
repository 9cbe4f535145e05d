"""What `dali_msda.torch` draws: distributions, partners, repeatability."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from dali_msda import Beta
from dali_msda import torch as torch_msda
from dali_msda.torch.draws import beta
from tests.devices import on_each_device
from tests.test_torch import on

# With fixed seeds, so a right program never fails; a wrong distribution has far smaller p-values.
LIKELY = 1e-3
MANY = 6400


def generator(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(on(device)).manual_seed(seed)


def tiny(count: int = MANY, size: tuple[int, int] = (8, 8), device: str = "cpu") -> torch.Tensor:
    return torch.zeros(count, 1, *size, dtype=torch.uint8, device=on(device))


@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0, 2.5, 40.0])
def test_beta(alpha: float) -> None:
    uniform = torch.rand(2, 20_000, dtype=torch.float64, generator=generator(1))
    drawn = beta(alpha, uniform[0], uniform[1]).numpy()
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > LIKELY
    assert 0.0 <= drawn.min() <= drawn.max() <= 1.0


def test_beta_with_most_draws_at_the_ends() -> None:
    """In bins, because those nearest to 0 and 1 are rounded to them."""
    uniform = torch.rand(2, 20_000, dtype=torch.float64, generator=generator(1))
    edges = [0.0, 1e-6, 1e-3, 0.1, 0.5, 0.9, 1 - 1e-3, 1 - 1e-6, 1.0]
    found, _ = np.histogram(beta(0.05, uniform[0], uniform[1]).numpy(), edges)
    assert stats.chisquare(found, 20_000 * np.diff(stats.beta(0.05, 0.05).cdf(edges))).pvalue > LIKELY


def test_beta_of_extreme_draws() -> None:
    numbers = torch.tensor([0.0, 0.25, 0.5, 1 - 2**-53], dtype=torch.float64)
    radius, angle = torch.cartesian_prod(numbers, numbers).T
    for alpha in (1e-6, 0.1, 1.0, 1e6):
        drawn = beta(alpha, radius, angle)
        assert drawn.isfinite().all(), alpha
        assert ((drawn >= 0.0) & (drawn <= 1.0)).all()


@on_each_device
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_lam_follows_alpha(backend: str, device: str) -> None:
    for alpha in (0.4, 1.0):
        mix = torch_msda.MixUp(alpha=alpha, generator=generator(2, device), backend=backend)
        lam = mix.draw(tiny(device=device)).lam.cpu().numpy()
        assert stats.kstest(lam, stats.beta(alpha, alpha).cdf).pvalue > LIKELY
    assert torch_msda.MixUp(alpha=0.0).draw(tiny(8)).lam.eq(1.0).all()


@on_each_device
def test_centres_are_uniform_and_independent_of_lam(device: str) -> None:
    mix = torch_msda.CutMix(generator=generator(3, device), return_params=True)
    mask = mix(tiny(device=device), lam=0.9)[-1].mask[:, 0].cpu().numpy() == 0.0
    # A box of 2 x 2 ends at the centre.
    rows, columns = (7 - mask.any(axis)[:, ::-1].argmax(1) for axis in (2, 1))
    found = np.bincount(rows * 8 + columns, minlength=64)
    assert stats.chisquare(found).pvalue > LIKELY
    drawn = torch_msda.Stochastic(generator=generator(4)).draw(tiny()).draws.values
    names = ["lam", "mixup_lam", "coin", "_row", "_column", "_coin"]
    together = np.corrcoef([drawn[name].numpy() for name in names])
    assert np.abs(together - np.eye(len(names))).max() < 4 / np.sqrt(MANY)


def test_probabilities() -> None:
    mix = torch_msda.MixUp(probability=0.3, generator=generator(5))
    mixed = int((mix.draw(tiny()).lam < 1.0).sum())
    assert stats.binomtest(mixed, MANY, 0.3).pvalue > LIKELY
    switching = torch_msda.Stochastic(switch_probability=0.2, generator=generator(6), return_params=True)
    masks = switching(tiny())[-1].mask.flatten(1)
    blended = int(((masks > 0.0) & (masks < 1.0)).any(1).sum())
    assert stats.binomtest(blended, MANY, 0.2).pvalue > LIKELY


def test_a_random_ratio_leaves_the_other_draws() -> None:
    plain = torch_msda.HMix(generator=generator(7)).draw(tiny()).draws.values
    random = torch_msda.HMix(ratio=Beta(0.5), generator=generator(7)).draw(tiny()).draws.values
    assert stats.kstest(random["ratio"].numpy(), stats.beta(0.5, 0.5).cdf).pvalue > LIKELY
    for name in ("lam", "_row", "_column", "_coin"):
        assert torch.equal(plain[name], random[name])


@on_each_device
def test_partners(device: str) -> None:
    for allow_self in (True, False):
        mix = torch_msda.MixUp(allow_self=allow_self, generator=generator(8, device))
        drawn = torch.stack([mix.draw(tiny(6, device=device)).partner for _ in range(900)]).cpu()
        assert drawn.dtype == torch.int64
        assert torch.equal(drawn.sort(dim=1).values, torch.arange(6).expand(900, 6))
        for sample in range(6):
            found = torch.bincount(drawn[:, sample], minlength=6).numpy()
            if not allow_self:
                assert found[sample] == 0
                found = np.delete(found, sample)
            assert stats.chisquare(found).pvalue > LIKELY
    assert torch_msda.MixUp(allow_self=False).draw(tiny(1)).partner.tolist() == [0]


def test_one_draw_for_a_batch() -> None:
    mix = torch_msda.HMix(10, granularity="batch", ratio=Beta(1.0), return_params=True)
    _, params = mix(tiny(16))
    assert params.mask.eq(params.mask[:1]).all()
    assert len(params.partner.unique()) == 16
    assert not torch.equal(mix(tiny(16))[1].mask, params.mask)


def test_seeds_and_generators() -> None:
    images = torch.rand(8, 3, 9, 9)
    for method in ("MixUp", "Stochastic", "GMix"):
        make = getattr(torch_msda, method)
        torch.manual_seed(1)
        first, second = make()(images), make()(images)
        assert not torch.equal(first, second)
        torch.manual_seed(1)
        assert torch.equal(make()(images), first)
        own = generator(1)
        mix = make(generator=own)
        assert torch.equal(mix(images), first)  # the same numbers as PyTorch's own generator
        state = own.get_state()
        after = mix(images)
        own.set_state(state)
        assert torch.equal(mix(images), after)
