"""`Closing`: a peer that the end of a ``with`` block ends."""

from abc import abstractmethod
from types import TracebackType
from typing import Self


class Closing:
    """Base of peers with a method ``close``."""

    @abstractmethod
    def close(self) -> None:
        """End it. Repeated calls are allowed."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End it."""
        self.close()
