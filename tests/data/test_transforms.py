import pytest
import torch

from retailray.data.transforms import AUGMENTS, make_augment


@pytest.mark.parametrize("name", AUGMENTS)
def test_each_image_gets_draws_of_its_own_and_seeds_repeat(name):
    image = torch.randint(0, 255, (3, 40, 40), dtype=torch.uint8)
    batch = image.expand(4, -1, -1, -1)
    augment = make_augment(name, 32)
    torch.manual_seed(1)
    first = augment(batch)
    torch.manual_seed(1)
    assert torch.equal(first, augment(batch))
    assert first.shape == (4, 3, 32, 32)
    assert first.dtype == torch.uint8
    assert not torch.equal(first[0], first[1])


def test_none_is_nothing():
    assert make_augment("none", 32) is None
