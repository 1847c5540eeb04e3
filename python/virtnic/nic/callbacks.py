"""The callbacks of one port: for link changes, and for its end."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Callbacks"]

_log = logging.getLogger(__name__)


class Callbacks:
    """The callbacks of one port. Does not refer to the port, which may be forgotten."""

    def __init__(self, link: bool) -> None:
        self._links: list[Callable[[Any], object]] = []
        self._endings: list[Callable[[], object]] = []
        #: The last reported state of the link; the device may have been queried since.
        self.link = link

    def add(
        self, changed: Callable[[Any], object], ended: Callable[[], object] | None = None
    ) -> Callable[[], None]:
        """Call back on link changes, and at least once at the end; return what stops it."""
        links, endings = self._links, self._endings
        links.append(changed)
        if ended is not None:
            endings.append(ended)

        def remove() -> None:
            with contextlib.suppress(ValueError):
                links.remove(changed)
            if ended is not None:
                with contextlib.suppress(ValueError):
                    endings.remove(ended)

        return remove

    def link_changed(self, port: object, link: bool) -> None:
        """Report that the link of the port changed."""
        self.link = link
        for callback in list(self._links):
            try:
                callback(port)
            except BaseException:  # even SystemExit must not end the shared thread
                _log.exception("a link callback failed")

    def ended(self) -> None:
        """Report that the port has ended."""
        for ending in list(self._endings):
            try:
                ending()
            except Exception:  # the port must end anyway
                _log.exception("a callback for the end of a port failed")
