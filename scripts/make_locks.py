"""Make locks/*.lock from pyproject.toml and locks/*.in: uv resolves for every supported Python at once, pip installs.

Existing pins are kept where they still fit; `--upgrade` moves everything. Fails if a lock came out with an unhashed
requirement, a URL, torch or a CUDA package.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

UV = "uv==0.13.9"
ROOT = Path(__file__).resolve().parent.parent
OVERRIDES = ["--override", "locks/overrides.txt"]

# lock -> arguments; dev after orchestrator, whose pins it must repeat.
LOCKS = {
    "orchestrator": ["pyproject.toml"],
    "build": ["locks/build.in", "-c", "locks/orchestrator.lock"],
    "dev": ["pyproject.toml", "--extra", "dev", "-c", "locks/orchestrator.lock"],
    "serving": ["locks/torch.in", "locks/serving.in", *OVERRIDES],
    "quantization": ["locks/torch.in", "locks/quantization.in", *OVERRIDES],
    "demo-model": ["locks/demo-model.in", "--no-deps"],
    "kubectl": ["locks/kubectl.in", "--no-deps"],
}
# nvidia-ml-py is a small pure-Python reader of driver counters, not a CUDA library.
FORBIDDEN = re.compile(
    r"^(torch|torchvision|torchaudio|torchcodec|triton|cuda-[\w-]+|nvidia-(?!ml-py)[\w-]+)==|https?://",
    re.MULTILINE,
)


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "venv", scratch], check=True, timeout=300)
        binaries = Path(scratch) / "bin"
        subprocess.run([binaries / "pip", "install", "-q", UV], check=True, timeout=600)
        for name, arguments in LOCKS.items():
            print(f"locks/{name}.lock", flush=True)
            command = [binaries / "uv", "pip", "compile", "--quiet", "--universal", "--no-header"]
            command += ["--generate-hashes", "--python-version", "3.11", *arguments, *sys.argv[1:]]
            command += ["--output-file", f"locks/{name}.lock"]
            # uv must not write a machine's own index settings into the files.
            environment = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "PIP_"))}
            subprocess.run(command, check=True, cwd=ROOT, env=environment, timeout=1800)
            text = (ROOT / f"locks/{name}.lock").read_text()
            requirements = re.findall(r"^[A-Za-z].*(?:\n    --hash.*)*", text, re.MULTILINE)
            bad = [r.split()[0] for r in requirements if "--hash=sha256:" not in r]
            bad += FORBIDDEN.findall(text)
            if bad:
                print(f"error: locks/{name}.lock may not hold {bad}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
