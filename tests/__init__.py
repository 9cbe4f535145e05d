"""Tests of the library, the pipelines and the trainer."""
