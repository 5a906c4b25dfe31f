"""The servers and the worker of this machine, and what the flows and their deployments need there."""
