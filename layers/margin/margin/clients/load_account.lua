-- Replaces one account by what history holds. Events that history refused go with their idempotency keys: nobody was told that they happened.
-- ARGV: the account as JSON
local load = cjson.decode(ARGV[1])
local account_id = load.account_id
if not guarded(account_id, load.guard) then
  return {'TAKEN_OVER'}
end
if text(redis.call('HGET', key('versions'), account_id)) ~= load.expected_version then
  return {'CONFLICT', 'account'}
end

if not same_instruments(load.instruments) then
  return {'CONFLICT', 'instrument'}
end
local list = key('pending:' .. account_id)
local entries = redis.call('LRANGE', list, 0, -1)
-- Who heals because of an event that does not wait any more comes late: another has healed, and what waits now is sound.
if load.forked_event_id ~= '' then
  local waits = false
  for _, entry in ipairs(entries) do
    waits = waits or event_id_of(entry) == load.forked_event_id
  end
  if not waits then
    return {'GONE'}
  end
end
local kept = {}
for _, idempotency_key in ipairs(load.kept_keys) do
  kept[idempotency_key] = true
end
for _, entry in ipairs(entries) do
  local body = string.match(entry, '^%d+ (.*)$')
  local idempotency_key = cjson.decode(body).key
  local name = key('idempotency:' .. account_id .. ':' .. idempotency_key)
  local record = redis.call('GET', name)
  -- One that stands for an event in history was put back before.
  if record and string.match(record, '^%d+') == event_id_of(entry) and not kept[idempotency_key] then
    redis.call('DEL', name)
  end
end
redis.call('DEL', list)
redis.call('ZREM', key('pending'), account_id)
redis.call('HDEL', key('blocked'), account_id)
redis.call('HDEL', key('awaits_history'), account_id)
mark_warned(account_id, '')

for _, symbol in ipairs(redis.call('SMEMBERS', key('positions:' .. account_id))) do
  write_position(account_id, {symbol, ''})
end
for _, symbol in ipairs(load.swept_symbols) do
  drop_triggers(account_id, symbol)
end
for _, position in ipairs(load.positions) do
  write_position(account_id, position)
end
redis.call('HSET', key('balances'), account_id, load.balance)
redis.call('HSET', key('versions'), account_id, load.version)
redis.call('HSET', key('chain_hashes'), account_id, load.chain_hash)
set_triggers(account_id, load.triggers, load.warnings)
for _, record in ipairs(load.keys) do
  redis.call('SET', key('idempotency:' .. account_id .. ':' .. record[1]), record[2], 'PX', record[3])
end
return {'OK'}
