"""The manifests of a release state, fully rendered.

A slot's manifests are a function of its candidate, the base and the components at the time the candidate came into the
slot. They are kept byte for byte as long as that candidate stands there: an edit of a base reaches production only with a
new candidate, and a change of weights (a rollback above all) touches the route alone and needs no kustomize.
"""

from lockgate.domain.cluster import CANDIDATE_ANNOTATION
from serving.manifests.bases import bases_digest, changed_by_bases
from serving.manifests.names import SLOT_HEADER, namespace, slot_name
from serving.manifests.render import pod_template, render
from serving.manifests.slots import check_deployment, check_identity

__all__ = [
    "CANDIDATE_ANNOTATION",
    "SLOT_HEADER",
    "bases_digest",
    "changed_by_bases",
    "check_deployment",
    "check_identity",
    "namespace",
    "pod_template",
    "render",
    "slot_name",
]
