-- Says where a session's log stands and what it holds after a number, and keeps it alive.
-- KEYS head, log; ARGV time to keep (ms), least head, the number or nothing
local seq = tonumber(redis.call('HGET', KEYS[1], 'seq'))
if not seq then
  local now = redis.call('TIME')
  seq = tonumber(now[1]) * 1000000 + tonumber(now[2])
end
-- A store that went back in time (a failover) must not give numbers again that somebody has seen.
seq = math.max(seq, tonumber(ARGV[2]))
redis.call('HSET', KEYS[1], 'seq', string.format('%.0f', seq))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
local entries = {}
if ARGV[3] ~= '' then
  entries = redis.call('XRANGE', KEYS[2], '(' .. ARGV[3], '+')
end
return {seq, entries}
