"""Scores and embeddings through the scheduler: with the first event that has steps, whole, whenever it is read."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np

from wrinklefree.engine import DecodingSettings, Engine, SamplingParams
from wrinklefree.engine.embedding import prepare_embedding
from wrinklefree.server.scheduler import Scheduler
from wrinklefree.server.settings import ServerSettings
from wrinklefree.server.work import Event, Work

SCORED = SamplingParams(max_tokens=60, temperature=0.0, top_p=1.0, ignore_eos=True, prompt_logprobs=3)


def test_what_comes_with_the_first_steps(toy: Path) -> None:
    engine = Engine.load(toy, threads=1, context=256, slots=2)
    prompts = [np.arange(5, 15 + 60 * i, dtype=np.int32) for i in range(4)]
    wanted = [engine.generate(prompt, SCORED).run() for prompt in prompts]
    vectors = [engine.embed(prompt, normalize=False) for prompt in prompts]

    async def all_events() -> list[list[Event]]:
        scheduler = Scheduler(engine, ServerSettings("toy", slots=2))
        scheduler.start()
        works = [Work(prompt, SCORED, DecodingSettings()) for prompt in prompts]
        works += [
            Work(prompt, SCORED, DecodingSettings(), prepare=lambda to, prompt=prompt: prepare_embedding(to, prompt))  # type: ignore[misc]
            for prompt in prompts
        ]
        works += [Work(prompt, replace(SCORED, prompt_logprobs=None), DecodingSettings()) for prompt in prompts]
        tickets = [scheduler.submit(work) for work in works]

        async def read(number: int) -> list[Event]:
            while number % 2 and not tickets[number].forwards:  # not read while others are: more comes as one event
                await asyncio.sleep(0.01)
            return [event async for event in tickets[number]]

        found = await asyncio.gather(*(read(number) for number in range(len(tickets))))
        assert [ticket.cached_tokens for ticket in tickets[:8]] == [0] * 8  # each of their rows is needed
        assert tickets[-1].cached_tokens > 100  # of what was computed in pieces to be scored
        await scheduler.stop()
        return list(found)

    found = asyncio.run(all_events())
    for events, generation in zip(found[:4], wanted, strict=True):
        first = next(event for event in events if event.steps)
        assert first.scores is not None and generation.prompt_scores is not None
        np.testing.assert_array_equal(first.scores.logprobs, generation.prompt_scores.logprobs)
        np.testing.assert_array_equal(first.scores.best, generation.prompt_scores.best)
        assert [event for event in events if event.scores is not None] == [first]
        assert [step.token for event in events for step in event.steps] == generation.tokens
    for events, generation in zip(found[8:], wanted, strict=True):
        assert [step.token for event in events for step in event.steps] == generation.tokens
    for events, vector in zip(found[4:8], vectors, strict=True):
        (embedding,) = [event.embedding for event in events if event.embedding is not None]
        np.testing.assert_array_equal(embedding, vector)
