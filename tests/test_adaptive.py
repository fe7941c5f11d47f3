"""The adaptive softmax against torch's own loss, and against itself with the whole vocabulary written out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lm1b.config import SoftmaxConfig
from lm1b.errors import UserError
from lm1b.model.adaptive import AdaptiveSoftmax, adaptive_cutoffs

WIDTH, VOCABULARY = 12, 50


def made(seed: int = 1, **settings: object) -> AdaptiveSoftmax:
    softmax = AdaptiveSoftmax(
        WIDTH, VOCABULARY, SoftmaxConfig.model_validate({"kind": "adaptive", "cutoffs": [10, 30], "cluster_factor": 2.0, **settings})
    )
    softmax.initialize(seed)
    with torch.no_grad():
        softmax.clusters.head.bias.copy_(torch.linspace(-1, 1, len(softmax.clusters.head.bias)))
    return softmax


def test_nats_and_gradients_are_those_of_torch() -> None:
    softmax = made().double()
    hidden_NP = torch.randn(40, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    targets_N = torch.arange(40) % VOCABULARY
    nats = softmax(hidden_NP, targets_N)
    theirs = -nn.AdaptiveLogSoftmaxWithLoss.forward(softmax.clusters, hidden_NP, targets_N).output
    assert torch.allclose(nats, theirs, rtol=1e-6)
    inputs = [hidden_NP, *softmax.parameters()]
    for ours, expected in zip(torch.autograd.grad(nats.sum(), inputs), torch.autograd.grad(theirs.sum(), inputs), strict=True):
        assert torch.allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_probabilities_of_all_words_sum_to_one_and_are_the_nats() -> None:
    softmax = made(seed=4)
    hidden_NP = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        log_NV = softmax.log_probabilities(hidden_NP)
        nats_N = softmax(hidden_NP, torch.arange(VOCABULARY))
    assert torch.allclose(log_NV.double().exp().sum(1), torch.ones(VOCABULARY, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(log_NV.diagonal().double(), -nats_N, atol=1e-6)


def test_every_weight_gets_a_gradient_where_no_target_is_in_its_cluster() -> None:
    softmax = made()
    softmax(torch.randn(5, WIDTH), torch.zeros(5, dtype=torch.int64)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in softmax.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    assert all(not gradients[name].any() for name in gradients if ".tail." in name)  # type: ignore[union-attr]


def test_initial_weights_depend_on_the_seed_alone() -> None:
    one, same, other = ({name: value for name, value in made(seed).state_dict().items() if "bias" not in name} for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name]) for name in one)


def test_what_cannot_be_cut_is_told_in_one_line() -> None:
    assert adaptive_cutoffs(SoftmaxConfig(kind="adaptive"), 80_000) == [4_000, 20_000]
    with pytest.raises(UserError, match="at most 100,000 words; this vocabulary has 100,001"):
        AdaptiveSoftmax(WIDTH, 100_001, SoftmaxConfig(kind="adaptive"))
    with pytest.raises(UserError, match=r"softmax.cutoffs \(=\[10, 50\]\) must be below the vocabulary's size \(=50\)"):
        made(cutoffs=[10, 50])
    with pytest.raises(UserError, match="leaves no width for cluster 2 of rows 12 wide"):
        made(cluster_factor=5.0)
    with pytest.raises(ValueError, match="must rise"):
        SoftmaxConfig(kind="adaptive", cutoffs=[30, 10])
