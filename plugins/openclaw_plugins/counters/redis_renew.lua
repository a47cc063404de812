-- Prolongs leases by one time to live each.
--
-- KEYS: one for each lease. ARGV: for each key its holder, the time to live in milliseconds, and 1 where a holder
-- that has no place is given one. Returns 1 for each lease that is held now, 0 for each that is lost.

local KEEP = 1000

local time = redis.call('TIME')
local now, later = time[1] * 1000 + math.floor(time[2] / 1000), time[1] * 1000 + math.ceil(time[2] / 1000)

local result = {}
for i, key in ipairs(KEYS) do
  local holder, ttl, join = ARGV[3 * i - 2], tonumber(ARGV[3 * i - 1]), ARGV[3 * i]
  local expiry = redis.call('ZSCORE', key, holder)
  if join == '1' or (expiry and tonumber(expiry) > now) then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%.0f', now))
    redis.call('ZADD', key, string.format('%.0f', later + ttl), holder)
    redis.call('PEXPIRE', key, string.format('%.0f', ttl + KEEP))
    result[i] = 1
  else
    result[i] = 0
  end
end
return result
