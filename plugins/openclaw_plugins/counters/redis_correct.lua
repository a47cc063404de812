-- Makes rates of one organisation that were charged by estimate what they should have been, in one step.
--
-- KEYS: one for each rate.
-- ARGV, five for each key: its algorithm, the limit (for gcra too: without its burst), the window in milliseconds, by
-- how much it was charged too much (below 0) or too little, and when, by the time that the charge returned.
-- Returns nothing. What is given back leaves the very bucket in which it was charged; where that has gone, nothing is.

local KEEP = 1000

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function text(number)
  return string.format('%.0f', number)
end

local function sliding(key, _, window, amount, charged)
  local width = math.ceil(window / 60)
  local back = math.ceil(window / width)
  local state = redis.call('HMGET', key, 'total', 'oldest', 'last')
  local total, oldest, last = tonumber(state[1] or 0), tonumber(state[2] or 0), tonumber(state[3] or 0)
  if amount < 0 then
    local bucket = text(math.floor(charged / width))
    local count = tonumber(redis.call('HGET', key, bucket) or 0)
    local given_back = math.min(count, -amount)
    if given_back > 0 then
      redis.call('HSET', key, bucket, text(count - given_back), 'total', text(total - given_back))
    end
    return
  end
  local at = math.max(now, last)
  local bucket = math.floor(at / width)
  if total == 0 then
    redis.call('DEL', key)
    oldest = bucket
  end
  redis.call('HSET', key, 'total', text(total + amount), 'oldest', text(oldest), 'last', text(at))
  redis.call('HINCRBY', key, text(bucket), text(amount))
  redis.call('PEXPIRE', key, text((bucket + back + 1) * width - at + KEEP))
end

local function gcra(key, limit, window, amount, charged)
  local level, last = string.match(redis.call('GET', key) or '0 0', '^(%d+) (%d+)$')
  local at = math.max(now, tonumber(last))
  level = math.max(0, tonumber(level) - (at - tonumber(last)) * limit)
  if amount > 0 then
    level = level + amount * window
  else
    level = math.max(0, level - math.max(0, -amount * window - math.max(0, at - charged) * limit))
  end
  local reset = limit > 0 and math.ceil(level / limit) or 0
  redis.call('SET', key, text(level) .. ' ' .. text(at), 'PX', text(reset + KEEP))
end

local function fixed(key, _, window, amount, charged)
  local used, last = string.match(redis.call('GET', key) or '0 0', '^(%d+) (%d+)$')
  used, last = tonumber(used), tonumber(last)
  local at = math.max(now, last)
  local left = (math.floor(at / window) + 1) * window - at
  if math.floor(at / window) ~= math.floor(last / window) then used = 0 end
  if amount > 0 then
    used = used + amount
  elseif math.floor(charged / window) == math.floor(at / window) then
    used = math.max(0, used + amount)
  end
  redis.call('SET', key, text(used) .. ' ' .. text(at), 'PX', text(left + KEEP))
end

local kinds = { sliding = sliding, gcra = gcra, fixed = fixed }
for i, key in ipairs(KEYS) do
  local a = 5 * i - 4
  kinds[ARGV[a]](key, tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4]))
end
