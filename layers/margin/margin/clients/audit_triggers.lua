-- Accounts that have a trigger on one side of a symbol and do not hold it, some at a time.
-- ARGV: partitions, symbol, side, cursor, how many to look for
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local found = redis.call('ZSCAN', key('triggers:' .. ARGV[2] .. ':' .. ARGV[3]), ARGV[4], 'COUNT', ARGV[5])
local strays = {}
for i = 1, #found[2], 2 do
  if redis.call('SISMEMBER', key('positions:' .. found[2][i]), ARGV[2]) == 0 then
    strays[#strays + 1] = found[2][i]
  end
end
return {'OK', found[1], strays}
