"""BatchNorm's statistics: read, written, by batch, taken again."""

import torch
from torch import nn

from qprune.network.statistics import (
    affine_of,
    by_batch,
    norms_of,
    statistics_of,
    take_again,
    write_statistics,
)


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4)).eval()
    with torch.no_grad():
        for norm in norms_of(model):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(1, 2)
            norm.num_batches_tracked.fill_(7)
    return model


def test_what_is_read_can_be_written_again():
    model, other = network(), network()
    known = statistics_of(model)
    assert known.numel() == 2 * 4 * 4
    other.load_state_dict({k: torch.zeros_like(v) for k, v in other.state_dict().items()})
    write_statistics(other, known)
    assert torch.equal(statistics_of(other), known)
    assert [tensor.tolist() for tensor in affine_of(other)] == [[1.0] * 4, [0.0] * 4] * 2


def test_a_network_without_batch_norm_has_none():
    assert statistics_of(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))) is None


def test_by_batch_normalises_by_the_batch_and_keeps_nothing():
    model = network()
    before, inputs = statistics_of(model), torch.randn(50, 3) * 5 + 3
    with by_batch(model):
        outputs = model(inputs)
    torch.testing.assert_close(outputs.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(outputs.std(0, correction=0), torch.ones(4), atol=1e-3, rtol=0)
    assert torch.equal(statistics_of(model), before)
    assert [int(norm.num_batches_tracked) for norm in norms_of(model)] == [7, 7]
    assert not any(norm.training or norm.momentum != 0.1 for norm in norms_of(model))


def test_statistics_taken_again_are_the_means_over_the_batches():
    model = network()
    batches = [torch.randn(20, 3) + number for number in range(3)]
    take_again(model, model, batches)
    first, hidden = norms_of(model)[0], [model[0](batch) for batch in batches]
    means = torch.stack([batch.mean(0) for batch in hidden]).mean(0)
    variances = torch.stack([batch.var(0) for batch in hidden]).mean(0)
    torch.testing.assert_close(first.running_mean, means)
    torch.testing.assert_close(first.running_var, variances)
    assert int(first.num_batches_tracked) == 7
    assert not first.training
