"""The family of the orchestrator's benchmark, which the tests lean on as well."""

from captory_bench.orchestrator.fake_family import SIZE_PX, fake_repository

__all__ = ["SIZE_PX", "fake_repository"]
