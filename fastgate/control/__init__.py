"""The control plane: admin API, metrics, status."""
