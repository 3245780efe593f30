"""Image columns that hold the images themselves."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray import storage
from retailray.config import CatalogSection
from retailray.data.arrow_tables import as_text
from retailray.errors import CatalogError


def holds_images(column: pa.ChunkedArray) -> bool:
    """Whether a column has the bytes of images: binary, or Hugging Face's ``{bytes, path}``."""
    kind = column.type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or _is_bytes_and_path(kind)


def _is_bytes_and_path(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def embedded_images(
    file: str, table: pa.Table, image: str, section: CatalogSection, root: str, lines: np.ndarray
) -> tuple[pa.Table, list[str], list[str], list[str]]:
    """Images that lie in a Parquet file: the table with their names in place of their bytes, and for each row the name,
    the path below the root and the address."""
    if section.image_template != "{image}":
        raise CatalogError(f"{file}: catalog.image_template would be ignored: column {image!r} holds the images")
    column = table.column(image)
    names = [""] * table.num_rows
    present = column.is_valid()
    if _is_bytes_and_path(column.type):
        present = pc.and_(present, pc.struct_field(column, "bytes").is_valid())
        if column.type.get_field_index("path") >= 0:
            names = as_text(pc.struct_field(column, "path")).to_pylist()
    below = file.removeprefix(root.rstrip("/") + "/")
    paths, addresses = [], []
    for name, line, has_bytes in zip(names, lines.tolist(), present.to_pylist(), strict=True):
        path = storage.embedded_address(below, image, line - 1) if has_bytes else name
        paths.append(path)
        addresses.append(storage.join(root, path) if path else "")
    images = [name or path for name, path in zip(names, paths, strict=True)]
    position = table.column_names.index(image)
    return table.set_column(position, image, pa.array(images, pa.string())), images, paths, addresses
