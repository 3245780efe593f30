"""Which of several images of equal bytes came first, asked by tasks on all machines.

A module of its own, beside nothing heavy: the actor's process reads it before the first image can be looked at.
"""

SEEN_IMAGES = 500_000  # digests that are remembered to find copies; bounds the memory


class Seen:
    """Knows which image of equal bytes came first."""

    def __init__(self) -> None:
        self._first: dict[int, str] = {}
        self._unknown = 0

    def claim(self, images: list[tuple[str, str]]) -> list[bool]:
        """For every (digest, address): True for the address that is to be inferred, and again if it asks again."""
        return [self._claim(int(digest[:16], 16), uri) for digest, uri in images]

    def _claim(self, key: int, uri: str) -> bool:
        if key in self._first or len(self._first) < SEEN_IMAGES:
            return self._first.setdefault(key, uri) == uri
        self._unknown += 1
        return True

    def unknown(self) -> int:
        """Images that came when no more could be remembered: copies among them are inferred each for itself."""
        return self._unknown
