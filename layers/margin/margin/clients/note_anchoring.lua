-- Notes how far the holders of a symbol are anchored to its staged rules; that all of them are is never taken back.
-- ARGV: partitions, epoch, symbol, its rules as they were read, progress, the progress that is the end
local problem = not_loaded(ARGV[1], ARGV[2])
if problem then
  return {'NOT_LOADED', problem}
end
if text(redis.call('HGET', key('instruments'), ARGV[3])) ~= ARGV[4] then
  return {'CONFLICT'}
end
if redis.call('HGET', key('instrument_progress'), ARGV[3]) ~= ARGV[6] then
  redis.call('HSET', key('instrument_progress'), ARGV[3], ARGV[5])
end
return {'OK'}
