"""The model registry: registering a version, choosing the champion, loading and serving a version."""
