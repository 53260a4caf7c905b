"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.kafka_broker import kafka_bootstrap, kafka_broker

__all__ = ["data_dir", "kafka_bootstrap", "kafka_broker"]


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with real input; ABINITIO_DATA, or shared/data beside the repository."""
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("ABINITIO_DATA") or default)
    if not folder.is_dir():
        if "ABINITIO_DATA" in os.environ:
            pytest.fail(f"ABINITIO_DATA={folder} is no folder")
        pytest.skip(f"no real data at {folder}; set ABINITIO_DATA")
    return folder
