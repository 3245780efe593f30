import pytest
import torch

from retailray.data.transforms import AUGMENTS, GREY, draw_seed, make_augment


@pytest.mark.parametrize("name", AUGMENTS)
def test_what_happens_to_an_image_depends_on_its_seed_alone(name):
    images = torch.randint(0, 255, (4, 3, 40, 40), dtype=torch.uint8)
    augment = make_augment(name, 32)
    together = augment(images, [1, 2, 3, 4])
    state = torch.get_rng_state()
    alone = augment(images[2:3], [3])
    assert torch.equal(together[2], alone[0]), "not on its neighbours"
    assert torch.equal(torch.get_rng_state(), state), "and nobody else's draws change"
    assert together.shape == (4, 3, 32, 32)
    assert together.dtype == torch.uint8
    same_image = augment(images[:1].expand(2, -1, -1, -1), [1, 2])
    assert not torch.equal(same_image[0], same_image[1])


def test_erasing_blanks_a_rectangle():
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    erased = make_augment("none", 32, random_erasing_prob=0.5)(images, list(range(8)))
    touched = (erased == GREY).flatten(1).any(1)
    assert 0 < touched.sum() < 8
    assert set(erased.unique().tolist()) == {0, GREY}


def test_none_is_nothing():
    assert make_augment("none", 32) is None


def test_seeds_differ_and_repeat():
    assert draw_seed(0, "a", 1) == draw_seed(0, "a", 1)
    assert len({draw_seed(seed, name, view) for seed in range(3) for name in "ab" for view in range(3)}) == 18
    assert 0 <= draw_seed(0) < 2**63
