"""Convert a GGUF file to a Hugging Face directory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from lockgate.adapters.quantization.quantize import report_of
from lockgate.adapters.quantization.staging import staged
from lockgate.adapters.quantization.worker_process import Progress, run_worker
from lockgate.domain.quantization import QuantizationReport
from lockgate.errors import QuantizationError


@dataclass(frozen=True)
class ModelCard:
    """What a converted model says about itself in README.md. A GGUF file's own metadata is not trusted for the license."""

    name: str
    license: str
    """License identifier as at the Hub, lower case: `apache-2.0`."""
    base_model: str | None = None
    language: tuple[str, ...] = ("en",)
    license_text: str | None = None
    """Written to LICENSE where given."""

    def readme(self, gguf_name: str) -> str:
        front = {
            "base_model": self.base_model,
            "language": list(self.language),
            "library_name": "transformers",
            "license": self.license,
        }
        front = {key: value for key, value in front.items() if value}
        header = yaml.safe_dump(front, sort_keys=True, default_flow_style=False)
        return (
            f"---\n{header}---\n# {self.name}\n\n"
            f"Converted from the GGUF file {gguf_name} to safetensors (bfloat16).\n"
        )


def convert_gguf(
    python: Path,
    gguf_file: Path,
    target_dir: Path,
    *,
    card: ModelCard,
    log: Path,
    progress: Progress | None = None,
    seed: int = 0,
    threads: int | None = None,
    timeout: float = 1800.0,
) -> QuantizationReport:
    """Write the model in `gguf_file` as bfloat16 safetensors with tokenizer and chat template to `target_dir`.

    The directory appears whole or not at all, files 0644. The same file, card and environment give the same bytes.
    Raises `QuantizationError` where the file is no GGUF model, has no chat template, or the result is not sound.
    """
    try:
        with gguf_file.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise QuantizationError(f"cannot read {gguf_file}: {error}") from error
    if magic != b"GGUF":
        raise QuantizationError(f"{gguf_file} is not a GGUF file")
    began = time.monotonic()
    with staged(target_dir) as staging:
        result = run_worker(
            python,
            "convert_gguf.py",
            {"source": str(gguf_file.resolve()), "target": str(staging.resolve())},
            log=log,
            progress=progress,
            seed=seed,
            threads=threads,
            timeout=timeout,
        )
        texts = {"README.md": card.readme(gguf_file.name), "LICENSE": card.license_text}
        for name, text in texts.items():
            if text is not None:
                path = staging / name
                path.write_text(text, encoding="utf-8")
                path.chmod(0o644)
        return report_of("gguf-to-safetensors", seed, result, time.monotonic() - began, log)
