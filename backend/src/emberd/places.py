"""Where emberd keeps things, and where it looks for them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from emberd import environment
from emberd.settings import root_url


@dataclass(frozen=True, slots=True)
class Places:
    """Where emberd keeps things, and what it is told to look at; from the environment.

    Attributes:
        home: State of servers; ``EMBERD_HOME``, else the platform's state folder.
        engines: Environments of engines; ``EMBERD_ENGINES``, else ``engines`` in the home.
        discover: URLs that ``EMBERD_DISCOVER`` lists, separated by commas or spaces.
        auto_install: ``EMBERD_AUTO_INSTALL``: an engine that a start needs may be installed by it.
    """

    home: str
    engines: str
    discover: tuple[str, ...] = ()
    auto_install: bool = False

    @classmethod
    def resolve(cls, home: str | os.PathLike[str] | None = None) -> Places:
        """Return the places of this process; ``home`` wins over ``EMBERD_HOME``."""
        root = os.fspath(home) if home else os.environ.get("EMBERD_HOME") or _default_home()
        root = os.path.abspath(os.path.expanduser(root))
        listed = os.environ.get("EMBERD_DISCOVER", "").replace(",", " ").split()
        engines = os.environ.get("EMBERD_ENGINES") or os.path.join(root, "engines")
        return cls(
            home=root,
            # Absolute: a keeper lives in the root folder, and is to find what its starter found.
            engines=os.path.abspath(os.path.expanduser(engines)),
            discover=tuple(root_url(url, "EMBERD_DISCOVER") for url in listed),
            auto_install=environment.switch(os.environ, "EMBERD_AUTO_INSTALL"),
        )


def _default_home() -> str:
    # Imported late: most processes of a test suite or a container set EMBERD_HOME.
    from platformdirs import user_state_path

    return str(user_state_path("emberd", appauthor=False))
