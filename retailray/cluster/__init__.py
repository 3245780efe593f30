"""Jobs of a running cluster: submit, follow, list and stop them, manifests for Kubernetes, and the doctor."""
