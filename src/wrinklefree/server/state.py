"""What every route works with."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from wrinklefree.engine import Engine
from wrinklefree.server.grammar import Grammars
from wrinklefree.server.metrics import Metrics
from wrinklefree.server.scheduler import Scheduler
from wrinklefree.server.settings import ServerSettings


@dataclass
class ServerState:
    """One loaded model and its scheduler. ``created``: Unix time of the start."""

    engine: Engine
    settings: ServerSettings
    scheduler: Scheduler
    created: int = field(default_factory=lambda: int(time.time()))
    grammars: Grammars = field(init=False)
    metrics: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.grammars = Grammars(self.engine)
        self.metrics = Metrics(self.engine, self.settings, self.scheduler)
