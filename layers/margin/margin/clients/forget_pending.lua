-- Last part of step 4: takes events that are in history off the head of the account's pending list.
-- ARGV: account id, ids of the stored events
local account_id = ARGV[1]
local stored = {}
for i = 2, #ARGV do
  stored[ARGV[i]] = true
end
local list = key('pending:' .. account_id)
local head = redis.call('LINDEX', list, 0)
while head and stored[event_id_of(head)] do
  redis.call('LPOP', list)
  head = redis.call('LINDEX', list, 0)
end
if head then
  local at_us = string.match(head, '"at_us":(%d+)')
  redis.call('ZADD', key('pending'), at_us, account_id)
else
  redis.call('ZREM', key('pending'), account_id)
end
return 'OK'
