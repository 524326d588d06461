-- The rules of a symbol in one partition, how far its holders are anchored to those that are staged, and how many holders there are.
-- ARGV: partitions, symbol
local problem = not_loaded(ARGV[1], '')
if problem then
  return {'NOT_LOADED', problem}
end
local floors, ceilings = key('triggers:' .. ARGV[2] .. ':floor'), key('triggers:' .. ARGV[2] .. ':ceiling')
return {
  'OK',
  redis.call('HGET', KEYS[1], 'epoch'),
  text(redis.call('HGET', key('instruments'), ARGV[2])),
  text(redis.call('HGET', key('instrument_progress'), ARGV[2])),
  redis.call('ZCARD', floors) + redis.call('ZCARD', ceilings),
}
