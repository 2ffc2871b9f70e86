"""Deliveries on disk, from their arrival until Prefect has them, and afterwards as the memory of what was there already.

SQLite in WAL mode with `synchronous=FULL`: what was answered with 202 survives a loss of power. One thread writes, and takes
whatever waits into one transaction, so that the disk is asked once for many deliveries.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lockgate.domain.tracks import Track
from lockgate.domain.webhooks import Delivery
from lockgate.errors import DeliveryError

WAITING = 1024
"""Deliveries that may wait for the disk; more are turned away, and sent again by whoever sent them."""
BATCH = 256
STORE_SECONDS = 15.0
KEEP_SECONDS = 400 * 24 * 3600.0
"""For how long what was handed over is remembered."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS deliveries (
    model TEXT NOT NULL,
    source TEXT NOT NULL,
    revision TEXT NOT NULL,
    received REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'done', 'dropped')),
    attempts INTEGER NOT NULL DEFAULT 0,
    due REAL NOT NULL,
    note TEXT,
    PRIMARY KEY (model, source, revision)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pending ON deliveries (due) WHERE state = 'pending';
CREATE TABLE IF NOT EXISTS tracks (model TEXT PRIMARY KEY, document TEXT NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Pending:
    """A delivery that Prefect does not have yet."""

    delivery: Delivery
    attempts: int
    received: float


@dataclass
class _Write:
    deliveries: Sequence[Delivery]
    received: float
    done: Future[int]


class Outbox:
    """The database in `path`. Several processes may use it; a crash of any of them loses nothing that was acknowledged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._queue: queue.Queue[_Write | None] = queue.Queue(WAITING)
        self._lock = threading.Lock()
        with _translated(path):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._connection = _connect(path)
            self._connection.executescript(_SCHEMA)
        self._writer = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Write what waits and let go of the database."""
        self._queue.put(None)
        self._writer.join()
        self._connection.close()

    async def store(self, deliveries: Sequence[Delivery], received: float) -> int:
        """Keep deliveries; returns how many were new. They are on disk when this returns.

        Raises:
            DeliveryError: they are not kept; the sender has to send them again.
        """
        write = _Write(deliveries, received, Future())
        try:
            self._queue.put_nowait(write)
        except queue.Full as error:
            raise DeliveryError("more deliveries arrive than the disk takes") from error
        try:
            return await asyncio.wait_for(asyncio.wrap_future(write.done), STORE_SECONDS)
        except TimeoutError as error:
            raise DeliveryError(f"the disk took more than {STORE_SECONDS:.0f} s") from error

    def due(self, now: float, limit: int = 100) -> list[Pending]:
        """Deliveries whose turn it is, the one that waits longest first."""
        rows = self._read(
            "SELECT model, source, revision, attempts, received FROM deliveries"
            " WHERE state = 'pending' AND due <= ? ORDER BY due, received LIMIT ?",
            (now, limit),
        )
        return [
            Pending(Delivery(model=model, source=source, revision=revision), attempts, received)
            for model, source, revision, attempts, received in rows
        ]

    def pending(self) -> int:
        """How many deliveries Prefect does not have yet."""
        return int(self._read("SELECT count(*) FROM deliveries WHERE state = 'pending'", ())[0][0])

    def done(self, delivery: Delivery, flow_run: str) -> None:
        """Prefect has it."""
        self._end(delivery, "done", flow_run)

    def drop(self, delivery: Delivery, reason: str) -> None:
        """It is not to be handed over any more."""
        self._end(delivery, "dropped", reason)

    def postpone(self, delivery: Delivery, due: float, note: str) -> None:
        """It could not be handed over; not to be tried before `due`."""
        self._change(
            "UPDATE deliveries SET attempts = attempts + 1, due = ?, note = ?"
            " WHERE model = ? AND source = ? AND revision = ? AND state = 'pending'",
            (due, note[:500], delivery.model, delivery.source, delivery.revision),
        )

    def forget(self, now: float) -> None:
        """Let go of what was handed over long ago."""
        self._change(
            "DELETE FROM deliveries WHERE state != 'pending' AND received < ?",
            (now - KEEP_SECONDS,),
        )

    def remember_tracks(self, tracks: Sequence[Track]) -> None:
        """Keep the allow-list for a start at which the GitOps repository cannot be read."""
        rows = [(track.model, json.dumps(track.to_data())) for track in tracks]
        with self._lock, _translated(self._path), self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("DELETE FROM tracks")
            self._connection.executemany("INSERT INTO tracks VALUES (?, ?)", rows)

    def remembered_tracks(self) -> tuple[Track, ...]:
        """The allow-list as it was last kept; without those that this version does not understand."""
        tracks = []
        for (document,) in self._read("SELECT document FROM tracks ORDER BY model", ()):
            try:
                tracks.append(Track.model_validate_json(document))
            except ValidationError:
                # Fails closed: its deliveries are turned away until Git can be read.
                continue
        return tuple(tracks)

    def _end(self, delivery: Delivery, state: str, note: str) -> None:
        self._change(
            "UPDATE deliveries SET state = ?, note = ? WHERE model = ? AND source = ? AND revision = ?",
            (state, note[:500], delivery.model, delivery.source, delivery.revision),
        )

    def _change(self, statement: str, values: tuple[Any, ...]) -> None:
        with self._lock, _translated(self._path), self._connection:
            self._connection.execute(statement, values)

    def _read(self, statement: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._lock, _translated(self._path):
            return self._connection.execute(statement, values).fetchall()

    def _write(self) -> None:
        # A connection of its own: whoever hands over does not wait for the disk behind those that arrive.
        connection = _connect(self._path)
        try:
            while True:
                batch, last = self._batch()
                if batch:
                    _store(connection, batch, self._path)
                if last:
                    return
        finally:
            connection.close()

    def _batch(self) -> tuple[list[_Write], bool]:
        batch: list[_Write] = []
        try:
            while len(batch) < BATCH:
                write = self._queue.get(block=not batch)
                if write is None:
                    return batch, True
                # From here on nobody cancels it: what waits for it may be gone, and it is kept all the same.
                write.done.set_running_or_notify_cancel()
                batch.append(write)
        except queue.Empty:
            pass
        return batch, False


def _store(connection: sqlite3.Connection, batch: Sequence[_Write], path: Path) -> None:
    """One transaction for all; none of them is acknowledged before it is committed."""
    try:
        with _translated(path), connection:
            connection.execute("BEGIN IMMEDIATE")
            counts = [_insert(connection, write) for write in batch]
    except DeliveryError as error:
        for write in batch:
            if not write.done.cancelled():
                write.done.set_exception(error)
        return
    for write, count in zip(batch, counts, strict=True):
        if not write.done.cancelled():
            write.done.set_result(count)


def _insert(connection: sqlite3.Connection, write: _Write) -> int:
    return sum(
        connection.execute(
            "INSERT OR IGNORE INTO deliveries (model, source, revision, received, due)"
            " VALUES (?, ?, ?, ?, ?)",
            (d.model, d.source, d.revision, write.received, write.received),
        ).rowcount
        for d in write.deliveries
    )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise DeliveryError(
            f"the database of deliveries, {path}, cannot be used: {error}",
            hint="is the disk full, or the file damaged? without it nothing is acknowledged",
        ) from error
