-- Makes what waits to be confirmed in a partition what partition 0 has, unless it is no longer what was seen here: a price that came since is newer.
-- ARGV: partitions, then symbol, what was seen, what is to be in turn ('' for nothing)
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local aligned = 0
for i = 2, #ARGV, 3 do
  local symbol, seen, wanted = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if text(redis.call('HGET', key('mark_candidates'), symbol)) == seen then
    if wanted == '' then
      redis.call('HDEL', key('mark_candidates'), symbol)
    else
      redis.call('HSET', key('mark_candidates'), symbol, wanted)
    end
    aligned = aligned + 1
  end
end
return {'OK', aligned}
