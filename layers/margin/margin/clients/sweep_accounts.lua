-- Some accounts of a partition with their positions and triggers, and the market that they are judged by, all of one moment.
-- ARGV: partitions, cursor, how many accounts to look for
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local found = redis.call('HSCAN', key('balances'), ARGV[2], 'COUNT', ARGV[3])
local rows, seen, symbols = {}, {}, {}
for i = 1, #found[2], 2 do
  local account_id = found[2][i]
  local positions = {}
  for j, symbol in ipairs(redis.call('SMEMBERS', key('positions:' .. account_id))) do
    local position = redis.call('HMGET', key('position:' .. account_id .. ':' .. symbol), 'quantity', 'entry_cost')
    local floor = redis.call('ZSCORE', key('triggers:' .. symbol .. ':floor'), account_id)
    local ceiling = redis.call('ZSCORE', key('triggers:' .. symbol .. ':ceiling'), account_id)
    positions[j] = {symbol, position[1], position[2], text(floor), text(ceiling)}
    if not seen[symbol] then
      seen[symbol] = true
      symbols[#symbols + 1] = symbol
    end
  end
  rows[#rows + 1] = {account_id, found[2][i + 1], text(redis.call('HGET', key('versions'), account_id)), positions}
end
local market = {}
for i, symbol in ipairs(symbols) do
  market[i] = {
    symbol,
    text(redis.call('HGET', key('mark_prices'), symbol)),
    text(redis.call('HGET', key('mark_stamps'), symbol)),
    text(redis.call('HGET', key('instruments'), symbol)),
  }
end
return {'OK', found[1], rows, market, now_us()}
