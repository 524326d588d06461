-- Whether an event waits on an account's pending list, however long that is.
-- ARGV: account id, event id
local list = key('pending:' .. ARGV[1])
for start = 0, redis.call('LLEN', list) - 1, 200 do
  for _, entry in ipairs(redis.call('LRANGE', list, start, start + 199)) do
    if event_id_of(entry) == ARGV[2] then
      return {'OK', 1}
    end
  end
end
return {'OK', 0}
