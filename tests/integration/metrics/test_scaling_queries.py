"""What the scalers ask, answered by Prometheus' own engine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml

from lockgate.domain.release_state import Slot
from serving.manifests.scalers import scaler
from tests.unit.serving.rendering import occupant, state_of

RECORDED = Path(__file__).parents[2] / "unit" / "serving" / "data" / "vllm-0.32-metrics.txt"
METRICS = {"running": "vllm:num_requests_running", "waiting": "vllm:num_requests_waiting",
           "kv-cache": "vllm:kv_cache_usage_perc"}  # fmt: skip


def test_a_scaler_counts_its_slots_pods_and_no_others(tmp_path: Path, promtool: Path) -> None:
    scaling = {"max": 9, "running_per_replica": 16, "buffer": 1}
    state = state_of(a=occupant("one", replicas=2, scaling=scaling))
    item = scaler(state, Slot.A)
    assert item is not None
    queries = {t["name"]: t["metadata"]["query"] for t in item["spec"]["triggers"]}
    recorded = RECORDED.read_text()
    assert all(f"\n{metric}{{" in recorded for metric in METRICS.values())

    def series(
        metric: str, pod: str, value: str, namespace: str = "lockgate-prod"
    ) -> dict[str, str]:
        labels = f'namespace="{namespace}",pod="{pod}",model_name="smol",engine="0"'
        return {"series": f"{metric}{{{labels}}}", "values": f"{value}x3"}

    own = ("smol-a-7d9c5b6f4-x2k8p", "smol-a-7d9c5b6f4-zz9qh")
    # The other slot, the baseline, slots of models whose names begin alike, another namespace.
    others = ("smol-b-7d9c5b6f4-aaaaa", "smol-baseline-7d9c5b6f4-aaaaa", "smol-a-b-7d9c5b6f4-aaaaa",
              "xsmol-a-7d9c5b6f4-aaaaa")  # fmt: skip
    inputs = []
    for metric in METRICS.values():
        value = "0.5+0" if metric.endswith("perc") else "10+0"
        inputs += [series(metric, pod, value) for pod in own]
        inputs += [series(metric, pod, "900+0") for pod in others]
        inputs.append(series(metric, own[0], "900+0", namespace="lockgate-dev"))
    expected = {"running": 20 + 16, "waiting": 20, "kv-cache": 50}
    rules = [
        {"record": f"asked:{name.replace('-', '_')}", "expr": q} for name, q in queries.items()
    ]
    (tmp_path / "rules.yaml").write_text(
        yaml.safe_dump({"groups": [{"name": "asked", "rules": rules}]})
    )
    tests = [
        {
            "interval": "1m",
            "input_series": inputs,
            "promql_expr_test": [
                {"expr": queries[name], "eval_time": "2m", "exp_samples": [{"labels": "{}", "value": value}]}
                for name, value in expected.items()
            ],
        },
        {
            # No pod, no answer: KEDA then counts a failure and falls back.
            "interval": "1m",
            "input_series": [],
            "promql_expr_test": [
                {"expr": query, "eval_time": "2m", "exp_samples": []} for query in queries.values()
            ],
        },
    ]  # fmt: skip
    path = tmp_path / "tests.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": tests}))
    done = subprocess.run(
        [str(promtool), "test", "rules", str(path)],
        capture_output=True, text=True, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(queries) == set(expected)
