import types

import pytest
import torch

from retailray.training.loop import make_optimizer


@pytest.mark.parametrize("num_steps", range(1, 31))
def test_every_number_of_steps_warms_up_and_falls(num_steps):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
    config = types.SimpleNamespace(head_lr=0.1, backbone_lr=0.01, weight_decay=0.0)
    optimizer, schedule = make_optimizer(model, config, num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    backbone, head = zip(*rates, strict=True)
    assert all(0 < rate <= 0.1 for rate in head)
    assert [rate * 10 for rate in backbone] == pytest.approx(head)
    if num_steps >= 5:
        assert max(head) == pytest.approx(0.1)
        assert head[0] < max(head) > head[-1]
