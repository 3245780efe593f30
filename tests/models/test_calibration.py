import pytest
import torch

from retailray.models.calibration import BOUNDS, fit_temperature


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_what_made_logits_too_sure(factor):
    generator = torch.Generator().manual_seed(0)
    honest = torch.randn(4000, 5, generator=generator) * 2
    targets = torch.multinomial(honest.softmax(1), 1, generator=generator).squeeze(1)
    assert fit_temperature(honest * factor, targets) == pytest.approx(factor, rel=0.1)


def test_it_stays_within_bounds_and_needs_no_rows():
    assert fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)) == 1.0
    sure, right = torch.eye(3) * 5, torch.arange(3)
    assert BOUNDS[0] <= fit_temperature(sure, right) <= 1.0
    assert 1.0 <= fit_temperature(sure, right.roll(1)) <= BOUNDS[1]
