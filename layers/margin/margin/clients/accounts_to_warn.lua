-- Accounts of which a mark in force crosses a trigger of the warning, of each symbol those that are crossed furthest.
-- ARGV: partitions, how many accounts to name for each symbol
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local marks = redis.call('HGETALL', key('mark_prices'))
local named = {}
for i = 1, #marks, 2 do
  for _, account_id in ipairs(crossed_in('warnings', marks[i], marks[i + 1], tonumber(ARGV[2]))) do
    named[#named + 1] = account_id
  end
end
return {'OK', named}
