-- Takes away triggers of a symbol whose account does not hold it, some at a time; run while a partition is closed.
-- ARGV: symbol, side, cursor, how many to look for
local name = key('triggers:' .. ARGV[1] .. ':' .. ARGV[2])
local found = redis.call('ZSCAN', name, ARGV[3], 'COUNT', ARGV[4])
local removed = 0
for i = 1, #found[2], 2 do
  local account_id = found[2][i]
  if redis.call('SISMEMBER', key('positions:' .. account_id), ARGV[1]) == 0 then
    removed = removed + redis.call('ZREM', name, account_id)
  end
end
return {'OK', found[1], removed}
