"""The servers and the worker on this machine: starting them, their settings, and what they hold for the flows."""
