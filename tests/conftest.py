"""Shared by all tests: how hypothesis behaves on a slow, shared machine."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A time limit per example measures the neighbours of a shared machine; the number of examples is what bounds a test.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")
