"""The board's verbs as Lua, each of which a Redis server runs as one step. Times are microseconds of the server's
clock (as those of its own TTLs are): nobody else's clock counts.

Keys, all under `continua:`

    seq                        the last number given
    order                      every job by seq
    job:<id>                   a job's facts (`contract.Job`), and `call`, the last that took or gave its lease
    leases, waiting            jobs by the end of their lease, or of the time they are not to be claimed
    held                       the number of leases by owner
    queue:<priority>:<owner>   what may be claimed, by seq
    queues                     the queues that are not empty, by priority
    call:<token>               the job that a claim got: a claim sent again, its reply lost, gets the same

A lease that has run out stays in `leases` until the next claim, which puts its job back into its queue; everything
else looks at the time. Every reply begins with a word: ok, none, missing, lost; a job in it is JSON text, which is
read ten times faster than Redis's own lists of lists.
"""

from __future__ import annotations

from collections.abc import Mapping

from service.board.contract import IDLE, LEASED


def _table(names: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"['{key}'] = '{name}'" for key, name in names.items()) + "}"


_COMMON = (
    f"""
local LEASED = {_table(LEASED)}
local IDLE = {_table(IDLE)}
"""
    + """
local P = 'continua:'
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

local function whole(number) return string.format('%.0f', number) end

local function read(id)
  local flat, job = redis.call('HGETALL', P .. 'job:' .. id), {}
  for i = 1, #flat, 2 do job[flat[i]] = flat[i + 1] end
  return #flat > 0 and job or nil
end

local function left(set, id)
  local at = redis.call('ZSCORE', P .. set, id)
  return at and math.max(0, tonumber(at) - now) or 0
end

local function text(id)
  local job = read(id)
  job.lease, job.waits = whole(left('leases', id)), whole(left('waiting', id))
  return cjson.encode(job)
end

local function told(id) return {'ok', text(id)} end

local function set(id, job, changes)
  for name, value in pairs(changes) do
    job[name] = value
    redis.call('HSET', P .. 'job:' .. id, name, value)
  end
end

local function queue(job) return job.priority .. ':' .. job.owner end

local function leave(id, job)
  if redis.call('ZREM', P .. 'queue:' .. queue(job), id) == 1
      and redis.call('EXISTS', P .. 'queue:' .. queue(job)) == 0 then
    redis.call('ZREM', P .. 'queues', queue(job))
  end
end

local function enter(id, job)
  if job.over == '' and job.wanted == 'run' and job.by_hand == '0'
      and not redis.call('ZSCORE', P .. 'leases', id) and not redis.call('ZSCORE', P .. 'waiting', id) then
    redis.call('ZADD', P .. 'queue:' .. queue(job), job.seq, id)
    redis.call('ZADD', P .. 'queues', job.priority, queue(job))
  end
end

local function release(id, job)
  if redis.call('ZREM', P .. 'leases', id) == 1 and redis.call('HINCRBY', P .. 'held', job.owner, -1) <= 0 then
    redis.call('HDEL', P .. 'held', job.owner)
  end
end

local function holds(job, id, epoch) return job.epoch == epoch and left('leases', id) > 0 end
"""
)

POST = (
    _COMMON
    + """
-- id, seconds to wait in microseconds, then names and values
local id, waits = ARGV[1], tonumber(ARGV[2])
if redis.call('EXISTS', P .. 'job:' .. id) == 1 then return told(id) end
local seq = redis.call('INCR', P .. 'seq')
local job = {seq = whole(seq), runner = '', epoch = '0', beat = '0'}
for i = 3, #ARGV, 2 do job[ARGV[i]] = ARGV[i + 1] end
set(id, job, job)
redis.call('ZADD', P .. 'order', seq, id)
if waits > 0 then redis.call('ZADD', P .. 'waiting', now + waits, id) end
enter(id, job)
return told(id)
"""
)

CLAIM = (
    _COMMON
    + """
-- token, runner, ttl, quotas as JSON
local token, quotas = ARGV[1], cjson.decode(ARGV[4])
local again = redis.call('GET', P .. 'call:' .. token)
if again and redis.call('HGET', P .. 'job:' .. again, 'call') == token then return told(again) end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', whole(now))) do
  local job = read(id)
  release(id, job)
  enter(id, job)
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'waiting', '-inf', whole(now))) do
  redis.call('ZREM', P .. 'waiting', id)
  enter(id, read(id))
end

local best
local queues = redis.call('ZREVRANGE', P .. 'queues', 0, -1, 'WITHSCORES')
for i = 1, #queues, 2 do
  local name, priority = queues[i], tonumber(queues[i + 1])
  if best and priority < best.priority then break end
  local owner = string.sub(name, string.find(name, ':', 1, true) + 1)
  local held = tonumber(redis.call('HGET', P .. 'held', owner) or 0)
  local quota = quotas[owner] or quotas['*']
  if not quota or held < quota then
    local head = redis.call('ZRANGE', P .. 'queue:' .. name, 0, 0, 'WITHSCORES')
    local seq = tonumber(head[2])
    if not best or held < best.held or (held == best.held and seq < best.seq) then
      best = {id = head[1], priority = priority, held = held, seq = seq}
    end
  end
end
if not best then return {'none'} end

local job = read(best.id)
leave(best.id, job)
redis.call('ZADD', P .. 'leases', now + tonumber(ARGV[3]), best.id)
redis.call('HINCRBY', P .. 'held', job.owner, 1)
set(best.id, job, {runner = ARGV[2], epoch = whole(math.max(tonumber(job.epoch) + 1, now)), call = token})
redis.call('SET', P .. 'call:' .. token, best.id, 'PX', 60000)
return told(best.id)
"""
)

RENEW = (
    _COMMON
    + """
-- id, epoch, ttl, and perhaps progress
local id, job = ARGV[1], read(ARGV[1])
if not job then return {'missing'} end
if not holds(job, id, ARGV[2]) then return {'lost', text(id)} end
redis.call('ZADD', P .. 'leases', now + tonumber(ARGV[3]), id)
if ARGV[4] then set(id, job, {progress = ARGV[4], beat = whole(tonumber(job.beat) + 1)}) end
return told(id)
"""
)

FINISH = (
    _COMMON
    + """
-- id, epoch, token, over, why, goal
local id, job = ARGV[1], read(ARGV[1])
if not job then return {'missing'} end
if job.call == ARGV[3] then return told(id) end
if not holds(job, id, ARGV[2]) then return {'lost', text(id)} end
local current = tonumber(job.goal) <= tonumber(ARGV[6])
release(id, job)
set(id, job, {call = ARGV[3], over = current and ARGV[4] or '', why = current and ARGV[5] or ''})
enter(id, job)
return told(id)
"""
)

FAIL = (
    _COMMON
    + """
-- id, epoch, token, why, delay, 1 to blame
local id, job = ARGV[1], read(ARGV[1])
if not job then return {'missing'} end
if job.call == ARGV[3] then return told(id) end
if not holds(job, id, ARGV[2]) then return {'lost', text(id)} end
release(id, job)
set(id, job, {call = ARGV[3], why = ARGV[4], failures = whole(tonumber(job.failures) + tonumber(ARGV[6]))})
if tonumber(ARGV[5]) > 0 then redis.call('ZADD', P .. 'waiting', now + tonumber(ARGV[5]), id) end
enter(id, job)
return told(id)
"""
)

CONTROL = (
    _COMMON
    + """
-- id, goal, wanted, workers, priority or nothing
local id, job = ARGV[1], read(ARGV[1])
if not job then return {'missing'} end
leave(id, job)
if tonumber(ARGV[2]) > tonumber(job.goal) then
  if ARGV[5] ~= '' then set(id, job, {priority = ARGV[5]}) end
  set(id, job, {goal = ARGV[2], wanted = ARGV[3], workers = ARGV[4]})
  set(id, job, {over = '', why = '', failures = '0', by_hand = '0'})
  redis.call('ZREM', P .. 'waiting', id)
end
enter(id, job)
return told(id)
"""
)

GET = (
    _COMMON
    + """
if redis.call('EXISTS', P .. 'job:' .. ARGV[1]) == 0 then return {'missing'} end
return told(ARGV[1])
"""
)

LIST = (
    _COMMON
    + """
-- before or +inf, limit, 1 and the owner, or 0 and nothing; then statuses, none for all of them
local top, limit, wanted = ARGV[1], tonumber(ARGV[2]), {}
for i = 5, #ARGV do wanted[ARGV[i]] = true end

local function fits(id)
  if ARGV[3] == '0' and #ARGV == 4 then return true end
  local facts = redis.call('HMGET', P .. 'job:' .. id, 'owner', 'over', 'wanted')
  if ARGV[3] == '1' and facts[1] ~= ARGV[4] then return false end
  if #ARGV == 4 then return true end
  if left('leases', id) > 0 then return wanted[LEASED[facts[3]]] end
  return wanted[facts[2] ~= '' and facts[2] or IDLE[facts[3]]]
end

local found = {'ok'}
while #found <= limit do
  local ids = redis.call('ZREVRANGEBYSCORE', P .. 'order', top, '-inf', 'WITHSCORES', 'LIMIT', 0, 256)
  if #ids == 0 then break end
  for i = 1, #ids, 2 do
    if #found <= limit and fits(ids[i]) then found[#found + 1] = text(ids[i]) end
  end
  top = '(' .. ids[#ids]
end
return found
"""
)

IDS = "return redis.call('ZRANGE', 'continua:order', 0, -1)"
