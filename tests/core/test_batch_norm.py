"""Batch norms that go by the batch at hand: equal to training mode, and without a trace."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from mmcl.batch_norm import affine_parameters, batch_norms, batch_statistics
from mmcl.errors import ConfigError


def convolutions() -> nn.Sequential:
    """Two batch norms, the second with its activation inside."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3), BatchNormAct2d(6)).double().eval()


def test_batch_statistics_are_those_of_training_mode_and_leave_no_trace() -> None:
    net, image = convolutions(), torch.randn(6, 3, 8, 8, dtype=torch.float64)
    net[1].running_mean.normal_()
    state = deepcopy(net.state_dict())
    plain = net(image)
    with batch_statistics(net, torch.ones(6, dtype=torch.bool)):
        found = net(image)
    torch.testing.assert_close(found, deepcopy(net).train()(image), rtol=1e-9, atol=1e-11)
    assert torch.equal(net(image), plain)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    with batch_statistics(net, torch.ones(6, dtype=torch.bool), prior=1e12):
        torch.testing.assert_close(net(image), plain, rtol=1e-6, atol=1e-8)


def test_one_value_a_channel_goes_by_running_statistics() -> None:
    norm = nn.BatchNorm1d(3).eval()
    assert norm.running_mean is not None
    norm.running_mean.normal_()
    row = torch.randn(1, 3)
    with batch_statistics(norm, torch.ones(1, dtype=torch.bool)):
        found = norm(row)
    torch.testing.assert_close(found, norm(row))


def test_rows_that_several_values_stand_for_are_left_out_together() -> None:
    """A layer that sees the frames of each sample as rows of its own."""
    norm = nn.BatchNorm1d(3).double().eval()
    frames = torch.randn(6, 3, dtype=torch.float64)
    with batch_statistics(norm, torch.tensor([True, True, False])):
        found = norm(frames)
    torch.testing.assert_close(found[:4], deepcopy(norm).train()(frames[:4]))


def test_what_has_no_running_statistics_is_refused() -> None:
    with pytest.raises(ConfigError, match="batch norm '0' keeps no running statistics"):
        batch_norms(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))


def test_scales_and_shifts_of_every_norm_are_found() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.LayerNorm(3), nn.GroupNorm(1, 3), nn.RMSNorm(3), nn.Linear(3, 3))
    assert list(affine_parameters(net)) == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "2.weight",
        "2.bias",
        "3.weight",
    ]
