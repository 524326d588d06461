-- Removes an account that history does not know, or that belongs elsewhere now; never one with pending events.
-- ARGV: account id, guard
local account_id = ARGV[1]
if not guarded(account_id, ARGV[2]) then
  return {'TAKEN_OVER'}
end
if redis.call('EXISTS', key('pending:' .. account_id)) == 1 then
  return {'PENDING'}
end
for _, symbol in ipairs(redis.call('SMEMBERS', key('positions:' .. account_id))) do
  write_position(account_id, {symbol, ''})
end
for _, name in ipairs({'balances', 'versions', 'chain_hashes', 'blocked', 'awaits_history', 'warned'}) do
  redis.call('HDEL', key(name), account_id)
end
redis.call('ZREM', key('pending'), account_id)
return {'OK'}
