"""The chat page in Chromium: what it shows is what the API says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from looking import Opened, until
from running_server import MODEL, RunningServer

ANSWERED = ".answer .actions:not([hidden])"


def start(opened: Opened, server: RunningServer, **settings: Any) -> Any:
    """Open the page with settings of a user who has been here before."""
    page = opened.page
    page.goto(f"{server.url}/")
    page.evaluate("found => localStorage.setItem('wrinklefree.settings', JSON.stringify(found))", settings)
    page.reload()
    page.wait_for_selector("#model[data-state=ready]")
    return page


def ask(page: Any, text: str) -> None:
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")


def of_the_api(server: RunningServer, text: str, **fields: Any) -> dict[str, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "top_p": 0.9, **fields}
    answer = server.client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("mode", ["ar", "block", "speculative"])
def test_an_answer_and_its_passes_are_those_of_the_api(opened: Opened, server: RunningServer, mode: str) -> None:
    page = start(opened, server, mode=mode, temperature=0, max_tokens=40)
    ask(page, "Hello there")
    page.wait_for_selector(ANSWERED)
    found = of_the_api(server, "Hello there", mode=mode, temperature=0, max_tokens=40)
    assert page.text_content(".answer .prose") == found["choices"][0]["message"]["content"]
    passes = int(page.get_attribute(".track input", "max")) + 1
    assert passes == found["wrinklefree"]["forwards"]
    assert page.locator(".cell.decided:not(.beyond)").count() == found["usage"]["completion_tokens"]
    figures = dict(
        zip(*(page.locator(f".answer .figures {tag}").all_text_contents() for tag in ("dt", "dd")), strict=True)
    )
    assert (figures["mode"], figures["passes"]) == (mode, str(passes))
    assert page.input_value("#prompt") == ""


def test_passes_can_be_looked_at_again(opened: Opened, server: RunningServer) -> None:
    page = start(opened, server, mode="block", temperature=0, max_tokens=32)
    ask(page, "Again")
    page.wait_for_selector(ANSWERED)
    slider = page.locator(".track input")
    last = int(slider.get_attribute("max"))
    everything = page.locator(".cell.decided:not([hidden])").count()
    slider.focus()
    page.keyboard.press("Home")
    assert page.text_content(".readout").startswith(f"Pass 1 of {last + 1}")
    assert 0 < page.locator(".cell.decided:not([hidden])").count() < everything
    waiting = []
    for _ in range(min(last, 8)):  # the block in which the prompt ends may have one open position alone
        waiting.append(page.locator(".cell.waiting:not([hidden])").count())
        page.keyboard.press("ArrowRight")
    assert max(waiting) > 1, "the positions of a block that are still open show their guesses"
    page.keyboard.press("End")
    assert page.locator(".cell.decided:not([hidden])").count() == everything
    page.keyboard.press("Home")
    page.locator(".pass-row select").select_option("1")
    page.get_by_role("button", name="Replay").click()
    until(page, "last => Number(document.querySelector('.track input').value) === last", last)
    page.get_by_role("button", name="Replay").wait_for()


def test_stop_ends_the_work_on_the_server(opened: Opened, server: RunningServer) -> None:
    page = start(opened, server, mode="ar", temperature=0, max_tokens=900, repetition_penalty=1.3)
    page.evaluate("document.getElementById('watch').click()")
    ask(page, "Go on for ever")
    until(page, "document.querySelector('.answer .prose').textContent.length > 3")
    page.keyboard.press("Escape")
    page.wait_for_selector(ANSWERED)
    assert "stopped by you" in page.text_content(".answer .figures")
    # One slot after the other is asked for: four answers at once are served only when the stopped one has left.
    for _ in range(5):
        of_the_api(server, "Short", max_tokens=2, temperature=0)
    page.wait_for_selector("#send:visible")


def test_the_conversation_is_sent_along_and_can_begin_anew(opened: Opened, server: RunningServer) -> None:
    page = start(opened, server, temperature=0, max_tokens=6, system="Be brief.")
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.post_data else None)
    ask(page, "One")
    page.wait_for_selector(ANSWERED)
    first = page.text_content(".answer .prose")
    ask(page, "Two")
    until(page, f"document.querySelectorAll('{ANSWERED}').length === 2")
    turns = [("system", "Be brief."), ("user", "One"), ("assistant", first), ("user", "Two")]
    assert [(turn["role"], turn["content"]) for turn in bodies[-1]["messages"]] == turns
    page.get_by_role("button", name="New chat").click()
    assert page.locator(".message").count() == 0
    assert page.is_visible("#headline")


def test_what_a_model_writes_is_text(opened: Opened, server: RunningServer) -> None:
    """The answer is ours here: no toy writes HTML."""
    page = start(opened, server)
    evil = "<img src=x onerror=\"document.title='bad'\"><script>document.title='bad'</script> **bold** &amp;"
    chunk = '{"choices":[{"index":0,"delta":{"content":%s},"finish_reason":null}]}'
    lines = [": waiting", f"data: {chunk % json.dumps(evil)}", "data: [DONE]", ""]
    stream = {"headers": {"content-type": "text/event-stream"}, "body": "\r\n\r\n".join(lines)}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, **stream))
    page.evaluate("document.getElementById('watch').checked = false")
    ask(page, evil)
    page.wait_for_selector(ANSWERED)
    assert page.text_content(".answer .prose") == evil
    assert page.text_content(".message.user p") == evil
    assert page.locator(".message img, .message script").count() == 0
    assert "bad" not in page.title()


def test_a_refusal_is_shown_and_the_words_come_back(opened: Opened, server: RunningServer) -> None:
    page = start(opened, server, temperature=0, max_tokens=6)
    ask(page, "One")
    page.wait_for_selector(ANSWERED)
    ask(page, "x" * 3000)  # does not fit into the context
    page.wait_for_selector(".failure")
    assert page.get_attribute(".failure", "role") == "alert"
    assert page.input_value("#prompt") == "x" * 3000
    assert page.locator(".message.user").count() == 1, "what was refused is no part of the conversation"
    opened.complaints.clear()  # the browser itself reports the status 400
    bodies: list[dict[str, Any]] = []
    page.on("request", lambda request: bodies.append(request.post_data_json) if request.post_data else None)
    ask(page, "Two")
    until(page, f"document.querySelectorAll('{ANSWERED}').length === 3")
    assert [turn["content"] for turn in bodies[-1]["messages"] if turn["role"] == "user"] == ["One", "Two"]
    page.get_by_role("button", name="Answer again").last.click()
    until(page, f"document.querySelectorAll('{ANSWERED}').length === 3 && !document.querySelector('[aria-busy]')")
    assert bodies[-1]["messages"] == bodies[-2]["messages"] and len(bodies) == 2


def test_a_key_is_asked_for_and_kept_for_the_tab_alone(opened: Opened, toy: Any) -> None:
    key = "a-key-of-this-test"
    with RunningServer(toy, api_keys=(key,)) as server:
        page = opened.page
        page.goto(f"{server.url}/")
        page.wait_for_selector("#model[data-state=error]")
        assert page.evaluate("document.activeElement.id") == "set-key"
        opened.complaints.clear()  # the browser itself reports the status 401
        page.keyboard.type(key)
        page.wait_for_selector("#model[data-state=ready]")
        ask(page, "Hello")
        page.wait_for_selector(ANSWERED)
        assert page.locator(".failure").count() == 0
        assert key not in page.evaluate("JSON.stringify(localStorage)")
        opened.complaints.clear()
        page.goto("about:blank")


def test_three_modes_side_by_side(opened: Opened, server: RunningServer) -> None:
    page = start(opened, server, temperature=0, max_tokens=24)
    page.click("#tab-compare")
    page.fill("#compare-prompt", "Side by side")
    page.press("#compare-prompt", "Enter")
    until(page, "document.querySelectorAll('.lane .against .length').length === 3")
    assert page.locator(".lane h2").all_text_contents() == ["Autoregressive", "Block diffusion", "Self-speculative"]
    modes = ["ar", "block", "speculative"]
    assert page.locator(".lane .answer").evaluate_all("found => found.map((one) => one.dataset.mode)") == modes
    texts = page.locator(".lane .prose").all_text_contents()
    assert texts[0] == texts[2] == of_the_api(server, "Side by side", mode="ar", temperature=0, max_tokens=24)[
        "choices"][0]["message"]["content"]  # fmt: skip
    verdicts = page.locator(".lane .against span").all_text_contents()
    assert verdicts[0] == "the reference"
    assert verdicts[2].endswith("the same text")
    shares = [float(text) for text in page.locator(".lane .big div:nth-child(2) b").all_text_contents()]
    assert shares[0] == 1.0
