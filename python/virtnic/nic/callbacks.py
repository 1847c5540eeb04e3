"""Who is called back about one port: when its link changes, and at its end."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Callbacks"]

_log = logging.getLogger(__name__)


class Callbacks:
    """The callbacks of one port. Knows nothing of the port, which others may forget."""

    def __init__(self, link: bool) -> None:
        self._links: list[Callable[[Any], object]] = []
        self._endings: list[Callable[[], object]] = []
        #: What they know of the link; somebody else may have asked the device meanwhile.
        self.link = link

    def add(
        self, changed: Callable[[Any], object], ended: Callable[[], object] | None = None
    ) -> Callable[[], None]:
        """Call back when the link changes, and at the end, once or more; return what ends that."""
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
        """Tell that the link of the port went up or down."""
        self.link = link
        for callback in list(self._links):
            try:
                callback(port)
            except BaseException:  # such as SystemExit, which would end the thread for all
                _log.exception("a link callback failed")

    def ended(self) -> None:
        """Tell that there is nothing to wait for any more."""
        for ending in list(self._endings):
            try:
                ending()
            except Exception:  # the port has to end all the same
                _log.exception("a callback for the end of a port failed")
