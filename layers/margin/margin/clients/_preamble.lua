-- Stands before every script. KEYS[1] is the partition's marker: it fixes the slot, and the other keys are derived under its tag.
-- No script does arithmetic on money: amounts pass through as text, and only trigger scores and mark prices are compared, as doubles. Of a
-- symbol with funding the shift of its triggers is taken from the price first, rounded towards "check sooner".
-- One computes with mark prices: set_marks measures how far a new one moves. That decides which price is believed, never an amount.
local prefix = string.sub(KEYS[1], 1, -7)

local function key(name)
  return prefix .. name
end

-- What is wrong with the partition's state, or nil. `epoch` is "" where the caller has not seen one yet.
local function not_loaded(partitions, epoch)
  local marker = redis.call('HMGET', KEYS[1], 'epoch', 'partitions')
  if not marker[1] then
    return 'the marker is missing'
  end
  if marker[2] ~= partitions then
    return 'the state was loaded for PARTITIONS=' .. tostring(marker[2])
  end
  if epoch ~= '' and marker[1] ~= epoch then
    return 'the state was loaded anew meanwhile'
  end
  return nil
end

local function text(value)
  return value or ''
end

-- The price of a symbol as the scores of one of its sets of triggers are to be compared with it. `funding` is kept as
-- "n index shift-of-floors shift-of-ceilings" for liquidation, and the same two shifts for the warning.
local function level_of(index, symbol, side, price)
  local funding = redis.call('HGET', key('funding'), symbol)
  if not funding then
    return price
  end
  local floors, ceilings, warning_floors, warning_ceilings = string.match(funding, '^%S+ %S+ (%S+) (%S+) (%S+) (%S+)$')
  if index == 'warnings' then
    floors, ceilings = warning_floors, warning_ceilings
  end
  local shift = tonumber(side == 'floor' and floors or ceilings)
  if shift == 0 then
    return price
  end
  -- More than three roundings of doubles can come to.
  local rounded = (math.abs(tonumber(price)) + math.abs(shift)) * 2 ^ -50
  return string.format('%.17g', tonumber(price) - shift + (side == 'floor' and -rounded or rounded))
end

-- Whether a mark in force crosses a trigger. Scores are rounded towards "check sooner", so comparing doubles never misses.
local function crosses(index, symbol, side, score)
  local mark = redis.call('HGET', key('mark_prices'), symbol)
  if not mark then
    return false
  end
  local level = tonumber(level_of(index, symbol, side, mark))
  if side == 'floor' then
    return level <= score
  end
  return level >= score
end

-- Whether the rules of symbols, those in force and those staged, are still those that something was decided or anchored by.
local function same_instruments(used)
  for _, one in ipairs(used) do
    local written, version = redis.call('HGET', key('instruments'), one[1]), '0'
    if written then
      local instrument = cjson.decode(written)
      version = tostring(instrument.version)
      if type(instrument.next) == 'table' then
        version = version .. '>' .. tostring(instrument.next.version)
      end
    end
    if version ~= one[2] then
      return false
    end
  end
  return true
end

-- Keeps how far a price of a symbol may move at once beside its rules: every price asks for it, and rules can be long.
local function note_jump_max(symbol, rules)
  local jump_max = rules ~= '' and cjson.decode(rules).mark_jump_max
  if type(jump_max) == 'string' then
    redis.call('HSET', key('mark_jump_max'), symbol, jump_max)
  else
    redis.call('HDEL', key('mark_jump_max'), symbol)
  end
end

local function score_of(written)
  if written == 'inf' then
    return math.huge
  end
  if written == '-inf' then
    return -math.huge
  end
  return tonumber(written)
end

-- Accounts of which a price crosses a trigger, those that are crossed furthest first.
local function crossed_in(index, symbol, price, named_max)
  local floors, ceilings = key(index .. ':' .. symbol .. ':floor'), key(index .. ':' .. symbol .. ':ceiling')
  local low, high = level_of(index, symbol, 'floor', price), level_of(index, symbol, 'ceiling', price)
  local named = redis.call('ZREVRANGEBYSCORE', floors, '+inf', low, 'LIMIT', 0, named_max)
  for _, account_id in ipairs(redis.call('ZRANGEBYSCORE', ceilings, '-inf', high, 'LIMIT', 0, named_max - #named)) do
    named[#named + 1] = account_id
  end
  return named
end

-- How many accounts a price brings to evaluation.
local function crossed_count(symbol, price)
  local floors, ceilings = key('triggers:' .. symbol .. ':floor'), key('triggers:' .. symbol .. ':ceiling')
  local low, high = level_of('triggers', symbol, 'floor', price), level_of('triggers', symbol, 'ceiling', price)
  return redis.call('ZCOUNT', floors, low, '+inf') + redis.call('ZCOUNT', ceilings, '-inf', high)
end

-- How many of those who may have to be warned are named: what those left who are crossed, but not more than there is time for.
local function to_warn_max(left)
  return math.min(left, 200)
end

local function drop_from(index, account_id, symbol)
  redis.call('ZREM', key(index .. ':' .. symbol .. ':floor'), account_id)
  redis.call('ZREM', key(index .. ':' .. symbol .. ':ceiling'), account_id)
end

local function drop_triggers(account_id, symbol)
  drop_from('triggers', account_id, symbol)
  drop_from('warnings', account_id, symbol)
end

-- Puts triggers of one index in place, writes only what differs, and says whether one is crossed by the mark in force.
local function place(index, account_id, triggers)
  local crossed = false
  for _, trigger in ipairs(triggers) do
    local symbol, side, score = trigger[1], trigger[2], trigger[3]
    local own = key(index .. ':' .. symbol .. ':' .. side)
    local other = key(index .. ':' .. symbol .. ':' .. (side == 'floor' and 'ceiling' or 'floor'))
    local present = redis.call('ZSCORE', own, account_id)
    if not present or tonumber(present) ~= score_of(score) then
      redis.call('ZADD', own, score, account_id)
    end
    redis.call('ZREM', other, account_id)
    if crosses(index, symbol, side, score_of(score)) then
      crossed = true
    end
  end
  return crossed
end

-- Puts the account's triggers in place, and says whether one of liquidation is crossed. Each list has {symbol, side, score as text};
-- `triggers` has one for every position, `warnings` for every one or for none.
local function set_triggers(account_id, triggers, warnings)
  if #warnings == 0 then
    for _, trigger in ipairs(triggers) do
      drop_from('warnings', account_id, trigger[1])
    end
  end
  place('warnings', account_id, warnings)
  return place('triggers', account_id, triggers)
end

-- Whether an account has had its margin warning: '1' or ''.
local function mark_warned(account_id, warned)
  if warned == '' then
    redis.call('HDEL', key('warned'), account_id)
  else
    redis.call('HSET', key('warned'), account_id, warned)
  end
end

local function write_position(account_id, position)
  local symbol = position[1]
  local name = key('position:' .. account_id .. ':' .. symbol)
  if position[2] == '' then
    redis.call('DEL', name)
    redis.call('SREM', key('positions:' .. account_id), symbol)
    drop_triggers(account_id, symbol)
  else
    redis.call('HSET', name, 'quantity', position[2], 'entry_price', position[3], 'entry_cost', position[4])
    if position[5] == '0' then
      redis.call('HDEL', name, 'entry_funding')
    else
      redis.call('HSET', name, 'entry_funding', position[5])
    end
    redis.call('SADD', key('positions:' .. account_id), symbol)
  end
end

-- Quantity, entry cost and entry funding of a position as texts; empty where there is none.
local function read_position(account_id, symbol)
  local name = key('position:' .. account_id .. ':' .. symbol)
  local fields = redis.call('HMGET', name, 'quantity', 'entry_cost', 'entry_funding')
  return {symbol, text(fields[1]), text(fields[2]), fields[3] or '0'}
end

local function now_us()
  local time = redis.call('TIME')
  return string.format('%.0f', tonumber(time[1]) * 1000000 + tonumber(time[2]))
end

-- When the mark of a symbol was stored, and when it was observed; nil where that is not known. A time stands beside the stamp that it belongs
-- to: one beside another stamp is that of a mark which a release that keeps no times has replaced.
local function stamp_and_time(symbol)
  local stamp = redis.call('HGET', key('mark_stamps'), symbol)
  local of, time = string.match(text(redis.call('HGET', key('mark_times'), symbol)), '^(%d+):(-?%d+)$')
  if of ~= stamp then
    time = nil
  end
  return stamp or nil, time
end

-- The price that waits to be confirmed beside the mark in force of a symbol, or ''; kept as "stamp:came:time:price:source".
local function waiting_price(symbol)
  local of, price = string.match(text(redis.call('HGET', key('mark_candidates'), symbol)), '^(%d+):[^:]*:[^:]*:([^:]*):')
  return of and of == redis.call('HGET', key('mark_stamps'), symbol) and price or ''
end

-- Pending events are "id body"; the id is all that a script needs of most of them.
local function event_id_of(entry)
  return string.match(entry, '^(%d+) ')
end

-- Whether the one who made `guard` still has the right to replace or remove an account ('' stands for everybody): it is the token of the
-- opening under way, without which nobody commits in the partition, or the hold on the account, without which nobody commits on it.
local function guarded(account_id, guard)
  if guard == '' or redis.call('HGET', key('opening'), 'token') == guard then
    return true
  end
  return redis.call('HGET', key('holds'), account_id) == guard and (tonumber(guard) or 0) > tonumber(now_us())
end

-- Keeps the moment of a limit. A Redis that is full goes on answering reads, so they are not counted then: commits are refused anyhow.
local function note_due(name, moment, now)
  local lives_ms = string.format('%.0f', math.ceil((moment - now) / 1000) + 1)
  local reply = redis.pcall('SET', key('rate:' .. name), string.format('%.3f', moment), 'PX', lives_ms)
  if reply.err and not string.find(reply.err, 'OOM', 1, true) then
    error(reply)
  end
end

-- Counts a request under each limit that is given as JSON, [[name, per second, at once]], '' for none; or, where one of them is used up, counts
-- nothing and says which, with the microseconds until a request passes. Each limit keeps one moment: that at which, were requests to come evenly,
-- the next one would be due. A request may come before that by as much as all but one of those at once take.
local function over_limit(written)
  if written == '' then
    return nil
  end
  local now, due = tonumber(now_us()), {}
  for _, limit in ipairs(cjson.decode(written)) do
    local name, per_s, burst = limit[1], limit[2], limit[3]
    local interval = 1000000 / per_s
    local next_due = tonumber(redis.call('GET', key('rate:' .. name)) or '0')
    -- No more than what all of them take can be owed: more is from before the clock was put back, and would keep everybody out.
    if next_due - now > burst * interval + 0.5 then
      next_due = now + burst * interval
      note_due(name, next_due, now)
    end
    next_due = math.max(now, next_due)
    local wait = next_due - now - (burst - 1) * interval
    -- What rounding of the moments can come to.
    if wait > 0.5 then
      return {'LIMITED', name, per_s, burst, string.format('%.0f', math.ceil(wait))}
    end
    due[name] = next_due + interval
  end
  for name, moment in pairs(due) do
    note_due(name, moment, now)
  end
  return nil
end

-- Counts keys of an account that live as long by when they were made, in sixteenths of their life: what the account has of them, and the milliseconds until the
-- oldest of these are forgotten. A sixteenth is forgotten when all of it is.
local function keys_made(account_id, ttl_ms)
  local name, width = key('idempotency_counts:' .. account_id .. ':' .. ttl_ms), ttl_ms / 16
  local now_ms = tonumber(now_us()) / 1000
  local present = math.floor(now_ms / width)
  local made, oldest, counts = 0, present, redis.call('HGETALL', name)
  for i = 1, #counts, 2 do
    local sixteenth = tonumber(counts[i])
    if sixteenth < present - 16 or sixteenth > present then
      redis.call('HDEL', name, counts[i])
    else
      made, oldest = made + tonumber(counts[i + 1]), math.min(oldest, sixteenth)
    end
  end
  return made, math.ceil((oldest + 17) * width - now_ms), name, string.format('%.0f', present)
end
