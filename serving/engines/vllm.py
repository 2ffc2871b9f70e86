"""vLLM, as of 0.32."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from lockgate.domain.engine_support import Capability
from lockgate.domain.serving_support import EngineSupport
from lockgate.domain.spec import ServingSpec
from lockgate.errors import ServingError, UsageError
from serving.engines.base import refuse_forbidden_environment
from serving.engines.vllm_support import ask_vllm

#: Flags that Lockgate sets itself, or that would change what is served or to whom, each with the reason to give.
OWNED = {
    "--model": "it is the candidate's model image",
    "--served-model-name": "set serving.served_model_name",
    "--host": "it is the pod's address",
    "--port": "it is the pod's port",
    "--uds": "it is the pod's address",
    "--max-model-len": "set serving.max_model_len",
    "--max-num-seqs": "set serving.max_num_seqs",
    "--dtype": "set serving.dtype",
    "--shutdown-timeout": "set serving.drain_seconds",
    "--tokenizer": "it is part of the model image",
    "--revision": "the model image is pinned by digest",
    "--tokenizer-revision": "the model image is pinned by digest",
    "--code-revision": "the model image is pinned by digest",
    "--hf-config-path": "it is part of the model image",
    "--hf-token": "a secret must not be committed",
    "--api-key": "a secret must not be committed; it comes from a Kubernetes Secret",
    "--trust-remote-code": "a model that needs its own code is not released",
    "--config": "it would hide arguments from review",
    "--headless": "a slot serves HTTP",
    "--nnodes": "set serving.parallel.nodes",
    "-n": "set serving.parallel.nodes",
    "--node-rank": "it is the pod's place in its group",
    "-r": "it is the pod's place in its group",
    "--master-addr": "it is the group's first pod",
    "--grpc": "a slot serves HTTP",
    "--root-path": "the gateway's paths are the server's",
}
OWNED_ENVIRONMENT = (
    "VLLM_NO_USAGE_STATS",
    "DO_NOT_TRACK",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "VLLM_API_KEY",
    "VLLM_CPU_OMP_THREADS_BIND",
    "CUDA_VISIBLE_DEVICES",
    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
    "PROMETHEUS_MULTIPROC_DIR",
)

#: What typed keys of the spec say, where they are given; by `args` otherwise.
TYPED = {
    "parallel": ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size", "-pp"),
    "gpu_memory_utilization": ("--gpu-memory-utilization",),
}
NODE_ARGUMENTS = ("--node-rank", "$(LWS_WORKER_INDEX)", "--master-addr", "$(LWS_LEADER_ADDRESS)")
"""Kubernetes puts in what LeaderWorkerSet sets in each pod's environment."""

_R20 = (1.0, 1.12, 1.25, 1.4, 1.6, 1.8, 2.0, 2.24, 2.5, 2.8, 3.15, 3.55, 4.0, 4.5, 5.0, 5.6, 6.3, 7.1, 8.0, 9.0)  # fmt: skip
_R5 = (1.0, 1.6, 2.5, 4.0, 6.3)


def _preferred(
    series: Sequence[float], decades: range, low: float, high: float
) -> tuple[float, ...]:
    """Preferred numbers (ISO 3) of `series` from `low` to below `high`, in seconds."""
    values = (float(f"{value}e{decade}") for decade in decades for value in series)
    return tuple(value for value in values if low <= value < high)


def _buckets(low: float, dense_from: float, dense_to: float, high: float) -> list[float]:
    """Steps of about 12% where service levels lie, of 58% outside.

    vLLM's own buckets double from one to the next just there, and a latency shift of 20% moves nothing across a bound.
    """
    decades = range(-4, 5)
    return [
        *_preferred(_R5, decades, low, dense_from),
        *_preferred(_R20, decades, dense_from, dense_to),
        *_preferred(_R5, decades, dense_to, high),
    ]


HISTOGRAM_BUCKETS = {
    "time_to_first_token": _buckets(0.004, 0.04, 2.5, 2000),
    "inter_token_latency": _buckets(0.001, 0.01, 0.4, 100),
    "request_latency": _buckets(0.01, 0.25, 20, 8000),
}


class VllmEngine:
    """vLLM's OpenAI-compatible server."""

    name = "vllm"
    container = "vllm"
    lacks: Mapping[Capability, str] = {}
    one_object = False
    port = 8000
    health_path = "/health"
    metrics_path = "/metrics"

    def arguments(
        self, serving: ServingSpec, *, model_path: str, host: str, port: int
    ) -> list[str]:
        self._refuse_owned(serving.args)
        # The model comes first and as a positional: a second one, smuggled in with `args`, is then a parse error.
        arguments = [
            model_path,
            "--served-model-name",
            serving.served_model_name,
            "--host",
            host,
            "--port",
            str(port),
            "--shutdown-timeout",
            str(serving.drain_seconds),
            "--disable-access-log-for-endpoints",
            "/health,/metrics,/ping",
        ]
        if serving.max_model_len is not None:
            arguments += ["--max-model-len", str(serving.max_model_len)]
        if serving.max_num_seqs is not None:
            arguments += ["--max-num-seqs", str(serving.max_num_seqs)]
        if serving.dtype is not None:
            arguments += ["--dtype", serving.dtype]
        arguments += self._split(serving)
        if not any(_flag(a) == "--custom-histogram-buckets" for a in serving.args):
            arguments += [
                "--custom-histogram-buckets",
                json.dumps(HISTOGRAM_BUCKETS, separators=(",", ":")),
            ]
        return [*arguments, *serving.args]

    @staticmethod
    def _split(serving: ServingSpec) -> list[str]:
        """How the replica lies on GPUs. `UsageError` if `args` say it too: the last one would count."""
        for key, flags in TYPED.items():
            given = [
                a for a in serving.args if getattr(serving, key) is not None and _flag(a) in flags
            ]
            if given:
                raise UsageError(f"serving.args has {given[0]!r} beside serving.{key}: say it once")
        arguments = []
        if serving.parallel is not None:
            split = serving.parallel
            arguments += ["--tensor-parallel-size", str(split.tensor)]
            if split.pipeline > 1:
                arguments += ["--pipeline-parallel-size", str(split.pipeline)]
            if split.nodes > 1:
                arguments += ["--nnodes", str(split.nodes), *NODE_ARGUMENTS]
        if serving.gpu_memory_utilization is not None:
            arguments += ["--gpu-memory-utilization", str(serving.gpu_memory_utilization)]
        return arguments

    def environment(self, serving: ServingSpec) -> dict[str, str]:
        refuse_forbidden_environment(serving.env, OWNED_ENVIRONMENT)
        return {
            **serving.env,
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            # Longer than any gateway keeps an idle connection, so that the server never closes one just as it is used.
            "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "75",
        }

    def command(self) -> list[str]:
        return ["vllm", "serve"]

    def pod_arguments(self, serving: ServingSpec) -> list[str]:
        return self.arguments(serving, model_path="/models", host="0.0.0.0", port=self.port)

    def local_command(
        self, python: Path, arguments: Sequence[str], *, host: str, port: int
    ) -> list[str]:
        if NODE_ARGUMENTS[1] in arguments:
            raise UsageError(
                "a replica over several nodes needs a cluster with LeaderWorkerSet",
                hint="set serving.parallel.nodes to 1 for a server on this machine",
            )
        # By module: CPU wheels are published under another distribution name, which `vllm serve` does not find.
        model, *rest = arguments
        command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        replaced = {"--host": host, "--port": str(port)}
        options = iter(rest)
        for argument in options:
            command.append(argument)
            if argument in replaced:
                next(options, None)
                command.append(replaced.pop(argument))
        for flag, value in replaced.items():
            command += [flag, value]
        return command

    def placement(self, cores: Sequence[int], gpus: Sequence[str] = ()) -> dict[str, str]:
        placed = {}
        if cores:
            placed["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        if gpus:
            placed["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
        return placed

    def version(self, python: Path) -> str:
        code = "import importlib.util as u, pathlib, re; " \
               "p = pathlib.Path(u.find_spec('vllm').origin).with_name('_version.py'); " \
               "print(re.search(r\"__version__\\s*=.*?'([^']+)'\", p.read_text()).group(1))"  # fmt: skip
        try:
            done = subprocess.run(
                [str(python), "-c", code], capture_output=True, text=True, timeout=60, check=True
            )
        except (OSError, subprocess.SubprocessError) as error:
            detail = getattr(error, "stderr", None) or str(error)
            raise ServingError(
                f"vLLM's version cannot be read from {python}: {detail.strip()[-500:]}",
                hint="make the serving environment again (`make setup-serving`)",
            ) from error
        return done.stdout.strip()

    def support(
        self, python: Path, schemes: Sequence[str], environment: Mapping[str, str]
    ) -> EngineSupport:
        return ask_vllm(python, schemes, dict(environment))

    @staticmethod
    def _refuse_owned(arguments: Sequence[str]) -> None:
        if arguments and not arguments[0].startswith("-"):
            raise UsageError(f"serving.args must begin with an option, not {arguments[0]!r}")
        for argument in arguments:
            if not argument.startswith("-"):
                continue
            flag = _flag(argument)
            for owned, reason in OWNED.items():
                # argparse takes any unambiguous beginning of a flag for the flag.
                if flag == owned or (len(flag) > 3 and owned.startswith(flag)):
                    raise UsageError(
                        f"serving.args must not set {owned} (given as {argument!r}): {reason}"
                    )


def _flag(argument: str) -> str:
    """The option's canonical name: `--served_model_name=x` and `--json-arg.key` lose their tails."""
    return re.split(r"[=.]", argument, maxsplit=1)[0].replace("_", "-")
