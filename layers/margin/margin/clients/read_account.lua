-- Step 1 of the write path, and every read of one account.
-- ARGV: partitions, account id, a symbol beside those of the positions ('' for none), idempotency key ('' for none), limits of
-- requests
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local limited = over_limit(ARGV[5])
if limited then
  return limited
end
local account_id, wanted, idempotency_key = ARGV[2], ARGV[3], ARGV[4]

local symbols = redis.call('SMEMBERS', key('positions:' .. account_id))
local held = {}
for _, symbol in ipairs(symbols) do
  held[symbol] = true
end
if wanted ~= '' and not held[wanted] then
  symbols[#symbols + 1] = wanted
end

local rows = {}
if #symbols > 0 then
  local marks = redis.call('HMGET', key('mark_prices'), unpack(symbols))
  local stamps = redis.call('HMGET', key('mark_stamps'), unpack(symbols))
  local times = redis.call('HMGET', key('mark_times'), unpack(symbols))
  local instruments = redis.call('HMGET', key('instruments'), unpack(symbols))
  local funding = redis.call('HMGET', key('funding'), unpack(symbols))
  local waiting = redis.call('HMGET', key('mark_candidates'), unpack(symbols))
  for i, symbol in ipairs(symbols) do
    local position = held[symbol] and read_position(account_id, symbol) or {symbol, '', '', '0'}
    local mark = {text(marks[i]), text(stamps[i]), text(times[i]), text(waiting[i])}
    rows[i] = {position, {symbol, mark, text(instruments[i]), text(funding[i])}}
  end
end

local names = {'engine', 'account:' .. account_id}
for _, symbol in ipairs(symbols) do
  names[#names + 1] = 'symbol:' .. symbol
end
local controls = {}
for i, state in ipairs(redis.call('HMGET', key('controls'), unpack(names))) do
  controls[i] = {names[i], text(state)}
end

local record, pending = '', {}
if idempotency_key ~= '' then
  record = text(redis.call('GET', key('idempotency:' .. account_id .. ':' .. idempotency_key)))
  if record ~= '' then
    pending = redis.call('LRANGE', key('pending:' .. account_id), 0, 199)
  end
end

return {
  'OK',
  redis.call('HGET', KEYS[1], 'epoch'),
  now_us(),
  text(redis.call('HGET', key('balances'), account_id)),
  text(redis.call('HGET', key('versions'), account_id)),
  text(redis.call('HGET', key('chain_hashes'), account_id)),
  rows,
  controls,
  record,
  pending,
  text(redis.call('HGET', key('holds'), account_id)),
  text(redis.call('HGET', key('warned'), account_id)),
}
