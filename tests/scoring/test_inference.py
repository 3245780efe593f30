"""What data tasks do with a share of the plan, on a real Ray."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from retailray import storage
from retailray.data.decoding import CODE, PIXELS, URI, DecodeSpec
from retailray.data.images import Limits
from retailray.data.scaling import Scaling
from retailray.data.synthetic import write_catalog
from retailray.execution.ray_backend import RayShared
from retailray.execution.session import root_cause
from retailray.scoring.chunks import REUSED, SHA, Todo, read_units
from retailray.scoring.duplicates import Seen

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session_cpus")]
SPEC = DecodeSpec(Scaling(36, 32), Limits(20_000_000, 20.0))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_catalog(str(folder), num_images=6, label_noise=0.0, seed=1)
    return sorted(str(path) for path in folder.glob("images/**/*.jpg"))[:6]


def chunk(tmp_path, uris, known=()):
    known = [*known, *[None] * (len(uris) - len(known))]
    nothing = [None] * len(uris)
    columns = {"uri": uris, "identity": nothing, "size": pa.array(nothing, pa.int64())}
    columns |= {"known_sha256": pa.array(known, pa.string())}
    (tmp_path / "todo").mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), tmp_path / "todo/part-00000.parquet")
    return Todo(str(tmp_path / "todo"), len(uris), 1)


def read(todo, seen):
    return pa.concat_tables(
        read_units(pa.table({"unit": [0]}), todo=todo, spec=SPEC, access=storage.Access(), seen=seen)
    )


def test_copies_are_inferred_once_and_a_retried_task_asks_for_the_same(tmp_path, images):
    copy, other = tmp_path / "copy.jpg", tmp_path / "again.jpg"
    for path in (copy, other):
        path.write_bytes(Path(images[0]).read_bytes())
    seen = RayShared(ray.remote(num_cpus=0)(Seen).remote())
    first = chunk(tmp_path, [images[0], str(copy), images[1]])
    for _ in range(2):
        table = read(first, seen)
        assert table.column(CODE).to_pylist() == ["", REUSED, ""]
    assert len(set(table.column(SHA).to_pylist())) == 2
    assert read(chunk(tmp_path, [str(other)]), seen).column(CODE).to_pylist() == [REUSED]
    assert read(chunk(tmp_path, [str(other)]), None).column(CODE).to_pylist() == [""], "score.dedupe false"


def test_bytes_that_are_known_are_not_decoded(tmp_path, images):
    digest = hashlib.sha256(Path(images[2]).read_bytes()).hexdigest()
    table = read(chunk(tmp_path, [images[2], images[3]], [digest, "other"]), None)
    assert table.column(CODE).to_pylist() == [REUSED, ""]
    assert table.column(PIXELS)[0].as_py() == b"", "no pixels travel"
    assert len(set(table.column(PIXELS)[1].as_py())) > 10


def test_one_bad_image_is_its_own_matter(tmp_path, images):
    (tmp_path / "bad.jpg").write_bytes(b"<html>")
    table = read(chunk(tmp_path, [images[0], str(tmp_path / "bad.jpg"), str(tmp_path / "none.jpg")]), None)
    assert table.column(CODE).to_pylist() == ["", "not_an_image", "not_found"]
    assert table.column(URI).to_pylist()[0] == images[0]


def test_what_never_gets_a_machine_is_told_as_such(monkeypatch):
    class Idle:
        def __call__(self, batch):
            return batch

    context = ray.data.DataContext.get_current()
    monkeypatch.setattr(context, "execution_no_progress_timeout_s", 2)
    pool = ray.data.from_items([{"a": 1}]).map_batches(Idle, compute=ray.data.ActorPoolStrategy(size=1), num_cpus=99)
    with pytest.raises(Exception) as caught:  # noqa: PT011  it is Ray's, and what we make of it is what counts
        pool.take_all()
    assert root_cause(caught.value).startswith("nothing was done for")
    assert root_cause(ValueError("a\n b")) == "a b"
