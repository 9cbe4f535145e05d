"""Random draws in dynamic mode: their distributions, and what decides them; resume and capture."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
import pytest
from scipy import stats

import dali_msda as pipeline_msda
from dali_msda import dynamic as msda
from tests.dynamic import Arrays, batch, flat, numpy_of

SIGNIFICANCE = 1e-3

MANY = 4000


def pixels(count: int = MANY, size: tuple[int, int] = (1, 1)) -> Any:
    return batch(np.zeros((count, *size, 1), np.uint8))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_lam_is_beta_and_partners_are_a_permutation(alpha: float) -> None:
    drawn = msda.draw("mixup", pixels(), alpha=alpha, rng=ndd.random.RNG(seed=11))
    assert stats.kstest(numpy_of(drawn.lam), stats.beta(alpha, alpha).cdf).pvalue > SIGNIFICANCE
    assert sorted(numpy_of(drawn.partner)) == list(range(MANY))


def permutation_counts(rng: Any, **arguments: Any) -> list[int]:
    """How often each permutation of four was drawn."""
    drawn = (numpy_of(msda.draw("mixup", pixels(4), rng=rng, **arguments).partner) for _ in range(1500))
    return list(Counter(tuple(partner.tolist()) for partner in drawn).values())


def test_partners_and_centres_are_uniform() -> None:
    """Every permutation equally often, or with ``allow_self=False`` every one without fixed points."""
    rng = ndd.random.RNG(seed=12)
    for arguments, permutations in (({}, 24), ({"allow_self": False}, 9)):
        counts = permutation_counts(rng, **arguments)
        assert len(counts) == permutations
        assert stats.chisquare(counts).pvalue > SIGNIFICANCE
    own_images = pixels(MANY, (8, 6))
    *_, params = msda.gmix(own_images, None, lam=0.9, rng=rng, return_params=True)
    darkest = numpy_of(params.mask).reshape(MANY, -1).argmin(1)
    assert stats.chisquare(np.bincount(darkest, minlength=48)).pvalue > SIGNIFICANCE


def test_probability_alpha_0_and_shared_draws() -> None:
    rng = ndd.random.RNG(seed=13)
    mixed = int((numpy_of(msda.draw("mixup", pixels(), probability=0.3, rng=rng).lam) < 1).sum())
    assert stats.binomtest(mixed, MANY, 0.3).pvalue > SIGNIFICANCE
    share = np.array([0.0, 1.0] * (MANY // 2), np.float32)
    lam = numpy_of(msda.draw("mixup", pixels(), probability=ndd.as_batch(share), rng=rng).lam)
    np.testing.assert_array_equal(lam < 1, share == 1)
    assert (numpy_of(msda.draw("gmix", pixels(), alpha=0, rng=rng).lam) == 1).all()
    alphas = ndd.as_batch(np.array([0.0, 1.0] * (MANY // 2), np.float32))
    np.testing.assert_array_equal(
        numpy_of(msda.draw("hmix", pixels(), alpha=alphas, rng=rng).lam) < 1, share == 1
    )
    lam = numpy_of(msda.draw("mixup", pixels(), granularity="batch", rng=rng).lam)
    assert len(set(lam.tolist())) == 1
    ratio = pipeline_msda.Beta(0.5)
    own = batch(np.zeros((MANY, 64, 64, 1), np.uint8))
    _, params = msda.hmix(own, None, ratio=ratio, lam=0.5, rng=rng, center=(32, 32), return_params=True)
    mask = numpy_of(params.mask)
    sides = np.sqrt((mask == 0).mean((1, 2, 3)) / 0.5)  # sqrt(r), rounded down to even pixels
    for mean, power in ((0.5, 2), (3 / 8, 4)):
        assert abs((sides**power).mean() - mean) < 0.06


def test_the_generator_decides_and_moves_on_equally() -> None:
    """The same words are drawn whatever the arguments: DALI's capture mode relies on it."""
    rng, after = ndd.random.RNG(seed=3), set()
    lams = []
    for more in ({}, {"lam": 0.5}, {"partner": 1}, {"center": (0, 0)}, {"ratio": pipeline_msda.Beta(1.0)}):
        one = rng.clone()
        drawn = msda.draw("hmix", pixels(4, (9, 9)), rng=one, **more)
        after.add(str(one.state))
        lams.append(numpy_of(drawn.lam) if "lam" not in more and "center" not in more else None)
    assert len(after) == 1
    assert after != {str(rng.state)}
    for other in (lams[2],):
        np.testing.assert_array_equal(lams[0], other)
    ndd.random.set_seed(8)
    first = numpy_of(msda.draw("mixup", pixels(4)).lam)
    second = numpy_of(msda.draw("mixup", pixels(4)).lam)
    ndd.random.set_seed(8)
    np.testing.assert_array_equal(numpy_of(msda.draw("mixup", pixels(4)).lam), first)
    assert (first != second).all()


# -- Readers, checkpoints and capture ---------------------------------------------------------------------


def reader_and_rng(root: Path) -> tuple[Any, Any]:
    return ndd.readers.File(file_root=str(root), random_shuffle=True, seed=5), ndd.random.RNG(seed=3)


def mixed_batches(reader: Any, rng: Any, count: int, **epoch: Any) -> list[list[Arrays]]:
    """Batches from a reader, epoch after epoch, flipped and mixed with draws from one generator."""
    found: list[list[Arrays]] = []
    while True:
        for encoded, labels in reader.next_epoch(batch_size=4, **epoch):
            images = ndd.resize(ndd.decoders.image(encoded, device="cpu"), size=[16, 16])
            mirror = ndd.random.coin_flip(batch_size=labels.batch_size, rng=rng)
            found.append(flat(msda.hmix(ndd.flip(images, horizontal=mirror), labels, 3, rng=rng)))
            if len(found) == count:
                return found


def test_a_checkpoint_resumes_to_the_bit(photos: Path, tmp_path: Path) -> None:
    """Saved in the second epoch, and read by new objects: the same batches as without a stop."""
    whole = mixed_batches(*reader_and_rng(photos / "train"), 12)
    reader, rng = reader_and_rng(photos / "train")
    checkpoint = ndd.checkpoint.Checkpoint()
    checkpoint.register(reader, "reader")
    checkpoint.register(rng, "rng")
    before = mixed_batches(reader, rng, 7)
    checkpoint.collect()
    checkpoint.save(str(tmp_path / "state-{seq:03d}.json"))
    reader, rng = reader_and_rng(photos / "train")
    restored = ndd.checkpoint.Checkpoint()
    restored.load(str(tmp_path / "state-{seq:03d}.json"))
    restored.register(reader, "reader")
    restored.register(rng, "rng")
    after = mixed_batches(reader, rng, 5)
    for ours, theirs in zip(before + after, whole, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(whole[7][0], whole[0][0])


def test_capture_mode_gives_the_same_bits(photos: Path) -> None:
    """DALI runs the operators before the mixing ahead, in a pipeline of its own."""
    whole = mixed_batches(*reader_and_rng(photos / "train"), 8)
    captured = mixed_batches(*reader_and_rng(photos / "train"), 8, capture=True)
    for ours, theirs in zip(captured, whole, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
