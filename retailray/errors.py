"""Every error a user can meet, in one tree. Each leaf carries the command's exit code.

RetailrayError            1
├── ConfigError           2   the command line or a config file is wrong
├── CatalogError          1   the catalog table cannot be used
├── StorageError          1   an address cannot be reached, read or written: NotFound, AccessDenied, TimedOut,
│                             Throttled, Unavailable, Changed, TooLarge, NotAllowed
├── ModelError            1   an architecture, weights file or bundle cannot be used
├── Diverged              1   a training has no epoch with a finite validation loss
├── CapacityError         1   the Ray cluster lacks what the command needs
├── JobEnded              *   a submitted job ended with this exit code
├── GateFailed            4   a limit that the user set failed; what was found is written
└── TooManyRowErrors      3   done and published, but more rows failed than score.max_error_rate
ImageError                    one bad image: becomes an error row, never ends a run
"""


class RetailrayError(Exception):
    """Base of all errors shown to a user as one line; ``exit_code`` is what the process returns."""

    exit_code = 1


class ConfigError(RetailrayError):
    """All that is wrong with a command's configuration, reported together."""

    exit_code = 2

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class CatalogError(RetailrayError):
    """The catalog table cannot be used as it is; the message names file, line, column and value."""


class StorageError(RetailrayError):
    """An address cannot be reached, read or written; the message says why."""


class NotFound(StorageError):
    """There is no such file, object, bucket or container."""


class AccessDenied(StorageError):
    """The store refuses the credentials, or there are none."""


class TimedOut(StorageError):
    """Nobody answered in time."""


class Throttled(StorageError):
    """The store is there and asks for time."""


class Changed(StorageError):
    """It was overwritten or removed while it was read."""

    @classmethod
    def of(cls, address: str) -> "Changed":
        return cls(f"{address}: it was overwritten or removed while it was read; run the command again")


class Unavailable(StorageError):
    """The store failed, and may work in a moment."""


class TooLarge(StorageError):
    """The object has more bytes than may be read (``catalog.max_bytes``)."""


class NotAllowed(StorageError):
    """The address may not be read (``catalog.root``, ``catalog.allow``)."""


class ModelError(RetailrayError):
    """An architecture, a weights file or a bundle cannot be used."""


class Diverged(RetailrayError):
    """A training has no epoch with a finite validation loss; the message says what to lower."""


class CapacityError(RetailrayError):
    """The Ray cluster lacks what the command asks for; the message has the numbers."""


class JobEnded(RetailrayError):
    """A submitted job did not end well, or was left; ``exit_code`` is the job's own."""

    def __init__(self, message: str, exit_code: int) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class GateFailed(RetailrayError):
    """A limit that the user set failed. What was found is written; whether anything moves is the command's."""

    exit_code = 4


class TooManyRowErrors(RetailrayError):
    """Results are published, but more rows failed than the configuration allows."""

    exit_code = 3


# Stage and meaning of every code of an error row. To add one: an entry here and in docs/errors.md, and an ImageError
# with it. Codes of the stage fetch are fetched again by the next run, others are reused (scoring/ledger.py).
ERROR_CODES: dict[str, tuple[str, str]] = {
    "bad_line": ("fetch", "the line has too many or too few values (catalog.bad_lines)"),
    "bad_record": ("fetch", "the record cannot be read: a list that does not close, too many images, several labels"),
    "empty_path": ("fetch", "the catalog row names no image"),
    "duplicate_id": ("fetch", "an earlier row has the same id"),
    "bad_address": ("fetch", "the image path has a scheme or form that cannot be opened"),
    "not_allowed": ("fetch", "the image lies outside of what catalog.root and catalog.allow allow"),
    "not_found": ("fetch", "there is no such object"),
    "access_denied": ("fetch", "the store refused the credentials"),
    "timeout": ("fetch", "the store did not answer in time, retries included"),
    "fetch_failed": ("fetch", "reading failed for another reason, given in the message"),
    "too_many_bytes": ("fetch", "the object is larger than catalog.max_bytes; it is not read to its end"),
    "empty_file": ("decode", "the object has zero bytes"),
    "not_an_image": ("decode", "the bytes are no image format that is read (HTML pages land here)"),
    "truncated": ("decode", "the image file ends too early: a row of pixels or more is missing"),
    "corrupt": ("decode", "the image file is damaged before its end"),
    "too_many_pixels": ("decode", "larger than catalog.max_pixels (a decompression bomb)"),
    "bad_aspect_ratio": ("decode", "one side is longer than catalog.max_aspect_ratio times the other"),
    "predict_failed": ("predict", "the model failed on this image, or its output is not finite"),
}


class ImageError(Exception):
    """One image cannot be used. ``code`` is a key of :data:`ERROR_CODES`."""

    def __init__(self, code: str, message: str) -> None:
        if code not in ERROR_CODES:
            raise ValueError(f"unknown error code {code!r}")
        self.code = code
        self.message = message[:500]
        super().__init__(code, self.message)

    @property
    def stage(self) -> str:
        return ERROR_CODES[self.code][0]
