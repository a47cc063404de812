-- Gives an event the next number of its session, keeps it, and tells whoever listens: all of it, or nothing.
-- KEYS head, log; ARGV channel, time to keep (ms), most events, most bytes, least head, type, body
local most, most_bytes = tonumber(ARGV[3]), tonumber(ARGV[4])
local head = redis.call('HMGET', KEYS[1], 'seq', 'bytes')
local seq, bytes = tonumber(head[1]), tonumber(head[2]) or 0
if not seq then
  -- Microseconds since the epoch: a log that starts anew never repeats a number that a client has seen.
  local now = redis.call('TIME')
  seq = tonumber(now[1]) * 1000000 + tonumber(now[2])
end
seq = math.max(seq, tonumber(ARGV[5])) + 1
local shown = string.format('%.0f', seq)
redis.call('XADD', KEYS[2], shown .. '-0', 'type', ARGV[6], 'body', ARGV[7])
bytes = bytes + #ARGV[7]
local count = redis.call('XLEN', KEYS[2])
while count > 0 and (count > most or bytes > most_bytes) do
  local oldest = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
  redis.call('XDEL', KEYS[2], oldest[1])
  bytes = math.max(0, bytes - #oldest[2][4])
  count = count - 1
end
redis.call('HSET', KEYS[1], 'seq', shown, 'bytes', string.format('%.0f', bytes))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('PUBLISH', ARGV[1], shown .. '\n' .. ARGV[6] .. '\n' .. ARGV[7])
return seq
