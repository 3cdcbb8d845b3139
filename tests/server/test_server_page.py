"""The page's files over HTTP: all there, closed against the outside, and naming nothing that is not there."""

from __future__ import annotations

import re

import pytest
from running_server import RunningServer

from wrinklefree.server.routes.page import DIRECTORY

FILES = sorted(path.name for path in DIRECTORY.iterdir() if path.is_file())


def test_the_page_has_no_inline_code_and_a_policy_that_forbids_it(server: RunningServer) -> None:
    answer = server.client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon[a-z]+=", answer.text)


@pytest.mark.parametrize("name", FILES)
def test_each_file_is_served_as_it_is_and_names_only_files_of_ours(server: RunningServer, name: str) -> None:
    answer = server.client.get(f"/page/{name}")
    assert (answer.status_code, answer.content) == (200, (DIRECTORY / name).read_bytes())
    again = server.client.get(f"/page/{name}", headers={"If-None-Match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for found in re.findall(r"/page/([\w.-]+)|from \"\./([\w.-]+)\"", answer.text):
        assert "".join(found) in FILES
    foreign = [url for url in re.findall(r"https?://[^\s\"'`)]+", answer.text) if "www.w3.org/2000/svg" not in url]
    assert not foreign, "the page works without a network"
    assert "innerHTML" not in answer.text and "document.write" not in answer.text, "text of a model is text"


@pytest.mark.parametrize("name", ["nothing.js", "..%2fapp.py", "%2e%2e/app.py", "index.html.bak", "", "__init__.py"])
def test_nothing_else_is_served(server: RunningServer, name: str) -> None:
    answer = server.client.get(f"/page/{name}")
    assert answer.status_code == 404
    assert b"import" not in answer.content
