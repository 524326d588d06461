-- The epoch of a partition that is open.
-- ARGV: partitions, the epoch that it has to be ('' for any)
local problem = not_loaded(ARGV[1], ARGV[2])
if problem then
  return {'NOT_LOADED', problem}
end
return {'OK', redis.call('HGET', KEYS[1], 'epoch')}
