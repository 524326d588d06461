-- Replaces the rules of a symbol, those in force and those staged, if they are what was read, in the epoch in which they were read. Rules take
-- effect only where every holder is known to be anchored to them.
-- ARGV: partitions, epoch, symbol, what was read ('' for none), what is to be, the progress that has to be noted ('' where none has to)
local problem = not_loaded(ARGV[1], ARGV[2])
if problem then
  return {'NOT_LOADED', problem}
end
if text(redis.call('HGET', key('instruments'), ARGV[3])) ~= ARGV[4] then
  return {'CONFLICT'}
end
if ARGV[6] ~= '' and redis.call('HGET', key('instrument_progress'), ARGV[3]) ~= ARGV[6] then
  return {'NOT_ANCHORED'}
end
redis.call('HSET', key('instruments'), ARGV[3], ARGV[5])
note_jump_max(ARGV[3], ARGV[5])
redis.call('HDEL', key('instrument_progress'), ARGV[3])
return {'OK'}
