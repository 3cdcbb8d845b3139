"""A small server that speaks the completions protocol with echo and logprobs, backed by a toy model, in a thread."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import nn


class StandIn:
    """``style``: how tokens are named, ``ids`` ("token_id:5"), ``lists`` (the extension) or ``text``.

    ``fail_first``: so many requests are answered 503. ``dies_after``: so many are answered, then it shuts down.
    """

    def __init__(
        self, model: nn.Module, most: int = 20, style: str = "ids", fail_first: int = 0, dies_after: int | None = None,
        port: int = 0,
    ) -> None:  # fmt: skip
        self.model, self.most, self.style, self.fail_first, self.dies_after = model, most, style, fail_first, dies_after
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answered = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def do_GET(self) -> None:
                self._answer({})

            def _answer(self, body: dict[str, Any]) -> None:
                with outer._lock:
                    code, answer = outer.respond(self.path, body, dict(self.headers))
                if code is None:
                    self.close_connection = True
                    return
                data = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *values: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *reason: Any) -> None:
        self.close()

    def respond(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int | None, Any]:
        self.requests.append(body)
        self.headers.append(headers)
        if self.dies_after is not None and self.answered >= self.dies_after:
            return None, None
        if path != "/v1/completions" or not body["echo"]:
            return 404, {"error": "no such thing"}
        if len(self.requests) <= self.fail_first:
            return 503, {"error": "busy"}
        if body["logprobs"] > self.most:
            return 400, {"error": f"Requested sample logprobs of {body['logprobs']}, greater than max allowed logprobs"}
        self.answered += 1
        choices = [self._choice(i, prompt, body["logprobs"]) for i, prompt in enumerate(body["prompt"])]
        return 200, {"choices": choices[::-1]}  # the order is not promised

    @torch.no_grad()
    def _choice(self, index: int, prompt: list[int], top_k: int) -> dict[str, Any]:
        ids = torch.tensor([prompt])
        # Every prompt alone, as a server would that knows nothing of packing.
        found = torch.log_softmax(self.model(input_ids=ids).logits[0].float(), dim=-1)
        echoed = [*prompt, int(found[-1].argmax())]  # one token is generated
        top = found.topk(top_k, dim=-1)
        best: list[Any] = [None]  # nothing precedes the first
        for t in range(len(prompt)):
            pairs = dict(zip(top.indices[t].tolist(), top.values[t].tolist(), strict=True))
            pairs[echoed[t + 1]] = float(found[t, echoed[t + 1]])  # what followed is listed beside the best
            best.append(pairs)
        if self.style == "lists":
            ordered = [None if b is None else sorted(b.items(), key=lambda p: -p[1])[:top_k] for b in best]
            split = [[None if b is None else [pair[i] for pair in b] for b in ordered] for i in (0, 1)]
            logprobs = {"token_ids": echoed, "top_token_ids": split[0], "top_token_logprobs": split[1]}
        else:
            name = "token_id:{}" if self.style == "ids" else "{}"
            logprobs = {
                "tokens": [name.format(token) for token in echoed],
                "top_logprobs": [None if b is None else {name.format(t): v for t, v in b.items()} for b in best],
            }
        return {"index": index, "text": "", "logprobs": logprobs}
