"""Timings against peers: one command each, results as ratios within one run. Never part of the tests."""
