-- Accounts of which a mark in force crosses a trigger, of each symbol those that are crossed furthest, and when the oldest
-- mark that has triggers is from.
-- ARGV: partitions, how many accounts to name for each symbol, how many to pass over
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local named_max, passed = tonumber(ARGV[2]), tonumber(ARGV[3])
local marks = redis.call('HGETALL', key('mark_prices'))
local crossed, oldest = {}, nil
for i = 1, #marks, 2 do
  local floors, ceilings = key('triggers:' .. marks[i] .. ':floor'), key('triggers:' .. marks[i] .. ':ceiling')
  local low = level_of('triggers', marks[i], 'floor', marks[i + 1])
  local high = level_of('triggers', marks[i], 'ceiling', marks[i + 1])
  local count = redis.call('ZCOUNT', floors, low, '+inf')
  local named = {}
  if count > passed then
    named = redis.call('ZREVRANGEBYSCORE', floors, '+inf', low, 'LIMIT', passed, named_max)
  end
  local rest = math.max(0, passed - count)
  for _, account_id in ipairs(redis.call('ZRANGEBYSCORE', ceilings, '-inf', high, 'LIMIT', rest, named_max - #named)) do
    named[#named + 1] = account_id
  end
  if #named > 0 then
    crossed[#crossed + 1] = {marks[i], named}
  end
  if redis.call('EXISTS', floors, ceilings) > 0 then
    local stamp, time = stamp_and_time(marks[i])
    oldest = math.min(oldest or math.huge, tonumber(stamp) or 0, tonumber(time) or math.huge)
  end
end
return {'OK', crossed, oldest and string.format('%.0f', oldest) or '', now_us()}
