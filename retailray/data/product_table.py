"""A table with one row per product: conditions and categories by its columns."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray.config.shop import ProductsSection
from retailray.data.arrow_tables import as_text
from retailray.data.columns import missing_column, require
from retailray.data.tables import stream_records, table_files
from retailray.errors import CatalogError


@dataclasses.dataclass(frozen=True)
class ProductTable:
    """``names``: text ``(P,)``, distinct; ``table``: the user's columns."""

    uri: str
    names: pa.Array
    table: pa.Table

    def column(self, name: str, products: list[str], key: str) -> np.ndarray:
        """Values as text, object ``(N,)``, of some products; '' of those that are not in the table.

        Raises:
            CatalogError: there is no such column, named by the setting ``key``.
        """
        if name not in self.table.column_names:
            raise CatalogError(missing_column(name, key, self.uri, self.table.column_names))
        place = pc.index_in(pa.array(products, pa.string()), value_set=self.names)
        return pc.fill_null(as_text(self.table.column(name)).take(place), "").to_numpy()

    def matching(self, where: dict[str, str], products: list[str]) -> np.ndarray:
        """bool ``(N,)``: which products have these values. Raises CatalogError where none has."""
        found = np.ones(len(products), bool)
        for name, wanted in where.items():
            found &= self.column(name, products, "recommend.where") == wanted
        if not found.any():
            raise CatalogError(f"{self.uri}: recommend.where = {where}: no product of the purchases has these values")
        return found


def read_products(section: ProductsSection) -> ProductTable:
    """Read the table. Of several rows of one product the first counts. Raises CatalogError."""
    assert section.uri
    parts, names = [], []
    for file in table_files(section.uri) or [section.uri]:
        for records in stream_records(file, encoding="utf-8"):
            require(records.table, section.product, "products.product", file)
            try:
                text = pc.utf8_trim_whitespace(as_text(records.table.column(section.product)))
            except TypeError as error:
                raise CatalogError(f"{file}: products.product = {section.product!r}: {error}") from error
            parts.append(records.table)
            names.append(text.combine_chunks())
    if not parts:
        raise CatalogError(f"products.uri = {section.uri}: it has no rows")
    table, together = pa.concat_tables(parts, promote_options="permissive"), pa.concat_arrays(names)
    first = np.unique(together.to_numpy(zero_copy_only=False).astype(str), return_index=True)[1]
    rows = np.sort(first)
    return ProductTable(section.uri, together.take(rows), table.take(rows))
