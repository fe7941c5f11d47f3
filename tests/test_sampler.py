"""The sampler: exact draws, exact counts of draws, and inclusion as often as the correction says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm1b.errors import UserError
from lm1b.model.sampler import LogUniform, Proposal, Sampler, Unigram
from lm1b.randomness import derive_key, uniform


def draw_one_by_one(vocabulary_size: int, num_samples: int, seed: int, step: int) -> tuple[list[int], int]:
    """The definition: draw ids until enough distinct ones have been seen."""
    key = derive_key(seed, "sampler", step)
    seen: set[int] = set()
    num_draws = 0
    while len(seen) < num_samples:
        u = uniform(key, torch.tensor([num_draws])).item()
        seen.add(min(int(math.exp(u * math.log(vocabulary_size + 1))) - 1, vocabulary_size - 1))
        num_draws += 1
    return sorted(seen), num_draws


@settings(deadline=None, max_examples=30)
@given(vocabulary_size=st.integers(2, 400), share=st.floats(0.01, 0.5), seed=st.integers(0, 2**40), step=st.integers(0, 2**40))
def test_draws_as_by_the_definition(vocabulary_size: int, share: float, seed: int, step: int) -> None:
    num_samples = max(1, int(vocabulary_size * share))
    sampler = Sampler(LogUniform(vocabulary_size), num_samples, seed)
    samples = sampler.draw(step)
    ids, num_draws = draw_one_by_one(vocabulary_size, num_samples, seed, step)
    assert samples.ids_S.tolist() == ids
    assert samples.num_draws == num_draws
    assert samples.ids_S.dtype == torch.int64
    log_expected_S = sampler.log_expected(samples.ids_S, num_draws)
    assert log_expected_S.dtype == torch.float32
    assert bool((log_expected_S <= 0).all())


def test_draws_of_the_unigram_fall_by_its_cumulative_sums() -> None:
    """A word of count 0 is drawn as if it had count 1."""
    proposal = Unigram(np.array([81, 16, 1, 0]), 0.75)
    shares = np.array([27, 8, 1, 1]) / 37
    assert torch.allclose(proposal.probability(torch.arange(4)), torch.from_numpy(shares))
    ends = np.cumsum(shares)
    assert proposal.ids(np.array([1e-9, ends[0] - 1e-9, ends[0] + 1e-9, ends[1] + 1e-9, 1 - 1e-12])).tolist() == [0, 0, 1, 2, 3]
    assert Unigram(np.array([7, 5, 0]), 0.0).probability(torch.tensor([[0], [2]])).flatten().tolist() == pytest.approx([1 / 3] * 2)


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    sampler = Sampler(LogUniform(5000), 700, seed=3)
    first = sampler.draw(9)
    sampler._draws_at_a_time = 1  # a small first guess only costs another round
    again = sampler.draw(9)
    assert torch.equal(first.ids_S, again.ids_S)
    assert first.num_draws == again.num_draws
    assert not torch.equal(first.ids_S, sampler.draw(10).ids_S)
    assert not torch.equal(first.ids_S, Sampler(LogUniform(5000), 700, seed=4).draw(9).ids_S)


@pytest.mark.parametrize("proposal", [LogUniform(400), Unigram(40_000 // np.arange(1, 401), 0.75)], ids=["log-uniform", "unigram"])
def test_inclusion_frequency_is_the_expected_one(proposal: Proposal) -> None:
    vocabulary_size, num_samples, num_trials = 400, 40, 2000
    sampler = Sampler(proposal, num_samples, seed=1)
    every_id = torch.arange(vocabulary_size)
    included = torch.zeros(vocabulary_size, dtype=torch.float64)
    expected = torch.zeros(vocabulary_size, dtype=torch.float64)
    for step in range(num_trials):
        samples = sampler.draw(step)
        included[samples.ids_S] += 1
        expected += sampler.log_expected(every_id, samples.num_draws).double().exp()
    frequency, mean_expected = included / num_trials, expected / num_trials
    standard_error = torch.sqrt(mean_expected * (1 - mean_expected) / num_trials).clamp(min=1e-9)
    deviations = (frequency - mean_expected) / standard_error
    # Of 400 ids about one lies beyond 3 standard errors by chance; none may lie beyond 4.5, nor a group of ids beyond 3.
    assert (deviations.abs() > 3).sum() <= 5
    assert deviations.abs().max() < 4.5
    for group in deviations.split(40):
        assert abs(group.sum()) / math.sqrt(len(group)) < 3


def test_log_expected_is_the_formula() -> None:
    sampler = Sampler(LogUniform(793_471), 8192, seed=1)
    ids = torch.tensor([[0, 1, 2], [1000, 100_000, 793_470]])
    k = ids.numpy().astype(np.float64)
    probability = np.log((k + 2) / (k + 1)) / np.log(793_472)
    reference = np.log(-np.expm1(16_000 * np.log1p(-probability)))
    assert np.allclose(sampler.log_expected(ids, 16_000).numpy(), reference, rtol=1e-6, atol=1e-12)


def test_the_benchmark_needs_about_sixteen_thousand_draws() -> None:
    samples = Sampler(LogUniform(793_471), 8192, seed=1).draw(0)
    assert 15_500 < samples.num_draws < 16_600
    # E sums to the number of samples, nearly.
    assert abs(Sampler(LogUniform(793_471), 8192, 1).log_expected(torch.arange(793_471), samples.num_draws).exp().sum() - 8192) < 150


def test_all_ids_are_taken_where_samples_are_the_vocabulary() -> None:
    sampler = Sampler(LogUniform(50), 50, seed=1)
    samples = sampler.draw(3)
    assert samples.ids_S.tolist() == list(range(50))
    assert not sampler.log_expected(torch.arange(7), samples.num_draws).any()


def test_too_many_samples_name_the_full_softmax() -> None:
    for num_samples in (51, 99, 101):
        with pytest.raises(UserError, match=r"softmax\.kind=full"):
            Sampler(LogUniform(100), num_samples, seed=1)
    Sampler(LogUniform(100), 50, seed=1)
