"""Timings, ours and of other libraries: one command each, compared within one run. Not part of the tests."""
