-- Some accounts of a partition with their positions and triggers, and the market that they are judged by, all of one moment.
-- ARGV: partitions, cursor, how many accounts to look for; and to see only those that hold a symbol: the symbol, and 'floor' or 'ceiling'. Their
-- cursor is a place in the index, furthest from the trigger first; with 'scan' behind it one that misses nobody who stays in the index.
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local found
if ARGV[4] then
  local index, holders, next_cursor = key('triggers:' .. ARGV[4] .. ':' .. ARGV[5]), {}, '0'
  if ARGV[6] == 'scan' then
    local scanned = redis.call('ZSCAN', index, ARGV[2], 'COUNT', ARGV[3])
    next_cursor = scanned[1]
    for i = 1, #scanned[2], 2 do
      holders[#holders + 1] = scanned[2][i]
    end
  else
    local first, next_first = tonumber(ARGV[2]), tonumber(ARGV[2]) + tonumber(ARGV[3])
    holders = redis.call(ARGV[5] == 'floor' and 'ZRANGE' or 'ZREVRANGE', index, first, next_first - 1)
    next_cursor = #holders < tonumber(ARGV[3]) and '0' or string.format('%.0f', next_first)
  end
  local named = {}
  for _, account_id in ipairs(holders) do
    local balance = redis.call('HGET', key('balances'), account_id)
    if balance then
      named[#named + 1] = account_id
      named[#named + 1] = balance
    end
  end
  found = {next_cursor, named}
else
  found = redis.call('HSCAN', key('balances'), ARGV[2], 'COUNT', ARGV[3])
end
local rows, seen, symbols = {}, {}, {}
for i = 1, #found[2], 2 do
  local account_id = found[2][i]
  local positions = {}
  for j, symbol in ipairs(redis.call('SMEMBERS', key('positions:' .. account_id))) do
    local floor = redis.call('ZSCORE', key('triggers:' .. symbol .. ':floor'), account_id)
    local ceiling = redis.call('ZSCORE', key('triggers:' .. symbol .. ':ceiling'), account_id)
    local warn_floor = redis.call('ZSCORE', key('warnings:' .. symbol .. ':floor'), account_id)
    local warn_ceiling = redis.call('ZSCORE', key('warnings:' .. symbol .. ':ceiling'), account_id)
    positions[j] = {read_position(account_id, symbol), text(floor), text(ceiling), text(warn_floor), text(warn_ceiling)}
    if not seen[symbol] then
      seen[symbol] = true
      symbols[#symbols + 1] = symbol
    end
  end
  local version, warned = redis.call('HGET', key('versions'), account_id), redis.call('HGET', key('warned'), account_id)
  rows[#rows + 1] = {account_id, found[2][i + 1], text(version), positions, text(warned)}
end
local market = {}
for i, symbol in ipairs(symbols) do
  market[i] = {
    symbol,
    {
      text(redis.call('HGET', key('mark_prices'), symbol)),
      text(redis.call('HGET', key('mark_stamps'), symbol)),
      text(redis.call('HGET', key('mark_times'), symbol)),
      text(redis.call('HGET', key('mark_candidates'), symbol)),
    },
    text(redis.call('HGET', key('instruments'), symbol)),
    text(redis.call('HGET', key('funding'), symbol)),
  }
end
return {'OK', found[1], rows, market, now_us()}
