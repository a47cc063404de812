-- Decides one admission over all limits of one organisation, and charges it, in one step.
--
-- KEYS: one for each limit.
-- ARGV: "charge" or "look", then five for each key: what it is (sliding, gcra, fixed, lease), the limit (for gcra
-- "limit burst"), the window in milliseconds (for a lease its time to live), the amount (for a lease its holder; 0
-- or empty to look), and 1 where a refusal counts.
-- Returns four numbers for each key: milliseconds until it fits (0 now, -1 never), what is used, milliseconds until
-- nothing is counted any more, and the time at which a rate was charged (0 where it was not).
--
-- Whole milliseconds of the store's clock; time never goes back within a key. A refusal writes nothing. Expiry only
-- tidies up: a key that has expired says the same as one whose time is over. A lease ends on the millisecond after its
-- time: whoever holds it counts from before he asked, and must never count on it for longer than we do.

local KEEP = 1000
local NEVER = -1
local charging = ARGV[1] == 'charge'

local time = redis.call('TIME')
local now, later = time[1] * 1000 + math.floor(time[2] / 1000), time[1] * 1000 + math.ceil(time[2] / 1000)

local function text(number)
  return string.format('%.0f', number)
end

-- Counts of about 60 buckets of the window and the current one, so that they cover at least one whole window.
local function sliding(key, limit, window, amount)
  local width = math.ceil(window / 60)
  local back = math.ceil(window / width)
  local guess = math.floor(now / width)
  local state = redis.call('HMGET', key, 'total', 'oldest', 'last', text(guess))
  local total, oldest, last = tonumber(state[1] or 0), tonumber(state[2] or 0), tonumber(state[3] or 0)
  local at = math.max(now, last)
  local bucket, newest = math.floor(at / width), math.floor(last / width)
  local first = bucket - back

  local gone = {}
  if total > 0 and oldest < first then
    if newest < first then
      total = 0
    else
      local names = {}
      for b = oldest, first - 1 do names[#names + 1] = text(b) end
      local counts = redis.call('HMGET', key, unpack(names))
      for i, count in ipairs(names) do
        if counts[i] then
          total = total - tonumber(counts[i])
          gone[#gone + 1] = count
        end
      end
      oldest = first
    end
  end

  local wait = 0
  local excess = total + amount - limit
  if amount > limit then
    wait = NEVER
  elseif amount > 0 and excess > 0 then
    local b = oldest
    while excess > 0 do
      if b > newest then error('the buckets hold less than their total') end
      excess = excess - tonumber(redis.call('HGET', key, text(b)) or 0)
      b = b + 1
    end
    wait = (b + back) * width - at
  end

  local function charge()
    local count = tonumber((bucket == guess and state[4]) or (bucket ~= guess and redis.call('HGET', key, text(bucket))) or 0)
    if total == 0 then
      if state[1] then redis.call('DEL', key) end
      oldest, count = bucket, 0
    elseif #gone > 0 then
      redis.call('HDEL', key, unpack(gone))
    end
    local fresh = total == 0 or bucket ~= newest
    total = total + amount
    redis.call('HSET', key, 'total', text(total), 'oldest', text(oldest), 'last', text(at), text(bucket), text(count + amount))
    if fresh then
      redis.call('PEXPIRE', key, text((bucket + back + 1) * width - at + KEEP))
    end
    return total, (bucket + back + 1) * width - at, at
  end

  return wait, total, total > 0 and (newest + back + 1) * width - at or 0, charge
end

-- A bucket of `burst` calls that leaks `limit` calls a window; its level is in calls times milliseconds of window.
local function gcra(key, limits, window, amount)
  local limit, burst = string.match(limits, '^(%d+) (%d+)$')
  limit, burst = tonumber(limit), tonumber(burst)
  local level, last = string.match(redis.call('GET', key) or '0 0', '^(%d+) (%d+)$')
  local at = math.max(now, tonumber(last))
  level = math.max(0, tonumber(level) - (at - tonumber(last)) * limit)

  local function stand()
    return math.ceil(level / window), limit > 0 and math.ceil(level / limit) or 0
  end

  local wait = 0
  if amount > 0 then
    local excess = level + (amount - burst) * window
    if amount > burst or limit == 0 then
      wait = NEVER
    elseif excess > 0 then
      wait = math.ceil(excess / limit)
    end
  end

  local function charge()
    level = level + amount * window
    local used, reset = stand()
    redis.call('SET', key, text(level) .. ' ' .. text(at), 'PX', text(reset + KEEP))
    return used, reset, at
  end

  local used, reset = stand()
  return wait, used, reset, charge
end

-- A count for each window; windows stand side by side.
local function fixed(key, limit, window, amount)
  local used, last = string.match(redis.call('GET', key) or '0 0', '^(%d+) (%d+)$')
  used, last = tonumber(used), tonumber(last)
  local at = math.max(now, last)
  local left = (math.floor(at / window) + 1) * window - at
  if math.floor(at / window) ~= math.floor(last / window) then used = 0 end

  local wait = 0
  if amount > limit then
    wait = NEVER
  elseif amount > 0 and used + amount > limit then
    wait = left
  end

  local function charge()
    redis.call('SET', key, text(used + amount) .. ' ' .. text(at), 'PX', text(left + KEEP))
    return used + amount, left, at
  end

  return wait, used, used > 0 and left or 0, charge
end

-- The holders of a limit on what exists at the same time, each until its own expiry; a holder counts once.
local function lease(key, limit, ttl, holder)
  local used = redis.call('ZCOUNT', key, '(' .. text(now), '+inf')
  local expiry = holder ~= '' and redis.call('ZSCORE', key, holder)
  local mine = expiry and tonumber(expiry) > now

  local wait = 0
  if charging and not mine and used + 1 > limit then
    if limit < 1 then
      wait = NEVER
    else
      local place = redis.call('ZRANGEBYSCORE', key, '(' .. text(now), '+inf', 'WITHSCORES', 'LIMIT', text(used - limit), 1)
      wait = tonumber(place[2]) - now
    end
  end

  local function charge()
    if holder == '' then return used, 0, 0 end
    redis.call('ZREMRANGEBYSCORE', key, '-inf', text(now))
    redis.call('ZADD', key, text(later + ttl), holder)
    redis.call('PEXPIRE', key, text(ttl + KEEP))
    return mine and used or used + 1, 0, 0
  end

  return wait, used, 0, charge
end

local kinds = {
  sliding = function(key, limit, window, amount) return sliding(key, tonumber(limit), window, tonumber(amount)) end,
  fixed = function(key, limit, window, amount) return fixed(key, tonumber(limit), window, tonumber(amount)) end,
  gcra = function(key, limit, window, amount) return gcra(key, limit, window, tonumber(amount)) end,
  lease = function(key, limit, ttl, holder) return lease(key, tonumber(limit), ttl, holder) end,
}

local result, charges = {}, {}
local rates_fit, leases_fit = true, true
for i, key in ipairs(KEYS) do
  local a = 5 * i - 3
  local wait, used, reset, charge = kinds[ARGV[a]](key, ARGV[a + 1], tonumber(ARGV[a + 2]), ARGV[a + 3])
  result[4 * i - 3], result[4 * i - 2], result[4 * i - 1], result[4 * i] = wait, used, reset, 0
  charges[i] = charge
  if wait ~= 0 and ARGV[a + 4] == '1' then
    if ARGV[a] == 'lease' then leases_fit = false else rates_fit = false end
  end
end

if charging and rates_fit then
  for i, charge in ipairs(charges) do
    if result[4 * i - 3] == 0 and (leases_fit or ARGV[5 * i - 3] ~= 'lease') then
      result[4 * i - 2], result[4 * i - 1], result[4 * i] = charge()
    end
  end
end
return result
