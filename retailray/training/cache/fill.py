"""Filling stores: images are fetched, decoded and augmented once, and frozen blocks run on them once."""

import dataclasses
import functools
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from retailray import storage
from retailray.data import decoding, image_files, images, listing, scaling, transforms
from retailray.data.arrow_tables import gathered
from retailray.data.catalog import Catalog
from retailray.data.containers import gif, jpeg, lengths, png
from retailray.data.decoding import (
    CHUNK_ROWS,
    CODE,
    MESSAGE,
    PIXELS,
    SLOT,
    blocks_of,
    pixels_to_numpy,
    transport_table,
    with_errors,
)
from retailray.data.row_ids import in_order_of
from retailray.errors import CatalogError, RetailrayError
from retailray.execution import Executor, Plan, Reporter, Stream
from retailray.execution.process import prepare_process
from retailray.models import blocks, predictor
from retailray.models.blocks import BlockSequence
from retailray.models.precision import autocast
from retailray.models.predictor import Normalize
from retailray.provenance import EXTRA_LIBRARIES, version
from retailray.training.cache import store, views
from retailray.training.cache.pixels import JOB, outcome_of, positions_of, write_pixels
from retailray.training.cache.store import CacheSpec
from retailray.training.cache.views import ViewSpec, decode_views
from retailray.training.network import NetworkSpec

FORWARD_ROWS = {"cpu": 64, "cuda": 256}  # images a forward pass
MAX_TASKS = 2000  # decoding tasks a pass; a million of them would keep Ray busy with itself


def fingerprint(catalog: Catalog) -> str | None:
    """A digest of which images, in which order, with which content; None where a store cannot tell contents apart."""
    identities = listing.identities(catalog.column("uri").tolist())
    if None in identities:
        return None
    digest = hashlib.sha256()
    table = transport_table(catalog)
    for uri, identity, code in zip(catalog.column("uri"), identities, table.column(CODE).to_pylist(), strict=True):
        digest.update(f"{uri}\0{identity}\0{code}\n".encode())
    return digest.hexdigest()


def weights_digest(chain: BlockSequence, cut: int) -> str:
    """A digest of the tensors of the first ``cut`` blocks."""
    digest = hashlib.sha256()
    for name, tensor in chain.run(0, cut).state_dict().items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@functools.cache
def _code_digest() -> str:
    """A digest of our own code between an image's bytes and the numbers that are kept."""
    digest = hashlib.sha256()
    containers = (gif, jpeg, lengths, png)
    for module in (*containers, image_files, images, scaling, decoding, views, transforms, blocks, predictor):
        digest.update(Path(str(module.__file__)).read_bytes())
    for name in ("torchvision_blocks", "timm_blocks", "hf_blocks", "cnn"):  # not imported: those are large libraries
        digest.update(Path(str(blocks.__file__)).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class FrozenBlocks:
    """The first ``cut`` blocks of a network. ``shape``: of what they give for one image."""

    network_spec: NetworkSpec
    chain: BlockSequence
    cut: int
    shape: tuple[int, ...]

    def content(self) -> dict[str, object]:
        """All that their output depends on besides their input."""
        return {
            "backbone": [self.network_spec.backbone.arch, self.network_spec.backbone.config],
            "image_size": self.network_spec.image_size,
            "cut": self.cut,
            "weights": weights_digest(self.chain, self.cut),
            "normalization": (self.network_spec.mean, self.network_spec.std),
            "precision": self.network_spec.precision,
            "torch": torch.__version__,
        }


def cache_spec(root: str, *, rows: str, num_rows: int, views: ViewSpec, blocks: FrozenBlocks | None) -> CacheSpec:
    """The store of what some blocks give for ``views`` of the images with fingerprint ``rows``; None: of the pixels."""
    drawn = views.augment != "none" or views.random_erasing_prob > 0
    content: dict[str, object] = {
        "code": _code_digest(),
        "rows": rows,
        "views": dataclasses.asdict(views) | ({} if drawn else {"seed": None}),
        "pillow": [version("pillow"), version("pillow-heif")],
        "torchvision": version("torchvision") if drawn or blocks else None,
        "networks": [version(name) for name in EXTRA_LIBRARIES] if blocks else None,
    }
    if blocks is None:
        shape: tuple[int, ...] = (3, views.crop_size, views.crop_size)
        return CacheSpec(root, store.content_key(content), num_rows, views.num_views, shape, "uint8")
    dtype = "bfloat16" if blocks.network_spec.precision == "bfloat16" else "float32"
    key = store.content_key(content | blocks.content())
    return CacheSpec(root, key, num_rows, views.num_views, blocks.shape, dtype)


@dataclasses.dataclass(frozen=True)
class CachePass:
    """One look at one set of images. ``rows``: its fingerprint. ``specs``: block counts → stores (0: pixels).

    ``decoded``: a store of its pixels, read in place of the images; ``budget``: of the machines' copies of it [bytes].
    """

    name: str
    catalog: Catalog
    rows: str
    views: ViewSpec
    specs: dict[int, CacheSpec]
    decoded: CacheSpec | None = None
    budget: int = 0

    def missing(self) -> "CachePass":
        absent = {cut: spec for cut, spec in self.specs.items() if not store.is_whole(spec)}
        return dataclasses.replace(self, specs=absent)


def fill(
    jobs: list[CachePass], network_spec: NetworkSpec | None, plan: Plan, executor: Executor, access: storage.Access
) -> None:
    """Fill the stores of all jobs: one execution for those that need the frozen blocks, one for those that do not.

    Raises:
        CatalogError: images changed while they were read.
        RetailrayError: a task or an actor failed.
    """
    for job in jobs:
        for spec in job.specs.values():
            store.create(spec)
    total = sum(len(job.catalog) * job.views.num_views for job in jobs)
    try:
        with executor.reporter("views", total) as reporter:
            for group in (
                [job for job in jobs if set(job.specs) != {0}],
                [job for job in jobs if set(job.specs) == {0}],
            ):
                if group:
                    outcome = gathered(_filled(group, network_spec, plan, executor, access, reporter).tables())
                    for number, job in enumerate(group):
                        _finish(job, outcome.filter(pa.compute.equal(outcome.column(JOB), number)))
    except RetailrayError:
        raise
    except Exception as error:
        raise RetailrayError(f"reading the images stopped: {executor.root_cause(error)}") from error


def _filled(
    jobs: list[CachePass],
    network_spec: NetworkSpec | None,
    plan: Plan,
    executor: Executor,
    access: storage.Access,
    reporter: Reporter,
) -> Stream:
    streams = []
    for number, job in enumerate(jobs):
        table = transport_table(job.catalog)
        if job.decoded:
            codes = store.read_codes(job.decoded)
            table = with_errors(table, *(codes.column(name).to_pylist() for name in ("error_code", "message")))
        table = table.append_column(JOB, pa.array([number] * table.num_rows))
        table = table.append_column(SLOT, pa.array(np.arange(table.num_rows)))
        num_blocks = min(MAX_TASKS, -(-table.num_rows // CHUNK_ROWS))
        arguments: dict[str, object] = {"spec": job.views, "keep": [JOB], "access": access}
        arguments |= {"decoded": job.decoded, "budget": job.budget}
        blocks = executor.stream(blocks_of(table, num_blocks), plan)
        streams.append(blocks.map(decode_views, arguments, rows=CHUNK_ROWS))
    views = executor.union(streams)
    if set(jobs[0].specs) == {0}:
        specs, sizes = [job.specs[0] for job in jobs], [job.views.crop_size for job in jobs]
        return views.map(write_pixels, {"specs": specs, "sizes": sizes, "reporter": reporter})
    slim = [dataclasses.replace(job, catalog=None) for job in jobs]  # type: ignore[arg-type]
    return views.map_with(FillCaches, {"jobs": slim, "network_spec": network_spec, "plan": plan, "reporter": reporter})


def _finish(job: CachePass, outcome: pa.Table) -> None:
    if fingerprint(job.catalog) != job.rows:
        raise CatalogError(
            f"{job.catalog.uri}: images changed while they were read; run again when they no longer change"
        )
    outcome = in_order_of(np.arange(len(job.catalog)), outcome, key=SLOT)
    codes = outcome.select([CODE, MESSAGE]).rename_columns(["error_code", "message"])
    for spec in job.specs.values():
        store.finish(spec, codes)


class FillCaches:
    """An actor that holds the frozen blocks and writes what comes out after each of the wanted numbers of them."""

    def __init__(self, *, jobs: list[CachePass], network_spec: NetworkSpec, plan: Plan, reporter: Reporter) -> None:
        prepare_process(plan.torch_threads)
        self.device = torch.device("cuda" if plan.actor_gpus else "cpu")
        self.jobs, self.reporter, self.precision = jobs, reporter, network_spec.precision
        network = network_spec.build().to(self.device).to(memory_format=torch.channels_last).eval()
        chain = network_spec.backbone.blocks(network)
        self.parts = []
        for job in jobs:
            cuts = sorted(cut for cut in job.specs if cut)
            self.parts.append({cut: chain.run(start, cut) for start, cut in zip([0, *cuts], cuts, strict=False)})
        self.normalize = Normalize(network_spec.mean, network_spec.std).to(self.device)

    def __call__(self, table: pa.Table) -> pa.Table:
        number = table.column(JOB)[0].as_py()
        job, parts = self.jobs[number], self.parts[number]
        positions = positions_of(table, job.views.num_views)
        pixels = pixels_to_numpy(table.column(PIXELS), job.views.crop_size)
        if 0 in job.specs:
            store.write_rows(job.specs[0], positions, pixels)
        found: dict[int, list[np.ndarray]] = {cut: [] for cut in parts}
        step = FORWARD_ROWS[self.device.type]
        for start in range(0, len(pixels), step):
            for cut, values in self._forward(pixels[start : start + step], parts):
                found[cut].append(values)
        for cut, values_of in found.items():
            store.write_rows(job.specs[cut], positions, np.concatenate(values_of))
        return outcome_of(table, self.reporter)

    @torch.inference_mode()
    def _forward(self, pixels: np.ndarray, parts: dict[int, torch.nn.Module]) -> list[tuple[int, np.ndarray]]:
        results = []
        with autocast(self.device, self.precision):
            values = self.normalize(torch.from_numpy(np.array(pixels)))
            for cut, part in parts.items():
                values = part(values)
                kept = values.to(torch.bfloat16 if self.precision == "bfloat16" else torch.float32)
                # NCHW in the file, whatever the layout in memory
                kept = kept.contiguous(memory_format=torch.contiguous_format).cpu()
                results.append((cut, (kept.view(torch.uint16) if kept.dtype == torch.bfloat16 else kept).numpy()))
        return results
