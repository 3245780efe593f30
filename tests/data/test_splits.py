import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retailray.config import CatalogSection, SplitSection
from retailray.data.splits import assign_splits, read_splits
from retailray.errors import CatalogError

groups = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=60)


@settings(max_examples=80, deadline=None)
@given(old=groups, new=groups, seed=st.integers(0, 9))
def test_added_rows_move_nobody_and_products_stay_together(old, new, seed):
    before = assign_splits(np.array(old, object), validation=0.3, test=0.2, seed=seed)
    after = assign_splits(np.array(new + old, object), validation=0.3, test=0.2, seed=seed)
    assert after[len(new) :].tolist() == before.tolist()
    placed = {}
    for group, split in zip(new + old, after, strict=True):
        assert placed.setdefault(group, split) == split


def test_proportions_and_seeds():
    names = np.array([f"product {n}" for n in range(20_000)], object)
    split = assign_splits(names, validation=0.2, test=0.1, seed=0)
    assert np.mean(split == "validation") == pytest.approx(0.2, abs=0.01)
    assert np.mean(split == "test") == pytest.approx(0.1, abs=0.01)
    assert (split != assign_splits(names, validation=0.2, test=0.1, seed=1)).any()


def test_where_splits_come_from(tmp_path):
    main, validation = tmp_path / "c.csv", tmp_path / "v.csv"
    main.write_text("image,label,part\n" + "".join(f"{n},x,{('Train', 'val', 'test')[n % 3]}\n" for n in range(30)))
    validation.write_text("image,label,part\nv,x,train\n")
    by_column = read_splits(CatalogSection(uri=str(main), split="part"), SplitSection())
    assert {name: len(part) for name, part in by_column.items()} == {
        "train": 10,
        "validation": 10,
        "test": 10,
    }
    separate = read_splits(CatalogSection(uri=str(main), validation_uri=str(validation)), SplitSection())
    assert {name: len(part) for name, part in separate.items()} == {"train": 30, "validation": 1}
    hashed = read_splits(CatalogSection(uri=str(main)), SplitSection(validation=0.5))
    ids = [set(part.column("id")) for part in hashed.values()]
    assert sum(map(len, ids)) == 30 == len(set.union(*ids))
    for name in ("train/mug/1.jpg", "train/mug/2.jpg", "val/mug/1.jpg"):
        (tmp_path / "folders" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folders" / name).write_bytes(b"x")
    folders = CatalogSection(uri=str(tmp_path / "folders"))
    assert {name: len(part) for name, part in read_splits(folders, SplitSection()).items()} == {
        "train": 2,
        "validation": 1,
    }
    with pytest.raises(CatalogError, match="named like splits"):
        read_splits(folders, SplitSection(validation=0.3))
    with pytest.raises(CatalogError, match="nothing is left"):
        read_splits(CatalogSection(uri=str(main)), SplitSection(validation=0.5, test=0.5))
