from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from wrinklefree.engine import DecodingSettings, Engine, greedy
from wrinklefree.server.scheduler import Scheduler
from wrinklefree.server.settings import ServerSettings
from wrinklefree.server.work import Work


def test_answers_in_a_crowd_are_those_of_the_engine_alone(toy: Path) -> None:
    engine = Engine.load(toy, threads=1, context=128, slots=2)
    prompts = [np.arange(3 + i, 20 + 3 * i, dtype=np.int32) for i in range(6)]
    alone = [engine.generate(prompt, greedy(12)).run().tokens for prompt in prompts]

    async def together() -> list[list[int]]:
        scheduler = Scheduler(engine, ServerSettings("toy", slots=2))
        scheduler.start()
        tickets = [scheduler.submit(Work(prompt, greedy(12), DecodingSettings())) for prompt in prompts]
        found = [[step.token async for event in ticket for step in event.steps] for ticket in tickets]
        await scheduler.stop()
        return found

    assert asyncio.run(together()) == alone
