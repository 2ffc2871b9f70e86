"""What packaging costs: a model into a registry by Lockgate and by one raw upload of the same bytes with curl, in turn.

    python -m benchmarks.packaging --out FILE [--gigabytes 1] [--files 1 4] [--rounds 3]

A round takes every tool once, in rotating order, each into a repository of its own in one docker-registry (Debian's 2.8) on
the loopback. The registry starts empty for every upload: it would otherwise answer that it has the bytes. curl sends the same
tar layers, made and hashed before the clock starts, one after the other, each as one PUT. Other tools are measured where they
are on PATH (oras, buildah, skopeo) or importable by `--python` (olot, oras-py). Lockgate's own figures are for a snapshot that
was hashed when it was fetched (`push_model`), in a process of its own, whose peak memory is read from the kernel.

CPU seconds are given beside, of the tool and of the registry: they say what a busy machine's clock does not.

Every measurement is a line of JSON in FILE; at the end all of FILE is summed up: the median and the ratio to curl's of the same
round. Files are random bytes: nothing about them can be compressed or skipped.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import yaml

from lockgate.domain import model_image
from lockgate.domain.digests import Digest
from lockgate.domain.sources import Snapshot, SnapshotFile

SECONDS = 1800
CHUNK = 1 << 20

_OURS = """
import json, sys, time
from pathlib import Path
from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.package import push_model
from lockgate.domain.model_image import parse_snapshot_document
host, directory, listing = sys.argv[1:]
snapshot = parse_snapshot_document(Path(listing).read_bytes())
store = open_store(host)
began = time.monotonic()
push_model(store, f"{host}/lockgate", Path(directory), snapshot, labels={})
seconds = time.monotonic() - began
(peak,) = (l.split()[1] for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(json.dumps({"seconds": seconds, "peak_mb": int(peak) / 1024}))
"""
_ORAS_PY = """
import sys
from oras.provider import Registry
host, *files = sys.argv[1:]
Registry(hostname=host, insecure=True).push(
    target=f"{host}/oras:1", files=files, disable_path_validation=True
)
"""
_OLOT = """
import shutil, sys
from pathlib import Path
from olot.basics import oci_layers_on_top
layout, *files = sys.argv[1:]
oci_layers_on_top(Path(layout), [Path(f) for f in files])
"""


class ToolFailed(Exception):
    """A tool that cannot be measured here; the others go on."""


class Model:
    """A model of random bytes, with its snapshot and the tar layers that curl sends."""

    def __init__(self, scratch: Path, gigabytes: float, files: int) -> None:
        self.directory = scratch / "model"
        self.directory.mkdir(parents=True)
        size = int(gigabytes * 1e9) // files
        rows = [self._write(f"model-{n:05}.safetensors", size) for n in range(1, files + 1)]
        config = b'{"model_type": "random"}'
        (self.directory / "config.json").write_bytes(config)
        rows.append(
            SnapshotFile(path="config.json", size=len(config), digest=Digest.of_bytes(config))
        )
        self.snapshot = Snapshot.of(rows)
        self.listing = scratch / "snapshot.json"
        self.listing.write_bytes(model_image.snapshot_document(self.snapshot))
        self.layers = [
            self._layer(scratch / f"layer-{number}.tar", plan)
            for number, plan in enumerate(model_image.plan_layers(self.snapshot))
        ]

    @property
    def files(self) -> list[Path]:
        return [self.directory / file.path for file in self.snapshot.files]

    def _write(self, name: str, size: int) -> SnapshotFile:
        sha, left = hashlib.sha256(), size
        with open(self.directory / name, "wb") as file:
            while left:
                chunk = os.urandom(min(CHUNK, left))
                sha.update(chunk)
                file.write(chunk)
                left -= len(chunk)
        return SnapshotFile(path=name, size=size, digest=Digest.from_hex(sha.hexdigest()))

    def _layer(self, path: Path, plan: model_image.LayerPlan) -> tuple[Path, Digest]:
        with open(path, "wb") as out:
            for header in plan.directory_headers():
                out.write(header)
            for file in plan.files:
                out.write(model_image.file_header(file))
                with open(self.directory / file.path, "rb") as content:
                    shutil.copyfileobj(content, out, CHUNK)
                out.write(bytes(model_image.padding(file.size)))
            out.write(bytes(2 * model_image.BLOCK))
        with open(path, "rb") as file:
            return path, Digest.from_hex(hashlib.file_digest(file, "sha256").hexdigest())


@contextlib.contextmanager
def empty_registry(scratch: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Host and process of a registry without content; its storage is removed afterwards."""
    program = shutil.which("docker-registry")
    if program is None:
        raise SystemExit(
            "docker-registry is not on PATH: scripts/test_prerequisites.py provides it"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    storage = scratch / "registry"
    config = scratch / "registry.yml"
    config.write_text(
        yaml.safe_dump(
            {
                "version": 0.1,
                "log": {"level": "error"},
                "storage": {"filesystem": {"rootdirectory": str(storage)}},
                "http": {"addr": host},
            }
        )
    )
    with open(scratch / "registry.log", "ab") as log:
        process = subprocess.Popen(
            [program, "serve", str(config)], stdout=log, stderr=log, start_new_session=True,
            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                httpx.get(f"http://{host}/v2/", timeout=5, trust_env=False)
                break
            except httpx.TransportError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit(
                        f"the registry did not start: {scratch}/registry.log"
                    ) from None
                time.sleep(0.05)
        yield host, psutil.Process(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=20)
        shutil.rmtree(storage, ignore_errors=True)


def run(command: list[str], log: Path, **environment: str) -> tuple[float, str]:
    """Seconds and standard output of a program that must succeed."""
    began = time.monotonic()
    with open(log, "ab") as errors:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, timeout=SECONDS, check=False,
            env={**os.environ, "NO_PROXY": "127.0.0.1", **environment},
        )  # fmt: skip
    if done.returncode != 0:
        raise ToolFailed(f"{command[0]} ended with {done.returncode}: {log.read_text()[-400:]}")
    return time.monotonic() - began, done.stdout.decode()


def curl(host: str, model: Model, scratch: Path) -> dict[str, float]:
    """One PUT a layer: what the registry and the loopback take at least."""
    began = time.monotonic()
    for path, digest in model.layers:
        begun = httpx.post(f"http://{host}/v2/curl/blobs/uploads/", timeout=30, trust_env=False)
        place = begun.headers["Location"]
        target = f"{place}{'&' if '?' in place else '?'}digest={digest}"
        command = ["curl", "-sS", "--fail", "-T", str(path), "-H"]
        run([*command, "Content-Type: application/octet-stream", target], scratch / "curl.log")
    return {"seconds": time.monotonic() - began}


def lockgate(host: str, model: Model, scratch: Path) -> dict[str, float]:
    command = [sys.executable, "-c", _OURS, host, str(model.directory), str(model.listing)]
    process, said = run(command, scratch / "lockgate.log")
    return {**json.loads(said), "process_seconds": process}


def oras(host: str, model: Model, scratch: Path) -> dict[str, float]:
    names = [path.name for path in model.files]
    command = ["oras", "push", "--plain-http", f"{host}/oras:1", *names]
    seconds, _ = run(["env", "-C", str(model.directory), *command], scratch / "oras.log")
    return {"seconds": seconds}


def oras_py(python: str, host: str, model: Model, scratch: Path) -> dict[str, float]:
    files = [str(path) for path in model.files]
    seconds, _ = run([python, "-c", _ORAS_PY, host, *files], scratch / "oras-py.log")
    return {"seconds": seconds}


def _skopeo(layout: Path, host: str, name: str, scratch: Path) -> None:
    run(
        ["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", f"oci:{layout}",
         f"docker://{host}/{name}:1"],
        scratch / "skopeo.log", TMPDIR=str(scratch),
    )  # fmt: skip


def skopeo(host: str, model: Model, scratch: Path) -> dict[str, float]:
    """Our layout, made before the clock starts, copied: the registry client that Podman and Buildah share."""
    from lockgate.adapters.oci import open_store
    from lockgate.adapters.oci.package import push_model

    layout = scratch / "layout"
    push_model(open_store(f"oci:{layout}"), "l.local/m", model.directory, model.snapshot, labels={})
    index = json.loads((layout / "index.json").read_text())
    index["manifests"] = index["manifests"][:1]
    (layout / "index.json").write_text(json.dumps(index))
    began = time.monotonic()
    _skopeo(layout, host, "skopeo", scratch)
    seconds = time.monotonic() - began
    shutil.rmtree(layout)
    return {"seconds": seconds}


def buildah(host: str, model: Model, scratch: Path) -> dict[str, float]:
    (model.directory / "Containerfile").write_text(
        "FROM scratch\nCOPY *.safetensors *.json /models/\n"
    )
    policy = scratch / "policy.json"
    policy.write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    place = ["buildah", "--root", str(scratch / "storage"), "--storage-driver", "vfs"]
    place += ["--signature-policy", str(policy)]
    try:
        built, _ = run([*place, "bud", "-t", "m", str(model.directory)], scratch / "buildah.log")
        target = f"docker://{host}/buildah:1"
        pushed, _ = run(
            [*place, "push", "--tls-verify=false", "m", target], scratch / "buildah.log"
        )
    finally:
        (model.directory / "Containerfile").unlink()
        shutil.rmtree(scratch / "storage", ignore_errors=True)
    return {"seconds": built + pushed}


def olot(python: str, host: str, model: Model, scratch: Path) -> dict[str, float]:
    """Layers upon an image of nothing in a layout, then skopeo: the way its authors describe."""
    layout = scratch / "olot"
    shutil.rmtree(layout, ignore_errors=True)
    (layout / "blobs" / "sha256").mkdir(parents=True)

    def blob(body: bytes) -> dict[str, object]:
        digest = Digest.of_bytes(body)
        (layout / "blobs" / "sha256" / digest.hex).write_bytes(body)
        return {"digest": str(digest), "size": len(body)}

    nothing = bytes(2 * model_image.BLOCK)
    base = model_image.layer_descriptor(Digest.of_bytes(nothing), len(nothing))
    said = json.loads(model_image.image_config({}, [base.digest]))
    config = json.dumps({**said, "history": [{"created_by": "nothing"}]}).encode()
    kind = "application/vnd.oci.image.manifest.v1+json"
    manifest = model_image.image_manifest(config, [base])
    blob(nothing)
    blob(config)
    entry = {"mediaType": kind, **blob(manifest)}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    began = time.monotonic()
    run([python, "-c", _OLOT, str(layout), *map(str, model.files)], scratch / "olot.log")
    _skopeo(layout, host, "olot", scratch)
    seconds = time.monotonic() - began
    shutil.rmtree(layout)
    return {"seconds": seconds}


def _median(rows: list[dict[str, float]], name: str) -> float:
    return statistics.median(row[name] for row in rows)


Tool = Callable[[str, Model, Path], dict[str, float]]


def tools(python: str | None, wanted: list[str]) -> dict[str, Tool]:
    """The tools that are here."""
    found: dict[str, Tool] = {"curl": curl, "lockgate": lockgate}
    for name, tool in {"oras": oras, "skopeo": skopeo, "buildah": buildah}.items():
        if shutil.which(name):
            found[name] = tool
    if python is not None:
        found["oras-py"] = lambda *a: oras_py(python, *a)
        found["olot"] = lambda *a: olot(python, *a)
    return {name: tool for name, tool in found.items() if not wanted or name in wanted}


def _children_cpu() -> float:
    """CPU seconds of every child that has ended: those of the tools, for the registry still runs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _rounds(path: Path) -> int:
    """The number after those of the rounds in a file that an earlier run began."""
    lines = path.read_text().splitlines() if path.exists() else []
    return max((json.loads(line)["round"] + 1 for line in lines), default=0)


def summary(path: Path) -> str:
    rounds: dict[tuple[float, int], dict[int, dict[str, dict[str, float]]]] = defaultdict(
        lambda: defaultdict(dict)
    )
    for line in path.read_text().splitlines():
        row = json.loads(line)
        rounds[row["gigabytes"], row["files"]][row["round"]][row["tool"]] = row
    lines = []
    for (gigabytes, files), by_round in sorted(rounds.items()):
        lines.append(f"{gigabytes:g} GB in {files} files, {len(by_round)} rounds")
        names = sorted({name for each in by_round.values() for name in each})
        for name in names:
            rows = [each[name] for each in by_round.values() if name in each]
            seconds = [row["seconds"] for row in rows]
            ratios = [
                each[name]["seconds"] / each["curl"]["seconds"]
                for each in by_round.values()
                if name in each and "curl" in each
            ]
            peak = max((row.get("peak_mb", 0) for row in rows), default=0)
            beside = (
                f"  x{statistics.median(ratios):.2f} of curl ({min(ratios):.2f} to {max(ratios):.2f})"
                if ratios
                else ""
            )
            lines.append(
                f"  {name:<9} {statistics.median(seconds):7.2f} s"
                f"  {gigabytes * 1000 / statistics.median(seconds):6.0f} MB/s{beside}"
                f"  CPU {_median(rows, 'client_cpu'):.2f} s + {_median(rows, 'registry_cpu'):.2f} s"
                + (f"  peak {peak:.0f} MB" if peak else "")
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--files", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", help="an interpreter with olot and oras installed")
    parser.add_argument("--tool", action="append", default=[], help="only these")
    parser.add_argument("--scratch", type=Path, help="directory for models and registry")
    options = parser.parse_args()
    # Ended from outside, the registry and the scratch directory go as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    chosen = tools(options.python, options.tool)
    begin = _rounds(options.out)
    for files in options.files:
        with tempfile.TemporaryDirectory(dir=options.scratch) as name:
            scratch = Path(name)
            model = Model(scratch, options.gigabytes, files)
            for number in range(begin, begin + options.rounds):
                order = list(chosen)
                order = order[number % len(order) :] + order[: number % len(order)]
                for tool in order:
                    with empty_registry(scratch) as (host, registry):
                        before = _children_cpu()
                        try:
                            figures = chosen[tool](host, model, scratch)
                        except ToolFailed as error:
                            print(f"{tool}: {error}", file=sys.stderr)
                            continue
                        figures["client_cpu"] = _children_cpu() - before
                        figures["registry_cpu"] = sum(registry.cpu_times()[:2])
                    row = {
                        "tool": tool, "gigabytes": options.gigabytes, "files": files,
                        "round": number, "machine": platform.machine(), **figures,
                    }  # fmt: skip
                    with open(options.out, "a") as out:
                        out.write(json.dumps(row) + "\n")
                    print(json.dumps(row), flush=True)
    print(summary(options.out))


if __name__ == "__main__":
    main()
