"""`wf serve`: an OpenAI-compatible server for one model, and its web page."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wrinklefree.errors import InputError

if TYPE_CHECKING:
    from wrinklefree.engine import Engine

# Every option can come from the environment: --api-key from WRINKLEFREE_API_KEY, --queue from WRINKLEFREE_QUEUE.
CONTEXT_SETTINGS = {"auto_envvar_prefix": "WRINKLEFREE"}
_LEAST_KEY_CHARACTERS = 8
_DAY_SECONDS = 86_400
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
_OPEN = (
    "wf: WARNING: --host {} is open to the network WITHOUT an API key: whoever reaches this machine can use the model; "
    "set WRINKLEFREE_API_KEY, or --host 127.0.0.1"
)


Keys = Annotated[
    list[str] | None,
    typer.Option(
        help="a key that clients must send; may be given again. Others on this machine see a command "
        "line: prefer the file or the environment"
    ),
]
Context = Annotated[
    int | None,
    typer.Option(min=1, help="positions of an answer with its prompt; default: the model's, at most 4096"),
]
Origins = Annotated[
    list[str] | None, typer.Option(help="a web page's origin that may call the API; may be given again")
]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        help="a name that requests may give as Host; without a key, a server on this machine alone goes "
        "by localhost only"
    ),
]
Proxies = Annotated[
    list[str] | None,
    typer.Option(help="address of a proxy whose X-Forwarded-For says who asks; may be given again"),
]
IgnoreUnknown = Annotated[
    bool, typer.Option("--ignore-unknown", help="accept request fields that this server does not know")
]


def run(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="a packed model (wf export) or a ternary GGUF file")],
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 is every network")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")] = 8000,
    api_key: Keys = None,
    api_key_file: Annotated[Path | None, typer.Option(help="a file of keys, one a line; # begins a comment")] = None,
    slots: Annotated[int, typer.Option(min=1, max=256, help="answers computed at a time")] = 4,
    cached_prompts: Annotated[int, typer.Option(min=0, max=256, help="further slots, to keep earlier prompts")] = 4,
    ctx: Context = None,
    mode: Annotated[str, typer.Option(help="mode of requests that name none: auto, ar, block or speculative")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="threads; default: physical cores")] = None,
    kv_type: Annotated[str, typer.Option(help="keys and values: float16, float32 or int8")] = "float16",
    queue: Annotated[int, typer.Option(min=0, help="answers that may wait; the next is refused with 429")] = 64,
    request_seconds: Annotated[float, typer.Option(help="most for an answer, from its arrival on")] = 600.0,
    queue_seconds: Annotated[float, typer.Option(help="of that, most for waiting")] = 60.0,
    drain_seconds: Annotated[float, typer.Option(help="how long answers may go on after SIGTERM")] = 30.0,
    name: Annotated[str | None, typer.Option(help="the model's name in requests; default: the file's")] = None,
    cors_origin: Origins = None,
    allow_host: Hosts = None,
    trusted_proxy: Proxies = None,
    access_log: Annotated[bool, typer.Option(help="a line for each request on standard error")] = True,
    ignore_unknown: IgnoreUnknown = False,
) -> None:
    """Listens at once, answers 503 until the model is loaded; SIGTERM lets running answers finish."""
    _check_seconds(request=request_seconds, queue=queue_seconds, drain=drain_seconds)
    if not model.exists():
        raise InputError(f"{model}: found no such file or directory; give one that `wf export` wrote, or a GGUF file")
    keys = read_keys(api_key or [], api_key_file)
    from wrinklefree.engine import DecodingSettings, Engine
    from wrinklefree.server.access_log import LogWriter, log_to
    from wrinklefree.server.run import bind, serve, warm_up
    from wrinklefree.server.settings import ServerSettings

    checked = DecodingSettings(mode=mode).mode  # type: ignore[arg-type]  # before anything is loaded

    def load() -> Engine:
        engine = Engine.load(model, threads=threads, context=ctx, slots=slots + cached_prompts, kv_type=kv_type)
        warm_up(engine, checked)
        return engine

    bound = bind(host, port)
    log = LogWriter(sys.stderr.fileno())
    alone = ipaddress.ip_address(bound.getsockname()[0].split("%")[0]).is_loopback
    if not keys and not alone:
        log.write(_OPEN.format(host))
    log_to(log, access_log)
    settings = ServerSettings(
        model_id=name or model.resolve().name.removesuffix(".gguf"),
        slots=slots,
        cached_prompts=cached_prompts,
        queue=queue,
        request_seconds=request_seconds,
        queue_seconds=queue_seconds,
        drain_seconds=drain_seconds,
        api_keys=keys,
        cors_origins=tuple(cors_origin or ()),
        hosts=tuple(allow_host or ()) + (_LOCAL_HOSTS if alone and not keys else ()),
        trusted_proxies=tuple(trusted_proxy or ()),
        mode=checked,
        ignore_unknown=ignore_unknown,
    )
    serve(bound, load, settings, log)


def _check_seconds(**given: float) -> None:
    for name, seconds in given.items():
        if not 0 <= seconds <= _DAY_SECONDS:
            raise InputError(f"--{name}-seconds: found {seconds}, allowed are 0 to {_DAY_SECONDS}")


def read_keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    """Return the keys of options and file. Raises: InputError, which never quotes a key."""
    found = [("--api-key", key) for key in given]
    if file is not None:
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {file}: {error}") from error
        rows = [(f"--api-key-file {file}:{number}", line.strip()) for number, line in enumerate(lines, 1)]
        rows = [(place, line) for place, line in rows if line and not line.startswith("#")]
        if not rows:
            raise InputError(f"--api-key-file {file}: found no key; write one a line")
        found += rows
    for place, key in found:
        if len(key) < _LEAST_KEY_CHARACTERS or not (key.isascii() and key.isprintable()) or " " in key:
            raise InputError(f"{place}: a key has {_LEAST_KEY_CHARACTERS} or more visible ASCII characters, "
                             f"found {len(key)} characters")  # fmt: skip
    return tuple(dict.fromkeys(key for _, key in found))
