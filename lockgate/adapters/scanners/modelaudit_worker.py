"""Worker: takes the environment away, sets the limits, and becomes modelaudit."""

from __future__ import annotations

import os
import sys

from lockgate.adapters.scanners.worker import begin

MEMORY = 8 << 30
CPU_SECONDS = 24 * 3600
"""A last resort: whoever called stops it by the clock."""
REPORT = 512 << 20


def main() -> None:
    job = begin(MEMORY, CPU_SECONDS, file_size=REPORT)
    scratch = job["scratch"]
    environment = {
        "PATH": os.defpath,
        "HOME": scratch,
        "TMPDIR": scratch,
        "XDG_CACHE_HOME": scratch,
        "XDG_CONFIG_HOME": scratch,
        "LC_ALL": "C.UTF-8",
        # Every switch it has against telemetry; and where one is overlooked, nobody answers.
        **dict.fromkeys(("PROMPTFOO_DISABLE_TELEMETRY", "NO_ANALYTICS", "IS_TESTING", "CI"), "1"),
        **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"),
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONNOUSERSITE": "1",
    }
    command = [
        *(sys.executable, "-P", "-m", "modelaudit", "scan"),
        *("--strict", "--no-whitelist", "--no-cache", "--quiet", "--format", "json"),
        *("--timeout", str(job["seconds"]), "--output", job["report"], "--", *job["paths"]),
    ]
    os.chdir(scratch)
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
