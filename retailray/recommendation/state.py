"""Fitted methods as files of a run: what workers read, and what the next run goes on with."""

import dataclasses
import io
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.sparse as sp

from retailray import events, storage
from retailray.data.arrow_tables import parquet_bytes
from retailray.errors import NotFound
from retailray.recommendation.methods import Methods
from retailray.recommendation.ranker import Ranker
from retailray.runs import RunDirectory

MODEL, RECOMMENDATIONS, SHOPPERS = "model", "recommendations", "shoppers.parquet"


@dataclasses.dataclass(frozen=True)
class Fitted:
    """``products``: names by number, text; ``reference``: names of the shoppers that others are compared with;
    ``as_of``: days since 1970; ``key``: of the settings that it was fitted
    with; ``facts``: what was measured, for reports."""

    methods: Methods
    ranker: Ranker | None
    method: str
    products: list[str]
    reference: list[str]
    as_of: float
    key: str
    facts: dict[str, object]


def write_fitted(run: RunDirectory, fitted: Fitted) -> None:
    methods = fitted.methods
    arrays = {f"popularity_{name}": values for name, values in methods.popularity.items()}
    arrays |= {"rarity": methods.rarity}
    if methods.factors is not None:
        arrays["factors"] = methods.factors
    if methods.pictures is not None:
        arrays["pictures"] = methods.pictures
    matrices = {"together": methods.together}
    matrices |= {f"compared_{kind}": matrix for kind, matrix in methods.compared.items()}
    matrices |= {f"votes_{kind}": matrix for kind, matrix in methods.votes.items()}
    for name, matrix in matrices.items():
        arrays |= {f"{name}.data": matrix.data, f"{name}.indices": matrix.indices, f"{name}.indptr": matrix.indptr}
        arrays[f"{name}.shape"] = np.array(matrix.shape)
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    run.write(f"{MODEL}/methods.npz", buffer.getvalue())
    if fitted.ranker is not None:
        run.write(f"{MODEL}/ranker.json", json.dumps(fitted.ranker.texts()))
    for name in ("products", "reference"):
        run.write(
            f"{MODEL}/{name}.parquet", parquet_bytes(pa.table({"name": pa.array(getattr(fitted, name), pa.string())}))
        )
    about = {"method": fitted.method, "as_of": fitted.as_of, "key": fitted.key, "facts": fitted.facts}
    run.write_json(f"{MODEL}/model.json", about)


def read_fitted(folder: str, *, threads: int = 1) -> Fitted:
    """Of the folder ``model/`` of a run; ``threads``: of the ranker. Raises NotFound; ValueError: it is not whole."""
    about = json.loads(storage.read_bytes(storage.join(folder, "model.json")))
    arrays = np.load(io.BytesIO(storage.read_bytes(storage.join(folder, "methods.npz"))), allow_pickle=False)

    def names(name: str) -> list[str]:
        data = storage.read_bytes(storage.join(folder, f"{name}.parquet"))
        return pq.read_table(io.BytesIO(data)).column("name").to_pylist()

    def matrix(name: str) -> sp.csr_matrix:
        parts = tuple(arrays[f"{name}.{part}"] for part in ("data", "indices", "indptr"))
        return sp.csr_matrix(parts, shape=tuple(arrays[f"{name}.shape"]))

    def of_kinds(name: str) -> dict[str, sp.csr_matrix]:
        kinds = [key.split("_", 1)[1].removesuffix(".shape") for key in arrays if key.startswith(f"{name}_")]
        return {kind: matrix(f"{name}_{kind}") for kind in dict.fromkeys(kind.split(".")[0] for kind in kinds)}

    methods = Methods(
        {name.removeprefix("popularity_"): arrays[name] for name in arrays if name.startswith("popularity_")},
        of_kinds("compared"),
        of_kinds("votes"),
        arrays["rarity"],
        matrix("together"),
        arrays.get("factors"),
        arrays.get("pictures"),
    )
    ranker = None
    if about["method"] == "ranker":
        ranker = Ranker.of_texts(json.loads(storage.read_bytes(storage.join(folder, "ranker.json"))), threads=threads)
    known = names("products"), names("reference")
    return Fitted(methods, ranker, about["method"], *known, about["as_of"], about["key"], about["facts"])


@dataclasses.dataclass(frozen=True)
class Previous:
    """The run that LATEST named: its methods, the key of its recommendations, and by shopper (text) a digest of the
    purchases that these come from."""

    address: str
    fitted: Fitted
    key: str
    digests: dict[str, int]


def previous_run(out: str) -> Previous | None:
    """None where there is none that can be gone on with."""
    try:
        name = storage.read_bytes(storage.join(out, "LATEST")).decode().strip()
        address = storage.join(out, name)
        told = json.loads(storage.read_bytes(storage.join(address, "run.json")))
        if told.get("command") != "recommend":
            return None
        known = pq.read_table(io.BytesIO(storage.read_bytes(storage.join(address, SHOPPERS))))
        digests = dict(zip(known.column("shopper").to_pylist(), known.column("digest").to_pylist(), strict=True))
        return Previous(address, read_fitted(storage.join(address, MODEL)), told["key"], digests)
    except NotFound:
        return None
    except (ValueError, KeyError, OSError, zipfile.BadZipFile, pa.ArrowException) as error:
        events.emit("warning", note=f"the run before cannot be read ({error}); all is done anew")
        return None


def previous_rows(previous: Previous) -> pa.Table | None:
    """What it recommended; None, and a warning, where that cannot be read any more."""
    try:
        names = sorted(storage.list_files(storage.join(previous.address, RECOMMENDATIONS)))
        return pa.concat_tables([pq.read_table(io.BytesIO(storage.read_bytes(name))) for name in names])
    except (NotFound, OSError, pa.ArrowException) as error:
        events.emit("warning", note=f"the run before cannot be read ({error}); all is done anew")
        return None
