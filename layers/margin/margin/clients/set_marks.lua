-- Stores mark prices and answers, in the same step, whose triggers they cross: no commit can slip in between.
-- ARGV: partitions, how many crossed accounts to name, most symbols, by how many microseconds a sender's clock may be ahead, who sends them
-- (address, space, subject; '' where nobody knows), limits of requests, then symbol, price, stamp, time, source, what waits to be confirmed in turn ('' for no source, and where nothing waits). Where the stamp is '' this
-- partition stamps, and judges the time that the sender says ('' for none, which is now) and how far the price moves; else all of them are what
-- partition 0 made of them, with '' for the price where only what waits is another.
-- Answers {'OK'}, then of each symbol the same six, and: the mark in force, how far a price may move from it ('' where the one that was sent was
-- not set aside), how many accounts it crosses, some of them, some whom it may have to warn.
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local limited = over_limit(ARGV[6])
if limited then
  return limited
end
local named_max, symbols_max, ahead_max = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local sender = ARGV[5]
local now_text = now_us()
local now = tonumber(now_text)
-- Without a timestamp a message that is sent twice looks like two; for so long the second one of the same price confirms nothing.
local repeated_within = 1000000

local new, older = 0, {}
for i = 7, #ARGV, 6 do
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

-- Whether a price is further from another than a share of it. In doubles: this guards against a wrong price, and no amount comes of it. What
-- they may have rounded is allowed for, so that a move of exactly the bound is within it.
local function is_beyond(one, other, jump_max)
  local price, from = tonumber(one.price), tonumber(other.price)
  return math.abs(price - from) - jump_max * from > 1e-14 * (price + from)
end

-- A price that waits stands beside the stamp of the mark that it was held against, with when it came, its time, and its source.
local function parse(written)
  local of, came, time, price, source = string.match(text(written), '^(%d+):(%d+):(-?%d+):([^:]+):(.*)$')
  return of and {of = of, came = came, time = time, price = price, source = source} or nil
end

local function write(waiting, stamp)
  return waiting and table.concat({stamp, waiting.came, waiting.time, waiting.price, waiting.source}, ':') or ''
end

-- What waits beside a mark; beside another stamp it counts for nothing, and so does a time of a clock that was put back since.
local function waiting_beside(symbol, stamp)
  local waiting = parse(redis.call('HGET', key('mark_candidates'), symbol))
  if waiting and waiting.of == stamp and tonumber(waiting.time) <= now + ahead_max then
    return waiting
  end
  return nil
end

-- A sender whose clock is ahead does not keep others from confirming its price, or from replacing it.
local function latest_time(waiting)
  return math.min(tonumber(waiting.time), tonumber(waiting.came))
end

-- Whether a price is the second one to say that the mark moved, or only the first one again.
local function is_repeated(one, waiting)
  if one.says_time then
    return one.time == waiting.time
  end
  local age = now - tonumber(waiting.came)
  return one.price == waiting.price and one.source == waiting.source and age >= 0 and age < repeated_within
end

-- What is to be the mark, nil where it stays; what waits then, nil for nothing; and whether the price that was sent is not the mark.
local function judge(one, mark, waiting, jump_max)
  if not is_beyond(one, mark, jump_max) then
    -- One that was overtaken says nothing against a later one.
    local stays = waiting and latest_time(waiting) > tonumber(one.time) and is_beyond(waiting, one, jump_max)
    return one, stays and waiting or nil, false
  end
  if not waiting then
    return nil, one, true
  end
  if is_repeated(one, waiting) then
    -- By time it may be a correction.
    return nil, one.says_time and one or waiting, true
  end
  if tonumber(one.time) <= latest_time(waiting) then
    return nil, tonumber(one.time) == latest_time(waiting) and one or waiting, true
  end
  if not is_beyond(one, waiting, jump_max) then
    return one, nil, false
  end
  local move, waiting_move = tonumber(one.price) - tonumber(mark.price), tonumber(waiting.price) - tonumber(mark.price)
  if move * waiting_move < 0 then
    return nil, one, true
  end
  -- Two say that it moved at least as far as the nearer one.
  if math.abs(move) < math.abs(waiting_move) then
    return one, is_beyond(waiting, one, jump_max) and waiting or nil, false
  end
  -- A mark is never from before the one that it replaces.
  local nearer = {price = waiting.price, time = waiting.time, source = waiting.source, came = waiting.came}
  if mark.time and tonumber(mark.time) > tonumber(nearer.time) then
    nearer.time = mark.time
  end
  return nearer, one, true
end

local any_waits = redis.call('EXISTS', key('mark_candidates')) == 1

local function keep_waiting(symbol, written)
  if written ~= '' then
    redis.call('HSET', key('mark_candidates'), symbol, written)
    any_waits = true
  elseif any_waits then
    redis.call('HDEL', key('mark_candidates'), symbol)
  end
end

local function store(symbol, one, stamp)
  redis.call('HSET', key('mark_prices'), symbol, one.price)
  redis.call('HSET', key('mark_stamps'), symbol, stamp)
  redis.call('HSET', key('mark_times'), symbol, stamp .. ':' .. one.time)
  if one.source ~= '' then
    redis.call('HSET', key('mark_sources'), symbol, stamp .. ':' .. one.source)
  end
end

-- Remembers who sent a mark, beside its stamp, and who sent what waits, beside when it came. For history alone, so this partition suffices.
local function keep_senders(symbol, one, in_force, waiting, stamp)
  local of_mark = sender
  if in_force and in_force ~= one then
    local came, kept = string.match(text(redis.call('HGET', key('mark_waiting_senders'), symbol)), '^(%d+):(.*)$')
    of_mark = came == in_force.came and kept or ''
  end
  if in_force and of_mark ~= '' then
    redis.call('HSET', key('mark_senders'), symbol, stamp .. ':' .. of_mark)
  end
  if waiting == one and sender ~= '' then
    redis.call('HSET', key('mark_waiting_senders'), symbol, one.came .. ':' .. sender)
  end
end

-- Judges a price that was sent, and does what comes of it.
local function judge_and_store(symbol, price, time, source)
  local stored = redis.call('HGET', key('mark_stamps'), symbol) or '0'
  local one = {price = price, time = time == '' and now_text or time, source = source, came = now_text, says_time = time ~= ''}
  local jump_max = redis.call('HGET', key('mark_jump_max'), symbol)
  local mark_price = jump_max and redis.call('HGET', key('mark_prices'), symbol)
  local is_aside, in_force, waiting = false, one, nil
  if mark_price then
    local _, observed = stamp_and_time(symbol)
    local mark = {price = mark_price, time = observed}
    in_force, waiting, is_aside = judge(one, mark, waiting_beside(symbol, stored), tonumber(jump_max))
  end
  local stamp, mark = stored, in_force or {price = '', time = '', source = ''}
  if in_force then
    stamp = string.format('%.0f', math.max(tonumber(stored) + 1, now))
    store(symbol, in_force, stamp)
  end
  keep_senders(symbol, one, in_force, waiting, stamp)
  local written = write(waiting, stamp)
  keep_waiting(symbol, written)
  return {symbol, mark.price, stamp, mark.time, mark.source, written, in_force and mark.price or mark_price, is_aside and jump_max or ''}
end

-- Takes what partition 0 made of a price. Calls may overtake each other: what is newer stays.
local function apply(symbol, price, stamp, time, source, written)
  local stored = tonumber(redis.call('HGET', key('mark_stamps'), symbol) or '0')
  if price ~= '' and tonumber(stamp) > stored then
    store(symbol, {price = price, time = time, source = source}, stamp)
    keep_waiting(symbol, written)
  elseif written ~= '' and tonumber(stamp) >= stored then
    local present = parse(redis.call('HGET', key('mark_candidates'), symbol))
    if not present or present.of ~= stamp or tonumber(present.came) <= tonumber(parse(written).came) then
      keep_waiting(symbol, written)
    end
  end
  return {symbol, price, stamp, time, source, written, price, ''}
end

local answers = {'OK'}
for i = 7, #ARGV, 6 do
  local symbol, price, stamp, time, source = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  if stamp == '' then
    answers[#answers + 1] = judge_and_store(symbol, price, time, source)
  else
    answers[#answers + 1] = apply(symbol, price, stamp, time, source, ARGV[i + 5])
  end
end

-- Only when all prices of the call are in place: an account hedged over two symbols is not judged between them.
local crossed = {}
for i = 2, #answers do
  local answer = answers[i]
  local symbol = answer[1]
  local price = answer[2] ~= '' and redis.call('HGET', key('mark_prices'), symbol)
  answer[9] = price and crossed_count(symbol, price) or 0
  answer[10], answer[11] = {}, {}
  if answer[9] > 0 then
    crossed[#crossed + 1] = {answer = answer, symbol = symbol, price = price}
  end
end
-- Symbols share what may be named equally; those with few come first, so that what they leave is the others'.
table.sort(crossed, function(one, other)
  return one.answer[9] < other.answer[9]
end)
for i, found in ipairs(crossed) do
  local share = math.floor(named_max / (#crossed - i + 1))
  found.answer[10] = crossed_in('triggers', found.symbol, found.price, share)
  named_max = named_max - #found.answer[10]
end
named_max = to_warn_max(named_max)
for i = 2, #answers do
  local answer = answers[i]
  if answer[2] ~= '' then
    answer[11] = crossed_in('warnings', answer[1], redis.call('HGET', key('mark_prices'), answer[1]), named_max)
    named_max = named_max - #answer[11]
  end
end
return answers
