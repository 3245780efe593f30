"""Sections about purchases, and what is made of them."""

from typing import Literal

from pydantic import Field, field_validator

from retailray.config.base import Section, normalized

Method = Literal[
    "auto", "popularity", "own_purchases", "neighbours", "own_and_neighbours", "together", "als", "content", "ranker"
]
ForecastMethod = Literal["auto", "naive", "mean", "seasonal", "ets", "theta", "croston", "boosted", "average"]


class InteractionsSection(Section):
    """Purchases, or clicks: one row per product and basket."""

    uri: str | None = Field(
        None,
        description=(
            "Table of purchases: a CSV, TSV, Parquet or JSON Lines file, or a folder or glob pattern of such files."
        ),
    )
    shopper: str = Field("shopper", description="Column with the id of the shopper.")
    product: str = Field("product", description="Column with the product.")
    time: str = Field(
        "time",
        description=(
            "Column with the time of the purchase: a date or time in ISO 8601, YYYYMMDD, or seconds or milliseconds "
            "since 1970. Times with an offset are converted to interactions.time_zone."
        ),
    )
    basket: str | None = Field(
        None, description="Column with the id of the basket (order, visit); default: all of a shopper's day is one."
    )
    quantity: str | None = Field(
        None, description="Column with the number of units; rows with 0 or less are returns, and no purchases."
    )
    value: str | None = Field(None, description="Column with the money paid for the row.")
    exclude: list[str] = Field(
        [], description='Products to leave out, as patterns: ["*GASOLINE*", "*COUPON*"]; case matters.'
    )
    time_zone: str = Field("UTC", description="Time zone in which days begin and end, e.g. Europe/Stockholm.")

    _same = field_validator("uri")(normalized)


class RequiredInteractions(InteractionsSection):
    uri: str = Field(description=str(InteractionsSection.model_fields["uri"].description))


class ProductsSection(Section):
    """What is known of products: one row per product."""

    uri: str | None = Field(None, description="Table with one row per product, of the same formats; default: none.")
    product: str = Field("product", description="Column with the product.")
    category: str | None = Field(None, description="Column with the category of the product.")

    _same = field_validator("uri")(normalized)


class OptionalEmbeddings(Section):
    """Embeddings of products."""

    uri: str | None = Field(
        None,
        description=(
            "Run directory of `score` or `embed` with score.embeddings, or its out, whose products (catalog.group, or "
            "ids where there is none) are those of the purchases; or a folder of Parquet files with id and embedding."
        ),
    )

    _same = field_validator("uri")(normalized)


class RecommendSection(Section):
    """What is recommended to whom."""

    as_of: str | None = Field(
        None,
        description=(
            "Only purchases before this day are used, and recommendations are for the days from then on [YYYY-MM-DD]; "
            "default: the day after the last purchase."
        ),
    )
    top_k: int = Field(10, ge=1, le=1000, description="Number of products recommended to each shopper.")
    repeat: bool = Field(
        True,
        description=(
            "Whether products are recommended that the shopper has bought before: true for groceries, false for "
            "fashion."
        ),
    )
    method: Method = Field(
        "auto", description="How products are ranked. auto: by the method that did best on the latest purchases."
    )
    horizon_days: int = Field(
        14, ge=1, le=366, description="Days of purchases that recommendations are measured on [days]."
    )
    where: dict[str, str] = Field(
        {}, description='Recommend only products with these values in products.uri, as JSON: {"in_stock": "true"}.'
    )
    unsold: int = Field(
        0,
        ge=0,
        description=(
            "Number of the top_k places for products that nobody has bought yet, by their pictures; needs "
            "embeddings.uri."
        ),
    )
    refit_days: int = Field(
        7,
        ge=0,
        description=(
            "Age at which the methods are fitted anew [days]; until then only shoppers who bought something since the "
            "previous run get new recommendations. 0: fit in every run."
        ),
    )
    seed: int = Field(0, description="Seed of samples and of the ranker.")


class SalesSection(Section):
    """Sales: one row per product and day (or sale)."""

    uri: str | None = Field(
        None,
        description=(
            "Table of sales: a CSV, TSV, Parquet or JSON Lines file, or a folder or glob pattern of such files; "
            "default: the purchases of interactions.uri, summed up."
        ),
    )
    product: str = Field("product", description="Column with the product.")
    date: str = Field("date", description="Column with the day, in one of the forms of interactions.time.")
    quantity: str = Field("quantity", description="Column with the units sold; negative: returned.")
    price: str | None = Field(None, description="Column with the price of one unit.")
    promotion: str | None = Field(
        None, description="Column that says whether the product was promoted that day: true or 1, false or 0."
    )
    stock_out: str | None = Field(
        None,
        description=(
            "Column that says whether the product was out of stock that day: true or 1, false or 0; its sales are then "
            "unknown, and not few."
        ),
    )
    exclude: list[str] = Field([], description='Products to leave out, as patterns: ["*COUPON*"]; case matters.')
    time_zone: str = Field("UTC", description="Time zone in which days begin and end, e.g. Europe/Stockholm.")

    _same = field_validator("uri")(normalized)


class ForecastSection(Section):
    """What is forecast, from when on, and how far."""

    as_of: str | None = Field(
        None,
        description=(
            "First day that is forecast, which begins a period; only sales before it are used [YYYY-MM-DD]. Default: "
            "the first day of the period that has not ended on the last day with sales."
        ),
    )
    frequency: Literal["D", "W", "M"] = Field("W", description="Period: D day, W Monday to Sunday, M month.")
    horizon: int = Field(4, ge=1, le=366, description="Number of periods that are forecast.")
    level: int = Field(80, ge=1, le=99, description="Share of the sales that should lie between low and high [%].")
    method: ForecastMethod = Field(
        "auto", description="How sales are forecast. auto: by the method that did best on the latest periods."
    )
    seed: int = Field(0, description="Seed of the boosted model.")


class AssortmentSection(Section):
    """Which products are shown."""

    num_products: int = Field(60, ge=1, le=5_000, description="Number of products, the most bought ones.")
    together: int = Field(4, ge=0, le=50, description="Number of products that each is shown with: bought together.")


class ShoppersSection(Section):
    """Who the shoppers are: figures of each, and groups that buy alike."""

    as_of: str | None = Field(
        None,
        description=(
            "First day that is not looked at any more [YYYY-MM-DD]; default: the day after the last row of the table."
        ),
    )
    segments: int = Field(
        0,
        ge=0,
        le=50,
        description="Number of segments; 0: up to shoppers.max_segments, whichever is clearest and stable.",
    )
    max_segments: int = Field(8, ge=2, le=50, description="Largest number of segments that is tried.")
    seed: int = Field(0, description="Seed of samples and of the clustering.")
