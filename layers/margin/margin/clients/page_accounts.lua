-- Some accounts of a partition with their positions, for the report and the scan.
-- ARGV: partitions, cursor, how many accounts to look for
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local found = redis.call('HSCAN', key('balances'), ARGV[2], 'COUNT', ARGV[3])
local rows = {}
for i = 1, #found[2], 2 do
  local account_id = found[2][i]
  local positions = {}
  for j, symbol in ipairs(redis.call('SMEMBERS', key('positions:' .. account_id))) do
    positions[j] = read_position(account_id, symbol)
  end
  rows[#rows + 1] = {account_id, found[2][i + 1], text(redis.call('HGET', key('versions'), account_id)), positions}
end
return {'OK', found[1], rows}
