-- Notes how far an opening has got.
-- ARGV: token, last account that is done, how many were looked at, how many were put back, from where on to look for false keys
if redis.call('HGET', key('opening'), 'token') ~= ARGV[1] then
  return {'TAKEN_OVER'}
end
redis.call('HSET', key('opening'), 'after', ARGV[2], 'accounts', ARGV[3], 'loaded', ARGV[4], 'sweep_cursor', ARGV[5])
return {'OK'}
