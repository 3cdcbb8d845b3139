"""GET /health, /health/live and /health/ready."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel


class Health(BaseModel):
    """All is well."""

    status: Literal["ok"]
