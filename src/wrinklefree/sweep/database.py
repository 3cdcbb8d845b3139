"""The database of a study: its three tables, how it is opened, and whose clock counts."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError, ProgrammingError, SQLAlchemyError

from wrinklefree.errors import InputError, MissingDependencyError

FORMAT = 1
_BUSY_SECONDS = 60
_CREATE_TRIES = 20
_NAME = 200  # a key column needs a bound on some databases

METADATA = sql.MetaData()
STUDIES = sql.Table(
    "wrinklefree_studies",
    METADATA,
    sql.Column("study", sql.String(_NAME), primary_key=True),
    sql.Column("format", sql.Integer, nullable=False),
    sql.Column("fingerprint", sql.String(64), nullable=False),
    sql.Column("space", sql.Text, nullable=False),
    sql.Column("created", sql.Double, nullable=False),
    sql.Column("holder", sql.String(_NAME)),  # who may propose trials now, until when
    sql.Column("held_until", sql.Double),
)
TRIALS = sql.Table(
    "wrinklefree_trials",
    METADATA,
    sql.Column("study", sql.String(_NAME), primary_key=True),
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("state", sql.String(16), nullable=False),
    sql.Column("origin", sql.String(32), nullable=False),
    sql.Column("parameters", sql.Text, nullable=False),
    sql.Column("worker", sql.String(_NAME)),
    sql.Column("attempts", sql.Integer, nullable=False),
    sql.Column("lost", sql.Integer, nullable=False),
    sql.Column("started", sql.Double),
    sql.Column("beat", sql.Double),
    sql.Column("ended", sql.Double),
    sql.Column("figures", sql.Text, nullable=False),
    sql.Column("curve", sql.Text, nullable=False),
    sql.Column("error", sql.Text),
    sql.Column("directory", sql.Text),
)
EVENTS = sql.Table(
    "wrinklefree_events",
    METADATA,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("study", sql.String(_NAME), nullable=False, index=True),
    sql.Column("number", sql.Integer, nullable=False),
    sql.Column("time", sql.Double, nullable=False),
    sql.Column("what", sql.String(16), nullable=False),
    sql.Column("worker", sql.String(_NAME)),
)


def open_database(storage: str) -> sql.Engine:
    """Return the engine of a database URL or of a SQLite file's path, with our tables in it.

    SQLite: write-ahead log, a minute's patience with other writers, and every transaction takes the write lock when
    it begins, so that none fails in its middle.

    Raises: InputError for a URL that is none, or a database that does not answer (its password is never printed);
    MissingDependencyError for a driver that is not installed.
    """
    url = _url(storage)
    place = url.render_as_string(hide_password=True)
    try:
        engine = sql.create_engine(url, **_settings(url))
        if url.get_backend_name() == "sqlite":
            _prepare_sqlite(engine)
        _create_tables(engine)
    except NoSuchModuleError as error:
        raise InputError(f"--storage {place}: SQLAlchemy knows no database of this kind ({error})") from error
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"--storage {place}: needs its driver; pip install {error.name}") from error
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip()
        raise InputError(f"--storage {place}: the database does not answer ({reason})") from error
    return engine


def shown(storage: str) -> str:
    """Return the URL without its password."""
    return _url(storage).render_as_string(hide_password=True)


def now(connection: sql.Connection) -> float:
    """Return seconds since 1970 by the database's clock, so that machines need not agree about the time.

    SQLite has no server: its file belongs to one machine, whose clock is right by definition. A database of a kind
    that is not named here uses the worker's clock too; then the machines' clocks have to agree within seconds.
    """
    asked = {"postgresql": "extract(epoch from clock_timestamp())", "mysql": "unix_timestamp(now(6))"}
    expression = asked.get(connection.dialect.name.replace("mariadb", "mysql"))
    return (
        time.time() if expression is None else float(connection.execute(sql.text(f"select {expression}")).scalar_one())
    )


def _url(storage: str) -> sql.URL:
    if "://" not in storage:
        return sql.URL.create("sqlite", database=str(Path(storage)))
    try:
        url = sql.make_url(storage)
    except (ArgumentError, ValueError) as error:
        raise InputError(
            "--storage: this is no database URL; allowed is a SQLite file's path, sqlite:///FILE, or "
            "postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from error
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def _settings(url: sql.URL) -> dict[str, Any]:
    if url.get_backend_name() != "sqlite":
        return {"pool_pre_ping": True, "pool_size": 2}
    if not url.database or url.database == ":memory:":
        raise InputError("--storage: a SQLite database in memory is gone with its process; name a file")
    Path(url.database).absolute().parent.mkdir(parents=True, exist_ok=True)
    return {"connect_args": {"timeout": _BUSY_SECONDS}}


def _prepare_sqlite(engine: sql.Engine) -> None:
    @event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None  # we begin transactions ourselves
        for attempt in range(_CREATE_TRIES):
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError:  # the change of mode does not wait for other processes
                if attempt == _CREATE_TRIES - 1:
                    raise
                time.sleep(0.05 * (attempt + 1))
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def _begun(connection: sql.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _create_tables(engine: sql.Engine) -> None:
    """Create what is missing; several workers may start at once, and on most databases that race has losers."""
    for attempt in range(_CREATE_TRIES):
        try:
            with engine.begin() as connection:
                METADATA.create_all(connection)
            return
        except (ProgrammingError, OperationalError, sql.exc.IntegrityError):
            with engine.connect() as connection:
                there = set(sql.inspect(connection).get_table_names())
            if METADATA.tables.keys() <= there:
                return
            if attempt == _CREATE_TRIES - 1:
                raise
            time.sleep(0.05 * (attempt + 1))
