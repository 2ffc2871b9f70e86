"""vLLM under KServe: the same server with the same arguments, started and routed by KServe's controllers.

`kserve` makes one LLMInferenceService for each slot (KServe 0.20), which share the traffic by `group` and `weight`;
`kserve-serverless` one InferenceService, two of whose Knative revisions share it by `canaryTrafficPercent`. What neither can do is
said in `lacks`.
"""

from __future__ import annotations

from collections.abc import Mapping

from lockgate.domain.engine_support import Capability
from lockgate.domain.spec import ServingSpec
from serving.engines.vllm import VllmEngine

MODEL_PATH = "/mnt/models"
"""Where KServe mounts the model, whatever its address."""

_EMBEDDED = "KServe's controllers run in Kubernetes only"
_OWN_ROUTE = "KServe writes the HTTPRoute of a group itself, with weights and nothing else"


class KserveEngine(VllmEngine):
    """vLLM as LLMInferenceServices."""

    name = "kserve"
    container = "main"
    lacks: Mapping[Capability, str] = {
        Capability.EMBEDDED_CLUSTER: _EMBEDDED,
        Capability.HEADER: _OWN_ROUTE,
        Capability.MIRROR: _OWN_ROUTE,
    }

    def pod_arguments(self, serving: ServingSpec) -> list[str]:
        return self.arguments(serving, model_path=MODEL_PATH, host="0.0.0.0", port=self.port)


class KserveServerlessEngine(KserveEngine):
    """vLLM as one InferenceService on Knative."""

    name = "kserve-serverless"
    container = "kserve-container"
    one_object = True
    lacks: Mapping[Capability, str] = {
        Capability.EMBEDDED_CLUSTER: _EMBEDDED,
        Capability.IDLE_FIRST_RELEASE: "Knative sends everything to the first revision as soon as it is ready",
        Capability.HEADER: "a revision is reached by a tag in the host name, not by a header",
        Capability.MIRROR: "Knative's routes have shares and nothing else",
        Capability.FRESH_BASELINE: "an InferenceService has two revisions in traffic at most",
        Capability.BORROW: "both revisions have the size of the one InferenceService",
        Capability.RECREATE: "Knative stops the old revision only when the new one is ready",
        Capability.IDLE_OLD_VERSION: "Knative stops a revision that no traffic goes to",
        Capability.UNTOUCHED_STABLE: "after a rollback stable's servers start anew, as a third set beside stable's old ones and "
        "the candidate's, which stay until those are ready: without room for it the rollback's end waits",
        Capability.PINNED_STABLE: "KServe may take stable for rolled back in the moment in which a candidate is deployed, and send "
        "everything to the version before it: the release then ends, and its end puts stable back",
    }
