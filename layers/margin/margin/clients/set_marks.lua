-- Stores mark prices and answers, in the same step, whose triggers they cross: no commit can slip in between.
-- ARGV: partitions, how many crossed accounts to name, most symbols, then symbol, price, stamp ('' where this partition is to stamp) in turn
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local named_max, symbols_max = tonumber(ARGV[2]), tonumber(ARGV[3])

local new = 0
for i = 4, #ARGV, 3 do
  if redis.call('HEXISTS', key('mark_prices'), ARGV[i]) == 0 then
    new = new + 1
  end
end
if new > 0 and redis.call('HLEN', key('mark_prices')) + new > symbols_max then
  return {'TOO_MANY'}
end

local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local answers = {'OK'}
for i = 4, #ARGV, 3 do
  local symbol, price, stamp = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local stored = tonumber(redis.call('HGET', key('mark_stamps'), symbol) or '0')
  if stamp == '' then
    stamp = string.format('%.0f', math.max(stored + 1, now))
  end
  if tonumber(stamp) > stored then
    redis.call('HSET', key('mark_prices'), symbol, price)
    redis.call('HSET', key('mark_stamps'), symbol, stamp)
  end
  answers[#answers + 1] = {symbol, stamp}
end
-- Only when all prices of the call are in place: an account hedged over two symbols is not judged between them.
for i = 2, #answers do
  local symbol = answers[i][1]
  local price = redis.call('HGET', key('mark_prices'), symbol)
  local floors, ceilings = key('triggers:' .. symbol .. ':floor'), key('triggers:' .. symbol .. ':ceiling')
  -- Those that are crossed furthest come first.
  local named = redis.call('ZREVRANGEBYSCORE', floors, '+inf', price, 'LIMIT', 0, named_max)
  for _, account_id in ipairs(redis.call('ZRANGEBYSCORE', ceilings, '-inf', price, 'LIMIT', 0, named_max - #named)) do
    named[#named + 1] = account_id
  end
  answers[i][3] = redis.call('ZCOUNT', floors, price, '+inf') + redis.call('ZCOUNT', ceilings, '-inf', price)
  answers[i][4] = named
end
return answers
