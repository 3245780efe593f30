"""``export``: a bundle as an ONNX file, for services that run without Python or without us."""

from retailray import events
from retailray.config import ExportConfig
from retailray.errors import ModelError
from retailray.models.bundle import load_bundle
from retailray.models.numbers import LEVEL, NumberRule
from retailray.models.onnx_export import CLOSE, largest_difference, to_onnx
from retailray.models.registry import resolve_alias
from retailray.reports.run_index import publish
from retailray.runs import RunDirectory


def export(config: ExportConfig) -> str:
    """Write ``model.onnx`` and ``labels.txt``, after ONNX Runtime has computed what torch computes; of numbers also
    ``intervals.json``, with which quantiles follow from the graph's probabilities.

    Returns:
        The address of ``model.onnx``.

    Raises:
        ModelError: packages are missing, the network cannot be expressed, or ONNX Runtime computes something else.
        StorageError: an address cannot be read or written.
    """
    watch = events.Stopwatch()
    config = resolve_alias(config)
    bundle = load_bundle(config.model.uri)
    if bundle.int8 is not None:
        raise ModelError(
            f"{config.model.uri} is calibrated for its network in 8-bit integers, which is not written as ONNX; export "
            f"the bundle that it was made of: {bundle.meta.data.get('int8_of')}"
        )
    run = RunDirectory(config)
    name = f"{bundle.meta.name}/{bundle.meta.version}"
    events.emit("start", command="export", run=run.address, model=name, arch=bundle.meta.arch)
    data = to_onnx(bundle)
    difference = largest_difference(data, bundle)
    if not difference <= CLOSE:
        raise ModelError(
            f"{config.model.uri}: ONNX Runtime's probabilities differ from torch's by up to {difference:.2g}, "
            f"more than {CLOSE:g}; nothing was written"
        )
    run.write("model.onnx", data)
    run.write("labels.txt", "".join(f"{label}\n" for label in bundle.meta.labels))
    if bundle.meta.intervals is not None:
        rule = NumberRule.of(config.model.uri, bundle.meta, level=LEVEL)
        fitted = {"level": LEVEL, "tail": rule.tail, "num_products": rule.num_products}
        run.write_json("intervals.json", bundle.meta.intervals.model_dump() | fitted)
    facts: dict[str, object] = {
        "model_uri": config.model.uri,
        "model_name": bundle.meta.name,
        "model_version": bundle.meta.version,
    }
    facts |= {"largest_difference": difference, "megabytes": len(data) / 1e6}
    publish(run, {"command": "export", **facts, "seconds": watch.seconds})
    address = run.path("model.onnx")
    watch.summary("export", num_images=0, model=name, largest_difference=difference, onnx=address)
    return address
