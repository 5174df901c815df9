"""The board on a Redis or Valkey server: for a cluster, whose machines share no disk.

    >>> board = RedisBoard("redis://:password@board.internal:6379/0")     # the URL comes from CONTINUA_BOARD
    >>> board.warnings                                                    # persistence that is off...
    []

Each verb is one Lua script (`scripts`), so one step to everybody else; leases run on the server's clock. A verb whose
reply was lost is sent again, and takes effect once. Only the commands of Redis 6.2 are needed, no modules.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from search_spaces.faults import Invalid
from service.board import rules, scripts
from service.board.contract import Job, LeaseLost, Unreachable
from trials import rows

OLDEST = (6, 2)
_TEXTS = ("id", "name", "owner", "wanted", "over", "why", "runner")
_NUMBERS = ("priority", "workers", "goal", "seq", "epoch", "failures", "beat")


class RedisBoard:
    """The board of `contract.Board` at `url`, as redis-py reads it (`redis://`, `rediss://`, `unix://`).

    A verb takes at most `timeout` seconds a try, and `retries` more tries where the server does not answer.

    Raises:
        Invalid: when the URL is none, the password is not the server's, or the server is too old.
        Unreachable: when it does not answer.
    """

    def __init__(self, url: str, *, timeout: float = 2.0, retries: int = 2) -> None:
        self.warnings: list[str] = []
        self._shown, self._timeout = rules.masked(url), timeout
        try:
            if self._shown.endswith("://..."):
                raise ValueError(url)
            self._client = redis.Redis.from_url(
                url,
                decode_responses=True,
                socket_timeout=timeout,
                socket_connect_timeout=timeout,
                retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), retries),
            )
        except (ValueError, TypeError):  # whose words may quote the password
            rule = "must be a URL such as redis://:PASSWORD@HOST:6379/0, a password's special characters as %40"
            raise Invalid([f"board: {rule}, but got {self._shown!r}; correct CONTINUA_BOARD."]) from None
        self._scripts: dict[str, Any] = {}
        try:
            self._look()
        except BaseException:
            self.close()
            raise

    # -- the verbs -------------------------------------------------------------------------------------------------

    def post(self, job: Job) -> Job:
        """See `contract.Board.post`."""
        rules.check_job(job)
        facts = {name: rules.text(getattr(job, name)) for name in ("id", "name", "owner", "wanted", "over", "why")}
        facts |= {name: str(getattr(job, name)) for name in ("priority", "workers", "goal", "failures")}
        facts |= {"created": repr(float(job.created)), "by_hand": str(int(job.by_hand))}
        facts |= {"progress": rules.progress_text(job.progress)}
        pairs = [part for pair in facts.items() for part in pair]
        return self._one(job.id, self._run(scripts.POST, job.id, _micro(job.waits), *pairs))

    def claim(self, runner: str, ttl: float, *, quotas: Mapping[str, int] | None = None) -> Job | None:
        """See `contract.Board.claim`."""
        rules.check_lease(ttl, runner)
        limits = json.dumps({rules.text(owner): quota for owner, quota in (quotas or {}).items()})
        reply = self._run(scripts.CLAIM, secrets.token_hex(8), rules.text(runner), _micro(ttl), limits)
        return None if reply[0] == "none" else _job(reply[1])

    def renew(self, search_id: str, epoch: int, ttl: float, progress: Mapping[str, Any] | None = None) -> Job:
        """See `contract.Board.renew`."""
        rules.check_lease(ttl)
        said = [] if progress is None else [rules.progress_text(progress)]
        return self._mine(search_id, epoch, self._run(scripts.RENEW, rules.text(search_id), epoch, _micro(ttl), *said))

    def finish(self, search_id: str, epoch: int, *, over: str = "", why: str = "", goal: int = 0) -> Job:
        """See `contract.Board.finish`."""
        rules.check_ending(over=over)
        what = (rules.text(search_id), epoch, secrets.token_hex(8), over, rules.text(why), goal)
        return self._mine(search_id, epoch, self._run(scripts.FINISH, *what))

    def fail(self, search_id: str, epoch: int, *, why: str = "", delay: float = 0.0, blame: bool = True) -> Job:
        """See `contract.Board.fail`."""
        rules.check_ending(delay=delay)
        what = (rules.text(search_id), epoch, secrets.token_hex(8), rules.text(why), _micro(delay), int(blame))
        return self._mine(search_id, epoch, self._run(scripts.FAIL, *what))

    def control(self, search_id: str, *, goal: int, wanted: str, workers: int, priority: int | None = None) -> Job:
        """See `contract.Board.control`."""
        rules.check_goal(goal, wanted, workers, priority)
        what = (rules.text(search_id), goal, wanted, workers, "" if priority is None else priority)
        return self._one(search_id, self._run(scripts.CONTROL, *what))

    def get(self, search_id: str) -> Job:
        """See `contract.Board.get`."""
        return self._one(search_id, self._run(scripts.GET, rules.text(search_id)))

    def list(
        self,
        *,
        before: int | None = None,
        limit: int = 100,
        owner: str | None = None,
        statuses: Collection[str] | None = None,
    ) -> list[Job]:
        """See `contract.Board.list`."""
        rules.check_page(limit, statuses)
        if statuses is not None and not statuses:
            return []
        top = "+inf" if before is None else f"({before}"
        of = (0, "") if owner is None else (1, rules.text(owner))
        _, *found = self._run(scripts.LIST, top, limit, *of, *(statuses or ()))
        return [_job(text) for text in found]

    def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    # -- the server ------------------------------------------------------------------------------------------------

    def _one(self, search_id: str, reply: Sequence[str]) -> Job:
        if reply[0] == "missing":
            raise rules.no_such(search_id, self._run(scripts.IDS))
        return _job(reply[1])

    def _mine(self, search_id: str, epoch: int, reply: Sequence[str]) -> Job:
        if reply[0] == "lost":
            raise LeaseLost(rules.lost(_job(reply[1]), epoch))
        return self._one(search_id, reply)

    def _run(self, script: str, *arguments: Any) -> Any:
        ready = self._scripts.get(script)
        if ready is None:
            ready = self._scripts[script] = self._client.register_script(script)
        try:
            return ready(args=arguments)
        except redis.RedisError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: redis.RedisError) -> Unreachable:
        rule = f"{self._shown} must answer within {self._timeout:g} s"
        way = "start it, or correct CONTINUA_BOARD; what runs goes on meanwhile, and this may be tried again"
        return Unreachable(f"board: {rule}, but got: {error or type(error).__name__}; {way}.")

    def _look(self) -> None:
        """See that the server will do, and what its operator should know."""
        try:
            info = self._client.info()
        except (redis.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            way = "put the user and password into the URL in CONTINUA_BOARD, and let them run INFO and scripts"
            raise Invalid([f"board: {self._shown} must let us in, but got: {error}; {way}."]) from None
        except redis.RedisError as error:
            raise self._unreachable(error) from error
        version = str(info.get("redis_version", "0"))
        if tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < OLDEST:
            rule = f"must be Redis {OLDEST[0]}.{OLDEST[1]} or later, or Valkey"
            raise Invalid([f"board: {self._shown} {rule}, but got Redis {version}; upgrade it."])
        if warning := self._persistence(info):
            self.warnings.append(warning)
        policy = str(info.get("maxmemory_policy", "noeviction"))
        if policy.startswith("allkeys"):
            rule = "may throw searches off the board when its memory is full"
            way = "CONFIG SET maxmemory-policy noeviction"
            self.warnings.append(f"board: {self._shown} {rule} (maxmemory-policy {policy}); turn that off: {way}.")

    def _persistence(self, info: Mapping[str, Any]) -> str:
        if info.get("aof_enabled"):
            return ""
        way = "CONFIG SET appendonly yes, and `appendonly yes` in its configuration file"
        try:
            saves = str(self._client.config_get("save").get("save", ""))
        except redis.ResponseError:
            rule = "has no append-only file, and does not say whether it takes snapshots"
            return f"board: {self._shown} {rule}: after a restart it may lack what was posted since its last one."
        except redis.RedisError as error:
            raise self._unreachable(error) from error
        if saves:
            return ""
        lost = "when it stops, every lease, queue and progress is LOST, and the board must be rebuilt from the store"
        return f"board: {self._shown} KEEPS NOTHING ON DISK: {lost}. Turn it on: {way}."


def _micro(seconds: float) -> int:
    return max(1, round(seconds * 1e6)) if seconds else 0


def _job(text: str) -> Job:
    facts = json.loads(text)
    found: dict[str, Any] = {name: facts[name] for name in _TEXTS} | {name: int(facts[name]) for name in _NUMBERS}
    found |= {"created": float(facts["created"]), "by_hand": facts["by_hand"] == "1"}
    found |= {"progress": rows.from_json(facts["progress"])}
    found |= {"seconds_left": int(facts["lease"]) / 1e6, "waits": int(facts["waits"]) / 1e6}
    return Job(**found if found["seconds_left"] else {**found, "runner": ""})
