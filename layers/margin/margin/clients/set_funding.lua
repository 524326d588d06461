-- Puts the funding of a symbol in place and answers, in the same step, whose triggers that moves across the mark: no commit can slip in between.
-- ARGV: partitions, symbol, funding as it was when the new one was computed ('' for none), funding ('' for none), versions of the instruments
-- whose rates moved the triggers as JSON, how many crossed accounts to name; '' for the last in a partition that is closed
local open = ARGV[6] ~= ''
if open then
  local problem = not_loaded(ARGV[1], '')
  if problem then
    return {'NOT_LOADED', problem}
  end
elseif redis.call('EXISTS', KEYS[1]) == 1 then
  return {'CONFLICT'}
end
local symbol = ARGV[2]
if text(redis.call('HGET', key('funding'), symbol)) ~= ARGV[3] or not same_instruments(cjson.decode(ARGV[5])) then
  return {'CONFLICT'}
end
if ARGV[4] == '' then
  redis.call('HDEL', key('funding'), symbol)
else
  redis.call('HSET', key('funding'), symbol, ARGV[4])
end
if not open then
  return {'OK'}
end
local mark, named_max = redis.call('HGET', key('mark_prices'), symbol), tonumber(ARGV[6])
if not mark then
  return {'OK', 0, {}, {}}
end
local named = crossed_in('triggers', symbol, mark, named_max)
local to_warn = crossed_in('warnings', symbol, mark, to_warn_max(named_max - #named))
return {'OK', crossed_count(symbol, mark), named, to_warn}
