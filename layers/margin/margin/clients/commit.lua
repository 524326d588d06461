-- Step 3 of the write path: one event of one account, all or nothing.
-- ARGV: partitions, the commit as JSON (texts only; lists where order or emptiness matters)
local commit = cjson.decode(ARGV[2])
local problem = not_loaded(ARGV[1], commit.epoch)
if problem then
  return {'NOT_LOADED', problem}
end
local account_id = commit.account_id
local held_until = redis.call('HGET', key('holds'), account_id)
if (tonumber(held_until or '') or 0) > tonumber(now_us()) then
  return {'NOT_LOADED', 'the account is being rebuilt'}
end

-- The same request again, by a retry or because the first reply was lost: answer what it did, never do it twice.
local record_key = key('idempotency:' .. account_id .. ':' .. commit.key)
local record = redis.call('GET', record_key)
if record then
  return {'REPLAY', record, redis.call('LRANGE', key('pending:' .. account_id), 0, 199)}
end

-- A hold that ended after the account was read: it was rebuilt, and may be another at the same version.
if text(held_until) ~= commit.hold or text(redis.call('HGET', key('versions'), account_id)) ~= commit.expected_version then
  return {'CONFLICT', 'account'}
end
if not same_instruments(commit.instruments) then
  return {'CONFLICT', 'instrument'}
end
for _, used in ipairs(commit.funding) do
  if (string.match(text(redis.call('HGET', key('funding'), used[1])), '^%d+') or '0') ~= used[2] then
    return {'CONFLICT', 'funding'}
  end
end
for _, used in ipairs(commit.controls) do
  if text(redis.call('HGET', key('controls'), used[1])) ~= used[2] then
    return {'CONFLICT', 'control'}
  end
end
for _, used in ipairs(commit.marks) do
  if redis.call('HGET', key('mark_prices'), used[1]) ~= used[2] or waiting_price(used[1]) ~= used[3] then
    return {'CONFLICT', 'mark'}
  end
end

if commit.keys_max ~= '0' then
  local made, wait_ms, counts, sixteenth = keys_made(account_id, commit.key_ttl_ms)
  if commit.keys_max_binds and made >= tonumber(commit.keys_max) then
    return {'TOO_MANY_KEYS', wait_ms}
  end
  redis.call('HINCRBY', counts, sixteenth, 1)
  redis.call('PEXPIRE', counts, string.format('%.0f', math.ceil(tonumber(commit.key_ttl_ms) * 17 / 16)))
end

-- Whole numbers below 2^53 are exact in a double; opening refuses an epoch that could pass it.
local event_id = string.format('%.0f', tonumber(commit.epoch) * 4294967296 + redis.call('INCR', key('event_seq')))

redis.call('HSET', key('balances'), account_id, commit.balance)
redis.call('HSET', key('versions'), account_id, commit.n .. ':' .. event_id)
redis.call('HSET', key('chain_hashes'), account_id, commit.event_hash)
for _, position in ipairs(commit.positions) do
  write_position(account_id, position)
end
local crossed = set_triggers(account_id, commit.triggers, commit.warnings)
mark_warned(account_id, commit.warned)
redis.call('SET', record_key, event_id .. '\n' .. commit.request_hash .. '\n' .. commit.result, 'PX', commit.key_ttl_ms)
redis.call('RPUSH', key('pending:' .. account_id), event_id .. ' ' .. commit.body)
redis.call('ZADD', key('pending'), 'NX', commit.at_us, account_id)

-- Who acknowledges in the place of history must not do so while an event waits before it that history may still refuse.
if commit.wants_pending then
  redis.call('HSET', key('awaits_history'), account_id, event_id)
end
local pending = {}
if commit.wants_pending or redis.call('HEXISTS', key('awaits_history'), account_id) == 1 then
  pending = redis.call('LRANGE', key('pending:' .. account_id), 0, 199)
end
return {'OK', event_id, crossed and 1 or 0, pending}
