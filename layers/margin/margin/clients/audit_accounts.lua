-- Accounts as they are, each at one moment with its triggers and pending events, for the reconciling.
-- ARGV: partitions, how many pending events of each, account ids
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local function has_trigger(account_id, symbol, side)
  return redis.call('ZSCORE', key('triggers:' .. symbol .. ':' .. side), account_id) and 1 or 0
end
local rows = {'OK'}
for i = 3, #ARGV do
  local account_id = ARGV[i]
  local positions = {}
  for j, symbol in ipairs(redis.call('SMEMBERS', key('positions:' .. account_id))) do
    local fields = read_position(account_id, symbol)
    positions[j] = {
      symbol,
      fields[2],
      fields[3],
      fields[4],
      has_trigger(account_id, symbol, 'floor'),
      has_trigger(account_id, symbol, 'ceiling'),
    }
  end
  rows[#rows + 1] = {
    text(redis.call('HGET', key('versions'), account_id)),
    text(redis.call('HGET', key('chain_hashes'), account_id)),
    text(redis.call('HGET', key('balances'), account_id)),
    positions,
    redis.call('LRANGE', key('pending:' .. account_id), 0, ARGV[2] - 1),
    redis.call('LLEN', key('pending:' .. account_id)),
    redis.call('ZSCORE', key('pending'), account_id) and 1 or 0,
  }
end
return rows
