"""Accepted jobs on disk, in SQLite: what is accepted survives the process, and gets exactly one final state.

One process has the file for itself. No write-ahead log: on a network volume that is not safe.
"""

import sqlite3
import time
import uuid
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, Self

import aiosqlite

State = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINAL = frozenset({"succeeded", "failed", "cancelled"})

TABLE = """
create table if not exists jobs (
    id text primary key, owner text not null, idempotency_key text, digest text not null, request_id text not null,
    route text not null, state text not null, attempts integer not null, created real not null, due real not null,
    ended real, status integer, body blob, answer blob, unique (owner, idempotency_key)
)
"""
INDEX = "create index if not exists jobs_by_state on jobs (state)"  # else each look reads through every body
FAR_SECONDS = 600.0  # no wait is longer: what is due after that was put back before the clock was


@dataclass(frozen=True)
class Job:
    """One row. `owner` and `digest` are digests: of the key shown, of route and body. Times in Unix seconds; not before
    `due` is it tried (again). `body` is dropped with the final state, which has `status` and `answer`."""

    id: str
    owner: str
    idempotency_key: str | None
    digest: str
    request_id: str
    route: str
    body: bytes | None
    state: State
    attempts: int
    created: float
    due: float
    ended: float | None = None
    status: int | None = None
    answer: bytes | None = None


COLUMNS = ", ".join(each.name for each in fields(Job))
PLACES = ", ".join(f":{each.name}" for each in fields(Job))


class Journal:
    """Every method is one transaction, durable when it returns."""

    def __init__(self, database: aiosqlite.Connection) -> None:
        self._database = database

    @classmethod
    async def open(cls, path: Path) -> Self:
        """What a process that is no more was running waits again. Raises OSError or sqlite3.Error where it cannot be
        had, or another process has it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        database = await aiosqlite.connect(path, isolation_level=None, timeout=2)
        try:
            # Truncated: under an exclusive lock it is not deleted, and would keep the text that is dropped.
            for pragma in ("locking_mode=exclusive", "journal_mode=truncate", "synchronous=full", "secure_delete=on"):
                await database.execute(f"pragma {pragma}")
            await database.execute("begin exclusive")  # the lock is taken here, and kept
            await database.execute(TABLE)
            await database.execute(INDEX)
            await database.execute("update jobs set state = 'queued' where state = 'running'")
            await database.execute("commit")
        except sqlite3.Error:
            await database.close()
            raise
        return cls(database)

    async def close(self) -> None:
        await self._database.close()

    async def accept(self, job: Job) -> Job:
        """The job as it is recorded: this one, or that of its owner which has its idempotency key already."""
        await self._database.execute(f"insert or ignore into jobs ({COLUMNS}) values ({PLACES})", vars(job))
        return await self.recall(job.owner, job.idempotency_key) or job

    async def recall(self, owner: str, key: str | None) -> Job | None:
        """This owner's job of that idempotency key."""
        return None if key is None else await self._one("owner = ? and idempotency_key = ?", owner, key)

    async def find(self, identity: str, owner: str) -> Job | None:
        """The job, if it is this owner's."""
        return await self._one("id = ? and owner = ?", identity, owner)

    async def claim(self) -> Job | None:
        """The oldest that is due, now running."""
        due = "select id from jobs where state = 'queued' and (due <= ? or due > ?) order by rowid limit 1"
        now = time.time()
        return await self._change(
            f"update jobs set state = 'running', attempts = attempts + 1 where id = ({due})", now, now + FAR_SECONDS
        )

    async def put_back(self, identity: str, seconds: float, tried: bool = True) -> bool:
        """Queue a running one again, in `seconds`; what was not its fault is not counted as tried."""
        changed = await self._change(
            "update jobs set state = 'queued', due = ?, attempts = attempts - ? where id = ? and state = 'running'",
            time.time() + seconds,
            0 if tried else 1,
            identity,
        )
        return changed is not None

    async def finish(self, identity: str, state: State, status: int, answer: bytes) -> Job | None:
        """Give it its final state; None if it has one."""
        return await self._change(
            "update jobs set state = ?, status = ?, answer = ?, ended = ?, body = null"
            " where id = ? and state in ('queued', 'running')",
            state,
            status,
            answer,
            time.time(),
            identity,
        )

    async def waiting(self) -> tuple[int, int]:
        """How many have no final state, and the bytes of their bodies."""
        ((count, size),) = await self._database.execute_fetchall(
            "select count(*), coalesce(sum(length(body)), 0) from jobs where state in ('queued', 'running')"
        )
        return count, size

    async def forget(self, seconds: float) -> None:
        """Drop what has ended that long ago."""
        await self._database.execute("delete from jobs where ended < ?", (time.time() - seconds,))

    async def _one(self, where: str, *values: object) -> Job | None:
        return await self._run(f"select {COLUMNS} from jobs where {where}", values)

    async def _change(self, statement: str, *values: object) -> Job | None:
        return await self._run(f"{statement} returning {COLUMNS}", values)

    async def _run(self, statement: str, values: tuple[object, ...]) -> Job | None:
        """To its end in one go: while one that writes is open, what others have written is not on disk."""
        rows = list(await self._database.execute_fetchall(statement, values))
        return Job(*rows[0]) if rows else None


def make(owner: str, key: str | None, digest: str, request_id: str, route: str, body: bytes, running: bool) -> Job:
    """A new job; one that is `running` already is on its first attempt."""
    now = time.time()
    state: State = "running" if running else "queued"
    return Job(uuid.uuid4().hex, owner, key, digest, request_id, route, body, state, int(running), now, now)
