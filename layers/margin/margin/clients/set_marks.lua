-- Stores mark prices and answers, in the same step, whose triggers they cross: no commit can slip in between.
-- ARGV: partitions, how many crossed accounts to name, most symbols, by how many microseconds a sender's clock may be ahead, then symbol,
-- price, stamp, time in turn. Where the stamp is '' this partition stamps, and judges the time that the sender says ('' for none, which is
-- now); else both are what partition 0 made of them.
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local named_max, symbols_max, ahead_max = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now_text = now_us()
local now = tonumber(now_text)

local new, older = 0, {}
for i = 5, #ARGV, 4 do
  local symbol, time = ARGV[i], tonumber(ARGV[i + 3])
  if redis.call('HEXISTS', key('mark_prices'), symbol) == 0 then
    new = new + 1
  elseif ARGV[i + 2] == '' and time then
    local stamped, observed = stamp_and_time(symbol)
    local stored = observed or stamped or '0'
    -- A stored time that nobody could say now comes from a clock that was put back since: it must not keep the symbol from everybody.
    if time < tonumber(stored) and tonumber(stored) <= now + ahead_max then
      older[#older + 1] = {symbol, ARGV[i + 3], stored}
    end
  end
  if ARGV[i + 2] == '' and time and time > now + ahead_max then
    return {'AHEAD', symbol, ARGV[i + 3], now_text}
  end
end
if #older > 0 then
  return {'OLDER', older}
end
if new > 0 and redis.call('HLEN', key('mark_prices')) + new > symbols_max then
  return {'TOO_MANY'}
end

local answers = {'OK'}
for i = 5, #ARGV, 4 do
  local symbol, price, stamp, time = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local stored = tonumber(redis.call('HGET', key('mark_stamps'), symbol) or '0')
  if stamp == '' then
    stamp = string.format('%.0f', math.max(stored + 1, now))
    time = time == '' and now_text or time
  end
  if tonumber(stamp) > stored then
    redis.call('HSET', key('mark_prices'), symbol, price)
    redis.call('HSET', key('mark_stamps'), symbol, stamp)
    redis.call('HSET', key('mark_times'), symbol, stamp .. ':' .. time)
  end
  answers[#answers + 1] = {symbol, stamp, time}
end

-- Only when all prices of the call are in place: an account hedged over two symbols is not judged between them.
local crossed = {}
for i = 2, #answers do
  local symbol = answers[i][1]
  local price = redis.call('HGET', key('mark_prices'), symbol)
  local floors, ceilings = key('triggers:' .. symbol .. ':floor'), key('triggers:' .. symbol .. ':ceiling')
  answers[i][4] = redis.call('ZCOUNT', floors, price, '+inf') + redis.call('ZCOUNT', ceilings, '-inf', price)
  answers[i][5] = {}
  if answers[i][4] > 0 then
    crossed[#crossed + 1] = {answer = answers[i], symbol = symbol, price = price}
  end
end
-- Symbols share what may be named equally; those with few come first, so that what they leave is the others'.
table.sort(crossed, function(one, other)
  return one.answer[4] < other.answer[4]
end)
for i, found in ipairs(crossed) do
  local share = math.floor(named_max / (#crossed - i + 1))
  found.answer[5] = crossed_in('triggers', found.symbol, found.price, share)
  named_max = named_max - #found.answer[5]
end
-- What is left goes to those who may have to be warned, but not to more than there is time for.
named_max = math.min(named_max, 200)
for i = 2, #answers do
  answers[i][6] = crossed_in('warnings', answers[i][1], redis.call('HGET', key('mark_prices'), answers[i][1]), named_max)
  named_max = named_max - #answers[i][6]
end
return answers
