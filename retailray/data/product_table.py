"""A table with one row per product: conditions and categories by its columns."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retailray import events
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


@dataclasses.dataclass(frozen=True)
class Categories:
    """``of``: the number of each product's category, int64 ``(P,)``, -1: unknown; ``names``: of the categories;
    ``offered``: products in the whole table by category, int64 ``(C,)``."""

    of: np.ndarray
    names: list[str]
    offered: np.ndarray


def categories_of(section: ProductsSection, products: list[str]) -> Categories:
    """Categories of some products by ``products.category``; all unknown without it; a warning where all are unknown.

    Raises:
        CatalogError: the table or the column is not there.
    """
    if not (section.uri and section.category):
        return Categories(np.full(len(products), -1), [], np.zeros(0, np.int64))
    table = read_products(section)
    everything = table.column(section.category, table.names.to_pylist(), "products.category").astype(str)
    names = sorted({text for text in everything.tolist() if text})
    number = {text: at for at, text in enumerate(names)}
    of_all = np.array([number.get(text, -1) for text in everything.tolist()], np.int64)
    place = pc.index_in(pa.array(products, pa.string()), value_set=table.names)
    found = np.append(of_all, -1)[pc.fill_null(place, len(of_all)).to_numpy()]
    if len(products) and (found < 0).all():
        events.emit(
            "warning",
            note=f"products.uri = {section.uri}: it has a category of none of the products ({products[0]}, ...); "
            "products.product names the column with the same ids",
        )
    return Categories(found, names, np.bincount(of_all[of_all >= 0], minlength=len(names)))
