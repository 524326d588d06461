-- Takes away triggers of a symbol whose account does not hold it, some at a time; run while a partition is closed.
-- ARGV: index ('triggers' or 'warnings'), symbol, side, cursor, how many to look for
local name = key(ARGV[1] .. ':' .. ARGV[2] .. ':' .. ARGV[3])
local found = redis.call('ZSCAN', name, ARGV[4], 'COUNT', ARGV[5])
local removed = 0
for i = 1, #found[2], 2 do
  local account_id = found[2][i]
  if redis.call('SISMEMBER', key('positions:' .. account_id), ARGV[2]) == 0 then
    removed = removed + redis.call('ZREM', name, account_id)
  end
end
return {'OK', found[1], removed}
