-- Gives a partition, while it is closed, the mark prices that it lacks or has only older than history; stamp 0 says that they are stale.
-- The time they are from stays known: a price that says it is older is refused as before.
-- ARGV: symbol, price, stamp in history, time in turn
if redis.call('EXISTS', KEYS[1]) == 1 then
  return {'OPEN', 0}
end
local restored = 0
for i = 1, #ARGV, 4 do
  local symbol = ARGV[i]
  local stored = redis.call('HGET', key('mark_stamps'), symbol)
  if not stored or redis.call('HEXISTS', key('mark_prices'), symbol) == 0 or tonumber(stored) < tonumber(ARGV[i + 2]) then
    redis.call('HSET', key('mark_prices'), symbol, ARGV[i + 1])
    redis.call('HSET', key('mark_stamps'), symbol, '0')
    redis.call('HSET', key('mark_times'), symbol, '0:' .. ARGV[i + 3])
    redis.call('HDEL', key('mark_candidates'), symbol)
    restored = restored + 1
  end
end
return {'OK', restored}
