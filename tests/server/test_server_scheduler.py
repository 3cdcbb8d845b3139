"""Cancellation, bounds, deadlines, stopping and failures of the thread that computes."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scheduling import AR, endless, held, prompt, scheduling, submit_all, tokens_of, until, work

from wrinklefree.engine import DecodingSettings, Engine, SamplingParams, greedy
from wrinklefree.engine.autoregressive import TokenByToken
from wrinklefree.errors import FormatError, InputError
from wrinklefree.server.errors import ApiError
from wrinklefree.server.scheduler import Scheduler
from wrinklefree.server.work import Work

LONG = 400  # tokens: an answer that is never finished in a test that cancels it


@pytest.fixture(scope="module")
def engine(toy: Path) -> Engine:
    return Engine.load(toy, threads=1, context=512, slots=2)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def alone(engine: Engine, tokens: Any, count: int) -> list[int]:
    return engine.generate(tokens, endless(count)).run().tokens


def test_answers_in_a_crowd_are_those_of_the_engine_alone(engine: Engine) -> None:
    prompts = [np.arange(3 + i, 20 + 3 * i, dtype=np.int32) for i in range(6)]
    wanted = [engine.generate(prompt, greedy(12)).run().tokens for prompt in prompts]

    async def together() -> None:
        async with scheduling(engine) as scheduler:
            tickets = [scheduler.submit(Work(prompt, greedy(12), DecodingSettings())) for prompt in prompts]
            assert [await tokens_of(ticket) for ticket in tickets] == wanted
            statistics = scheduler.statistics
            assert sum(statistics.ended.values()) == statistics.received == 6
            assert statistics.generated_tokens == sum(map(len, wanted))
            assert sum(statistics.first_token_seconds.counts) == 6

    run(together())


def test_a_full_queue_refuses_at_once_and_room_is_taken_again(engine: Engine) -> None:
    async def flood() -> None:
        async with scheduling(engine, queue=2) as scheduler:
            with held(scheduler):
                tickets = [scheduler.submit(work(prompt(5), LONG)) for _ in range(4)]
                for _ in range(50):
                    with pytest.raises(ApiError, match="busy: 2 requests are waiting") as refusal:
                        scheduler.submit(work(prompt(5), 1))
                tickets[3].cancel()
                last = scheduler.submit(work(prompt(6), 3))
            assert refusal.value.status == 429 and refusal.value.code == "queue_full"
            assert refusal.value.retry_after is not None and refusal.value.retry_after >= 1
            assert scheduler.statistics.refused == {"queue_full": 50}
            assert await tokens_of(tickets[3]) == []
            for ticket in tickets:
                ticket.cancel()
            assert await tokens_of(last) == alone_last

    alone_last = alone(engine, prompt(6), 3)
    run(flood())


def test_no_queue_at_all_still_serves_as_many_as_there_are_slots(engine: Engine) -> None:
    async def few() -> None:
        async with scheduling(engine, queue=0) as scheduler:
            with held(scheduler):
                tickets = [scheduler.submit(work(prompt(5), 9)) for _ in range(2)]
                with pytest.raises(ApiError, match="busy: 0 requests are waiting"):
                    scheduler.submit(work(prompt(5), 1))
            assert [len(await tokens_of(ticket)) for ticket in tickets] == [9, 9]

    run(few())


def test_cancelling_in_the_queue_in_prefill_and_in_decoding_disturbs_nobody(engine: Engine) -> None:
    wanted = alone(engine, prompt(9), 40)

    async def cancel() -> None:
        async with scheduling(engine) as scheduler:
            with held(scheduler) as allow:
                survivor, prefilling, queued = submit_all(
                    scheduler, work(prompt(9), 40), work(prompt(500), 5), work(prompt(5), 5)
                )
                allow(1)  # all of the one, a piece of the other
                assert len((await anext(survivor)).steps) == 1
                queued.cancel()
                assert scheduler.waiting == 0
                prefilling.cancel()
                prefilling.cancel()
                allow(2)
                await until(lambda: scheduler.running == 1, "leaving")
                decoding = scheduler.submit(work(prompt(7), LONG))
                allow(2)
                assert (await anext(decoding)).steps
                decoding.cancel()
            assert await tokens_of(survivor) == wanted[1:]
            assert await tokens_of(prefilling) == await tokens_of(queued) == []
            await tokens_of(decoding)
            ended = scheduler.statistics.ended
            assert ended == {"cancelled_prefill": 1, "cancelled_waiting": 1, "cancelled_decoding": 1, "length": 1}

    run(cancel())


def test_after_a_cancel_the_pass_under_way_is_the_last(engine: Engine) -> None:
    async def cancel() -> None:
        async with scheduling(engine) as scheduler:
            ticket = scheduler.submit(work(prompt(9), LONG))
            await anext(ticket)
            ticket.cancel()
            passes = scheduler.statistics.passes
            await until(lambda: scheduler.running == 0, "leaving")
            assert scheduler.statistics.passes <= passes + 1

    run(cancel())


def test_wrong_orders_are_refused_when_they_come(engine: Engine) -> None:
    async def wrong() -> None:
        async with scheduling(engine) as scheduler:
            with pytest.raises(InputError, match="600 tokens are more than the context of 512"):
                scheduler.submit(work(prompt(600), 3))
            with pytest.raises(InputError, match="found no token"):
                scheduler.submit(work([], 3))
            with pytest.raises(InputError, match="mode block"):
                scheduler.submit(work(prompt(4), 3, decoding=DecodingSettings(mode="block")))
            assert scheduler.waiting == scheduler.running == 0
            assert len(await tokens_of(scheduler.submit(work(prompt(4), 3)))) == 3

    run(wrong())


def test_time_limits_of_the_queue_and_of_an_answer(engine: Engine) -> None:
    async def late() -> None:
        async with scheduling(engine, queue_seconds=50, request_seconds=100, slots=1) as scheduler:
            with held(scheduler) as allow:
                runs, waits = submit_all(scheduler, work(prompt(30), LONG), work(prompt(5), 2))
                allow(1)
                assert (await anext(runs)).steps
                next(iter(scheduler._queue)).arrived -= 51
                allow(1)
                with pytest.raises(ApiError, match="no slot was free within 50 s") as error:
                    await tokens_of(waits)
                assert error.value.status == 429 and error.value.retry_after
                scheduler._running[0].arrived -= 101
                allow(1)
                with pytest.raises(ApiError, match="not finished within 100 s") as error:
                    await tokens_of(runs)
                assert error.value.status == 504
            assert scheduler.statistics.ended == {"timeout": 2} and scheduler.running == 0

    run(late())


def test_stopping_lets_answers_finish_and_takes_no_more(engine: Engine) -> None:
    async def drain() -> None:
        async with scheduling(engine) as scheduler:
            tickets = [scheduler.submit(work(prompt(5 + i), 20)) for i in range(4)]
            scheduler.drain()
            with pytest.raises(ApiError, match="stopping") as refusal:
                scheduler.submit(work(prompt(5), 1))
            assert refusal.value.status == 503 and scheduler.stopping
            assert [len(await tokens_of(ticket)) for ticket in tickets] == [20] * 4
            await scheduler.stop()

    run(drain())


def test_stopping_at_once_ends_every_answer_with_an_error(engine: Engine) -> None:
    async def cut() -> None:
        async with scheduling(engine) as scheduler:
            with held(scheduler) as allow:
                tickets = submit_all(scheduler, *[work(prompt(5), LONG)] * 4)
                allow(1)
                await anext(tickets[0])
                scheduler.drain(0)
            await scheduler.stop()
            for ticket in tickets:
                with pytest.raises(ApiError, match="stopping"):
                    await tokens_of(ticket)
            assert scheduler.statistics.ended == {"stopping": 4}

    run(cut())


def test_a_client_that_does_not_read_is_broken_off(engine: Engine) -> None:
    async def lazy() -> None:
        async with scheduling(engine, reader_seconds=100) as scheduler:
            with held(scheduler) as allow:
                ticket, reads = submit_all(scheduler, work(prompt(5), LONG), work(prompt(5), 5))
                allow(2)
                assert (await anext(reads)).steps
                await until(lambda: ticket.unread_since is not None)
                ticket.unread_since -= 101
                allow(4)
                assert len(await tokens_of(reads)) >= 3
            with pytest.raises(ApiError, match="not read") as error:
                assert 1 <= len((await anext(ticket)).steps) <= 3
                await tokens_of(ticket)
            assert error.value.code == "slow_reader" and scheduler.statistics.ended["slow_reader"] == 1

    run(lazy())


def test_what_was_not_taken_yet_is_one_event(engine: Engine) -> None:
    async def patient() -> None:
        async with scheduling(engine) as scheduler:
            ticket = scheduler.submit(Work(prompt(5), endless(30), DecodingSettings(mode="ar"), watch=True))
            await until(lambda: ticket._ended)
            events = [event async for event in ticket]
            assert [len(event.steps) for event in events] == [30] and len(events[0].passes) == 30
            assert ticket.forwards == 30 and ticket.unread_since is None

    run(patient())


class Fails(TokenByToken):
    """Computes three tokens, then the fourth raises."""

    error: BaseException = FormatError("logits: found NaN or infinity")

    def take(self, rows: Any) -> Any:
        if self.forwards == 3:
            raise self.error
        return super().take(rows)


def fail_on(scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, seed: int, error: BaseException) -> None:
    """Let the answer of this seed fail."""
    prepare = scheduler._together.prepare

    def prepared(tokens: Any, params: SamplingParams, *more: Any) -> Any:
        generation = prepare(tokens, params, *more)
        if params.seed == seed:
            decoder = generation._seat.decoder
            decoder.__class__ = type("Failing", (Fails,), {"error": error})
        return generation

    monkeypatch.setattr(scheduler._together, "prepare", prepared)


@pytest.mark.parametrize(("error", "told"), [(FormatError, "found /secret NaN"), (MemoryError, "its log says why")])
def test_an_answer_that_fails_fails_alone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: type[Exception], told: str
) -> None:
    wanted = alone(engine, prompt(9), 12)

    async def failing() -> None:
        async with scheduling(engine, slots=2) as scheduler:
            fail_on(scheduler, monkeypatch, 7, error("found /secret NaN"))
            good = scheduler.submit(work(prompt(9), 12))
            bad = scheduler.submit(
                Work(prompt(9), SamplingParams(12, 0.0, seed=7, ignore_eos=True), DecodingSettings(mode="ar"))
            )
            found = []
            with pytest.raises(ApiError, match=told) as failure:
                async for event in bad:
                    found += [step.token for step in event.steps]
            assert failure.value.status == 500 and found == wanted[:3]
            assert await tokens_of(good) == wanted
            assert await tokens_of(scheduler.submit(work(prompt(9), 12))) == wanted
            assert scheduler.statistics.ended == {"failed": 1, "length": 2}

    run(failing())


def test_a_pass_that_fails_ends_its_answers_and_the_next_is_served(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing() -> None:
        async with scheduling(engine) as scheduler:
            with monkeypatch.context() as patch:

                class NoMemory:
                    vocab_size = engine.vocab_size

                    def forward_batch(self, *_: object) -> None:
                        raise MemoryError

                patch.setattr(scheduler._together._passes, "_model", NoMemory())
                tickets = submit_all(scheduler, *[work(prompt(5), 5)] * 2)
                for ticket in tickets:
                    with pytest.raises(ApiError, match="its log says why"):
                        await tokens_of(ticket)
            assert await tokens_of(scheduler.submit(work(prompt(5), 5))) == wanted

    wanted = alone(engine, prompt(5), 5)
    run(failing())


def test_a_broken_engine_ends_all_answers_and_says_so(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def breaking() -> None:
        seen: list[BaseException] = []
        async with scheduling(engine, slots=1) as scheduler:
            scheduler.on_failure = seen.append

            def broken() -> bool:
                raise SystemError("bad")

            monkeypatch.setattr(scheduler._together, "run", broken)
            tickets = submit_all(scheduler, *[work(prompt(5), 5)] * 5)
            for ticket in tickets:
                with pytest.raises(ApiError) as failure:
                    await tokens_of(ticket)
                assert failure.value.status == 500
            await until(lambda: bool(seen))
            assert isinstance(seen[0], SystemError) and scheduler.failure is seen[0]
            with pytest.raises(ApiError, match="failed to compute"):
                scheduler.submit(work(prompt(5), 5))

    run(breaking())


def test_clients_take_turns(engine: Engine) -> None:
    async def turns() -> None:
        order: list[str] = []
        async with scheduling(engine, slots=1) as scheduler:
            clients = ["many"] * 6 + ["few", "few", "one"]
            tickets = submit_all(scheduler, *(work(prompt(4), 2, client) for client in clients))

            async def watch(client: str, ticket: Any) -> None:
                await tokens_of(ticket)
                order.append(client)

            await asyncio.gather(*map(watch, clients, tickets))
        assert order == ["many", "few", "one", "many", "few", "many", "many", "many", "many"]

    run(turns())


def test_choices_of_one_prompt_share_its_computation(engine: Engine) -> None:
    async def choices() -> None:
        async with scheduling(engine) as scheduler:
            wanted = [engine_answers[seed] for seed in (1, 2)]
            works = [Work(prompt(300), replace(endless(6), temperature=1.0, seed=seed), AR) for seed in (1, 2)]
            tickets = submit_all(scheduler, *works)
            assert [await tokens_of(ticket) for ticket in tickets] == wanted
            assert [ticket.cached_tokens for ticket in tickets] == [0, 298]
            again = scheduler.submit(works[1])
            assert await tokens_of(again) == wanted[1] and again.cached_tokens == 298
            statistics = scheduler.statistics
            assert (statistics.prompt_tokens, statistics.cached_tokens) == (900, 596)

    params = {seed: replace(endless(6), temperature=1.0, seed=seed) for seed in (1, 2)}
    engine_answers = {seed: engine.generate(prompt(300), each, AR).run().tokens for seed, each in params.items()}
    run(choices())


def test_t13_fifty_requests_one_after_the_other_on_one_slot(toy: Path) -> None:
    engine = Engine.load(toy, threads=1, context=96, slots=1)
    lengths = [1, 65, 7, 8, 9, 31, 64, 2, 80, 1]
    wanted = {length: alone(engine, prompt(length), 8) for length in lengths}

    async def fifty() -> None:
        async with scheduling(engine) as scheduler:
            for number in range(50):
                length = lengths[number % len(lengths)]
                assert await tokens_of(scheduler.submit(work(prompt(length), 8))) == wanted[length]

    run(fifty())


def test_nothing_of_an_answer_is_kept_when_its_ticket_is_gone(engine: Engine) -> None:
    async def forget() -> None:
        async with scheduling(engine) as scheduler:
            with held(scheduler) as allow:
                tickets = submit_all(scheduler, *[work(prompt(5 + i), LONG if i == 1 else 2) for i in range(3)])
                kept = [weakref.ref(job.generation) for job in scheduler._queue]
                tickets[2].cancel()
                allow(1)
                await anext(tickets[0])
                kept += [weakref.ref(job.generation) for job in scheduler._running]
                tickets[1].cancel()
            for ticket in tickets:
                await tokens_of(ticket)
            await until(lambda: scheduler.running == 0)
            tickets.clear()
            del ticket
            await until(lambda: not any(each() for each in kept), "forgetting")

    gc.disable()
    try:
        run(forget())
    finally:
        gc.enable()


def test_after_a_flood_the_first_quiet_request_finds_no_stale_work(engine: Engine) -> None:
    async def flood() -> None:
        async with scheduling(engine, queue=20) as scheduler:
            with held(scheduler):
                tickets = submit_all(scheduler, *[work(prompt(9), LONG, f"client {i}") for i in range(22)])
                for _ in range(200):
                    with pytest.raises(ApiError, match="20 requests are waiting"):
                        scheduler.submit(work(prompt(9), LONG))
                for ticket in tickets:
                    ticket.cancel()
                assert scheduler.waiting == 0
                quiet = scheduler.submit(work(prompt(6), 3))
                before = scheduler.statistics.passes
            assert await tokens_of(quiet) == wanted
            assert scheduler.statistics.passes <= before + 1 + 3  # the one under way, and its own

    wanted = alone(engine, prompt(6), 3)
    run(flood())


def test_idle_costs_no_processor_time(engine: Engine) -> None:
    async def idle() -> None:
        async with scheduling(engine) as scheduler:
            await tokens_of(scheduler.submit(work(prompt(5), 5)))
            await until(lambda: scheduler.running == 0)
            turns: list[int] = []
            admit = scheduler._admit
            scheduler._admit = lambda now: (turns.append(1), admit(now))[1]  # type: ignore[method-assign,func-returns-value]
            await asyncio.sleep(0.1)
            assert turns == []

    run(idle())
