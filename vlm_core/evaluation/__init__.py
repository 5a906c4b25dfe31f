"""Evaluates models: answers under several conditions, scores with intervals, and a report."""
