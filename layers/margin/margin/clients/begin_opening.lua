-- Closes a partition, so that nobody commits while its state is compared or rebuilt, and says where an opening that was broken off got to.
-- Whoever begins with a later epoch takes over: an opening with another token can neither load, go on nor finish.
-- ARGV: token, run_id of the server, partitions, epoch that a rebuild took when it began ('0' to go on as whoever was broken off),
-- epoch of this opening, epoch of the last opening in history that can have changed the partition
local opening = key('opening')
local before = redis.call('HMGET', opening, 'run_id', 'partitions', 'rebuild', 'after', 'accounts', 'loaded', 'epoch', 'basis', 'sweep_cursor', 'reload')
-- An opener that was held up must not close what others have opened since.
if tonumber(redis.call('HGET', KEYS[1], 'epoch') or '-1') >= tonumber(ARGV[5]) or tonumber(before[7] or '0') > tonumber(ARGV[5]) then
  return {'TAKEN_OVER'}
end
redis.call('DEL', KEYS[1])
local rebuild = ARGV[4] ~= '0' and ARGV[4] or before[3] or '0'
local progress = {'0', '0', '0', '0'}
-- What was done on another server, for another number of partitions, before a rebuild was asked for, or before trading went on in
-- another layout does not count.
if before[1] == ARGV[2] and before[2] == ARGV[3] and before[3] == rebuild and before[8] == ARGV[6] then
  progress = {before[4], before[5], before[6], before[9] or '0'}
end
redis.call('HSET', opening, 'token', ARGV[1], 'run_id', ARGV[2], 'partitions', ARGV[3], 'rebuild', rebuild, 'epoch', ARGV[5],
  'basis', ARGV[6], 'after', progress[1], 'accounts', progress[2], 'loaded', progress[3], 'sweep_cursor', progress[4])
-- That every account is to be loaded, because other rules were put in place, holds until it is done, wherever it goes on.
return {'OK', rebuild, progress[1], progress[2], progress[3], progress[4], before[10] or ''}
