-- Puts idempotency records of events in history back before their account is loaded; those of its newest events come with the account.
-- Answers which of these events wait as well: loading drops what waits, and must leave their records alone.
-- ARGV: account id, guard, version that Redis must still have, then idempotency key, record, time to live in ms in turn
local account_id = ARGV[1]
if not guarded(account_id, ARGV[2]) then
  return {'TAKEN_OVER'}
end
if text(redis.call('HGET', key('versions'), account_id)) ~= ARGV[3] then
  return {'CONFLICT', 'account'}
end
local waiting = {}
for _, entry in ipairs(redis.call('LRANGE', key('pending:' .. account_id), 0, -1)) do
  waiting[event_id_of(entry)] = true
end
local kept = {}
for i = 4, #ARGV, 3 do
  local name = key('idempotency:' .. account_id .. ':' .. ARGV[i])
  -- Where another event has the key, it is remembered for no shorter time: the key must not come free before that.
  local ttl_ms = math.max(tonumber(ARGV[i + 2]), redis.call('PTTL', name))
  redis.call('SET', name, ARGV[i + 1], 'PX', string.format('%.0f', ttl_ms))
  if waiting[string.match(ARGV[i + 1], '^%d+')] then
    kept[#kept + 1] = ARGV[i]
  end
end
return {'OK', kept}
