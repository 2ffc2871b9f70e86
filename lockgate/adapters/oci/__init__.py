"""OCI images in a layout directory or a registry: stores, model images, runtime descriptions, records of finished steps."""

from __future__ import annotations

import re
from pathlib import Path

from lockgate.domain.stores import ImageStore
from lockgate.errors import UsageError

__all__ = ["ImageStore", "open_store"]

_HOST = re.compile(r"[A-Za-z0-9.-]+(?::\d{1,5})?|\[::1\](?::\d{1,5})?")


def open_store(location: str, *, plain_http: bool = False) -> ImageStore:
    """The store at `oci:DIRECTORY` (an OCI layout for all repositories) or `HOST[:PORT]` (a registry).

    Nothing is contacted yet, and a layout is made by its first write. A registry on this machine's loopback is talked to
    without TLS; elsewhere only with `plain_http`.
    """
    if location.startswith("oci:"):
        from lockgate.adapters.oci.layout import LayoutStore

        directory = location.removeprefix("oci:")
        if not directory:
            raise UsageError("oci: needs a directory, as in oci:./store")
        layout = LayoutStore(Path(directory).expanduser().absolute())
        layout.sweep()
        return layout
    if not _HOST.fullmatch(location):
        raise UsageError(
            f"not a store: {location!r}", hint="use oci:DIRECTORY, or HOST[:PORT] of a registry"
        )
    from lockgate.adapters.oci.registry import RegistryStore
    from lockgate.adapters.oci.transport import Transport

    return RegistryStore(Transport(location, plain_http=plain_http))
