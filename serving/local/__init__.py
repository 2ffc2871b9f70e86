"""The embedded cluster: an agent that runs a GitOps repo's manifests as local processes behind a real Envoy."""
