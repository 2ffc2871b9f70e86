"""How a model is served: engine arguments, manifests, a server for tests, and the embedded cluster."""
