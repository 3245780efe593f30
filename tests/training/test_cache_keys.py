"""A stale key is impossible: everything that changes what frozen blocks say changes the key."""

import dataclasses
import os

import pytest
import torch

from retailray.config import CatalogSection, Phase, TrainConfig
from retailray.data.catalog import read_catalog
from retailray.data.decoding import DecodeSpec
from retailray.data.images import Limits
from retailray.data.scaling import Scaling
from retailray.models.backbones import backbone_of, build_model
from retailray.models.torchvision_blocks import to_blocks
from retailray.training.cache.fill import FrozenBlocks, cache_spec, fingerprint
from retailray.training.cache.plan import Place, Rows, plan_cache
from retailray.training.cache.views import ViewSpec
from retailray.training.measure import Measurement
from retailray.training.network import NetworkSpec
from retailray.training.phases import resolve

VIEWS = ViewSpec(DecodeSpec(Scaling(36, 36), Limits(10**8, 20.0)), "standard", 0.0, 32, num_views=2, seed=0)
NETWORK = NetworkSpec(backbone_of("resnet18"), 3, 32, None, (0.5,) * 3, (0.2,) * 3, "bfloat16")


@pytest.fixture
def catalog(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(b"12345")
    (tmp_path / "c.csv").write_text("image,label\na.jpg,x\nb.jpg,y\n")
    return read_catalog(CatalogSection(uri=str(tmp_path / "c.csv")))


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return to_blocks(build_model("resnet18", 3))


def key(catalog, chain, *, cut=8, views=VIEWS, network=NETWORK):
    rows = fingerprint(catalog)
    blocks = FrozenBlocks(network, chain, cut, (512, 1, 1)) if cut else None  # None: the pixels
    return cache_spec("/x", rows=rows, num_rows=2, views=views, blocks=blocks).key


def test_a_key_repeats(catalog, chain):
    assert key(catalog, chain) == key(catalog, chain)


def test_the_bytes_of_an_image_are_in_the_key(catalog, chain, tmp_path):
    before = key(catalog, chain)
    os.utime(tmp_path / "a.jpg", (1, 1))
    stat = (tmp_path / "a.jpg").stat()
    touched = key(catalog, chain)
    (tmp_path / "a.jpg").write_bytes(b"54321")  # same length, and the old times put back
    os.utime(tmp_path / "a.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len({before, touched, key(catalog, chain)}) == 3


def test_rows_and_their_order_are_in_the_key(catalog, chain):
    assert key(catalog, chain) != key(catalog.take([1, 0]), chain) != key(catalog.take([0]), chain)


def test_weights_of_frozen_blocks_are_in_the_key_and_others_are_not(catalog, chain):
    before = key(catalog, chain)
    with torch.no_grad():
        next(chain.head.parameters()).add_(1)
        next(chain.blocks[8][1].parameters()).add_(1)
    assert key(catalog, chain) == before
    with torch.no_grad():
        next(chain.blocks[7][1].parameters()).view(-1)[0] += 1e-3
    changed = key(catalog, chain)
    assert changed != before
    next(chain.blocks[7][1].buffers())[0] += 1e-3  # BatchNorm's statistics too
    assert key(catalog, chain) not in (before, changed)


def test_transform_depth_views_and_precision_are_in_the_key(catalog, chain):
    decode = VIEWS.decode
    variants = [
        {},
        {"cut": 7},
        *(
            {"views": dataclasses.replace(VIEWS, **change)}
            for change in (
                {"augment": "article"},
                {"random_erasing_prob": 0.1},
                {"crop_size": 30},
                {"num_views": 3},
                {"seed": 1},
                {"decode": dataclasses.replace(decode, scaling=dataclasses.replace(decode.scaling, resize_size=40))},
                {"decode": dataclasses.replace(decode, limits=Limits(10, 20.0))},
            )
        ),
        *(
            {"network": dataclasses.replace(NETWORK, **change)}
            for change in (
                {"precision": "float32"},
                {"mean": (0.4,) * 3},
                {"std": (0.3,) * 3},
                {"backbone": backbone_of("resnet34")},
            )
        ),
    ]
    keys = [key(catalog, chain, **variant) for variant in variants]
    assert len(set(keys)) == len(keys)


def test_pixels_have_a_key_of_their_own_that_no_model_changes(catalog, chain):
    pixels = key(catalog, chain, cut=0)
    assert pixels != key(catalog, chain)
    assert key(catalog, chain, cut=0, network=dataclasses.replace(NETWORK, precision="float32")) == pixels
    assert key(catalog, chain, cut=0, views=dataclasses.replace(VIEWS, crop_size=30)) != pixels


def test_views_without_augmentation_have_no_seed(catalog, chain):
    plain = dataclasses.replace(VIEWS, augment="none")
    assert key(catalog, chain, views=plain) == key(catalog, chain, views=dataclasses.replace(plain, seed=5))


# -- what is kept


def decide(*, budget=10**12, num_workers=1, store_bytes_s=None, epochs=10, depths=("head", "last2"), **settings):
    phases = [Phase(epochs=epochs, trainable=depth) for depth in depths]
    transform, seconds = settings.pop("transform", {}), settings.pop("seconds", None)
    config = TrainConfig(
        out="/x",
        catalog={"uri": "/x/c.csv"},
        transform=transform,
        model={"arch": "mobilenet_v2"},
        train={"phases": phases, **settings},
    )
    phases = resolve(config, to_blocks(build_model("mobilenet_v2", 3)))
    shapes = {19: (1280,), 17: (160, 7, 7), 5: (32, 28, 28)}
    measured = Measurement("bfloat16", seconds or dict.fromkeys(shapes, 0.01), shapes)
    place = Place(budget, num_workers, store_bytes_s)
    return plan_cache(config, phases, measured, rows=Rows(1000, 100, 256), place=place), phases


def test_every_frozen_depth_is_kept_in_one_pass():
    plan, phases = decide()
    assert (plan.cuts, plan.views, plan.pixels) == ((17, 19), 8, False)
    assert plan.num_bytes == 2 * (1280 + 160 * 49) * (1000 * 8 + 100)
    assert [plan.num_cached_blocks(phase) for phase in phases] == [19, 17]
    assert "frozen blocks take 81 s in all instead of 220 s" in plan.why


def test_views_are_no_more_than_epochs_and_one_without_augmentation():
    assert decide(epochs=3, depths=("head",))[0].views == 3
    assert decide(transform={"augment": "none"})[0].views == 1
    assert decide(num_views=2)[0].views == 2


def test_a_small_budget_takes_views_first_then_depths():
    row = 2 * (1280 + 160 * 49)
    assert decide(budget=row * (1000 * 4 + 100))[0].views == 4
    assert decide(budget=row * (1000 + 100))[0].views == 1
    plan, phases = decide(budget=2 * 1280 * 1100)
    assert (plan.cuts, plan.pixels) == ((19,), False)
    assert [plan.num_cached_blocks(phase) for phase in phases] == [19, None]
    assert "over the budget" in plan.why
    assert "streamed every epoch" in plan.why


def test_reading_back_more_than_it_would_cost_to_compute_is_refused():
    plan, phases = decide(depths=("last14",), seconds={5: 1e-6})
    assert plan.cuts == ()
    assert plan.pixels
    assert plan.num_cached_blocks(phases[0]) == 0
    assert "would save no time" in plan.why


def test_more_workers_compute_more_and_a_store_is_no_faster_for_it():
    """Two ways of 127 MB to save 29 s of work: one worker gains by it, thirty-two lose."""
    settings = {"depths": ("last2",), "store_bytes_s": 1e7}
    assert decide(**settings)[0].cuts == (17,)
    plan, _ = decide(**settings, num_workers=32)
    assert plan.cuts == ()
    assert "17 frozen blocks would save no time" in plan.why
    assert decide(depths=("last2",), num_workers=32)[0].cuts == (17,), "in a folder of the machine"
    assert decide(**settings | {"store_bytes_s": 1e9}, num_workers=32)[0].cuts == (17,)


def test_many_depths_are_planned_in_no_time():
    """Kind of fault: every combination is tried. Of 30 depths there are a billion, of three of them 4,500."""
    phases = [dataclasses.replace(decide()[1][0], num_cached_blocks=depth) for depth in range(1, 31)]
    config = TrainConfig(out="/x", catalog={"uri": "/x/c.csv"})
    measured = Measurement(
        "bfloat16", {depth: depth / 1000 for depth in range(1, 31)}, dict.fromkeys(range(1, 31), (9,))
    )
    plan = plan_cache(config, phases, measured, rows=Rows(1000, 100, 256), place=Place(10**12))
    assert len(plan.cuts) == 3
    assert plan.num_cached_blocks(phases[-1]) == plan.cuts[-1]


def test_nothing_frozen_keeps_pixels_and_cutmix_needs_them():
    plan, _ = decide(depths=("all",))
    assert (plan.cuts, plan.pixels) == ((), True)
    assert plan.num_bytes == 3 * (1000 * 256**2 + 100 * 224**2)
    plan, _ = decide(cutmix=0.5)
    assert (plan.cuts, plan.pixels) == ((), True)
    assert "cutmix" in plan.why
    plan, _ = decide(cache="off")
    assert (plan.cuts, plan.pixels, plan.why) == ((), False, "train.cache is off")


def test_a_phase_after_a_deeper_one_reads_what_is_still_frozen():
    plan, phases = decide(depths=("last2", "head"))
    assert [phase.num_frozen_blocks for phase in phases] == [17, 19]
    assert [plan.num_cached_blocks(phase) for phase in phases] == [17, 17], "the blocks between were trained"


def test_a_short_phase_at_the_head_reads_what_a_deeper_cut_keeps():
    """Two views of the head's input would cost more than one epoch through five blocks."""
    config = {"seconds": {19: 0.010, 17: 0.008}, "num_views": 4}
    plan, phases = decide(epochs=1, **config)
    assert plan.cuts == (), "one epoch each is less than four views"
    phases = [{"epochs": 1, "trainable": "head"}, {"epochs": 9, "trainable": "last2"}]
    built = TrainConfig(out="/x", catalog={"uri": "/x/c.csv"}, model={"arch": "mobilenet_v2"}, train={"phases": phases})
    phases = resolve(built, to_blocks(build_model("mobilenet_v2", 3)))
    measured = Measurement("bfloat16", {19: 0.010, 17: 0.008}, {19: (1280,), 17: (160, 7, 7)})
    plan = plan_cache(built, phases, measured, rows=Rows(1000, 100, 256), place=Place(10**12))
    assert plan.cuts == (17,)
    assert [plan.num_cached_blocks(phase) for phase in phases] == [17, 17]
