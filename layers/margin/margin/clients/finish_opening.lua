-- Opens a partition for a new epoch; event ids begin at 1 again, under it.
-- ARGV: token, epoch, partitions, run_id
if redis.call('HGET', key('opening'), 'token') ~= ARGV[1] then
  return {'TAKEN_OVER'}
end
redis.call('SET', key('event_seq'), 0)
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'partitions', ARGV[3], 'run_id', ARGV[4])
-- How far a sweep has got is said in terms of the server that it was on.
redis.call('DEL', key('opening'), key('sweep'))
return {'OK'}
