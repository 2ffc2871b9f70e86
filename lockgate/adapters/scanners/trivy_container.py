"""trivy as a container without a network, pinned by digest (a tag of trivy's has once been malicious)."""

from __future__ import annotations

import time
from pathlib import Path

from python_on_whales import DockerClient
from python_on_whales.exceptions import DockerException, NoSuchImage

from lockgate.adapters.scanners.trivy import TrivyCall, TrivyVersion
from lockgate.domain.images import ImageRef
from lockgate.errors import EnvironmentMissing, ScannerError

_POLL_SECONDS = 0.5


class TrivyContainer:
    """Runs `image` by Docker, Podman or nerdctl. `cache` is trivy's cache directory on this machine, with its database.

    The image is not pulled: what may run here is decided by whoever mirrors it.
    """

    def __init__(
        self, image: ImageRef, *, cache: Path | None = None, client: DockerClient | None = None
    ) -> None:
        self._image = str(image)
        self._cache = cache
        self._client = client or DockerClient()

    def version(self, log: Path) -> TrivyVersion:
        self._require_image()
        status, output = self._run(["version", "--format", "json"], [], log, timeout=60)
        if status != 0:
            raise ScannerError(f"trivy version ended with status {status}", log=log)
        return TrivyVersion.parse(output)

    def run(self, call: TrivyCall) -> int:
        self._require_image()
        volumes: list[tuple[str, str, str]] = [
            (str(call.inputs), "/inputs", "ro"),
            (str(call.report.parent), "/output", "rw"),
        ]
        if call.blobs is not None:
            (call.inputs / "blobs").mkdir(exist_ok=True)
            volumes.append((str(call.blobs.resolve()), "/inputs/blobs", "ro"))
        target = ["--input", "/inputs"] if call.command == "image" else ["/inputs"]
        arguments = [
            *(call.command, *call.arguments),
            *("--output", f"/output/{call.report.name}", *target),
        ]
        status, _ = self._run(arguments, volumes, call.log, call.timeout)
        return status

    def _require_image(self) -> None:
        try:
            self._client.image.inspect(self._image)
        except NoSuchImage as error:
            raise EnvironmentMissing(f"the image {self._image} is not on this machine") from error
        except (DockerException, OSError) as error:
            raise EnvironmentMissing(f"no container engine answers: {error}") from error

    def _run(
        self,
        arguments: list[str],
        volumes: list[tuple[str, str, str]],
        log: Path,
        timeout: float,
    ) -> tuple[int, str]:
        if self._cache is not None:
            volumes = [*volumes, (str(self._cache), "/tmp/cache", "rw")]
        try:
            container = self._client.container.create(
                self._image,
                [*arguments, "--cache-dir", "/tmp/cache"],
                networks=["none"],
                volumes=volumes,
                cap_drop=["ALL"],
                # The inputs belong to whoever runs this, in directories that are closed to others.
                cap_add=["DAC_OVERRIDE"],
                security_options=["no-new-privileges"],
                read_only=True,
                tmpfs=["/tmp"],
                workdir="/tmp",
                pull="never",
            )
        except (DockerException, OSError) as error:
            raise ScannerError(f"the trivy container cannot be made: {error}") from error
        try:
            container.start()
            end = time.monotonic() + timeout
            while container.state.running:
                if time.monotonic() > end:
                    raise ScannerError(f"trivy was stopped after {timeout:.0f} s", log=log)
                time.sleep(_POLL_SECONDS)
            output = str(container.logs())
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as file:
                file.write(output)
            status = container.state.exit_code
            if status is None:
                raise ScannerError("the container engine gives no exit status", log=log)
            return status, output
        except (DockerException, OSError) as error:
            raise ScannerError(f"the trivy container failed: {error}", log=log) from error
        finally:
            container.remove(force=True)
